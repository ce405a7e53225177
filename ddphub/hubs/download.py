"""One file from a hub to the disk: whole and as the hub told it, or not at all.

The bytes go to a temporary file beside the target, a block at a time. After a cut the rest is asked for (RFC 9110,
section 14), if the hub's ETag or our own checksum can tell that it is the rest of the same bytes.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from io import BufferedWriter
from pathlib import Path
from typing import Final

import requests

from ddphub.errors import HubUnavailable
from ddphub.hubs.client import RemoteFile
from ddphub.hubs.http import HubConnection, cause, shown
from ddphub.names import new_hex_id

TRIES: Final = 10
PAUSE: Final = 1.0
"""Seconds before the second try; each further one waits as much longer."""

BLOCK: Final = 64 * 1024
"""Bytes read at a time; a cut loses at most as many of those that have come."""


def download(connection: HubConnection, file: RemoteFile, target: Path) -> None:
    """See `HubClient.download`."""
    temporary = target.with_name(f".{target.name}.{new_hex_id()}")
    with contextlib.ExitStack() as last:
        last.callback(temporary.unlink, missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as to:
            _Download(connection, file, to).run()
            to.flush()
            os.fsync(to.fileno())
        temporary.replace(target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class _Download:
    """One file on its way, over as many requests as it takes, at most TRIES."""

    def __init__(self, connection: HubConnection, file: RemoteFile, to: BufferedWriter) -> None:
        self._connection = connection
        self._file = file
        self._to = to
        self._etag: str | None = None
        self._began = False
        self._is_bounded = False
        self._start_over()

    def run(self) -> None:
        """Writes the whole file.

        Raises:
            HubError: it did not come, or is not what the hub told.
            OSError: it cannot be written.
        """
        for number in range(1, TRIES + 1):
            try:
                self._fetch()
                break
            except HubUnavailable:
                if not self._began or number == TRIES:  # a hub that gives nothing is asked again by the caller
                    raise
                threading.Event().wait(PAUSE * number)
        if not self._is_bounded:
            raise HubUnavailable(f"{self._what}: no length came with the bytes, so nobody can tell if they are all")
        if self._file.size not in {None, self._have}:
            raise HubUnavailable(f"{self._what}: {self._have} bytes came of the {self._file.size} that the hub told")
        if self._file.sha256 not in {None, self._digest.hexdigest()}:
            raise HubUnavailable(f"{self._what}: these are not the bytes that the hub told: the sha256 differs")

    @property
    def _what(self) -> str:
        return f"GET {shown(self._file.url)}"

    def _start_over(self) -> None:
        self._have = 0
        self._digest = hashlib.sha256()
        self._to.seek(0)
        self._to.truncate()

    def _fetch(self) -> None:
        """One request: what is still missing, or all of it."""
        if self._have and self._have == self._file.size:
            return
        if not (self._etag or self._file.sha256):
            self._start_over()  # nothing could tell whether the rest belongs to what is here
        headers = {}
        if self._have:
            headers["range"] = f"bytes={self._have}-"
            if self._etag:
                headers["if-range"] = self._etag
        with self._connection.open(self._file.url, headers) as response:
            self._began = True
            etag = response.headers.get("etag", "")
            self._etag = etag if etag.startswith('"') else None  # a weak one speaks of no bytes
            is_the_rest = response.headers.get("content-range", "").startswith(f"bytes {self._have}-")
            if response.status_code != 206 or not is_the_rest:
                self._start_over()
            if response.status_code == 206 and not is_the_rest:
                raise HubUnavailable(f"{self._what}: other bytes came than were asked for")
            told = {"content-length", "transfer-encoding"} & {name.lower() for name in response.headers}
            self._is_bounded = bool(told or self._file.size is not None or self._file.sha256)
            for block in self._blocks(response):
                self._to.write(block)
                self._digest.update(block)
                self._have += len(block)

    def _blocks(self, response: requests.Response) -> Iterator[bytes]:
        """The body; errors of the network are HubUnavailable, those of the disk are raised where it is written."""
        blocks = response.iter_content(BLOCK)
        while True:
            try:
                block = next(blocks, None)
            except (requests.RequestException, OSError) as error:
                raise HubUnavailable(f"{self._what}: {cause(error)}") from error
            if block is None:
                return
            yield block

"""Bytes on their way through this machine."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from ddphub.server.directory import create_private

CHUNK: Final = 1024 * 1024
"""Bytes in memory at a time."""


class IncomingFile:
    """Bytes while they arrive; not safe for two threads at once.

    Args:
        path: a new file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._digest = hashlib.sha256()
        self._file = create_private(path)

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Add bytes."""
        self._digest.update(chunk)
        _write_all(self._file, memoryview(chunk))
        self.size += len(chunk)

    @property
    def sha256(self) -> str:
        """Of the bytes so far, as hex."""
        return self._digest.hexdigest()

    def sync(self) -> None:
        """Put the bytes on disk."""
        os.fsync(self._file)

    def close(self, *, keep: bool = False) -> None:
        """Close the file, and remove it unless it is to be kept or was moved."""
        os.close(self._file)
        if not keep:
            self.path.unlink(missing_ok=True)


def _write_all(file: int, content: memoryview) -> None:
    while content:
        content = content[os.write(file, content) :]


def remove_stale(folder: Path, before: float) -> None:
    """Remove the files of a folder that have not changed since `before`, in seconds since the epoch."""
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < before:
                path.unlink()


def read_chunks(file: BinaryIO, length: int) -> Iterator[bytes]:
    """The next `length` bytes of an open file, in chunks; closes it at the end."""
    with file:
        while length > 0 and (chunk := file.read(min(CHUNK, length))):
            length -= len(chunk)
            yield chunk

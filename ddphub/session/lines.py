"""Append-only text files whose every line carries a checksum.

```
5f1c0a2e {"attempt_id":"...","rank":0,...}
└─ crc32 of the JSON text, 8 hex digits
```

One writer a file at a time. A writer that finds a partial last line (its predecessor was killed) starts a new one;
a reader skips what does not match its checksum and says so. A partial last line is not consumed: its writer may
be alive and about to finish it.
"""

import errno
import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ddphub.checksum import with_checksum, without_checksum
from ddphub.files import open_regular

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors that say nothing against the open file. After any other it is opened again by its name: a handle may be
stale for ever (ESTALE after a server's restart, ENOTCONN when a FUSE daemon died) while the file is back."""


class PartlyWrittenError(OSError):
    """The disk took the first `lines` lines of an append and refused the next."""

    def __init__(self, cause: OSError, lines: int) -> None:
        super().__init__(cause.errno, cause.strerror)
        self.lines = lines


@dataclass(frozen=True)
class Line:
    """One line as read: `record` is None when the line is damaged.

    Attributes:
        start: offset of the line's first byte.
        end: offset behind its newline.
        record: the JSON object.
    """

    start: int
    end: int
    record: dict[str, Any] | None


def read_lines(path: Path, offset: int = 0) -> Iterator[Line]:
    """The complete lines of a file from `offset` on; none when the file does not exist.

    Raises:
        OSError: when the file cannot be read.
    """
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            end = offset + len(line)
            if line != b"\n":  # what a writer puts behind a partial line leaves no empty line, but a person may
                yield Line(offset, end, _parse(line))
            offset = end


def partial_last_line(path: Path) -> int:
    """Bytes behind the last newline: a writer is about to finish them, or died in the middle. 0 without a file.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return 0
    with file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return size - (start + newline + 1)
            end = start
    return size


def close_last_line(path: Path) -> int:
    """Ends a partial last line whose writer is dead, so that it reads as a damaged one; returns its bytes.

    Raises:
        OSError: the file cannot be read or written.
    """
    size = partial_last_line(path)
    if size:
        with path.open("ab") as file:
            file.write(b"\n")
    return size


def _parse(line: bytes) -> dict[str, Any] | None:
    text = without_checksum(line.rstrip(b"\n"))
    if text is None:
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


class LineWriter:
    """Appends lines to one file. Any thread of the process that owns the file; opened at the first write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._unsynced = False
        self._made = False

    def append(self, texts: Iterable[str]) -> None:
        """Writes each text (JSON, one line) as a line.

        Raises:
            PartlyWrittenError: the disk took the first `lines` of them only.
            OSError: it took none. In both cases a line is there whole or not at all.
        """
        with self._lock:
            for count, text in enumerate(texts):
                try:
                    self._append_line(self._open(), with_checksum(text.encode()) + b"\n")
                except OSError as error:
                    self._doubt(error)
                    if count:
                        raise PartlyWrittenError(error, count) from error
                    raise

    def append_lines(self, lines: Sequence[bytes]) -> None:
        """Writes lines that carry their checksums and newlines already, together. Only where nobody else appends.

        Raises:
            OSError: the disk did not take them all; each one is there whole or not at all.
        """
        with self._lock:
            try:
                self._append_block(self._open(), b"".join(lines))
            except OSError as error:
                self._doubt(error)
                raise

    def _append_block(self, descriptor: int, block: bytes) -> None:
        written = 0
        try:
            while written < len(block):
                written += os.write(descriptor, memoryview(block)[written:])
        except OSError:
            partial = written - (block.rfind(b"\n", 0, written) + 1)
            try:
                if partial:
                    os.ftruncate(descriptor, os.fstat(descriptor).st_size - partial)
            except OSError:
                self._let_go()  # as below
            raise
        finally:
            self._unsynced = self._unsynced or written > 0

    def _append_line(self, descriptor: int, line: bytes) -> None:
        # Asked anew: where locks do not exclude, another process may have appended to a journal meanwhile.
        size = os.fstat(descriptor).st_size
        written = 0
        try:
            while written < len(line):
                written += os.write(descriptor, line[written:])
        except OSError:
            # Take back what a full disk accepted of this line; never a whole line, which a reader may have seen.
            try:
                os.ftruncate(descriptor, size)
            except OSError:
                self._let_go()  # opening it again finds the partial line
            raise
        self._unsynced = True

    def sync(self) -> None:
        """Waits until what was appended is on disk.

        Raises:
            OSError: when the disk says no.
        """
        with self._lock:
            if not self._unsynced:
                return
            try:
                os.fdatasync(self._open())
            except OSError as error:
                self._doubt(error)
                raise
            self._unsynced = False

    def close(self) -> None:
        """Closes the file; a later append opens it again."""
        with self._lock:
            self._let_go()

    def _doubt(self, error: OSError) -> None:
        if error.errno not in _NO_ROOM:
            self._let_go()

    def _let_go(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with suppress(OSError):  # a stale handle says so here too, and is closed all the same
                os.close(descriptor)

    def _open(self) -> int:
        if self._descriptor is None:
            flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
            if not self._made:
                # Once only: where a file system has gone away, its mount point is an empty folder in which a new
                # file would be hidden as soon as the file system is back.
                self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                flags |= os.O_CREAT
            descriptor = os.open(self.path, flags, 0o600)
            self._made = True
            try:
                size = os.fstat(descriptor).st_size
                if size and os.pread(descriptor, 1, size - 1) != b"\n":
                    os.write(descriptor, b"\n")
            except OSError:
                os.close(descriptor)
                raise
            self._descriptor = descriptor
        return self._descriptor

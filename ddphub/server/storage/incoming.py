"""Bytes on their way through this machine."""

import contextlib
import errno
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
        path: a new file, or one that has bytes already.
        size: of the bytes that it has, how many are taken over.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path
        self.size = size
        self._digest = hashlib.sha256()
        self._file = os.open(path, os.O_RDWR) if size else create_private(path)
        if size:
            os.truncate(self._file, size)
            for start in range(0, size, CHUNK):
                self._digest.update(os.pread(self._file, min(CHUNK, size - start), start))
            os.lseek(self._file, size, os.SEEK_SET)

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Add bytes."""
        self._digest.update(chunk)
        _write_all(self._file, memoryview(chunk))
        self.size += len(chunk)

    @property
    def sha256(self) -> str:
        """Of the bytes so far, as hex."""
        return self._digest.hexdigest()

    def copy_to(self, file: int, start: int) -> None:
        """Copy all bytes into another file.

        Args:
            file: descriptor of the other file.
            start: where they begin there.
        """
        done = 0
        while done < self.size:
            done += _copy_some(self._file, file, done, start + done, self.size - done)

    def sync(self) -> None:
        """Put the bytes on disk."""
        os.fsync(self._file)

    def close(self, *, keep: bool = False) -> None:
        """Close the file, and remove it unless it is to be kept or was moved."""
        os.close(self._file)
        if not keep:
            self.path.unlink(missing_ok=True)


def _copy_some(source: int, target: int, source_start: int, target_start: int, length: int) -> int:
    """Copies bytes, by the kernel where it can; how many."""
    try:
        count = os.copy_file_range(source, target, length, source_start, target_start)
    except OSError as error:
        if error.errno not in _NOT_BY_KERNEL:
            raise
        count = 0
    # 0 before the end: some file systems give this instead of an error (copy_file_range(2), "BUGS").
    count = count or os.pwrite(target, os.pread(source, min(length, CHUNK), source_start), target_start)
    if count == 0:
        raise OSError(errno.EIO, "the bytes that arrived are no longer there")
    return count


_NOT_BY_KERNEL: Final = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})


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

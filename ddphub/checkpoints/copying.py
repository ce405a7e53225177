"""The bytes of one open file into another, in whichever way holds the caller shortest.

1. Shared: the file system lets both files have the same blocks (ioctl_ficlonerange(2): XFS, btrfs). That takes no time
   where the bytes are on the disk, and as long as the disk takes where they are not yet, as those that were written a
   moment ago. So these are copied instead, in memory.
2. Copied in the kernel: copy_file_range(2) may let a file server do it; sendfile(2) works between any two files.
3. Copied piece by piece.
"""

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from ddphub.checkpoints.disk import write_all
from ddphub.checkpoints.lease import Watch

FATAL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS})
"""Errors after which no other way is tried."""

KERNEL_PIECE: Final = 16 * 1024 * 1024
"""Bytes copied between two looks at the source: a writer that breaks the lease waits for one piece at most."""

PLAIN_PIECE: Final = 1024 * 1024
FIRST_SHARED: Final = 4 * 1024 * 1024
LONGEST_SHARED: Final = 64 * 1024 * 1024
"""Bytes shared at once, at first and at most; multiples of every block size."""

SLOW: Final = 0.01
"""Seconds after which sharing, which should take none, is waiting for the disk."""

_FICLONE: Final = 0x40049409  # linux/fs.h; the fcntl module has both from Python 3.13 on
_FICLONERANGE: Final = 0x4020940D
_CACHESTAT: Final = 451  # cachestat(2), Linux 6.5; one number on every machine

_Way = Callable[[int, int, int, int], int]
"""(source, target, offset, count) -> bytes copied; 0 where it cannot, and behind the source's end."""


def copy_bytes(source_fd: int, target_fd: int, size: int, watch: Watch) -> None:
    """Give an empty file the bytes of another. The writing rank, any thread.

    Args:
        source_fd: open for reading.
        target_fd: open for writing, empty.
        size: the source's bytes; where it has fewer by now, the target has fewer too.
        watch: says between pieces whether someone writes the source.

    Raises:
        Busy: someone does.
        OSError: it cannot be copied.
    """
    ways: list[_Way] = [_by_sendfile, _by_hand]
    shares = watch.leased
    if not shares:
        # Nothing keeps writers away between two ranges: what can be had in one step is, however long it takes.
        if clone(source_fd, target_fd):
            return
        ways.insert(0, _by_range)
    done, piece = 0, FIRST_SHARED
    while done < size:
        count = min(piece, size - done)
        if shares and not _is_unwritten(source_fd, done, count):
            started = time.monotonic()
            if _share(source_fd, target_fd, done, count):
                done += count
                piece = min(2 * piece, LONGEST_SHARED)
                # A kernel that cannot be asked shows here. copy_file_range is no way out: it would share too.
                shares = time.monotonic() - started < SLOW
            else:
                shares = False
                ways.insert(0, _by_range)
        else:
            copied = _copy(ways, source_fd, target_fd, done, count)
            if not copied:
                return
            done += copied
        watch()


def clone(source_fd: int, target_fd: int) -> bool:
    """Share all blocks of a file with another, in one step; False where the file system cannot. Any process."""
    return _succeeds(target_fd, _FICLONE, source_fd)


def _share(source_fd: int, target_fd: int, start: int, count: int) -> bool:
    """Share a range, whose ends are multiples of the block size, or the source's end."""
    return _succeeds(target_fd, _FICLONERANGE, struct.pack("qQQQ", source_fd, start, count, start))


def _succeeds(target_fd: int, request: int, argument: int | bytes) -> bool:
    try:
        fcntl.ioctl(target_fd, request, argument)
    except OSError as problem:
        if problem.errno in FATAL:
            raise
        return False
    return True


def _copy(ways: list[_Way], source_fd: int, target_fd: int, start: int, count: int) -> int:
    """Copy some bytes in the first way that works, and forget those that do not; 0 when none is left."""
    while ways:
        try:
            if copied := ways[0](source_fd, target_fd, start, count):
                return copied
        except InterruptedError:
            continue
        except OSError as problem:
            if problem.errno in FATAL or len(ways) == 1:
                raise
        # 0 before the end: some file systems give this instead of an error (copy_file_range(2), "BUGS").
        del ways[0]
    return 0


def _by_range(source_fd: int, target_fd: int, start: int, count: int) -> int:
    return os.copy_file_range(source_fd, target_fd, min(count, KERNEL_PIECE), start, start)


def _by_sendfile(source_fd: int, target_fd: int, start: int, count: int) -> int:
    os.lseek(target_fd, start, os.SEEK_SET)
    return os.sendfile(target_fd, source_fd, start, min(count, KERNEL_PIECE))


def _by_hand(source_fd: int, target_fd: int, start: int, count: int) -> int:
    data = os.pread(source_fd, min(count, PLAIN_PIECE), start)
    write_all(target_fd, data, start)
    return len(data)


def _is_unwritten(fd: int, start: int, count: int) -> bool:
    """Whether bytes of a range are in memory alone, on their way to the disk at best; False if the kernel is too old.

    The answer takes microseconds: cachestat(2) looks at the page cache and waits for nothing.
    """
    libc, counters = _libc()
    where, pages = (counters * 2)(start, count), (counters * 5)()
    if libc.syscall(_CACHESTAT, fd, where, pages, 0) != 0:
        return False
    _, dirty, on_their_way, *_ = pages
    return bool(dirty or on_their_way)


@cache
def _libc() -> tuple[Any, Any]:
    """The C library, which has no name for the call either, and the type of the call's numbers."""
    import ctypes  # noqa: PLC0415  # a process that saves nothing does not wait for it

    return ctypes.CDLL(None), ctypes.c_uint64

"""A read lease on a file: the kernel's word that nobody opened it for writing meanwhile (fcntl(2), "Leases").

While it is held, whoever opens the file for writing breaks it and waits until it is given back. Where it is not to
be had (most network file systems, a file of another user), size, times and inode are all there is to compare,
and they do not show a writer that pauses between two writes.
"""

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ddphub.errors import StagingError


class Busy(StagingError):
    """The file is being written right now: try again, a few times."""


# fs/nfs/nfs4proc.c (nfs4_add_lease) and fs/smb/client/cifsfs.c (cifs_setlease) say EAGAIN for "the server gave no
# delegation", which is the normal state there; everywhere else EAGAIN means that somebody is writing.
_EAGAIN_SAYS_NOTHING: Final = frozenset({"nfs", "nfs4", "cifs", "smb3"})


class Watch:
    """Looks, whenever it is called, whether an open file is, or was, written since it was made.

    Attributes:
        leased: whether the kernel tells; else size and times do, which a writer can fool.

    Raises:
        Busy: as `take_lease`.
    """

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path
        # Before the lease: a write between the two shows.
        self._before = self._size_and_times()
        self.leased = take_lease(fd, path)

    def __call__(self) -> None:
        """Look.

        Raises:
            Busy: someone writes, or wrote, the file.
        """
        if self.leased and fcntl.fcntl(self._fd, fcntl.F_GETLEASE) != fcntl.F_RDLCK:
            raise Busy(f"{self._path} was opened for writing")
        if self._size_and_times() != self._before:
            raise Busy(f"{self._path} was changed")

    def _size_and_times(self) -> tuple[int, int, int]:
        now = os.fstat(self._fd)
        return now.st_size, now.st_mtime_ns, now.st_ctime_ns


@contextmanager
def unwritten(fd: int, path: Path) -> Iterator[Watch]:
    """Guard the reading of an open file; gives a watch to call between reads. Any process, any thread.

    A last look is taken at the end of the block, so what was read in it is not torn once the block is left.

    Args:
        fd: open for reading only.
        path: its name, for messages.

    Raises:
        Busy: someone writes, or wrote, the file.
    """
    watch = Watch(fd, path)
    try:
        watch()
        yield watch
        watch()
    finally:
        if watch.leased:
            # Closing is not enough: a child forked meanwhile shares the open file and with it the lease.
            with suppress(OSError):
                fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def take_lease(fd: int, path: Path) -> bool:
    """Take a read lease; False where this file can have none. The caller gives it back with F_UNLCK.

    Raises:
        Busy: someone has the file open for writing.
    """
    try:
        # The signal that tells of a break is SIGIO unless it is moved, and SIGIO kills. SIGURG is ignored unless
        # a program asks for it; below the real-time signals the kernel never falls back to SIGIO.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        # And from here on it is sent to nobody: programs with a SIGURG handler are not disturbed either.
        with suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETOWN, 0)
    except BlockingIOError as problem:
        if _file_system(fd) in _EAGAIN_SAYS_NOTHING:
            return False
        raise Busy(f"{path} is open for writing") from problem
    except OSError:
        return False
    return True


def _file_system(fd: int) -> str | None:
    """The type of the file system an open file lies on, such as "ext4"; None when /proc does not say."""
    try:
        info = Path(f"/proc/self/fdinfo/{fd}").read_text()
        mount = next(line.split()[1] for line in info.splitlines() if line.startswith("mnt_id:"))
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if line.split()[0] == mount:
                return line.partition(" - ")[2].split()[0]
    except (OSError, StopIteration, IndexError, ValueError):
        pass
    return None

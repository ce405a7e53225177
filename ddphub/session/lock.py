"""session.lock: whose turn it is to deliver and delete.

A lock saves work; the idempotency key carries the promise. flock can be granted twice across hosts, so its holder is
*probably* alone, and nothing here depends on more than that.
"""

import errno
import fcntl
import logging
import os
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Final

from filelock import SoftFileLease, Timeout

logger = logging.getLogger(__name__)

LEASE_SECONDS: Final = 30.0
"""How long a holder that cannot use flock keeps its lease without refreshing it."""

_NO_FLOCK: Final = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL})
_HELD: Final = frozenset({errno.EAGAIN, errno.EACCES})


class SessionLock:
    """Taken without waiting, by a delivery thread or by `ddphub sync`; released by any thread of the process.

    Args:
        path: the lock file; never deleted, or two processes could hold locks on two files of one name.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._flock = _Flock(path)
        self._lease: SoftFileLease | None = None

    @property
    def patience(self) -> float:
        """Seconds to go on trying before another holder is believed to live.

        The kernel takes a flock back from a dead process at once. A lease of a process on another host is over when
        this object has seen it unrefreshed for LEASE_SECONDS.
        """
        return 0.0 if self._lease is None else 1.2 * LEASE_SECONDS

    def acquire(self) -> bool:
        """Takes the lock if nobody has it; True also when this object has it already.

        Raises:
            OSError: the lock file cannot be opened.
        """
        if self._lease is None:
            try:
                return self._flock.acquire()
            except OSError as error:
                if error.errno not in _NO_FLOCK:
                    raise
                logger.info("%s: flock does not work here (%s); a lease takes its place", self._path, error)
            # No waiting acquire, ever: filelock's fork hook makes os.fork wait for a thread inside a slow one.
            self._lease = SoftFileLease(
                self._path.with_suffix(".lease"), lease_duration=LEASE_SECONDS, timeout=0, thread_local=False
            )
        if not self._lease.is_locked:
            with suppress(Timeout):
                self._lease.acquire(timeout=0)
        return self._lease.is_locked

    def release(self) -> None:
        """Lets the lock go; nothing happens when it is not held."""
        self._flock.release()
        if self._lease is not None:
            self._lease.release()


class _Flock:
    """An exclusive flock that no fork waits for.

    Not filelock's: a file server that hangs keeps a thread in `open` or `flock`, and meanwhile filelock holds up every
    os.fork of the process; after 30 s it ends the forked child, a DataLoader's worker for instance.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        _flocks.add(self)

    def acquire(self) -> bool:
        """Whether it is held now; does not wait.

        Raises:
            OSError: the file cannot be opened, or flock does not work there.
        """
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self.close()
                if error.errno in _HELD:
                    return False
                raise
        return True

    def release(self) -> None:
        """Lets it go; nothing happens when it is not held."""
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self.close()

    def close(self) -> None:
        """Closes the file. In a forked child: the parent keeps the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


_flocks: "weakref.WeakSet[_Flock]" = weakref.WeakSet()


def _on_fork() -> None:
    """In the child, which must not keep the lock when its parent is killed."""
    for flock in _flocks:
        flock.close()


os.register_at_fork(after_in_child=_on_fork)

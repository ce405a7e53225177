"""session.lock: whose turn it is to deliver and delete.

A lock saves work; the idempotency key carries the promise. flock can be granted twice across hosts, so its holder is
*probably* alone, and nothing here depends on more than that.
"""

import errno
import logging
from pathlib import Path
from typing import Final

from filelock import BaseFileLock, FileLock, SoftFileLease, Timeout

logger = logging.getLogger(__name__)

LEASE_SECONDS: Final = 30.0
"""How long a holder that cannot use flock keeps its lease without refreshing it."""

_NO_FLOCK: Final = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL})


class SessionLock:
    """Taken without waiting, by a delivery thread or by `ddphub sync`; released by any thread of the process.

    Args:
        path: the lock file; never deleted, or two processes could hold locks on two files of one name.
    """

    def __init__(self, path: Path) -> None:
        # No waiting acquire, ever: filelock's fork hook makes os.fork wait for a thread inside a slow one.
        self._lock: BaseFileLock = FileLock(
            path, timeout=0, mode=0o600, thread_local=False, fallback_to_soft=False, preserve_lock_file=True
        )
        self._path = path

    def acquire(self) -> bool:
        """Takes the lock if nobody has it; True also when this object has it already.

        Raises:
            OSError: the lock file cannot be opened.
        """
        if self._lock.is_locked:
            return True
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        except (OSError, NotImplementedError) as error:
            if isinstance(self._lock, SoftFileLease) or getattr(error, "errno", errno.ENOSYS) not in _NO_FLOCK:
                raise
            logger.info("%s: flock does not work here (%s); a lease takes its place", self._path, error)
            self._lock = SoftFileLease(
                self._path.with_suffix(".lease"), lease_duration=LEASE_SECONDS, timeout=0, thread_local=False
            )
            return self.acquire()
        return True

    def release(self) -> None:
        """Lets the lock go; nothing happens when it is not held."""
        self._lock.release()

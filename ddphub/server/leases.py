"""Who checks which checkpoint, for all processes of a hub.

A lease saves work, no more: a process that lost its lease and goes on does what the next one does, too, and the commit
is one transaction. Times are of the machines' clocks; where they differ, a check is begun late or twice.
"""

import logging
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import update

from ddphub.server.database import Database
from ddphub.server.tables import Checkpoint

LEASE_S: Final = 30.0
"""Seconds after which the check of a process that died begins anew when its client completes again."""

_PROLONG_S: Final = 5.0

_log = logging.getLogger(__name__)


class Leases:
    """The leases of one process.

    Args:
        database: the hub's database.
        node: the data directory's id.
    """

    def __init__(self, database: Database, node: str) -> None:
        self.holder = f"{node}{secrets.token_hex(8)}"
        self._node = node
        self._database = database
        self._held: set[str] = set()
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._held)

    def take(self, checkpoint: Checkpoint) -> None:
        """Write in a checkpoint's row that this process checks it; `hold` it once that is committed."""
        checkpoint.checking_by = self.holder
        checkpoint.checking_until = time.time() + LEASE_S

    def hold(self, checkpoint_id: str) -> None:
        """Prolong a lease from now on, until a `kept` block ends."""
        with self._changed:
            self._held.add(checkpoint_id)
            if self._thread is None:
                self._thread = threading.Thread(target=self._prolong, name="ddphub-leases", daemon=True)
                self._thread.start()

    @contextmanager
    def kept(self, checkpoint_id: str) -> Iterator[None]:
        """End the prolonging of a lease when the block ends; one that it ends with an error is given back."""
        try:
            yield
        except BaseException:
            self._give_back(checkpoint_id)
            raise
        finally:
            with self._changed:
                self._held.discard(checkpoint_id)

    def _give_back(self, checkpoint_id: str) -> None:
        own = update(Checkpoint).where(Checkpoint.public_id == checkpoint_id, Checkpoint.checking_by == self.holder)
        try:
            with self._database.write() as session:
                session.connection().execute(own.values(checking_by=None, checking_until=None))
        except Exception:  # noqa: BLE001  # the error that ended the check matters more, and the lease ends by itself
            _log.warning("a lease could not be given back; it ends in %g s", LEASE_S)

    def _prolong(self) -> None:
        while not self._closing:
            with self._changed:
                self._changed.wait_for(lambda: self._closing, _PROLONG_S)
                held = list(self._held)
            if not held or self._closing:
                continue
            own = update(Checkpoint).where(Checkpoint.public_id.in_(held), Checkpoint.checking_by == self.holder)
            try:
                with self._database.write() as session:
                    session.connection().execute(own.values(checking_until=time.time() + LEASE_S))
            except Exception:  # noqa: BLE001  # a database that is away for a moment: the next turn tries again
                _log.warning("leases could not be prolonged; trying again in %g s", _PROLONG_S)

    def end_of_the_dead(self) -> None:
        """End the leases of this data directory's processes; called while there is none."""
        dead = update(Checkpoint).where(Checkpoint.checking_by.startswith(self._node, autoescape=True))
        with self._database.write() as session:
            session.connection().execute(dead.values(checking_by=None, checking_until=None))

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()


def is_held(checkpoint: Checkpoint) -> bool:
    """Whether a process is at a checkpoint's bytes."""
    return checkpoint.checking_until is not None and checkpoint.checking_until > time.time()

"""What a hub does from time to time by itself, in one of its processes at a time.

A chore's row says when it is due. The process that sets that further does it this time; should it die meanwhile, the
chore is done when it is due again. So each is a thing that may be done twice, or half.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import select, update

from ddphub.server.database import insert
from ddphub.server.hub import Hub
from ddphub.server.principal import Principal
from ddphub.server.pruning import prune
from ddphub.server.tables import Chore, Project

_AT_ONCE: Final = 1000
"""Checkpoints of one project that are deleted before the next project has its turn."""

_LOOK_S: Final = 60.0
"""Seconds between two looks at what is due, at most."""

_DAY_S: Final = 24 * 3600.0

_CLOSE_S: Final = 5.0

_log = logging.getLogger(__name__)

IsOver = Callable[[], bool]
"""Whether the hub is stopping: the rest is for the next time."""


@dataclass(frozen=True, kw_only=True)
class Duty:
    """A chore: its row's name, seconds between two times, and what is done."""

    name: str
    every_s: float
    do: Callable[[Hub, IsOver], None]


def follow_retention(hub: Hub, is_over: IsOver) -> None:
    """Delete what the rules of every project do not keep."""
    with hub.database.read() as session:
        projects = list(session.scalars(select(Project).where(Project.retention.is_not(None)).order_by(Project.id)))
    by = Principal.of_the_hub("retention")
    while projects and not is_over():
        unfinished = []
        for project in projects:
            pruned = prune(hub, project, by, limit=_AT_ONCE, is_over=is_over)
            if pruned.some:
                _log.info("retention: %s lost %d checkpoints, %d bytes", project.name, len(pruned.some), pruned.size)
            # What nobody could delete is not tried again at once.
            if pruned.more and pruned.some:
                unfinished.append(project)
        projects = unfinished


def remove_leftovers(hub: Hub, _is_over: IsOver) -> None:
    """Remove bytes that no row names."""
    hub.leftovers.sweep()


class Upkeep:
    """Does the chores of a hub in a thread of its own.

    Args:
        hub: the hub.

    Attributes:
        chores: what is done.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.chores = (
            Duty(name="retention", every_s=hub.settings.upkeep_s, do=follow_retention),
            Duty(name="leftovers", every_s=_DAY_S, do=remove_leftovers),
        )
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ddphub-upkeep", daemon=True)

    def start(self) -> None:
        """Begin; the first look is soon, but not while the hub is starting."""
        self._thread.start()

    def close(self) -> None:
        """End; what cannot be left for the next time at once ends with the process."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        look_s = min(_LOOK_S, self._hub.settings.upkeep_s)
        # Processes that start together do not all ask together.
        while not self._stopping.wait(look_s * (0.5 + secrets.randbelow(1000) / 2000)):
            for chore in self.chores:
                if self._stopping.is_set():
                    return
                self._do(chore)

    def _do(self, chore: Duty) -> None:
        try:
            if self.is_ours(chore):
                chore.do(self._hub, self._stopping.is_set)
        except Exception:  # noqa: BLE001  # whatever it was, the log has it, and the chore is due again later
            if not self._stopping.is_set():
                _log.exception("the chore %s failed; it is tried again in %g s", chore.name, chore.every_s)

    def is_ours(self, chore: Duty) -> bool:
        """Whether it is due and no other process has taken it; a hub that is new has nothing to do yet."""
        with self._hub.database.read() as session:
            next_at = session.scalar(select(Chore.next_at).where(Chore.name == chore.name))
        # After that look: one that another process has set further meanwhile would seem to be too far off.
        now = time.time()
        # One that is further off was set by a clock that was ahead, or by other settings.
        if next_at is not None and now < next_at <= now + chore.every_s:
            return False
        after = now + chore.every_s
        with self._hub.database.write() as session:
            connection = session.connection()
            if next_at is None:
                connection.execute(insert(Chore).on_conflict_do_nothing(), {"name": chore.name, "next_at": after})
                return False
            taken = update(Chore).where(Chore.name == chore.name, Chore.next_at == next_at).values(next_at=after)
            return connection.execute(taken).rowcount == 1

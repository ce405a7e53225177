"""Following live runs: what `ddphub sync --watch` does, for jobs whose nodes cannot reach the hub.

Each run that a process has in use gets a `Session` of its own, the same as rank 0's, so that one run's upload holds up
no other run's metrics. When its process is gone the run is delivered as `ddphub sync` does it.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from ddphub.checkpoints.staging import StagingArea
from ddphub.config import RateLimits
from ddphub.errors import DdphubError
from ddphub.hubs.client import HubClient
from ddphub.session import presence
from ddphub.session.folder import UNANSWERED, RunFolder, RunInfo
from ddphub.session.session import Session
from ddphub.session.sync import find_runs

logger = logging.getLogger(__name__)

PACE: Final = 1.0
"""Seconds between two looks at which runs are there, and in use."""

LAST_EFFORT: Final = 60.0
"""Seconds for what is under way when a run ends; what is left then goes the way of `ddphub sync`."""


class Watch:
    """Follows every run in some folders until none is in use.

    Args:
        places: run directories, or folders of them; looked at again and again.
        connect: the hub of a run, and its URL. May raise any DdphubError.
        deliver: delivers a run that is not in use; whether nothing is left.
        say: tells a person something.
    """

    def __init__(
        self,
        places: Sequence[Path],
        *,
        connect: Callable[[RunFolder], tuple[HubClient, str]],
        deliver: Callable[[RunFolder], bool],
        say: Callable[[str], None],
    ) -> None:
        self._places = places
        self._connect = connect
        self._deliver = deliver
        self._say = say
        self._followed: dict[Path, Session | None] = {}
        self._settled: dict[Path, bool] = {}

    def run(self) -> bool:
        """Follows; returns whether everything was delivered. It may be killed, and started again, at any moment."""
        try:
            while self._look():
                time.sleep(PACE)
        finally:
            for session in self._followed.values():
                if session is not None:
                    session.finish(time.monotonic())
        return all(self._settled.values())

    def _look(self) -> bool:
        """One look at every run; whether any is in use."""
        any_in_use = False
        for folder in [folder for place in self._places for folder in find_runs(place)]:
            path = folder.path
            if presence.is_in_use(folder.alive):
                any_in_use = True
                self._settled.pop(path, None)
                if path not in self._followed:
                    self._followed[path] = self._follow(folder)
            elif path not in self._settled:
                if (session := self._followed.pop(path, None)) is not None:
                    session.finish(time.monotonic() + LAST_EFFORT)
                self._settled[path] = self._deliver(folder)
        return any_in_use

    def _follow(self, folder: RunFolder) -> Session | None:
        try:
            info = RunInfo.load(folder.run_json)
            if info.run_id.startswith(UNANSWERED):
                return None  # its rank may still hand it over
            client, info.hub = self._connect(folder)
            session = Session(
                folder=folder,
                info=info,
                attempt_id=info.attempts[-1],
                staging=StagingArea(folder.staging),
                client=client,
                rate_limits=RateLimits(ckpt=0.0),
            )
        except (DdphubError, OSError, IndexError) as error:
            self._say(f"{folder.path}: {error}")
            return None
        session.start()
        self._say(f"following {folder.path}")
        return session

"""Following live runs: what `ddphub sync --watch` does, for jobs whose nodes cannot reach the hub.

Each run that a process has in use gets a `Session` of its own, the same as rank 0's, so that one run's upload holds up
no other run's metrics. It stays while the run may come back: when SLURM requeues its job, torchrun starts its workers
again. After that the run is delivered as `ddphub sync` does it. In the other direction go the hub's wishes that a run
stops, see stop.py.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from ddphub.checkpoints.staging import StagingArea
from ddphub.config import RateLimits
from ddphub.errors import DdphubError, JournalError
from ddphub.events import OF_ITSELF
from ddphub.hubs.client import HubClient
from ddphub.session import stop
from ddphub.session.folder import UNANSWERED, RunFolder, RunInfo
from ddphub.session.lines import read_lines
from ddphub.session.presence import Sign
from ddphub.session.queue import SlurmQueue
from ddphub.session.session import Session
from ddphub.session.sync import find_runs

logger = logging.getLogger(__name__)

PACE: Final = 1.0
"""Seconds between two looks at which runs are there, and in use."""

LINGER: Final = 60.0
"""Seconds in which a run that did not finish may come back, where SLURM does not know its job."""

WORKERS: Final = 8
"""Ended runs that are delivered at once."""

LAST_EFFORT: Final = 3600.0
"""Seconds for what is under way when a run ends; what is left then goes the way of `ddphub sync`."""

AGAIN: Final = 120.0
"""Seconds until a run that could not be followed, or not be delivered, is tried again."""

GOODBYE: Final = 2.0
"""Seconds for requests under way when the watch is interrupted."""

_HEAD_LINES: Final = 200
_TAIL_BYTES: Final = 1024 * 1024
"""Where an attempt's file says how it began, and how it ended."""


class Watch:
    """Follows every run in some folders until all have ended.

    Args:
        places: run directories, or folders of them; looked at again and again.
        connect: the hub of a run, and its URL. May raise any DdphubError.
        deliver: delivers a run that is not in use; whether nothing is left. Called in several threads.
        say: tells a person something.
        linger: seconds in which a run that did not finish may come back, and the first run may appear.
    """

    def __init__(
        self,
        places: Sequence[Path],
        *,
        connect: Callable[[RunFolder], tuple[HubClient, str]],
        deliver: Callable[[RunFolder], bool],
        say: Callable[[str], None],
        linger: float = LINGER,
    ) -> None:
        self._places = places
        self._connect = connect
        self._deliver = deliver
        self._say = say
        self._linger = linger
        self._runs: dict[Path, _Followed] = {}
        self._queue = SlurmQueue()
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._empty_since = time.monotonic()

    def run(self) -> bool:
        """Follows; returns whether everything was delivered. It may be killed, and started again, at any moment."""
        self._empty_since = time.monotonic()
        for number in range(WORKERS):
            threading.Thread(target=self._main, name=f"ddphub-watch-{number}", daemon=True).start()
        try:
            while self._look():
                time.sleep(PACE)
        finally:
            leaving = [threading.Thread(target=run.leave, daemon=True) for run in self._runs.values()]
            for thread in leaving:
                thread.start()
            for thread in leaving:
                thread.join(GOODBYE)
        return all(run.is_delivered for run in self._runs.values())

    def _main(self) -> None:
        while True:
            self._work.get()()

    def _look(self) -> bool:
        """One look at every run; whether there is any to wait for."""
        try:
            found = {folder.path: folder for place in self._places for folder in find_runs(place)}
        except OSError as error:  # a file server that is away for a moment
            logger.warning("the runs cannot be listed now: %s", error)
            return True
        for path in self._runs.keys() - found.keys():
            self._runs.pop(path).leave()  # handed over to the run that it belongs to, or deleted
        for path in found.keys() - self._runs.keys():
            self._runs[path] = _Followed(found[path], self._connect, self._deliver, self._say, self._work.put)
        self._queue.ask({run.job for run in self._runs.values() if run.job is not None and run.may_return})
        for run in self._runs.values():
            run.look(self._queue, self._linger)
        if not self._runs:
            return time.monotonic() - self._empty_since < self._linger
        self._empty_since = time.monotonic()
        return not all(run.is_over for run in self._runs.values())


class _Followed:
    """One run of a watch. `look` is for one thread; what waits for a hub is done in others.

    Attributes:
        job: the SLURM job of its newest attempt, once that has ended.
        may_return: whether it has ended in a way after which it may come back.
        is_over: whether nothing more is expected of it.
        is_delivered: whether nothing was left the last time that it was delivered.
    """

    def __init__(
        self,
        folder: RunFolder,
        connect: Callable[[RunFolder], tuple[HubClient, str]],
        deliver: Callable[[RunFolder], bool],
        say: Callable[[str], None],
        later: Callable[[Callable[[], None]], None],
    ) -> None:
        self._folder = folder
        self._connect = connect
        self._deliver = deliver
        self._say = say
        self._later = later
        self._sign = Sign(folder.alive)
        self._session: Session | None = None
        self._attempts: list[str] = []
        self._version: object = None  # of run.json, when it was read last
        self._has_told_stop = False
        self._try_again = float("-inf")
        self._complaint = ""
        self._is_in_use = False
        self._ended: float | None = None
        self._has_waited = False
        self._finishing: Session | None = None
        self._settling: object = None  # who is at it: the newest counts
        self.job: str | None = None
        self.may_return = False
        self.is_over = False
        self.is_delivered = False

    def look(self, slurm: SlurmQueue, linger: float) -> None:
        """One look. The watch's own thread."""
        was_in_use, self._is_in_use = self._is_in_use, self._sign.is_in_use()
        if self._is_in_use:
            self._ended, self.may_return, self.is_over, self.is_delivered = None, False, False, False
            self._follow()
        elif self._ended is None:
            self._end(was_in_use=was_in_use)
        elif self._settling is not None:
            return
        elif self.may_return:
            self._wait(slurm, linger)
        else:
            self.is_over = True
            if not self.is_delivered and time.monotonic() >= self._try_again:
                self._settle()

    def leave(self) -> None:
        """The watch ends, or the run's directory is gone: a request under way gets a moment."""
        for session in (self._session, self._finishing):
            if session is not None:
                session.hurry(time.monotonic())
                session.finish(time.monotonic())

    # While it is in use.

    def _follow(self) -> None:
        version = _version(self._folder.run_json)
        if version != self._version or (self._session is None and time.monotonic() >= self._try_again):
            self._version = version
            self._try_again = time.monotonic() + AGAIN
            try:
                self._go_on(RunInfo.load(self._folder.run_json))
            except (DdphubError, OSError, IndexError) as error:
                self._complain(str(error))
        if self._session is not None and self._session.stop_requested and not self._has_told_stop:
            self._tell_stop()

    def _go_on(self, info: RunInfo) -> None:
        """With the newest attempt.

        Raises:
            DdphubError, OSError, IndexError: the run cannot be followed.
        """
        if info.run_id.startswith(UNANSWERED):
            return  # its rank may still hand it over
        if info.attempts != self._attempts:
            self._has_told_stop = False
        self._attempts = list(info.attempts)
        if self._session is not None:
            self._session.follow(self._attempts, is_alive=True)
            return
        if self._finishing is not None:
            self._finishing.hurry(time.monotonic())
        client, info.hub = self._connect(self._folder)
        self._session = Session(
            folder=self._folder,
            info=info,
            attempt_id=info.attempts[-1],
            staging=StagingArea(self._folder.staging),
            client=client,
            rate_limits=RateLimits(ckpt=0.0),
        )
        self._session.start()
        self._say(f"following {self._folder.path}")

    def _tell_stop(self) -> None:
        try:
            stop.ask(self._folder.stop, self._attempts[-1])
        except OSError as error:
            self._complain(f"the hub asks it to stop, which it cannot be told: {error}")
            return
        self._has_told_stop = True
        self._say(f"{self._folder.path}: the hub asks it to stop")

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            self._complaint = complaint
            self._say(f"{self._folder.path}: {complaint}")

    # When it has ended.

    def _end(self, *, was_in_use: bool) -> None:
        state, self.job = _last_words(self._folder)
        self.may_return = state not in OF_ITSELF
        # One that was found ended may have ended long ago.
        self._ended = time.monotonic() - (0.0 if was_in_use else _age(self._folder))
        self._version = None
        self._has_waited = False
        if self._session is not None and self.may_return:
            self._session.follow(self._attempts, is_alive=False)
        else:
            self._settle()

    def _wait(self, slurm: SlurmQueue, linger: float) -> None:
        """Whether it comes back."""
        is_there = slurm.has(self.job) if self.job is not None else None
        is_late = self._ended is None or time.monotonic() - self._ended >= linger
        if is_there or (is_there is None and not is_late):
            self._has_waited = True
            return
        self.may_return = False
        if self._has_waited or self._session is not None:
            self._settle()  # ranks that outlived rank 0 may have left something since

    def _settle(self) -> None:
        """Ends the session when it has nothing left, then delivers as `ddphub sync` does."""
        self.is_over = False
        self._settling = token = object()
        self._finishing, self._session = self._session, None
        arguments = (self._finishing, token)
        threading.Thread(target=self._finish, args=arguments, name="ddphub-finish", daemon=True).start()

    def _finish(self, session: Session | None, token: object) -> None:
        if session is not None:
            session.finish(time.monotonic() + LAST_EFFORT)
        self._later(lambda: self._deliver_rest(token))

    def _deliver_rest(self, token: object) -> None:
        """A worker's thread."""
        try:
            if not self._is_in_use:
                self.is_delivered = self._deliver(self._folder)
        except Exception:  # a worker that dies would take every other run's end with it
            logger.exception("%s could not be delivered", self._folder.path)
        finally:
            self._try_again = time.monotonic() + AGAIN
            if self._settling is token:
                self._settling = self._finishing = None


def _version(path: Path) -> object:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _age(folder: RunFolder) -> float:
    """Seconds since anything was written to its spool, as far as this host's clock tells."""
    changed = [0.0]
    for path in folder.spool_files():
        try:
            changed.append(path.stat().st_mtime)
        except OSError:
            continue
    return max(0.0, time.time() - max(changed))


def _last_words(folder: RunFolder) -> tuple[str | None, str | None]:
    """How the newest attempt ended, by its own words, and its SLURM job; None where it does not say."""
    try:
        info = RunInfo.load(folder.run_json)
        path = folder.relay_file(info.attempts[-1])
        size = path.stat().st_size
        lines = [*islice(read_lines(path), _HEAD_LINES), *read_lines(path, max(0, size - _TAIL_BYTES))]
    except (OSError, JournalError, IndexError):
        return None, None
    state = job = None
    for line in lines:
        for event in _attempt_events(line.record):
            state = event.get("state")
            slurm = event.get("slurm")
            job = str(slurm.get("job_id")) if isinstance(slurm, dict) else job
    return state, job if job is not None and job.isascii() and job.isdigit() else None


def _attempt_events(batch: dict[str, Any] | None) -> list[dict[str, Any]]:
    events = (batch or {}).get("events")
    if not isinstance(events, list) or (batch or {}).get("rank") != 0:
        return []
    return [event for event in events if isinstance(event, dict) and event.get("kind") == "attempt"]

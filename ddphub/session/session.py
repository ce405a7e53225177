"""The session: rank 0's ownership of the run. It delivers in the background and never touches the training thread.

Three loops: events, checkpoints, heartbeat; so that a large upload holds up neither metrics nor signs of life. An
offline session has one, which computes digests of what is staged.

A session that hears nothing from its hub lets session.lock go, so that a `ddphub sync` elsewhere, which may reach the
hub, can deliver. It takes the lock again for each try, if nobody has it, and keeps it once the hub has answered.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from ddphub.checkpoints.staging import Slot, StagingArea
from ddphub.config import RateLimits
from ddphub.errors import HubError, HubUnavailable, StagingError
from ddphub.hubs import wire
from ddphub.hubs.client import HubClient
from ddphub.session import stop
from ddphub.session.delivery import Delivery
from ddphub.session.folder import RunFolder, RunInfo
from ddphub.session.loop import LONGEST_PAUSE, Loop

logger = logging.getLogger(__name__)

SHORTEST_PACE: Final = 0.25
"""Seconds between two looks at spool or staging area, whatever the rate limits say."""

LOCK_PACE: Final = 2.0
"""Seconds between two looks at whether another deliverer has let session.lock go."""

CUT_OFF: Final = 30.0
"""Seconds of failures only, after which a hub that has answered before counts as out of reach."""

JOIN_GRACE: Final = 0.5
"""Seconds past the deadline in which a loop may notice it; a request under way is not waited for."""


class Session:
    """Owns the hub session of one attempt. Rank 0 only.

    Args:
        folder: the run directory.
        info: content of its run.json.
        attempt_id: this attempt.
        staging: the staging area.
        client: the hub, or None for an offline run.
        rate_limits: seconds between requests.
        on_reached: called once the hub has registered the run, in a thread of the session.
    """

    def __init__(
        self,
        *,
        folder: RunFolder,
        info: RunInfo,
        attempt_id: str,
        staging: StagingArea,
        client: HubClient | None,
        rate_limits: RateLimits,
        on_reached: Callable[[], None] = lambda: None,
    ) -> None:
        self._info = info
        self._attempt_id: str | None = attempt_id
        self._stop_file = folder.stop
        self._staging = staging
        self._client = client
        self._rate_limits = rate_limits
        self._on_reached = on_reached
        self._loops: list[Loop] = []
        self._ready = False
        self._reached = False
        self._failing_since: float | None = None
        self._users = 0
        self._counting = threading.Lock()  # around session.lock and how many steps of this session count on it
        self._cut_short = False
        self._deadline = float("inf")
        self._opening = threading.Lock()  # around the first request: two loops must not register twice
        self._delivery = Delivery(
            folder=folder,
            info=info,
            staging=staging,
            client=client,
            hub=info.hub,
            ckpt_interval=rate_limits.ckpt,
            progress=self._hear,
        )
        self._heartbeat: Loop | None = None
        if client is None:
            # An offline session never keeps the lock; only a save that finds no room takes it, for a moment.
            self._loops.append(Loop("ddphub-digest", self._seal, lambda: 1.0))
            return
        reached, longest = self._has_reached, self._longest_pause
        self._loops.append(
            Loop("ddphub-events", self._send_events, lambda: self._pace(rate_limits.metrics), reached, longest)
        )
        self._checkpoints = Loop(
            "ddphub-checkpoints", self._send_checkpoints, lambda: self._pace(1.0), reached, longest
        )
        self._loops.append(self._checkpoints)
        self._heartbeat = Loop("ddphub-heartbeat", self._beat, self._heartbeat_pace, longest_pause=longest)

    def start(self) -> None:
        """Starts the loops."""
        for loop in self._loops:
            loop.start()
        if self._heartbeat is not None:
            self._heartbeat.start()

    @property
    def url(self) -> str | None:
        """Where a person looks; None until registered."""
        return self._delivery.url

    @property
    def model_id(self) -> str | None:
        """The hub's id; None until registered."""
        return self._delivery.model_id

    @property
    def stop_requested(self) -> bool:
        """Whether the hub asked the run to stop, by itself or through stop.json."""
        return self._delivery.stop_requested

    @property
    def last_error(self) -> str | None:
        """Why something is still on disk, if a loop knows."""
        known = next((loop.last_error for loop in self._loops if loop.last_error), None)
        return known or ("finish ended while something was still being sent or read" if self._cut_short else None)

    def follow(self, attempts: Sequence[str], *, is_alive: bool) -> None:
        """Goes on with what the run has become. A session beside the run, see watch.py.

        Args:
            attempts: the run's; a wish to stop is for the newest one.
            is_alive: whether the newest one lives, and is to be said to.
        """
        newest = attempts[-1] if is_alive else None
        if list(attempts) != self._info.attempts:
            self._info.attempts[:] = attempts  # which each step of the delivery reads
            self._delivery.stop_requested = False
        self._attempt_id = newest

    def wait_for_hub(self, timeout: float) -> None:
        """Waits until the run is registered or the first try has failed, at most `timeout` seconds."""
        until = time.monotonic() + timeout
        while self._client is not None and time.monotonic() < until:
            if self._ready or self.last_error:
                return
            time.sleep(0.01)

    def make_room(self, slot: Slot, needed: int) -> None:
        """See `Delivery.make_room`; what cannot be dropped now stays, and the save is refused."""
        try:
            with self._holding() as has_lock:
                if has_lock:
                    self._delivery.make_room(needed, for_final=slot.kind == "final")
        except (OSError, StagingError, HubUnavailable) as error:
            logger.warning("no room could be made for %s: %s", slot.name, error)

    def hurry(self, deadline: float) -> None:
        """Ends a `finish` that is under way, or comes, at `deadline` (time.monotonic) at the latest."""
        self._deadline = min(self._deadline, deadline)
        for loop in self._loops:
            loop.hurry(deadline)

    def start_clocks(self) -> None:
        """See `Delivery.start_clocks`."""
        self._delivery.start_clocks()

    def wake(self) -> None:
        """A checkpoint has been staged."""
        self._loops[-1].wake()  # the loop of checkpoints, or of digests when offline

    def finish(self, deadline: float) -> None:
        """Delivers what is left, until `deadline` (time.monotonic) at most; then lets session.lock go."""
        for loop in self._loops:
            loop.finish(deadline)
        while time.monotonic() < min(deadline, self._deadline) + JOIN_GRACE:
            if all(loop.join(0.1) for loop in self._loops):
                break
        ended = [loop.join(0.0) for loop in self._loops]
        self._cut_short = not all(ended)
        if self._client is None or self._heartbeat is None:
            return
        self._heartbeat.abort()
        for loop in self._loops:
            loop.abort()
        if all(ended):
            self._release()
        else:
            # A request is still under way. Where the process lives on, `ddphub sync` must get the lock some day.
            threading.Thread(target=self._release_later, name="ddphub-release", daemon=True).start()

    def _release(self) -> None:
        self._delivery.release()
        if self._client is not None:
            self._client.close()

    def _release_later(self) -> None:
        for loop in self._loops:
            loop.join(threading.TIMEOUT_MAX)
        self._release()

    def _has_reached(self) -> bool:
        return self._reached

    def _hear(self, _what: str, _count: int) -> None:
        self._failing_since = None

    def _pace(self, seconds: float) -> float:
        return max(SHORTEST_PACE, seconds) if self._ready else LOCK_PACE

    def _heartbeat_pace(self) -> float:
        asked = self._client.heartbeat_s if self._client else None
        pace = min(self._rate_limits.heartbeat, asked or self._rate_limits.heartbeat)
        return max(SHORTEST_PACE, pace) if self._ready else 1.0

    def _longest_pause(self) -> float:
        # A hub that asks for frequent heartbeats shows a run as lost until it hears the next one.
        asked = self._client.heartbeat_s if self._client else None
        return min(LONGEST_PAUSE, 2 * asked) if asked else LONGEST_PAUSE

    @contextlib.contextmanager
    def _holding(self) -> Iterator[bool]:
        """session.lock for one step, unless another process has it; kept after it as long as the hub answers."""
        with self._counting:
            has_lock = self._delivery.acquire()
            self._users += has_lock
        try:
            yield has_lock
        finally:
            with self._counting:
                self._users -= has_lock
                if has_lock and not self._users and self._should_let_go():
                    self._ready = self._delivery.registered = False
                    self._delivery.release()

    def _should_let_go(self) -> bool:
        if self._client is None or not self._reached:
            return True
        # A client without keys knows what it has sent itself; what another process sends meanwhile it would send again.
        since = self._failing_since
        return self._client.is_idempotent and since is not None and time.monotonic() - since >= CUT_OFF

    @contextlib.contextmanager
    def _turn(self, finishing: bool) -> Iterator[Delivery | None]:
        """The delivery, for one step; None while another process delivers."""
        with self._holding() as has_lock:
            if not has_lock:
                if finishing:
                    raise HubUnavailable("another process has session.lock and delivers this run")
                yield None
                return
            try:
                self._open()
                yield self._delivery
            except HubError:
                self._failing_since = self._failing_since or time.monotonic()
                raise

    def _open(self) -> None:
        with self._opening:
            if not self._delivery.registered:
                self._delivery.register()
                self._failing_since = None
            if not self._ready:
                self._ready = self._reached = True
                self._checkpoints.wake()
                self._on_reached()

    def _send_events(self, finishing: bool) -> bool:
        no_more_checkpoints = finishing and self._checkpoints.join(0.0)
        with self._turn(finishing) as delivery:
            # An end that waits for checkpoints which this process gave up on is the next deliverer's.
            return delivery is not None and (delivery.send_events() or no_more_checkpoints)

    def _send_checkpoints(self, finishing: bool) -> bool:
        if not (self._ready or finishing):
            return False  # one loop is enough to ask whether the hub is there
        with self._turn(finishing) as delivery:
            return delivery is not None and delivery.send_checkpoints(flush=finishing)

    def _beat(self, _finishing: bool) -> bool:
        self._look_for_stop()
        model_id, attempt_id = self.model_id, self._attempt_id
        if self._ready and model_id and attempt_id and self._client:
            is_asked = self._client.heartbeat(model_id, attempt_id)
            if is_asked and attempt_id == self._attempt_id:
                self._delivery.stop_requested = True
        return False

    def _look_for_stop(self) -> None:
        attempt_id = self._attempt_id
        if attempt_id and not self._delivery.stop_requested and stop.is_asked(self._stop_file, attempt_id):
            self._delivery.stop_requested = True

    def _seal(self, _finishing: bool) -> bool:
        self._look_for_stop()
        for entry in self._staging.entries():
            if self._staging.digest(entry) is None:
                self._staging.seal(entry, wire.PART_SIZE)
        return True

"""What can truthfully be said of a model now: its state, and why.

| state | of the model's newest attempt is known |
| --- | --- |
| new | there is none |
| finished, stopped, failed, ... | its end, see attempts.py |
| lost | no end, and SILENT_HEARTBEATS heartbeats are missing |
| stalled | no end and heartbeats, but no step for longer than `_limit` allows |
| running | no end, heartbeats, and steps |

How long a training may go without a step is learnt from it: twice its longest pause so far, at least `stall_s`. It may
take `first_step_s` to its first step, and after that as long again, for a loop that logs once an epoch. One that shows
in another way that it is at work (console, checkpoints), as in its first validation, has WORK_S. None of this counts
once a rank is silent and rank 0 has made no step since: nobody goes on without it.

Only time with heartbeats counts as time without a step. So a network or a hub that was away makes nobody stalled, and a
hub that has just started gives the runs that it knew a moment to find it again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import or_
from sqlalchemy.orm import Session

from ddphub.events import ENDED
from ddphub.hubs.wire import HEARTBEAT_S
from ddphub.server import reasons
from ddphub.server.attempts import Shown, hub_v1_attempt_id, newest, shown
from ddphub.server.ranks import Standing, standings
from ddphub.server.tables import Attempt, Model, Rank

SILENT_HEARTBEATS: Final = 3
"""A run that misses so many is lost."""

HUB_V1_HEARTBEAT_S: Final = 300.0
"""Seconds between the heartbeats of HUB v1 clients."""

WORK_S: Final = 600.0
"""Seconds without a step that the hub grants a program that is at work, or has not made its second step."""

RESTART_S: Final = 600.0
"""A run that was heard of so shortly before the hub started has from then on as long as after a heartbeat."""

FIRST_STEP_SAID_S: Final = 60.0
"""Seconds without a first step after which a running model says so."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long the hub waits for what.

    Attributes:
        heartbeat_s: seconds between heartbeats.
        stall_s: seconds without a step that are never too long.
        first_step_s: seconds that an attempt may take to its first step.
        up_since: when this process began to listen.
    """

    heartbeat_s: float = HEARTBEAT_S
    stall_s: float = 20.0
    first_step_s: float = 1800.0
    up_since: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A model's state.

    Attributes:
        state: see the table above.
        reason: one sentence; None where there is nothing to explain.
        traceback: the whole of what a failed attempt said.
        silent_s: seconds since the newest attempt's last heartbeat; None when it has ended.
        heard_until: up to when the newest attempt is known to live.
        attempts: what is shown of each attempt, by its row's number.
        attempt: the one that this is said of; None where there is none.
        everyone: the newest attempt's ranks, where the reason speaks of them.
    """

    state: str
    reason: str | None = None
    traceback: str | None = None
    silent_s: float | None = None
    heard_until: float = 0.0
    attempts: Mapping[int, Shown]
    attempt: Attempt | None = None
    everyone: Sequence[Standing] | None = None


def conditions(
    session: Session, models: Mapping[Model, Sequence[Attempt]], now: float, patience: Patience
) -> dict[int, Condition]:
    """What can be said of each model, by its row's number. Two queries at most, whatever the number of models.

    Args:
        session: any session.
        models: all attempts of each.
        now: seconds since the epoch.
        patience: how long to wait.
    """
    first = {model: _Look(model, attempts, now, patience) for model, attempts in models.items()}
    live = {look.newest.id: look for look in first.values() if look.lives and look.newest is not None}
    silent: dict[int, list[Standing]] = {}
    if live:
        # Rank 0 beside the lost ones, because what it did since then tells whether the others wait for them.
        silent = standings(session, live, or_(Rank.state == "lost", Rank.rank == 0))
    for attempt_ref, look in live.items():
        look.judge(silent.get(attempt_ref, ()))
    explained = [attempt_ref for attempt_ref, look in live.items() if look.needs_ranks]
    everyone = standings(session, explained) if explained else {}
    return {
        model.id: look.condition(everyone.get(look.newest.id, ()) if look.newest else ())
        for model, look in first.items()
    }


class _Look:
    """One model, as it is looked at."""

    def __init__(self, model: Model, attempts: Sequence[Attempt], now: float, patience: Patience) -> None:
        self._attempts = attempts
        self._now = now
        self._patience = patience
        self._silent: Sequence[Standing] = ()
        self._shown = shown(attempts)
        self._heartbeat_s = patience.heartbeat_s
        self.newest = attempt = self._current()
        self._heard_at = 0.0
        self._is_hub_v1 = False
        self._is_stalled = False
        self.lives = False
        if attempt is None:
            return
        heard_at = attempt.heard_at
        self._is_hub_v1 = attempt.attempt_id == hub_v1_attempt_id(model)
        if self._is_hub_v1:
            # Those clients beat seldom, and all that they send is of the moment.
            self._heartbeat_s = max(self._heartbeat_s, HUB_V1_HEARTBEAT_S)
            heard_at = model.last_seen
        self._heard_at = heard_at or attempt.first_time
        self.lives = self._shown[attempt.id].state not in ENDED and not self._is_silent(self._heard_at)

    def _current(self) -> Attempt | None:
        """The attempt that started last; or, where that is over or silent, one that is heard of since."""
        last = newest(self._attempts)
        if last is None:
            return None
        heard_at = last.heard_at or last.first_time
        if self._shown[last.id].state not in ENDED and not self._is_silent(heard_at):
            return last
        others = [
            one
            for one in self._attempts
            if self._shown[one.id].state not in ENDED
            and (one.heard_at or 0.0) > max(heard_at, one.seen_at or 0.0)
            and not self._is_silent(one.heard_at or 0.0)
        ]
        return newest(others) or last

    def _is_silent(self, heard_at: float) -> bool:
        up_since = self._patience.up_since
        since = up_since if heard_at < up_since < heard_at + RESTART_S else heard_at
        return self._now - since > SILENT_HEARTBEATS * self._heartbeat_s

    @property
    def _heard_until(self) -> float:
        return min(self._now, self._heard_at + self._heartbeat_s)

    def judge(self, known: Sequence[Standing]) -> None:
        """Tell whether it is stalled.

        Args:
            known: its lost ranks, and rank 0.
        """
        attempt = self.newest
        assert attempt is not None  # noqa: S101  # one that lives
        zero = next((one for one in known if one.rank == 0), None)
        self._silent = [one for one in known if one.state == "lost"]
        # Before the first step a rank may be silent because it compiles, which lets no other thread of it run.
        is_waited_for = any(
            attempt.progress_at is None
            if zero is None or zero.last_step_time is None  # it logs nothing, so it does not tell
            else zero.last_step_time <= (one.state_time or 0.0)
            for one in self._silent
            if one.is_gone or attempt.progress_at is not None
        )
        begun = attempt.progress_at or attempt.seen_at or attempt.first_time
        without_s = self._heard_until - max(begun, attempt.heard_since or 0.0)
        self._is_stalled = without_s > self._limit(attempt, is_waited_for=is_waited_for)

    def _limit(self, attempt: Attempt, *, is_waited_for: bool) -> float:
        """Seconds with heartbeats that may pass without a step."""
        least = max(self._patience.stall_s, WORK_S if self._is_hub_v1 else 0.0)
        if is_waited_for:
            return least
        if attempt.progress_at is None:
            return self._patience.first_step_s
        if attempt.longest_gap is None:
            return max(WORK_S, 2 * (attempt.progress_at - (attempt.seen_at or attempt.progress_at)))
        limit = max(least, 2 * max(one.longest_gap or 0.0 for one in self._attempts))
        at_work = attempt.activity_at is not None and attempt.activity_at > attempt.progress_at
        if at_work and self._now - (attempt.activity_at or 0.0) <= limit:
            return max(limit, WORK_S)
        return limit

    @property
    def needs_ranks(self) -> bool:
        """Whether the reason speaks of every rank."""
        return self._is_stalled or self._is_slow_to_begin

    @property
    def _is_slow_to_begin(self) -> bool:
        attempt = self.newest
        if attempt is None or attempt.progress_at is not None or attempt.step is not None:
            return False
        return self._now - (attempt.seen_at or attempt.first_time) > FIRST_STEP_SAID_S

    def condition(self, everyone: Sequence[Standing]) -> Condition:
        """What is said.

        Args:
            everyone: all ranks of the newest attempt, where `needs_ranks`.
        """
        attempt, attempts = self.newest, self._shown_now()
        if attempt is None:
            return Condition(state="new", attempts=attempts)
        end = attempts[attempt.id]
        if end.state in ENDED:
            traceback = end.reason if end.state == "failed" else None
            reason = reasons.of_end(end)
            return Condition(state=end.state, reason=reason, traceback=traceback, attempts=attempts, attempt=attempt)
        silent_s = max(0.0, self._now - self._heard_at)
        if not self.lives:
            state = "lost"
            reason = reasons.of_silence(attempt, silent_s, self._heartbeat_s)
        elif self.needs_ranks:
            state = "stalled" if self._is_stalled else "running"
            gap = max((one.longest_gap or 0.0 for one in self._attempts), default=0.0)
            reason = reasons.of_stall(attempt, everyone, self._now, gap)
        else:
            state, reason = "running", reasons.of_silent_ranks(self._silent)
        return Condition(
            state=state,
            reason=reason,
            silent_s=silent_s,
            heard_until=self._heard_until,
            attempts=attempts,
            attempt=attempt,
            everyone=everyone if self.needs_ranks else None,
        )

    def _shown_now(self) -> Mapping[int, Shown]:
        """An older attempt that said no end, and is not heard of, did not just start."""
        result = dict(self._shown)
        for attempt in self._attempts:
            is_open = attempt is not self.newest and result[attempt.id].state == "started"
            if is_open and self._is_silent(attempt.heard_at or attempt.first_time):
                result[attempt.id] = Shown("lost", "it ended without a word")
        return result

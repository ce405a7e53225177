"""Ranks as the hub shows them: which goes, and which is slow, silent or dead.

| health | the first that fits |
| --- | --- |
| done | it said goodbye; rank 0 also when it said how an attempt ended that did not fail |
| dead | it left with a failure, its process is gone, or the attempt failed or is over without its goodbye |
| silent | rank 0 does not hear it, it has not joined in JOIN_S, or the hub does not hear rank 0 |
| stalled | the model is; or the rank, by its own longest pause, while others go on |
| slow | it makes less than SLOW of the median rate, or lags |
| ok | |

A lag is what the furthest rank has made more. What may still be on its way is not counted: other ranks' steps reach
rank 0 up to RELAY_S later than its own. A rank lags when that is 2 steps, or twice what one of its events brings.
"""

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from ddphub.events import GONE, SYSTEM
from ddphub.server.tables import Attempt, LatestMetric, Rank

SLOW: Final = 0.8
"""Of the median rate."""

RELAY_S: Final = 2.0
"""Seconds that a rank's steps may need to rank 0."""

SETTLED_S: Final = 5.0
"""Seconds without news after which nothing is on its way any more."""

JOIN_S: Final = 60.0
"""Seconds in which every rank should have said hello."""

MAX_WORLD: Final = 65_536
"""Ranks of a world that are listed although they never came."""

MEMORY: Final = f"{SYSTEM}memory"
"""The metric that is a rank's memory, in bytes."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the hub knows of one rank. `state` None: it reported, but rank 0 said nothing of it."""

    rank: int
    state: str | None = None
    state_time: float | None = None
    reason: str | None = None
    host: str | None = None
    pid: int | None = None
    local_rank: int | None = None
    last_step: int | None = None
    last_epoch: int | None = None
    last_step_time: float | None = None
    last_seen: float | None = None
    progress_at: float | None = None
    longest_gap: float | None = None
    stride: int | None = None
    rate: float | None = None

    @property
    def is_gone(self) -> bool:
        """Whether its process does not run any more, for all that rank 0 can see."""
        return self.state == "lost" and self.reason == GONE


_COLUMNS: Final = tuple(getattr(Rank, name) for name in Standing.__dataclass_fields__)


def standings(
    session: Session, attempt_refs: Collection[int], *which: ColumnElement[bool]
) -> dict[int, list[Standing]]:
    """The ranks of attempts, in order, by the attempts' numbers. One query.

    Args:
        session: any session.
        attempt_refs: row numbers of attempts.
        which: more conditions.
    """
    found: dict[int, list[Standing]] = {}
    statement = select(Rank.attempt_ref, *_COLUMNS).where(Rank.attempt_ref.in_(attempt_refs), *which)
    for attempt_ref, *values in session.execute(statement.order_by(Rank.attempt_ref, Rank.rank)):
        found.setdefault(attempt_ref, []).append(Standing(*values))
    return found


def position(one: Standing) -> tuple[int, int]:
    """What sorts ranks from the last to the first: epoch, where it has one, and step."""
    assert one.last_step is not None  # noqa: S101  # of a rank that has made a step
    return -1 if one.last_epoch is None else one.last_epoch, one.last_step


def with_absent(attempt: Attempt, everyone: Sequence[Standing], now: float) -> list[Standing]:
    """Everyone, and the ranks of the world that should have come by now, and have not."""
    seen_at = attempt.seen_at if attempt.seen_at is not None else attempt.first_time
    missing = min(attempt.world_size or 0, MAX_WORLD) - len(everyone)
    if missing <= 0 or now - seen_at < JOIN_S:
        return list(everyone)
    here = {one.rank: one for one in everyone}
    world = range(min(attempt.world_size or 0, MAX_WORLD))
    beyond = [one for one in everyone if one.rank not in world]
    return [here.get(rank) or Standing(rank, "absent") for rank in world] + beyond


class Grid:
    """The ranks of one attempt, judged together.

    Args:
        attempt: whose.
        everyone: all of its ranks.
        state: of the model if the attempt is its newest, else what is shown of the attempt.
        is_over: whether the attempt has ended, or another came after it.
        has_ended: whether rank 0 said how.
        now: seconds since the epoch.
        heard_until: up to when the attempt is known to live.
        stall_s: seconds without a step that are never too long.
    """

    def __init__(
        self,
        attempt: Attempt,
        everyone: Sequence[Standing],
        *,
        state: str | None,
        is_over: bool,
        has_ended: bool,
        now: float,
        heard_until: float,
        stall_s: float,
    ) -> None:
        self._attempt = attempt
        self._state = state
        self._is_over = is_over
        self._has_ended = has_ended
        self._heard_until = heard_until
        self._stall_s = stall_s
        self.everyone = list(everyone) if is_over else with_absent(attempt, everyone, now)
        with_steps = [one for one in everyone if one.last_step is not None]
        self._first = max(with_steps, key=position, default=None)
        going = [one.rate for one in with_steps if one.state not in {"left", "lost"} and one.rate is not None]
        self._median = median(going) if len(going) > 1 else None
        quiet_s = now - (attempt.progress_at or 0.0)
        settled_s = max(SETTLED_S, 2 * (attempt.longest_gap or 0.0))
        self._is_settled = is_over or state in {"stalled", "lost"} or quiet_s > settled_s

    def lag(self, one: Standing) -> int | None:
        """Steps behind the furthest rank; None for one without a step."""
        first = self._first
        if one.last_step is None or first is None or first.last_step is None:
            return None
        behind = first.last_step - one.last_step
        if behind < 0:
            # It counts anew in each epoch, and is at least so far in the next one; or it names no epochs.
            behind = first.last_step + 1 if one.last_epoch is not None else 0
        if self._is_settled:
            return behind
        return 0 if first.rate is None else max(0, behind - math.ceil(first.rate * RELAY_S))

    def health(self, one: Standing) -> str:
        """See the table above."""
        if one.state == "left":
            return "dead" if one.reason else "done"
        if self._is_over:
            # Rank 0 tells the attempt's end, and failed with it.
            is_done = one.rank == 0 and self._has_ended and self._state not in {"failed", "node_failed"}
            return "done" if is_done else "dead"
        if one.is_gone:
            return "dead"
        if one.state in {"lost", "absent"} or self._state == "lost":
            return "silent"
        if self._state == "stalled" or self._is_stuck(one):
            return "stalled"
        is_behind = one.stride is not None and (self.lag(one) or 0) >= 2 * one.stride
        is_slower = self._median is not None and one.rate is not None and one.rate < SLOW * self._median
        return "slow" if is_behind or is_slower else "ok"

    def _is_stuck(self, one: Standing) -> bool:
        if one.progress_at is None or one.longest_gap is None:
            return False
        since = max(one.progress_at, self._attempt.heard_since or 0.0)
        limit = max(self._stall_s, 2 * one.longest_gap, 2 * (self._attempt.longest_gap or 0.0))
        return self._heard_until - since > limit

    def view(self, one: Standing, memory: float | None) -> dict[str, Any]:
        """What the API says of a rank."""
        health = self.health(one)
        rate = {"ok": one.rate, "slow": one.rate, "stalled": 0.0 if one.rate is not None else None}.get(health)
        return {
            "rank": one.rank,
            # It has reported, so it was there, whether or not rank 0 said so.
            "state": one.state or "joined",
            "health": health,
            "reason": one.reason,
            "host": one.host,
            "pid": one.pid,
            "local_rank": one.local_rank,
            "last_step": one.last_step,
            "lag": self.lag(one),
            "rate": rate,
            "last_step_time": one.last_step_time,
            "last_seen": one.last_seen,
            "memory": memory,
        }


def memory_of(session: Session, attempt: Attempt) -> dict[int, float]:
    """Bytes that ranks used when they last said so, in this attempt."""
    rows = session.execute(
        select(LatestMetric.rank, LatestMetric.value)
        .join(Rank, Rank.rank == LatestMetric.rank)
        .where(
            Rank.attempt_ref == attempt.id,
            LatestMetric.model_ref == attempt.model_ref,
            LatestMetric.name == MEMORY,
            LatestMetric.attempt == attempt.number,
        )
    )
    values = {rank: json.loads(value) for rank, value in rows}
    return {rank: value for rank, value in values.items() if isinstance(value, int | float)}

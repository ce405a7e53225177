"""Progress: what the hub remembers of how ranks go, from the events that they send anyway.

A rank makes progress when it logs metrics: with a higher step, in a new epoch, or with a counter that says nothing of
how far it is (anew in each epoch, a stray one, an epoch as the step). Metrics whose names all begin with `system/` do
not count: a sampler sends them whatever the training does.

Silence is measured by the hub's clock alone, from arrival to arrival: nodes' clocks may be minutes off, and a backlog
comes late. Steps a second are measured by the clock of the rank that made them.
"""

import math
from collections.abc import Sequence
from operator import attrgetter
from typing import Final

from ddphub.events import SYSTEM
from ddphub.server.body import INT64_MAX
from ddphub.server.incoming_events import IncomingEvent
from ddphub.server.tables import Attempt, Rank

LATE_HEARTBEATS: Final = 2
"""Heartbeats in whose time none came: what the hub did not hear meanwhile, it cannot miss."""

RATE_WINDOW_S: Final = 10.0
"""Seconds of a rank's steps that are measured together."""

RATE_MEMORY_S: Final = 60.0
"""Seconds after which a measurement counts a third of what it did."""

_ACTIVITY: Final = frozenset({"checkpoint", "console"})
"""Kinds of events by which a program shows that it is at work between two steps."""


def note_sight(attempt: Attempt, now: float) -> None:
    """The hub sees an attempt for the first time."""
    attempt.seen_at = attempt.heard_at = attempt.heard_since = now


def note_heartbeat(attempt: Attempt, now: float, heartbeat_s: float) -> None:
    """An attempt gives a sign of life.

    Args:
        attempt: whose.
        now: the hub's clock, as everywhere here.
        heartbeat_s: seconds between heartbeats.
    """
    if attempt.heard_at is None or now - attempt.heard_at > LATE_HEARTBEATS * heartbeat_s:
        attempt.heard_since = now
    attempt.heard_at = now


def note_events(attempt: Attempt, rank: Rank, events: Sequence[IncomingEvent], now: float) -> None:
    """A rank's events have arrived; those that came before change nothing.

    Args:
        attempt: the rank's attempt.
        rank: the rank.
        events: all of the batch that are of this rank.
        now: the hub's clock.
    """
    if any(event.kind in _ACTIVITY for event in events):
        attempt.activity_at = now
    known = -1 if rank.last_step_seq is None else rank.last_step_seq
    steps = [event for event in events if event.kind == "metrics" and event.seq > known and _tells_a_step(event)]
    if not steps:
        return
    steps.sort(key=attrgetter("seq"))
    walk = _Walk(rank, now)
    walk.go(steps)
    if not walk.end(rank):
        return
    _learn_gap(attempt, rank, now)
    rank.progress_at = attempt.progress_at = now
    _lead(attempt, rank)


def _tells_a_step(event: IncomingEvent) -> bool:
    for name in event.fields["values"]:  # noqa: SIM110  # the first one tells nearly always, a generator costs more
        if not name.startswith(SYSTEM):
            return True
    return False


class _Walk:
    """One rank's way through the steps of a batch. Plain attributes: those of a row cost more than the arithmetic."""

    def __init__(self, rank: Rank, now: float) -> None:
        self._now = now
        self._heard_at = rank.progress_at
        self._step = rank.last_step
        self._epoch = rank.last_epoch
        self._seq = rank.last_step_seq
        self._time = rank.last_step_time
        self._stride = rank.stride
        self._mark = rank.mark_time
        self._moved = rank.moved or 0
        self._rate = rank.rate
        self._has_progress = False

    def go(self, events: Sequence[IncomingEvent]) -> None:
        """More events, in the order of their rank."""
        self._seq = events[-1].seq
        for event in events:
            time, step, epoch = event.time, event.fields["step"], event.fields.get("epoch")
            before = self._step
            is_new_epoch = epoch is not None and (self._epoch is None or epoch > self._epoch)
            self._time, self._has_progress = time, True
            if before is None:
                rise = 0
            elif step > before:
                rise = min(step - before, INT64_MAX)
                if self._stride is None or rise > self._stride:
                    self._stride = rise
            elif is_new_epoch and self._epoch is not None:
                rise = max(1, step)  # a loop that counts anew in each epoch
            else:
                if is_new_epoch:
                    # An epoch's own record between steps that name no epoch: its step need not be one of theirs.
                    self._epoch = epoch
                # Else a counter that began anew, one beside another, or one that counts epochs: the program goes on,
                # though it does not say how far it is.
                continue
            self._step, self._epoch = step, epoch
            self._measure(rise, time)

    def _measure(self, rise: int, time: float) -> None:
        if self._mark is None or time < self._mark:  # the first step; or the node's clock was set back
            self._mark, self._moved = time, 0
            return
        self._moved = min(self._moved + rise, INT64_MAX)  # as much as the database holds
        seconds = time - self._mark
        if seconds < RATE_WINDOW_S:
            return
        if not self._is_leap(seconds):
            sample = self._moved / seconds
            weight = 1.0 if self._rate is None else 1.0 - math.exp(-seconds / RATE_MEMORY_S)
            self._rate = sample if self._rate is None else self._rate + weight * (sample - self._rate)
        self._mark, self._moved = time, 0

    def _is_leap(self, seconds: float) -> bool:
        """Whether the node's clock was set forward, as far as the hub's can tell."""
        waited = self._now - self._heard_at if self._heard_at is not None else math.inf
        return seconds > RATE_MEMORY_S + 2 * waited

    def end(self, rank: Rank) -> bool:
        """Write down where the rank is; whether it made progress."""
        rank.last_step_seq = self._seq
        if self._has_progress:
            rank.last_step, rank.last_epoch, rank.last_step_time = self._step, self._epoch, self._time
            rank.stride, rank.mark_time, rank.moved, rank.rate = self._stride, self._mark, self._moved, self._rate
        return self._has_progress


def _learn_gap(attempt: Attempt, rank: Rank, now: float) -> None:
    """How long this training goes without a step, and is well."""
    if rank.progress_at is None:
        return  # its first steps say nothing of the time between two
    heard_since = attempt.heard_since or 0.0
    gap = now - max(attempt.progress_at or 0.0, heard_since)
    attempt.longest_gap = max(gap, attempt.longest_gap or 0.0)
    rank.longest_gap = max(now - max(rank.progress_at, heard_since), rank.longest_gap or 0.0)


def _lead(attempt: Attempt, rank: Rank) -> None:
    """The attempt is where its furthest rank is."""
    assert rank.last_step is not None  # noqa: S101  # it has just made one
    epoch = rank.last_epoch
    if attempt.step is None or (epoch is not None and (attempt.epoch is None or epoch > attempt.epoch)):
        attempt.step, attempt.epoch, attempt.rate = rank.last_step, epoch, rank.rate
    elif (epoch is None or epoch == attempt.epoch) and rank.last_step >= attempt.step:
        attempt.step, attempt.rate = rank.last_step, rank.rate

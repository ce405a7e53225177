"""What the events say of attempts and ranks.

Events come late, out of order and more than once, so nothing here overwrites: each fact remembers the event that gave
it, and only a later event of the same stream replaces it. What an attempt and its ranks are is said by rank 0.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ddphub.server.incoming_events import IncomingEvent
from ddphub.server.tables import Attempt, Model, Rank

ENDED: Final = ("finished", "failed", "preempted")

SILENT_HEARTBEATS: Final = 3
"""A run that misses so many is lost."""

HUB_V1_HEARTBEAT_S: Final = 300.0
"""Seconds between the heartbeats of HUB v1 clients."""

ModelState = Literal["new", "running", "lost", "finished", "failed", "preempted"]


def hub_v1_attempt_id(model: Model) -> str:
    """The id of the one attempt that HUB v1 clients report to, as their requests name none."""
    return hashlib.sha256(f"hub v1 {model.public_id}".encode()).hexdigest()[:32]


def known_attempts(session: Session, model: Model, seen: Mapping[str, float]) -> dict[str, Attempt]:
    """The attempts with these ids; new ones get the next numbers, in the order given.

    Args:
        session: a write session.
        model: whose attempts these are.
        seen: for each attempt_id the earliest time that is known of it, seconds since the epoch.
    """
    found = session.scalars(select(Attempt).where(Attempt.model_ref == model.id, Attempt.attempt_id.in_(list(seen))))
    attempts = {attempt.attempt_id: attempt for attempt in found}
    number = None
    for attempt_id, first_time in seen.items():
        if attempt_id in attempts:
            attempts[attempt_id].first_time = min(first_time, attempts[attempt_id].first_time)
            continue
        if number is None:
            number = session.scalar(select(func.max(Attempt.number)).where(Attempt.model_ref == model.id)) or 0
        number += 1
        attempts[attempt_id] = Attempt(model_ref=model.id, attempt_id=attempt_id, number=number, first_time=first_time)
        session.add(attempts[attempt_id])
    session.flush()
    return attempts


def apply_events(
    session: Session, model: Model, batch: Sequence[IncomingEvent], attempts: Mapping[str, Attempt]
) -> None:
    """Let a batch say what it says of its attempts and their ranks.

    Args:
        session: a write session.
        model: whose events these are.
        batch: checked events.
        attempts: the rows of every attempt in the batch.
    """
    ranks = _Ranks(session, batch, attempts)
    streams: dict[tuple[str, int], list[IncomingEvent]] = {}
    for event in batch:
        streams.setdefault((event.attempt_id, event.rank), []).append(event)
        if event.rank == 0 and event.kind == "attempt":
            _apply_attempt(model, attempts[event.attempt_id], event)
        elif event.rank == 0 and event.kind == "rank":
            _apply_rank(ranks.row(attempts[event.attempt_id], event.fields["of_rank"]), event)
    for (attempt_id, rank), events in streams.items():
        reporter = ranks.row(attempts[attempt_id], rank)
        reporter.last_seen = max(reporter.last_seen or 0.0, *(event.time for event in events))
        last = max((event for event in events if event.kind == "metrics"), key=lambda one: one.seq, default=None)
        if last is not None and (reporter.last_step_seq is None or last.seq >= reporter.last_step_seq):
            reporter.last_step, reporter.last_step_seq = last.fields["step"], last.seq


def _apply_attempt(model: Model, attempt: Attempt, event: IncomingEvent) -> None:
    fields = event.fields
    if fields["state"] == "started":
        asked = model.stop_requested_at
        if attempt.started_at is None and asked is not None and event.time > asked:
            # Whoever asked meant the attempt that ran then, not the one that was started after it.
            model.stop_requested_at = None
        attempt.started_at = event.time if attempt.started_at is None else min(event.time, attempt.started_at)
    newer = _newer(event, attempt)
    if fields.get("world_size") is not None and (newer or attempt.world_size is None):
        attempt.world_size = fields["world_size"]
    if fields.get("host") is not None and (newer or attempt.host is None):
        attempt.host = fields["host"]
    if newer:
        attempt.state, attempt.state_time, attempt.state_seq = fields["state"], event.time, event.seq
        attempt.ended_at = event.time if fields["state"] in ENDED else None
        attempt.reason = fields.get("reason")


def _apply_rank(rank: Rank, event: IncomingEvent) -> None:
    fields = event.fields
    if fields["state"] != "lost":
        rank.last_seen = max(event.time, rank.last_seen or event.time)
    newer = _newer(event, rank)
    if fields.get("host") is not None and (newer or rank.host is None):
        rank.host = fields["host"]
    if fields.get("pid") is not None and (newer or rank.pid is None):
        rank.pid = fields["pid"]
    if newer:
        rank.state, rank.state_time, rank.state_seq = fields["state"], event.time, event.seq


def _newer(event: IncomingEvent, row: Attempt | Rank) -> bool:
    if row.state_time is None or row.state_seq is None:
        return True
    return (event.time, event.seq) > (row.state_time, row.state_seq)


class _Ranks:
    """The rank rows that one batch speaks of."""

    def __init__(self, session: Session, batch: Sequence[IncomingEvent], attempts: Mapping[str, Attempt]) -> None:
        self._session = session
        numbers = {event.rank for event in batch}
        numbers |= {event.fields["of_rank"] for event in batch if event.kind == "rank"}
        attempt_refs = [attempt.id for attempt in attempts.values()]
        rows = session.scalars(select(Rank).where(Rank.attempt_ref.in_(attempt_refs), Rank.rank.in_(numbers)))
        self._rows = {(row.attempt_ref, row.rank): row for row in rows}

    def row(self, attempt: Attempt, rank: int) -> Rank:
        row = self._rows.get((attempt.id, rank))
        if row is None:
            row = self._rows[attempt.id, rank] = Rank(attempt_ref=attempt.id, rank=rank)
            self._session.add(row)
        return row


def newest(attempts: Sequence[Attempt]) -> Attempt | None:
    """The attempt that started last.

    Numbers tell the order of first sight, and an offline attempt is seen late; an attempt that never said it started
    is what a rank left behind that did not find its rank 0.
    """
    return max(
        attempts,
        key=lambda one: (one.state is not None, one.started_at or one.first_time, one.number),
        default=None,
    )


def model_state(model: Model, attempts: Sequence[Attempt], now: float, heartbeat_s: float) -> ModelState:
    """What can truthfully be said of a run.

    Args:
        model: the run's model.
        attempts: all of its attempts.
        now: seconds since the epoch.
        heartbeat_s: seconds between heartbeats.
    """
    attempt = newest(attempts)
    if attempt is None:
        return "new"
    if attempt.state == "finished":
        return "finished"
    if attempt.state == "failed":
        return "failed"
    if attempt.state == "preempted":
        return "preempted"
    if attempt.attempt_id == hub_v1_attempt_id(model):
        heartbeat_s = max(heartbeat_s, HUB_V1_HEARTBEAT_S)
    silent_s = now - (model.last_seen or attempt.first_time)
    return "lost" if silent_s > SILENT_HEARTBEATS * heartbeat_s else "running"

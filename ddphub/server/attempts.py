"""What the events say of attempts and ranks.

Events come late, out of order and more than once, so nothing here overwrites: each fact remembers the event that gave
it, and only a later event of the same stream replaces it. What an attempt and its ranks are is said by rank 0.

What the hub shows of an attempt, in SLURM's words where it ran there (the first row that fits):

| what is known | state |
| --- | --- |
| rank 0 said how it ended | finished, stopped, failed, preempted, requeued, timed_out, cancelled, node_failed |
| it said only that a signal told it to leave, and SLURM started the job again | requeued |
| it said no end, and SLURM started the job again | node_failed; that or SIGKILL leaves no time for a word |
| it said no end | started; what that means now, its heartbeats and steps tell, see states.py |

SLURM started the job again when another attempt has the same cluster and job id and a higher restart count. What the
hub concludes is never stored: an attempt's own word, which may come late from disk, takes its place.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ddphub.events import ENDED, to_json
from ddphub.server.incoming_events import SLURM_NUMBERS, SLURM_TEXTS, IncomingEvent
from ddphub.server.progress import note_events, note_sight
from ddphub.server.tables import Attempt, Model, Rank

MAX_REASON: Final = 4000
"""Characters of what a rank says of its end."""


def hub_v1_attempt_id(model: Model) -> str:
    """The id of the one attempt that HUB v1 clients report to, as their requests name none."""
    return hashlib.sha256(f"hub v1 {model.public_id}".encode()).hexdigest()[:32]


def known_attempts(session: Session, model: Model, seen: Mapping[str, float], now: float) -> dict[str, Attempt]:
    """The attempts with these ids; new ones get the next numbers, in the order given.

    Args:
        session: a write session.
        model: whose attempts these are.
        seen: for each attempt_id the earliest time that is known of it, seconds since the epoch.
        now: the hub's clock.
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
        note_sight(attempts[attempt_id], now)
        session.add(attempts[attempt_id])
    session.flush()
    return attempts


def apply_events(
    session: Session, model: Model, batch: Sequence[IncomingEvent], attempts: Mapping[str, Attempt], now: float
) -> None:
    """Let a batch say what it says of its attempts and their ranks.

    Args:
        session: a write session.
        model: whose events these are.
        batch: checked events.
        attempts: the rows of every attempt in the batch.
        now: the hub's clock.
    """
    ranks = _Ranks(session, batch, attempts)
    streams: dict[tuple[str, int], list[IncomingEvent]] = {}
    for event in batch:
        streams.setdefault((event.attempt_id, event.rank), []).append(event)
        if event.rank == 0 and event.kind == "attempt":
            _apply_attempt(session, model, attempts[event.attempt_id], event)
        elif event.rank == 0 and event.kind == "rank":
            _apply_rank(ranks.row(attempts[event.attempt_id], event.fields["of_rank"]), event)
    for (attempt_id, rank), events in streams.items():
        reporter = ranks.row(attempts[attempt_id], rank)
        reporter.last_seen = max(reporter.last_seen or 0.0, *[event.time for event in events])
        note_events(attempts[attempt_id], reporter, events, now)


def _apply_attempt(session: Session, model: Model, attempt: Attempt, event: IncomingEvent) -> None:
    fields = event.fields
    if fields["state"] == "started":
        asked = model.stop_requested_at
        is_first = attempt.started_at is None
        if is_first and asked is not None and (event.time > asked or _is_obeyed(session, model, asked)):
            # Whoever asked meant the attempt that ran then, not the one that was started after it.
            model.stop_requested_at = None
        attempt.started_at = event.time if attempt.started_at is None else min(event.time, attempt.started_at)
    newer = _newer(event, attempt)
    if fields.get("world_size") is not None and (newer or attempt.world_size is None):
        attempt.world_size = fields["world_size"]
    if fields.get("host") is not None and (newer or attempt.host is None):
        attempt.host = fields["host"]
    if fields.get("slurm") is not None and (newer or attempt.slurm is None):
        attempt.slurm = to_json({name: fields["slurm"].get(name) for name in (*SLURM_TEXTS, *SLURM_NUMBERS)})
    if newer:
        attempt.state, attempt.state_time, attempt.state_seq = fields["state"], event.time, event.seq
        attempt.ended_at = event.time if fields["state"] in ENDED else None
        attempt.reason = fields.get("reason")
        attempt.said_by = fields.get("said_by")


def _is_obeyed(session: Session, model: Model, asked: float) -> bool:
    """Whether all attempts that the hub knew when it was asked to stop have ended: no node's clock decides."""
    known = select(Attempt.state).where(Attempt.model_ref == model.id, Attempt.seen_at <= asked)
    states = session.scalars(known).all()
    return bool(states) and all(state in ENDED for state in states)


def _apply_rank(rank: Rank, event: IncomingEvent) -> None:
    fields = event.fields
    if fields["state"] != "lost":
        rank.last_seen = max(event.time, rank.last_seen or event.time)
    newer = _newer(event, rank)
    if fields.get("host") is not None and (newer or rank.host is None):
        rank.host = fields["host"]
    if fields.get("pid") is not None and (newer or rank.pid is None):
        rank.pid = fields["pid"]
    if fields.get("local_rank") is not None and (newer or rank.local_rank is None):
        rank.local_rank = fields["local_rank"]
    if newer:
        rank.state, rank.state_time, rank.state_seq = fields["state"], event.time, event.seq
        rank.reason = (fields.get("reason") or "")[:MAX_REASON] or None


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


def age(attempt: Attempt) -> tuple[bool, float, int]:
    """What sorts attempts from the oldest to the one that started last.

    Numbers tell the order of first sight, and an offline attempt is seen late; an attempt that never said it started
    is what a rank left behind that did not find its rank 0.
    """
    return attempt.state is not None, _began(attempt), attempt.number


def _began(attempt: Attempt) -> float:
    # Nodes' clocks may be hours off, so the hub's counts where it heard the attempt live.
    if attempt.seen_at is not None and (attempt.heard_at or 0.0) > attempt.seen_at:
        return attempt.seen_at
    return attempt.started_at or attempt.first_time


def newest(attempts: Sequence[Attempt]) -> Attempt | None:
    """The attempt that started last, see `age`."""
    return max(attempts, key=age, default=None)


def slurm_job(attempt: Attempt) -> dict[str, Any] | None:
    """What an attempt said of the SLURM job it ran in."""
    return None if attempt.slurm is None else json.loads(attempt.slurm)


@dataclass(frozen=True)
class Shown:
    """What the hub shows of an attempt, see the table above."""

    state: str | None
    reason: str | None


def shown(attempts: Sequence[Attempt]) -> dict[int, Shown]:
    """What the hub shows of each attempt of a model, by its row's number."""
    jobs = {attempt.id: job for attempt in attempts if (job := slurm_job(attempt))}
    restarts: dict[tuple[str, str], int] = {}
    for job in jobs.values():
        key = job["cluster"], job["job_id"]
        restarts[key] = max(job["restart_count"] or 0, restarts.get(key, 0))
    result = {}
    for attempt in attempts:
        result[attempt.id] = Shown(attempt.state, attempt.reason)
        job = jobs.get(attempt.id)
        if job is None or restarts[job["cluster"], job["job_id"]] <= (job["restart_count"] or 0):
            continue
        if attempt.state not in ENDED:
            result[attempt.id] = Shown("node_failed", "it ended without a word, and SLURM started the job again")
        elif attempt.state == "preempted" and attempt.said_by is None:
            told = f"{attempt.reason or 'told to leave'}; then SLURM started the job again"
            result[attempt.id] = Shown("requeued", told)
    return result

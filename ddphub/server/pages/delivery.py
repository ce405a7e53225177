"""The delivery report: what the hub has of a run, and what it knows to be missing."""

from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ddphub.server import event_log
from ddphub.server.tables import Attempt, Checkpoint, Event, Model, Rank

_RANKS: Final = 200
_WARNINGS: Final = 10


def report(session: Session, model: Model) -> dict[str, Any]:
    """Events by kind and by rank, checkpoints by what became of them.

    A rank numbers its events from 0, so the hub knows how many it should have: a number that is missing is on its way,
    waits on the run's disk, or was lost with the rank.
    """
    kinds = session.execute(
        select(Event.kind, func.count()).where(Event.model_ref == model.id).group_by(Event.kind).order_by(Event.kind)
    ).all()
    streams = session.execute(
        select(Attempt.number, Event.rank, func.count(), func.max(Event.seq))
        .join(Attempt, Attempt.id == Event.attempt_ref)
        .where(Attempt.model_ref == model.id)
        .group_by(Event.attempt_ref, Event.rank, Attempt.number)
    ).all()
    seen = {
        (number, rank): last_seen
        for number, rank, last_seen in session.execute(
            select(Attempt.number, Rank.rank, Rank.last_seen)
            .join(Attempt, Attempt.id == Rank.attempt_ref)
            .where(Attempt.model_ref == model.id)
        )
    }
    rows: list[dict[str, Any]] = [
        {
            "attempt": number,
            "rank": rank,
            "received": received,
            "missing": last + 1 - received,
            "last_seen": seen.get((number, rank)),
        }
        for number, rank, received, last in streams
    ]
    rows.sort(key=lambda row: (-row["missing"], -row["attempt"], row["rank"]))
    said = event_log.read(session, model, event_log.Query(kind="checkpoint", limit=10_000, newest=True))
    logged = event_log.read(session, model, event_log.Query(kind="log", limit=1000, newest=True))
    committed = session.scalar(
        select(func.count()).where(Checkpoint.model_ref == model.id, Checkpoint.committed_at.is_not(None))
    )
    arriving = session.scalar(
        select(func.count()).where(Checkpoint.model_ref == model.id, Checkpoint.committed_at.is_(None))
    )
    return {
        "kinds": [tuple(row) for row in kinds],
        "received": sum(row["received"] for row in rows),
        "missing": sum(row["missing"] for row in rows),
        "rows": rows[:_RANKS],
        "more": max(0, len(rows) - _RANKS),
        "committed": committed,
        "arriving": arriving,
        "staged": _count(said, "staged"),
        "unsent": max(0, _count(said, "staged") - (committed or 0) - (arriving or 0)),
        "refused": _count(said, "refused"),
        "warnings": [one for one in logged if one.get("level") == "warning"][-_WARNINGS:],
    }


def _count(said: list[dict[str, Any]], state: str) -> int:
    return sum(one.get("state") == state for one in said)

"""What the hub tells of a model: the same facts for the API and the page."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ddphub.events import ENDED
from ddphub.server import reasons
from ddphub.server.attempts import hub_v1_attempt_id, newest, slurm_job
from ddphub.server.labels import tags_of
from ddphub.server.problems import Problem
from ddphub.server.ranks import Grid, Standing, memory_of, standings
from ddphub.server.states import Condition, Patience, conditions
from ddphub.server.tables import Attempt, Checkpoint, CheckpointFile, Model, Project
from ddphub.server.uploads import is_last


@dataclass(frozen=True)
class _Facts:
    """What a model's dicts are made of: its attempts, and what can be said of it."""

    attempts: Sequence[Attempt]
    condition: Condition
    now: float
    patience: Patience


def summaries(session: Session, models: Sequence[Model], now: float, patience: Patience) -> list[dict[str, Any]]:
    """What a list says of each model.

    Args:
        session: any session.
        models: in the order of the answer.
        now: seconds since the epoch.
        patience: how long the hub waits for what.
    """
    return [summary for summary, _ in _summaries(session, models, now, patience)]


def _summaries(
    session: Session, models: Sequence[Model], now: float, patience: Patience
) -> list[tuple[dict[str, Any], _Facts]]:
    projects = {
        project.id: project
        for project in session.scalars(select(Project).where(Project.id.in_({one.project_ref for one in models})))
    }
    attempts: dict[int, list[Attempt]] = {model.id: [] for model in models}
    for attempt in session.scalars(select(Attempt).where(Attempt.model_ref.in_(attempts)).order_by(Attempt.number)):
        attempts[attempt.model_ref].append(attempt)
    tags = tags_of(session, attempts)
    # A run that a HUB v1 client reports can be resumed once there is something to resume it from.
    reported = {model.id for model in models if _reported_by_hub_v1(model, attempts[model.id])}
    resumable = set(
        session.scalars(
            select(Checkpoint.model_ref).where(
                Checkpoint.model_ref.in_(reported), Checkpoint.committed_at.is_not(None), is_last
            )
        )
    )
    found = conditions(session, {model: attempts[model.id] for model in models}, now, patience)
    result = []
    for model in models:
        facts = _Facts(attempts[model.id], found[model.id], now, patience)
        begun = model.id in resumable if model.id in reported else bool(attempts[model.id])
        summary = _summary(model, projects[model.project_ref], facts, begun=begun, tags=tags[model.id])
        result.append((summary, facts))
    return result


def _reported_by_hub_v1(model: Model, attempts: list[Attempt]) -> bool:
    attempt = newest(attempts)
    return attempt is not None and attempt.attempt_id == hub_v1_attempt_id(model)


def _summary(model: Model, project: Project, facts: _Facts, *, begun: bool, tags: list[str]) -> dict[str, Any]:
    condition, state = facts.condition, facts.condition.state
    attempt = condition.attempt
    return {
        "id": model.public_id,
        "project": project.name,
        "project_id": project.public_id,
        "name": model.name,
        "meta": {"name": model.name},
        "run_id": model.run_id,
        "url": f"/models/{model.public_id}",
        "state": state,
        "reason": condition.reason,
        "traceback": condition.traceback,
        "progress": None if attempt is None else _progress(model, attempt, state),
        "heard_at": None if attempt is None else attempt.heard_at,
        "silent_s": None if condition.silent_s is None else round(condition.silent_s, 1),
        "status": "trained" if state == "finished" else "training" if begun else "new",
        "tags": tags,
        "attempt": None if attempt is None else attempt.number,
        "stop_requested": model.stop_requested_at is not None,
        "attempts": [
            {
                "number": attempt.number,
                "attempt_id": attempt.attempt_id,
                "state": condition.attempts[attempt.id].state,
                "world_size": attempt.world_size,
                "host": attempt.host,
                "started_at": attempt.started_at,
                "ended_at": attempt.ended_at,
                "reason": condition.attempts[attempt.id].reason,
                "slurm": slurm_job(attempt),
                "heard_at": attempt.heard_at,
                "step": attempt.step,
                "epoch": attempt.epoch,
            }
            for attempt in facts.attempts
        ],
        "events": model.events,
        "created_at": model.created_at,
        "last_seen": model.last_seen,
    }


def _progress(model: Model, attempt: Attempt, state: str) -> dict[str, Any]:
    """How far the newest attempt is; `rate` is steps a second."""
    epochs = (json.loads(model.request).get("config") or {}).get("epochs")
    rate = {"running": attempt.rate, "stalled": 0.0 if attempt.rate is not None else None}.get(state)
    return {
        "step": attempt.step,
        "epoch": attempt.epoch,
        "epochs": epochs if type(epochs) is int and epochs > 0 else None,
        "rate": rate,
        "at": attempt.progress_at,
    }


def details(session: Session, model: Model, now: float, patience: Patience) -> dict[str, Any]:
    """All that is known of one model, in the hub's own words.

    Args:
        session: any session.
        model: the model.
        now: seconds since the epoch.
        patience: how long the hub waits for what.
    """
    count = select(func.count()).where(Checkpoint.model_ref == model.id, Checkpoint.committed_at.is_not(None))
    ((summary, facts),) = _summaries(session, [model], now, patience)
    attempt = facts.condition.attempt
    return {
        **summary,
        "config": json.loads(model.request).get("config") or {},
        "notes": model.notes,
        "ranks": [] if attempt is None else _ranks(session, attempt, facts),
        "checkpoints": session.scalar(count),
    }


def ranks(
    session: Session, model: Model, now: float, patience: Patience, *, attempt: int | None = None
) -> list[dict[str, Any]] | None:
    """Every rank of an attempt, see ranks.py.

    Args:
        session: any session.
        model: the model.
        now: seconds since the epoch.
        patience: how long the hub waits for what.
        attempt: its number; the newest one by default.

    Returns:
        None when there is no such attempt; no rank for a model without attempts.
    """
    ((_, facts),) = _summaries(session, [model], now, patience)
    wanted = [one for one in facts.attempts if one.number == attempt]
    chosen = facts.condition.attempt if attempt is None else next(iter(wanted), None)
    if chosen is None:
        return [] if attempt is None else None
    return _ranks(session, chosen, facts)


def _ranks(session: Session, attempt: Attempt, facts: _Facts) -> list[dict[str, Any]]:
    condition, said = facts.condition, facts.condition.attempts[attempt.id].state
    is_newest = attempt is condition.attempt
    everyone: Sequence[Standing] | None = condition.everyone if is_newest else None
    if everyone is None:
        everyone = standings(session, [attempt.id]).get(attempt.id, ())
    grid = Grid(
        attempt,
        everyone,
        state=condition.state if is_newest else said,
        is_over=said in ENDED or not is_newest,
        has_ended=attempt.state in ENDED,
        now=facts.now,
        heard_until=condition.heard_until,
        stall_s=facts.patience.stall_s,
    )
    memory = memory_of(session, attempt)
    shown = [grid.view(one, memory.get(one.rank)) for one in grid.everyone]
    # Whole tracebacks of many ranks would be megabytes; the attempt has the first one's.
    return [one | {"reason": reasons.of_failure(one["reason"])} if one["reason"] else one for one in shown]


def checkpoints(
    session: Session,
    model: Model,
    *,
    after: str | None = None,
    entry_id: str | None = None,
    kind: str | None = None,
    newest_first: bool = False,
    limit: int = 1000,
) -> list[dict[str, Any]]:
    """The committed checkpoints, in the order in which they were begun or the other way round.

    Args:
        session: any session.
        model: whose.
        after: the id of the last one of the page before.
        entry_id: only the one of this entry.
        kind: only those of this kind.
        newest_first: begin with the one that was begun last.
        limit: how many at most.

    Raises:
        Problem: 404 when the model has no checkpoint `after`.
    """
    statement = (
        select(Checkpoint, Attempt.number, Attempt.attempt_id)
        .join(Attempt, Attempt.id == Checkpoint.attempt_ref)
        .where(Checkpoint.model_ref == model.id, Checkpoint.committed_at.is_not(None))
        .order_by(Checkpoint.id.desc() if newest_first else Checkpoint.id)
        .limit(limit)
    )
    if after is not None:
        last = session.scalar(
            select(Checkpoint.id).where(Checkpoint.model_ref == model.id, Checkpoint.public_id == after)
        )
        if last is None:
            raise Problem(404, "after: the model has no such checkpoint; it may have been deleted, so begin again")
        statement = statement.where(Checkpoint.id < last if newest_first else Checkpoint.id > last)
    if kind is not None:
        statement = statement.where(Checkpoint.kind == kind)
    if entry_id is not None:
        statement = statement.where(Checkpoint.entry_id == entry_id)
    rows = session.execute(statement).all()
    files: dict[int, list[dict[str, Any]]] = {row.Checkpoint.id: [] for row in rows}
    for file in session.scalars(
        select(CheckpointFile)
        .where(CheckpointFile.checkpoint_ref.in_(files))
        .order_by(CheckpointFile.checkpoint_ref, CheckpointFile.number)
    ):
        files[file.checkpoint_ref].append({"name": file.name, "size": file.size, "sha256": file.sha256})
    return [
        {
            "id": checkpoint.public_id,
            "entry_id": checkpoint.entry_id,
            "attempt": number,
            "attempt_id": attempt_id,
            "epoch": checkpoint.epoch,
            "step": checkpoint.step,
            "kind": checkpoint.kind,
            "name": checkpoint.name,
            "metrics": json.loads(checkpoint.metrics),
            "files": files[checkpoint.id],
            "committed_at": checkpoint.committed_at,
        }
        for checkpoint, number, attempt_id in rows
    ]

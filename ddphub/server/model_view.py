"""What the hub tells of a model: the same facts for the API and the page."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ddphub.server.attempts import hub_v1_attempt_id, model_state, newest, shown, slurm_job
from ddphub.server.tables import Attempt, Checkpoint, CheckpointFile, LatestMetric, Model, Project, Rank
from ddphub.server.uploads import is_last


def summaries(session: Session, models: Sequence[Model], now: float, heartbeat_s: float) -> list[dict[str, Any]]:
    """What a list says of each model.

    Args:
        session: any session.
        models: in the order of the answer.
        now: seconds since the epoch.
        heartbeat_s: seconds between heartbeats.
    """
    projects = {
        project.id: project
        for project in session.scalars(select(Project).where(Project.id.in_({one.project_ref for one in models})))
    }
    attempts: dict[int, list[Attempt]] = {model.id: [] for model in models}
    for attempt in session.scalars(select(Attempt).where(Attempt.model_ref.in_(attempts)).order_by(Attempt.number)):
        attempts[attempt.model_ref].append(attempt)
    # A run that a HUB v1 client reports can be resumed once there is something to resume it from.
    reported = {model.id for model in models if _reported_by_hub_v1(model, attempts[model.id])}
    resumable = set(
        session.scalars(
            select(Checkpoint.model_ref).where(
                Checkpoint.model_ref.in_(reported), Checkpoint.committed_at.is_not(None), is_last
            )
        )
    )
    return [
        _summary(
            model,
            projects[model.project_ref],
            attempts[model.id],
            model_state(model, attempts[model.id], now, heartbeat_s),
            begun=model.id in resumable if model.id in reported else bool(attempts[model.id]),
        )
        for model in models
    ]


def _reported_by_hub_v1(model: Model, attempts: list[Attempt]) -> bool:
    attempt = newest(attempts)
    return attempt is not None and attempt.attempt_id == hub_v1_attempt_id(model)


def _summary(model: Model, project: Project, attempts: list[Attempt], state: str, *, begun: bool) -> dict[str, Any]:
    as_shown = shown(attempts)
    return {
        "id": model.public_id,
        "project": project.name,
        "project_id": project.public_id,
        "name": model.name,
        "meta": {"name": model.name},
        "run_id": model.run_id,
        "url": f"/models/{model.public_id}",
        "state": state,
        "status": "trained" if state == "finished" else "training" if begun else "new",
        "stop_requested": model.stop_requested_at is not None,
        "attempts": [
            {
                "number": attempt.number,
                "attempt_id": attempt.attempt_id,
                "state": as_shown[attempt.id].state,
                "world_size": attempt.world_size,
                "host": attempt.host,
                "started_at": attempt.started_at,
                "ended_at": attempt.ended_at,
                "reason": as_shown[attempt.id].reason,
                "slurm": slurm_job(attempt),
            }
            for attempt in attempts
        ],
        "events": model.events,
        "created_at": model.created_at,
        "last_seen": model.last_seen,
    }


def details(session: Session, model: Model, now: float, heartbeat_s: float) -> dict[str, Any]:
    """All that is known of one model, in the hub's own words.

    Args:
        session: any session.
        model: the model.
        now: seconds since the epoch.
        heartbeat_s: seconds between heartbeats.
    """
    count = select(func.count()).where(Checkpoint.model_ref == model.id, Checkpoint.committed_at.is_not(None))
    return {
        **summaries(session, [model], now, heartbeat_s)[0],
        "ranks": ranks(session, model),
        "checkpoints": session.scalar(count),
    }


def ranks(session: Session, model: Model) -> list[dict[str, Any]]:
    """The ranks of the newest attempt."""
    attempts = session.scalars(select(Attempt).where(Attempt.model_ref == model.id)).all()
    attempt = newest(attempts)
    if attempt is None:
        return []
    rows = session.scalars(select(Rank).where(Rank.attempt_ref == attempt.id).order_by(Rank.rank))
    return [
        {
            "rank": row.rank,
            # It has reported, so it was there, whether or not rank 0 said so.
            "state": row.state or "joined",
            "host": row.host,
            "pid": row.pid,
            "last_step": row.last_step,
            "last_seen": row.last_seen,
        }
        for row in rows
    ]


def latest_metrics(session: Session, model: Model) -> list[dict[str, Any]]:
    """The newest value of each metric of each rank."""
    rows = session.scalars(
        select(LatestMetric).where(LatestMetric.model_ref == model.id).order_by(LatestMetric.name, LatestMetric.rank)
    )
    return [
        {
            "name": row.name,
            "rank": row.rank,
            "value": json.loads(row.value),
            "step": row.step,
            "epoch": row.epoch,
            "attempt": row.attempt,
            "time": row.time,
        }
        for row in rows
    ]


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
    """
    statement = (
        select(Checkpoint, Attempt.number, Attempt.attempt_id)
        .join(Attempt, Attempt.id == Checkpoint.attempt_ref)
        .where(Checkpoint.model_ref == model.id, Checkpoint.committed_at.is_not(None))
        .order_by(Checkpoint.id.desc() if newest_first else Checkpoint.id)
        .limit(limit)
    )
    if after is not None:
        last = select(Checkpoint.id).where(Checkpoint.model_ref == model.id, Checkpoint.public_id == after)
        beyond = Checkpoint.id.__lt__ if newest_first else Checkpoint.id.__gt__
        statement = statement.where(beyond(last.scalar_subquery()))
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

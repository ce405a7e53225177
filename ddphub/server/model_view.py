"""What the hub tells of a model: the same facts for the API and the page."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ddphub.server.attempts import model_state, newest
from ddphub.server.tables import Attempt, Checkpoint, CheckpointFile, LatestMetric, Model, Project, Rank


def summaries(session: Session, models: Sequence[Model], now: float, heartbeat_s: float) -> list[dict[str, Any]]:
    """What a list says of each model.

    Args:
        session: any session.
        models: in the order of the answer.
        now: seconds since the epoch.
        heartbeat_s: seconds between heartbeats.
    """
    projects = {
        project.id: project.name
        for project in session.scalars(select(Project).where(Project.id.in_({one.project_ref for one in models})))
    }
    attempts: dict[int, list[Attempt]] = {model.id: [] for model in models}
    for attempt in session.scalars(select(Attempt).where(Attempt.model_ref.in_(attempts)).order_by(Attempt.number)):
        attempts[attempt.model_ref].append(attempt)
    return [_summary(model, projects[model.project_ref], attempts[model.id], now, heartbeat_s) for model in models]


def _summary(model: Model, project: str, attempts: list[Attempt], now: float, heartbeat_s: float) -> dict[str, Any]:
    state = model_state(model, attempts, now, heartbeat_s)
    return {
        "id": model.public_id,
        "project": project,
        "name": model.name,
        "run_id": model.run_id,
        "url": f"/models/{model.public_id}",
        "state": state,
        "status": {"new": "new", "finished": "trained"}.get(state, "training"),
        "stop_requested": model.stop_requested_at is not None,
        "attempts": [
            {
                "number": attempt.number,
                "attempt_id": attempt.attempt_id,
                "state": attempt.state,
                "world_size": attempt.world_size,
                "host": attempt.host,
                "started_at": attempt.started_at,
                "ended_at": attempt.ended_at,
                "reason": attempt.reason,
            }
            for attempt in attempts
        ],
        "events": model.events,
        "created_at": model.created_at,
        "last_seen": model.last_seen,
    }


def details(session: Session, model: Model, now: float, heartbeat_s: float) -> dict[str, Any]:
    """All that is known of one model: HUB v1's fields, then the hub's own.

    Args:
        session: any session.
        model: the model.
        now: seconds since the epoch.
        heartbeat_s: seconds between heartbeats.
    """
    request = json.loads(model.request)
    config = request.get("config", {})
    counts = dict(
        session.execute(
            select(Checkpoint.kind, func.count())
            .where(Checkpoint.model_ref == model.id, Checkpoint.committed_at.is_not(None))
            .group_by(Checkpoint.kind)
        )
        .tuples()
        .all()
    )
    return {
        "meta": {**request.get("meta", {}), "name": model.name},
        "data": request.get("dataset"),
        "cfg": None,
        "weights": None,
        "resume": None,
        "batch_size": config.get("batchSize"),
        "epochs": config.get("epochs"),
        "imgsz": config.get("imageSize"),
        "patience": config.get("patience"),
        "device": config.get("device"),
        "cache": config.get("cache"),
        "train_args": config,
        "has_last_weights": bool(counts.get("epoch") or counts.get("final")),
        "has_best_weights": bool(counts.get("best") or counts.get("final")),
        "is_pretrained": False,
        "is_custom": False,
        **summaries(session, [model], now, heartbeat_s)[0],
        "ranks": ranks(session, model),
        "checkpoints": sum(counts.values()),
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
    session: Session, model: Model, *, after: str | None = None, entry_id: str | None = None, limit: int = 1000
) -> list[dict[str, Any]]:
    """The committed checkpoints, in the order in which they were begun.

    Args:
        session: any session.
        model: whose.
        after: the id of the last one of the page before.
        entry_id: only the one of this entry.
        limit: how many at most.
    """
    statement = (
        select(Checkpoint, Attempt.number, Attempt.attempt_id)
        .join(Attempt, Attempt.id == Checkpoint.attempt_ref)
        .where(Checkpoint.model_ref == model.id, Checkpoint.committed_at.is_not(None))
        .order_by(Checkpoint.id)
        .limit(limit)
    )
    if after is not None:
        last = select(Checkpoint.id).where(Checkpoint.model_ref == model.id, Checkpoint.public_id == after)
        statement = statement.where(Checkpoint.id > last.scalar_subquery())
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

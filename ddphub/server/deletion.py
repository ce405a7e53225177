"""Deleting a model: hidden at once, or gone with its rows and the bytes that nothing else needs."""

import time

from sqlalchemy import ColumnElement, and_, delete, select
from sqlalchemy.orm import Session

from ddphub.server.hub import Hub
from ddphub.server.problems import Problem
from ddphub.server.tables import (
    Attempt,
    Blob,
    Checkpoint,
    CheckpointFile,
    Event,
    LatestMetric,
    Model,
    Points,
    Project,
    Rank,
    Series,
    Tag,
)


def delete_model(hub: Hub, model_id: str, *, hard: bool) -> None:
    """Delete a model; its run id is free for another one.

    Args:
        hub: the hub.
        model_id: the model's id.
        hard: remove its rows, then its bytes, also those of a model that was deleted softly; else hide it.

    Raises:
        Problem: 404 when there is no such model.
    """
    with hub.database.write() as session:
        model = session.scalar(select(Model).where(Model.public_id == model_id))
        if model is None or (model.deleted_at is not None and not hard):
            raise Problem(404, "the hub has no such model")
        if not hard:
            model.deleted_at, model.run_id = time.time(), None
            return
        project = session.get_one(Project, model.project_ref)
        unused = list(session.scalars(select(Blob.sha256).where(_unused_blobs(model))))
        checkpoints = list(session.scalars(select(Checkpoint.public_id).where(Checkpoint.model_ref == model.id)))
        _delete_rows(session, model)
    # Bytes after rows: a crash between them leaves files that the next start removes.
    hub.commits.forget(checkpoints)
    hub.commits.remove_unvouched(project.public_id, unused)


def _unused_blobs(model: Model) -> ColumnElement[bool]:
    """Which blobs only this model's checkpoints use, committed or not."""
    used = select(CheckpointFile.sha256).join(Checkpoint, Checkpoint.id == CheckpointFile.checkpoint_ref)
    elsewhere = used.join(Model, Model.id == Checkpoint.model_ref).where(
        Model.project_ref == model.project_ref, Model.id != model.id
    )
    return and_(
        Blob.project_ref == model.project_ref,
        Blob.sha256.in_(used.where(Checkpoint.model_ref == model.id)),
        Blob.sha256.not_in(elsewhere),
    )


def _delete_rows(session: Session, model: Model) -> None:
    checkpoints = select(Checkpoint.id).where(Checkpoint.model_ref == model.id)
    attempts = select(Attempt.id).where(Attempt.model_ref == model.id)
    series = select(Series.id).where(Series.model_ref == model.id)
    for statement in (
        delete(Blob).where(_unused_blobs(model)),
        delete(CheckpointFile).where(CheckpointFile.checkpoint_ref.in_(checkpoints)),
        delete(Checkpoint).where(Checkpoint.model_ref == model.id),
        delete(Rank).where(Rank.attempt_ref.in_(attempts)),
        delete(Event).where(Event.model_ref == model.id),
        delete(LatestMetric).where(LatestMetric.model_ref == model.id),
        delete(Points).where(Points.series_ref.in_(series)),
        delete(Series).where(Series.model_ref == model.id),
        delete(Tag).where(Tag.model_ref == model.id),
        delete(Attempt).where(Attempt.model_ref == model.id),
    ):
        session.execute(statement, execution_options={"synchronize_session": False})
    session.delete(model)

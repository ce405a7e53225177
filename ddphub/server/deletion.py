"""Deleting: a model is hidden, or gone with its rows; bytes go when nothing else needs them.

Bytes go after rows: a crash between them leaves bytes that `Leftovers.sweep` removes.
"""

import time
from typing import Final

from sqlalchemy import ColumnElement, and_, delete, not_, select
from sqlalchemy.orm import Session

from ddphub.server.arrivals import arriving_files
from ddphub.server.blob_rows import lock_project
from ddphub.server.database import locked
from ddphub.server.hub import Hub
from ddphub.server.problems import Problem
from ddphub.server.storage.interface import StoredBlob
from ddphub.server.tables import (
    Attempt,
    Blob,
    Checkpoint,
    CheckpointFile,
    DeletedCheckpoint,
    Event,
    LatestMetric,
    Model,
    Points,
    Project,
    Rank,
    Series,
    Tag,
)

_PAUSE_S: Final = 0.01
"""Seconds between two transactions: the writer's lock goes to whoever comes first, not to whoever waits longest."""


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
        # From here on nobody sees it and nothing is added to it; who repeats this goes on with what is left.
        model.deleted_at, model.run_id = model.deleted_at or time.time(), None
    _delete_large(hub, model)
    with hub.database.write() as session:
        model = session.scalar(locked(session, select(Model).where(Model.public_id == model_id)))
        if model is None:
            raise Problem(404, "the hub has no such model")  # someone else was at it, too
        project = lock_project(session, model.project_ref)
        unused = _blobs(session, project, _unused_blobs(model, _all_of(model)))
        arriving = select(Checkpoint).where(_all_of(model), Checkpoint.committed_at.is_(None))
        had_room = {
            checkpoint.public_id: arriving_files(session, checkpoint, project)
            for checkpoint in session.scalars(arriving)
        }
        _delete_rows(session, model)
    hub.charts.forget(model_id)
    for checkpoint_id, files in had_room.items():
        hub.leftovers.forget(checkpoint_id, files)
    hub.leftovers.remove(unused)


def _delete_large(hub: Hub, model: Model) -> None:
    """Delete the rows of which there are millions, some at a time: what live runs send does not wait for them all."""
    series = select(Series.id).where(Series.model_ref == model.id)
    for table, of_model, most in (
        (Event, Event.model_ref == model.id, 10_000),
        (Points, Points.series_ref.in_(series), 200),
    ):
        some = delete(table).where(table.id.in_(select(table.id).where(of_model).limit(most)))
        count = most
        while count == most:
            with hub.database.write() as session:
                count = session.connection().execute(some).rowcount
            time.sleep(_PAUSE_S)


def delete_checkpoint(hub: Hub, model_id: str, checkpoint_id: str, *, unless_newest: bool = False) -> None:
    """Delete a committed checkpoint. Its entry's key stays: a repeat by the run that sent it does not bring it back.

    Args:
        hub: the hub.
        model_id: the model's id.
        checkpoint_id: the checkpoint's id.
        unless_newest: not when the model has no newer one by now, whatever it was when someone looked.

    Raises:
        Problem: 404 when there is no such checkpoint, 409 when it is still arriving, or is the newest.
    """
    with hub.database.write() as session:
        chosen = select(Model).where(Model.public_id == model_id, Model.deleted_at.is_(None))
        model = session.scalar(locked(session, chosen))
        if model is None:
            raise Problem(404, "the hub has no such model")
        project = lock_project(session, model.project_ref)
        checkpoint = session.scalar(
            select(Checkpoint).where(Checkpoint.public_id == checkpoint_id, Checkpoint.model_ref == model.id)
        )
        if checkpoint is None:
            raise Problem(404, "the model has no such checkpoint")
        if checkpoint.committed_at is None:
            # Its sender goes on, and would be told that it is done with what nobody has seen.
            raise Problem(409, "the checkpoint is still arriving: delete it once it is there")
        if unless_newest and not _has_newer(session, checkpoint):
            raise Problem(409, "the checkpoint is the newest one of its model")
        unused_blobs = _unused_blobs(model, Checkpoint.id == checkpoint.id)
        unused = _blobs(session, project, unused_blobs)
        for statement in (
            delete(Blob).where(unused_blobs),
            delete(CheckpointFile).where(CheckpointFile.checkpoint_ref == checkpoint.id),
        ):
            session.execute(statement, execution_options={"synchronize_session": False})
        session.delete(checkpoint)
        session.add(
            DeletedCheckpoint(
                model_ref=model.id,
                public_id=checkpoint.public_id,
                entry_id=checkpoint.entry_id,
                fingerprint=checkpoint.fingerprint,
            )
        )
    hub.leftovers.remove(unused)


def _has_newer(session: Session, checkpoint: Checkpoint) -> bool:
    newer = select(Checkpoint.id).where(
        Checkpoint.model_ref == checkpoint.model_ref,
        Checkpoint.committed_at.is_not(None),
        Checkpoint.id > checkpoint.id,
    )
    return session.scalar(newer.limit(1)) is not None


def _blobs(session: Session, project: Project, chosen: ColumnElement[bool]) -> list[StoredBlob]:
    found = session.execute(select(Blob.sha256, Blob.size, Blob.location).where(chosen))
    return [
        StoredBlob(project=project.public_id, sha256=sha256, size=size, location=location)
        for sha256, size, location in found
    ]


def _all_of(model: Model) -> ColumnElement[bool]:
    return Checkpoint.model_ref == model.id


def _unused_blobs(model: Model, deleted: ColumnElement[bool]) -> ColumnElement[bool]:
    """Which blobs of the model's project only the `deleted` checkpoints use, committed or not."""
    used = (
        select(CheckpointFile.sha256)
        .join(Checkpoint, Checkpoint.id == CheckpointFile.checkpoint_ref)
        .join(Model, Model.id == Checkpoint.model_ref)
        .where(Model.project_ref == model.project_ref)
    )
    return and_(
        Blob.project_ref == model.project_ref,
        Blob.sha256.in_(used.where(deleted)),
        Blob.sha256.not_in(used.where(not_(deleted))),
    )


def _delete_rows(session: Session, model: Model) -> None:
    checkpoints = select(Checkpoint.id).where(Checkpoint.model_ref == model.id)
    attempts = select(Attempt.id).where(Attempt.model_ref == model.id)
    series = select(Series.id).where(Series.model_ref == model.id)
    for statement in (
        delete(Blob).where(_unused_blobs(model, _all_of(model))),
        delete(CheckpointFile).where(CheckpointFile.checkpoint_ref.in_(checkpoints)),
        delete(Checkpoint).where(_all_of(model)),
        delete(DeletedCheckpoint).where(DeletedCheckpoint.model_ref == model.id),
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

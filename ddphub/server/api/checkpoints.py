"""Checkpoints of a model: announcing one, completing it, listing them, deleting one."""

from typing import Annotated, Literal

from fastapi import Query, Request
from fastapi.responses import Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from ddphub.hubs.wire import IDEMPOTENCY_KEY
from ddphub.server import model_view
from ddphub.server.api.access import Limit, Reads, Writes, api_router, find_checkpoint, find_model, reads
from ddphub.server.audit import record
from ddphub.server.body import JsonBody, parse_object
from ddphub.server.deletion import delete_checkpoint
from ddphub.server.hub import HubDep
from ddphub.server.manifests import check_manifest
from ddphub.server.principal import Principal
from ddphub.server.problems import Problem, answer
from ddphub.server.tables import Checkpoint, DeletedCheckpoint

router = api_router()
reading_router = api_router(reads)


@router.post("/models/{model_id}/checkpoints")
def create(hub: HubDep, request: Request, principal: Writes, model_id: str, body: JsonBody) -> Response:
    """Begin a checkpoint, or find the one that this entry began; says which parts to send where."""
    manifest = check_manifest(parse_object(body), request.headers.get(IDEMPOTENCY_KEY))
    with hub.database.write() as session:
        checkpoint_id = hub.commits.create(session, find_model(session, model_id, principal, "reporter"), manifest)
    return answer(hub.commits.state(checkpoint_id))


@reading_router.get("/models/{model_id}/checkpoints")
def read_all(
    *,
    hub: HubDep,
    principal: Reads,
    model_id: str,
    after: str | None = None,
    entry_id: str | None = None,
    kind: Annotated[str | None, Query(max_length=16)] = None,
    order: Literal["asc", "desc"] = "asc",
    limit: Limit = 1000,
) -> Response:
    """The committed checkpoints, oldest first or with `order=desc` newest first.

    `after` is the id of the last one of the page before.
    """
    with hub.database.read() as session:
        model = find_model(session, model_id, principal, "reader")
        found = model_view.checkpoints(
            session, model, after=after, entry_id=entry_id, kind=kind, newest_first=order == "desc", limit=limit
        )
    return answer(found)


@router.get("/models/{model_id}/checkpoints/{checkpoint_id}")
@router.get("/models/{model_id}/checkpoints/{checkpoint_id}/parts")
def read(hub: HubDep, principal: Writes, model_id: str, checkpoint_id: str) -> Response:
    """A checkpoint's state and the parts that are missing, for the run that sends it."""
    with hub.database.read() as session:
        _check_sent(session, model_id, checkpoint_id, principal)
    return answer(hub.commits.state(checkpoint_id))


@router.post("/models/{model_id}/checkpoints/{checkpoint_id}/complete")
def complete(hub: HubDep, principal: Writes, model_id: str, checkpoint_id: str) -> Response:
    """Commit a checkpoint; 202 while its bytes are checked."""
    with hub.database.read() as session:
        _check_sent(session, model_id, checkpoint_id, principal)
    data = hub.commits.complete(checkpoint_id)
    return answer(data, status=202 if data["state"] == "checking" else 200)


@router.delete("/models/{model_id}/checkpoints/{checkpoint_id}")
def delete(hub: HubDep, principal: Writes, model_id: str, checkpoint_id: str) -> Response:
    """Delete a committed checkpoint and the bytes that nothing else needs."""
    with hub.database.write() as session:
        note_deletion(session, model_id, checkpoint_id, principal)
    delete_checkpoint(hub, model_id, checkpoint_id)
    return answer({})


def note_deletion(session: Session, model_id: str, checkpoint_id: str, by: Principal) -> None:
    """Record that a checkpoint is about to be deleted.

    Args:
        session: a write session.
        model_id: the model's id.
        checkpoint_id: the checkpoint's id.
        by: who deletes it.

    Raises:
        Problem: 404 or 403 when there is none that `by` may delete.
    """
    checkpoint = find_checkpoint(session, model_id, checkpoint_id, by, "admin")
    if checkpoint.committed_at is not None:
        told = {"model": model_id, "name": checkpoint.name, "kind": checkpoint.kind, "epoch": checkpoint.epoch}
        record(session, by, "checkpoint.delete", checkpoint_id, **told)


def _check_sent(session: Session, model_id: str, checkpoint_id: str, principal: Principal) -> None:
    """Check that a checkpoint was sent to the model, whether or not it was deleted since.

    Raises:
        Problem: 404.
    """
    model = find_model(session, model_id, principal, "reporter")
    for table in (Checkpoint, DeletedCheckpoint):
        found = select(table.id).where(table.public_id == checkpoint_id, table.model_ref == model.id)
        if session.scalar(found) is not None:
            return
    raise Problem(404, "the model has no such checkpoint")

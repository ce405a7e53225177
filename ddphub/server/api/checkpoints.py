"""Checkpoints of a model: announcing one, completing it, listing them."""

from typing import Annotated, Literal

from fastapi import Query, Request
from fastapi.responses import Response

from ddphub.hubs.wire import IDEMPOTENCY_KEY
from ddphub.server import model_view
from ddphub.server.api.access import Limit, api_router, find_checkpoint, find_model
from ddphub.server.body import JsonBody, parse_object
from ddphub.server.hub import HubDep
from ddphub.server.manifests import check_manifest
from ddphub.server.problems import answer

router = api_router()


@router.post("/models/{model_id}/checkpoints")
def create(hub: HubDep, request: Request, model_id: str, body: JsonBody) -> Response:
    """Begin a checkpoint, or find the one that this entry began; says which parts to send where."""
    manifest = check_manifest(parse_object(body), request.headers.get(IDEMPOTENCY_KEY))
    with hub.database.write() as session:
        data = hub.commits.create(session, find_model(session, model_id), manifest)
    return answer(data)


@router.get("/models/{model_id}/checkpoints")
def read_all(
    *,
    hub: HubDep,
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
        model = find_model(session, model_id)
        found = model_view.checkpoints(
            session, model, after=after, entry_id=entry_id, kind=kind, newest_first=order == "desc", limit=limit
        )
    return answer(found)


@router.get("/models/{model_id}/checkpoints/{checkpoint_id}")
@router.get("/models/{model_id}/checkpoints/{checkpoint_id}/parts")
def read(hub: HubDep, model_id: str, checkpoint_id: str) -> Response:
    """A checkpoint's state and the parts that are missing."""
    with hub.database.read() as session:
        checkpoint = find_checkpoint(session, model_id, checkpoint_id)
    return answer(hub.commits.state(checkpoint.public_id))


@router.post("/models/{model_id}/checkpoints/{checkpoint_id}/complete")
def complete(hub: HubDep, model_id: str, checkpoint_id: str) -> Response:
    """Commit a checkpoint; 202 while its bytes are checked."""
    with hub.database.read() as session:
        checkpoint = find_checkpoint(session, model_id, checkpoint_id)
    data = hub.commits.complete(checkpoint.public_id)
    return answer(data, status=202 if data["state"] == "checking" else 200)

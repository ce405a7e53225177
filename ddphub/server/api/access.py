"""What a route of the API lets pass, and what it finds."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy import select
from sqlalchemy.orm import Session

from ddphub.server.auth import sent_key, unauthorized
from ddphub.server.body import INT64_MAX
from ddphub.server.event_log import MAX_PAGE
from ddphub.server.hub import HubDep
from ddphub.server.problems import Problem
from ddphub.server.tables import Checkpoint, Model

After = Annotated[int, Query(ge=0, le=INT64_MAX)]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]


async def needs_key(request: Request, hub: HubDep) -> None:
    """Let only requests with an API key pass."""
    key = sent_key(request)
    if key is None or not hub.keys.accepts(key):
        raise unauthorized()


async def needs_key_or_session(request: Request, hub: HubDep) -> None:
    """Let requests with an API key pass, and browsers that signed in: for routes that change nothing."""
    if sent_key(request) is None and hub.keys.accepts_session(request.cookies.get(hub.keys.cookie, "")):
        return
    await needs_key(request, hub)


def api_router(guard: Callable[..., object] = needs_key) -> APIRouter:
    """A router whose every route has `guard` in front, before a body is read."""
    return APIRouter(prefix="/v1", dependencies=[Depends(guard)])


def find_model(session: Session, model_id: str) -> Model:
    """The model with this id.

    Raises:
        Problem: 404.
    """
    model = session.scalar(select(Model).where(Model.public_id == model_id, Model.deleted_at.is_(None)))
    if model is None:
        raise Problem(404, "the hub has no such model")
    return model


def find_checkpoint(session: Session, model_id: str, checkpoint_id: str) -> Checkpoint:
    """The checkpoint with this id, of the model with that one.

    Raises:
        Problem: 404.
    """
    model = find_model(session, model_id)
    checkpoint = session.scalar(
        select(Checkpoint).where(Checkpoint.public_id == checkpoint_id, Checkpoint.model_ref == model.id)
    )
    if checkpoint is None:
        raise Problem(404, "the model has no such checkpoint")
    return checkpoint

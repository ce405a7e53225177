"""What a route of the API lets pass, and what it finds.

A route says with its `Principal` parameter who may come in (`Reads`, `Writes`, `Admins`), and with `find_model` or
`find_project` what that must be allowed to do there. What a principal may not see does not exist for it: 404. Only who
may see something learns that it may not change it: 403.
"""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy import select
from sqlalchemy.orm import Session

from ddphub.server.auth import by_cookie, by_key, sent_key
from ddphub.server.body import INT64_MAX
from ddphub.server.database import locked
from ddphub.server.event_log import MAX_PAGE
from ddphub.server.hub import HubDep
from ddphub.server.principal import Principal, Role
from ddphub.server.problems import Problem
from ddphub.server.tables import Checkpoint, Model, Project

After = Annotated[int, Query(ge=0, le=INT64_MAX)]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]


def writes(request: Request, hub: HubDep) -> Principal:
    """Let only requests with an API key pass."""
    return by_key(hub, request, sent_key(request))


def reads(request: Request, hub: HubDep) -> Principal:
    """Let requests with an API key pass, and browsers that signed in: for routes that change nothing."""
    key = sent_key(request)
    if key is None and (visitor := by_cookie(hub, request)) is not None:
        return visitor
    return by_key(hub, request, key)


Writes = Annotated[Principal, Depends(writes)]
"""A handler's parameter: who asks, with an API key."""

Reads = Annotated[Principal, Depends(reads)]
"""A handler's parameter: who asks, with an API key or in a browser: for routes that change nothing."""


def admins(principal: Writes) -> Principal:
    """Let only the hub's admin pass, with an API key."""
    if not principal.is_admin:
        raise Problem(403, "this is for the hub's admin: a key with the role admin, for no project alone")
    return principal


Admins = Annotated[Principal, Depends(admins)]
"""A handler's parameter: the hub's admin, with an API key."""


def api_router(guard: Callable[..., object] = writes) -> APIRouter:
    """A router whose every route has `guard` in front, before a body is read."""
    return APIRouter(prefix="/v1", dependencies=[Depends(guard)])


def find_model(session: Session, model_id: str, principal: Principal, role: Role, *, or_deleted: bool = False) -> Model:
    """The model with this id; in a session that writes its row is locked.

    Args:
        session: any session.
        model_id: the model's id.
        principal: who asks.
        role: what it must be in the model's project; `reporter` for what a run says of itself.
        or_deleted: find it also when it was deleted softly.

    Raises:
        Problem: 404, or 403 for who may see the model and no more.
    """
    model = session.scalar(locked(session, select(Model).where(Model.public_id == model_id)))
    is_there = model is not None and (model.deleted_at is None or or_deleted)
    if model is None or not is_there or not principal.sees(model.project_ref, model.run_id):
        raise Problem(404, "the hub has no such model")
    check_role(principal, role, model.project_ref)
    return model


def find_checkpoint(
    session: Session, model_id: str, checkpoint_id: str, principal: Principal, role: Role
) -> Checkpoint:
    """The checkpoint with this id, of the model with that one.

    Raises:
        Problem: as `find_model`.
    """
    model = find_model(session, model_id, principal, role)
    checkpoint = session.scalar(
        select(Checkpoint).where(Checkpoint.public_id == checkpoint_id, Checkpoint.model_ref == model.id)
    )
    if checkpoint is None:
        raise Problem(404, "the model has no such checkpoint")
    return checkpoint


def find_project(session: Session, project_id: str, principal: Principal, role: Role) -> Project:
    """The project with this id. A key for one run sees a run and no project.

    Raises:
        Problem: 404, or 403 for who may see the project and no more.
    """
    project = session.scalar(select(Project).where(Project.public_id == project_id))
    if project is None or principal.only_run is not None or not principal.may("reader", project.id):
        raise Problem(404, "the hub has no such project")
    check_role(principal, role, project.id)
    return project


def check_role(principal: Principal, role: Role, project: int | None) -> None:
    """Let only who can do what `role` can pass, in a project that the principal sees, or with None in all of them.

    Raises:
        Problem: 403.
    """
    if not principal.may(role, project):
        own = "a key for one run" if principal.run_id is not None else f"the role {principal.role_in(project)}"
        raise Problem(403, f"this needs the role {role} in the project, and the key gives {own}")

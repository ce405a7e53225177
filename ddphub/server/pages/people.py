"""The people page, for the hub's admin: users, and what each was granted."""

from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.params import Depends
from fastapi.responses import RedirectResponse, Response
from sqlalchemy import select

from ddphub.server import users
from ddphub.server.hub import Hub, HubDep
from ddphub.server.pages.rendering import page
from ddphub.server.pages.visitor import Form, FromAPage, SignedIn, Visitor, to_sign_in
from ddphub.server.principal import ROLES, Principal
from ddphub.server.problems import Problem
from ddphub.server.tables import Project, User

router = APIRouter()


def check_admin(visitor: Principal) -> Principal:
    """Let only the hub's admin pass.

    Raises:
        Problem: 403.
    """
    if not visitor.is_admin:
        raise Problem(403, "this page is for the hub's admin")
    return visitor


def _admin(visitor: SignedIn) -> Principal:
    return check_admin(visitor)


Admin = Annotated[Principal, Depends(_admin)]
"""A form's parameter: the hub's admin."""


@router.get("/people")
def read(hub: HubDep, request: Request, visitor: Visitor) -> Response:
    """The whole page."""
    return to_sign_in(request) if visitor is None else _page(hub, check_admin(visitor))


@router.post("/people", dependencies=[FromAPage])
def add(hub: HubDep, admin: Admin, form: Form) -> Response:
    """Add a user, with one grant or none."""
    try:
        name = users.check_name(form.get("name", "").strip(), "name")
        grants = [grant for grant in [_grant(form)] if grant is not None]
        with hub.keys.changing() as session:
            users.add(session, admin, name, grants)
    except Problem as problem:
        return _page(hub, admin, status=problem.status, wrong=problem.detail)
    return RedirectResponse("/people", 303)


@router.post("/people/{user_id}/grant", dependencies=[FromAPage])
def grant(hub: HubDep, admin: Admin, user_id: str, form: Form) -> Response:
    """Give a user a role in a project or in all, or take the one there back."""
    try:
        project = _project(form)
        wanted = _grant(form)
        with hub.keys.changing() as session:
            user = users.find(session, user_id)
            known = users.shown_grants(session, [user.id])[user.id]
            others = [users.WantedGrant(**one) for one in known if one["project"] != project]
            users.change(session, admin, user, grants=[*others, *([] if wanted is None else [wanted])])
    except Problem as problem:
        return _page(hub, admin, status=problem.status, wrong=problem.detail)
    return RedirectResponse("/people", 303)


@router.post("/people/{user_id}/{what}", dependencies=[FromAPage])
def change(hub: HubDep, admin: Admin, user_id: str, what: str) -> Response:
    """`disable`, `enable` or `remove` a user."""
    if what not in {"disable", "enable", "remove"}:
        raise Problem(404, "there is no such form")
    with hub.keys.changing() as session:
        user = users.find(session, user_id)
        if what == "remove":
            users.remove(session, admin, user)
        else:
            users.change(session, admin, user, disabled=what == "disable")
    return RedirectResponse("/people", 303)


def _project(form: dict[str, str]) -> str | None:
    name = form.get("project", "").strip()
    return users.check_name(name, "project") if name else None


def _grant(form: dict[str, str]) -> users.WantedGrant | None:
    role = form.get("role", "")
    return users.WantedGrant(_project(form), users.check_role_name(role)) if role else None


def _page(hub: Hub, admin: Principal, *, status: int = 200, wrong: str = "") -> Response:
    with hub.database.read() as session:
        rows = session.scalars(select(User).order_by(User.disabled_at.is_not(None), User.name)).all()
        shown = users.shown(session, rows)
        projects = session.scalars(select(Project.name).order_by(Project.name)).all()
    roles = list(reversed(ROLES))
    return page("people.html", status, visitor=admin, users=shown, projects=projects, roles=roles, wrong=wrong)

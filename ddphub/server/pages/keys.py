"""The keys page: the keys that its visitor may revoke, and a form that makes one that can do no more than they."""

import time
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy import select

from ddphub.server import key_rows, users
from ddphub.server.hub import Hub, HubDep
from ddphub.server.pages.rendering import page
from ddphub.server.pages.visitor import Form, FromAPage, SignedIn, Visitor, to_sign_in
from ddphub.server.principal import ROLES, Principal, stronger
from ddphub.server.problems import Problem
from ddphub.server.tables import ApiKey, Project, User

router = APIRouter()

KEYS: Final = 200
"""Keys on the page, the newest ones; the API and the command line list all."""

_FIELDS: Final = ("name", "role", "project", "run_id", "days", "user")
_DAY_S: Final = 24 * 3600.0


@router.get("/keys")
def read(hub: HubDep, request: Request, visitor: Visitor, *, every: bool = False) -> Response:
    """The whole page; with `every` also the keys that are good no longer."""
    return to_sign_in(request) if visitor is None else _page(hub, visitor, every=every)


@router.post("/keys", dependencies=[FromAPage])
def add(hub: HubDep, visitor: SignedIn, form: Form) -> Response:
    """Make a key. It is in this page and nowhere else, so there is no other page to go to."""
    given = {name: form.get(name, "").strip() for name in _FIELDS}
    try:
        wanted = key_rows.WantedKey(
            name=users.check_name(given["name"], "name"),
            role=users.check_role_name(given["role"] or "writer"),
            project=users.check_name(given["project"], "project") if given["project"] else None,
            run_id=given["run_id"] or None,
            expires_at=_expires_at(given["days"]),
            user=given["user"] or None,
        )
        with hub.keys.changing() as session:
            row, key = key_rows.make(session, visitor, wanted)
            made = key_rows.shown(session, [row])[0]
    except Problem as problem:
        return _page(hub, visitor, status=problem.status, wrong=problem.detail, given=given)
    return _page(hub, visitor, made=made, key=key)


@router.post("/keys/{key_id}/revoke", dependencies=[FromAPage])
def revoke(hub: HubDep, visitor: SignedIn, key_id: str) -> Response:
    """Revoke a key."""
    with hub.keys.changing() as session:
        key_rows.revoke(session, visitor, key_rows.find(session, visitor, key_id))
    return RedirectResponse("/keys", 303)


def _expires_at(days: str) -> float | None:
    if not days:
        return None
    if not days.isascii() or not days.isdigit() or not 0 < int(days[:9]) < 100_000:
        raise Problem(422, "days: expected a number of days, or nothing for a key that never expires")
    return time.time() + int(days) * _DAY_S


def _page(hub: Hub, visitor: Principal, *, every: bool = False, status: int = 200, **values: Any) -> Response:  # noqa: ANN401  # what the template needs
    now = time.time()
    chosen = select(ApiKey).where(*key_rows.seen_by(visitor)).order_by(ApiKey.id.desc()).limit(KEYS + 1)
    projects = select(Project.name).order_by(Project.name)
    if not every:
        chosen = chosen.where(*key_rows.is_good(now))
    if visitor.visible is not None:
        projects = projects.where(Project.id.in_(visitor.visible))
    with hub.database.read() as session:
        keys = key_rows.shown(session, session.scalars(chosen).all())
        names = session.scalars(projects).all()
        people = session.scalars(select(User.name).order_by(User.name)).all() if visitor.is_admin else []
    blank: dict[str, Any] = {"made": None, "key": None, "wrong": "", "given": dict.fromkeys(_FIELDS, "")}
    return page(
        "keys.html",
        status,
        visitor=visitor,
        keys=keys[:KEYS],
        more=len(keys) > KEYS,
        every=every,
        roles=[role for role in reversed(ROLES) if not stronger(role, visitor.role)],
        can_make=key_rows.can_make(visitor),
        projects=names,
        people=people,
        **{**blank, **values},
    )

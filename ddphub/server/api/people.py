"""Users, API keys and the audit log."""

import time
from typing import Annotated, Any

from fastapi import Query
from fastapi.responses import Response
from sqlalchemy import select

from ddphub.server import audit, key_rows, users
from ddphub.server.api.access import Admins, After, Limit, Writes, api_router
from ddphub.server.body import JsonBody, parse_object
from ddphub.server.hub import HubDep
from ddphub.server.problems import Problem, answer
from ddphub.server.tables import ApiKey, User

router = api_router()

_Id = Annotated[str | None, Query(max_length=20)]


@router.post("/users")
def add_user(hub: HubDep, admin: Admins, body: JsonBody) -> Response:
    """Add a user: `name`, and `grants` as a list of `{"project": name or null, "role": ...}`."""
    content = _fields(body, {"name", "grants"})
    name = users.check_name(content.get("name"), "name")
    grants = users.check_grants(content.get("grants", []))
    with hub.keys.changing() as session:
        user = users.add(session, admin, name, grants)
        data = users.shown(session, [user])[0]
    return answer(data)


@router.get("/users")
def read_users(hub: HubDep, admin: Admins, after: _Id = None, limit: Limit = 1000) -> Response:
    """The users, in the order they were added; `next` is the `after` of the next page."""
    del admin
    with hub.database.read() as session:
        chosen = select(User).order_by(User.id).limit(limit + 1)
        if after is not None:
            chosen = chosen.where(User.id > users.find(session, after).id)
        rows = session.scalars(chosen).all()
        data = users.shown(session, rows[:limit])
    return answer({"results": data, "next": data[-1]["id"] if len(rows) > limit else None})


@router.patch("/users/{user_id}")
def change_user(hub: HubDep, admin: Admins, user_id: str, body: JsonBody) -> Response:
    """Replace the `grants` of a user, or say with `disabled` whether the user may do nothing."""
    content = _fields(body, {"grants", "disabled"})
    grants = users.check_grants(content["grants"]) if "grants" in content else None
    disabled = content.get("disabled")
    if not isinstance(disabled, bool | None):
        raise Problem(422, "disabled: expected true or false")
    with hub.keys.changing() as session:
        user = users.find(session, user_id)
        users.change(session, admin, user, grants=grants, disabled=disabled)
        data = users.shown(session, [user])[0]
    return answer(data)


@router.delete("/users/{user_id}")
def remove_user(hub: HubDep, admin: Admins, user_id: str) -> Response:
    """Revoke all keys of a user, take the grants back and disable the user; the name stays."""
    with hub.keys.changing() as session:
        users.remove(session, admin, users.find(session, user_id))
    return answer({})


@router.post("/keys")
def add_key(hub: HubDep, principal: Writes, body: JsonBody) -> Response:
    """Make a key; `key` is in this answer and nowhere else.

    `name`, `role` (writer), `project` (its name; all), `run_id` (all; needs a project), `expires_at` (seconds since the
    epoch; never), `user` (a name; who asks; null: nobody).
    """
    content = _fields(body, {"name", "role", "project", "run_id", "expires_at", "user"})
    expires_at = content.get("expires_at")
    if isinstance(expires_at, bool) or not isinstance(expires_at, int | float | None):
        raise Problem(422, "expires_at: expected a number of seconds since the epoch, or null")
    wanted = key_rows.WantedKey(
        name=users.check_name(content.get("name"), "name"),
        role=users.check_role_name(content.get("role", "writer")),
        project=_name_or_none(content, "project"),
        run_id=content.get("run_id"),
        expires_at=expires_at,
        user=_name_or_none(content, "user"),
        of_nobody="user" in content and content["user"] is None,
    )
    with hub.keys.changing() as session:
        row, key = key_rows.make(session, principal, wanted)
        data = key_rows.shown(session, [row])[0]
    return answer({**data, "key": key})


@router.get("/keys")
def read_keys(
    hub: HubDep, principal: Writes, after: _Id = None, limit: Limit = 1000, *, every: bool = False
) -> Response:
    """The keys that who asks may revoke, oldest first; with `every` also those that are good no longer.

    `next` is the `after` of the next page.
    """
    with hub.database.read() as session:
        chosen = select(ApiKey).where(*key_rows.seen_by(principal)).order_by(ApiKey.id).limit(limit + 1)
        if not every:
            chosen = chosen.where(*key_rows.is_good(time.time()))
        if after is not None:
            chosen = chosen.where(ApiKey.id > key_rows.find(session, principal, after).id)
        rows = session.scalars(chosen).all()
        data = key_rows.shown(session, rows[:limit])
    return answer({"results": data, "next": data[-1]["id"] if len(rows) > limit else None})


@router.delete("/keys/{key_id}")
def revoke_key(hub: HubDep, principal: Writes, key_id: str) -> Response:
    """Revoke a key, from the next request on; its browser sessions end, too."""
    with hub.keys.changing() as session:
        key_rows.revoke(session, principal, key_rows.find(session, principal, key_id))
    return answer({})


@router.get("/audit")
def read_audit(hub: HubDep, admin: Admins, after: After = 0, limit: Limit = 1000, *, newest: bool = False) -> Response:
    """Who changed what, oldest first; with `newest` the last ones. `next` is the `after` of the next page."""
    del admin
    with hub.database.read() as session:
        if newest:
            return answer({"results": audit.newest(session, None, limit)[::-1], "next": None})
        records = audit.read(session, after, limit + 1)
    page = records[:limit]
    return answer({"results": page, "next": page[-1]["id"] if len(records) > limit else None})


def _fields(body: bytes, known: set[str]) -> dict[str, Any]:
    """The request's object.

    Raises:
        Problem: 422 when it has a field that nobody reads: a limit that is misspelt would be none.
    """
    content = parse_object(body)
    if unknown := sorted(set(content) - known):
        raise Problem(422, f"{unknown[0][:40]!a} is none of {', '.join(sorted(known))}")
    return content


def _name_or_none(content: dict[str, Any], field: str) -> str | None:
    return None if content.get(field) is None else users.check_name(content[field], field)

"""Users: who they are, and what they were granted in which project."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from ddphub import names
from ddphub.server import audit
from ddphub.server.commits import new_public_id
from ddphub.server.database import insert, locked
from ddphub.server.principal import ROLES, Principal
from ddphub.server.problems import Problem
from ddphub.server.registration import project_named
from ddphub.server.tables import ApiKey, Grant, Project, User

MAX_GRANTS: Final = 1000


@dataclass(frozen=True)
class WantedGrant:
    """A role in a project that is named, or with None in all."""

    project: str | None
    role: str


def check_role_name(value: object, field: str = "role") -> str:
    """A role that keys and grants can have.

    Raises:
        Problem: 422.
    """
    if not isinstance(value, str) or value not in ROLES:
        raise Problem(422, f"{field}: expected one of {', '.join(ROLES)}")
    return value


def check_name(value: object, field: str) -> str:
    """The name of a user, a key or a project.

    Raises:
        Problem: 422.
    """
    if wrong := names.wrong_name(value):
        raise Problem(422, f"{field}: {wrong}")
    return str(value)


def check_grants(value: object) -> list[WantedGrant]:
    """The grants of a request.

    Raises:
        Problem: 422 that names the first wrong one.
    """
    if not isinstance(value, list) or len(value) > MAX_GRANTS:
        raise Problem(422, f"grants: expected a list of at most {MAX_GRANTS}")
    found: dict[str | None, WantedGrant] = {}
    for index, one in enumerate(value):
        if not isinstance(one, dict) or not set(one) <= {"project", "role"}:
            raise Problem(422, f"grants[{index}]: expected an object with role and project (null for all projects)")
        project = one.get("project")
        if project is not None:
            project = check_name(project, f"grants[{index}].project")
        if project in found:
            raise Problem(422, f"grants[{index}].project: there is another grant for it")
        found[project] = WantedGrant(project, check_role_name(one.get("role"), f"grants[{index}].role"))
    return list(found.values())


def add(session: Session, by: Principal, name: str, grants: Iterable[WantedGrant]) -> User:
    """Add a user.

    Args:
        session: a write session.
        by: the hub's admin.
        name: a checked name.
        grants: what the user may do; projects that are not there are made.

    Raises:
        Problem: 409 when there is one of this name.
    """
    row = {"public_id": new_public_id(), "name": name, "created_at": time.time()}
    session.execute(insert(User).values(row).on_conflict_do_nothing())
    user = session.scalars(select(User).where(User.name == name)).one()
    if user.public_id != row["public_id"]:
        raise Problem(409, "there is a user of this name")
    set_grants(session, user, grants)
    audit.record(session, by, "user.add", name, grants=shown_grants(session, [user.id])[user.id])
    return user


def find(session: Session, user_id: str) -> User:
    """The user with this id; in a session that writes its row is locked.

    Raises:
        Problem: 404.
    """
    user = session.scalar(locked(session, select(User).where(User.public_id == user_id)))
    if user is None:
        raise Problem(404, "the hub has no such user")
    return user


def change(
    session: Session,
    by: Principal,
    user: User,
    *,
    grants: Iterable[WantedGrant] | None = None,
    disabled: bool | None = None,
) -> None:
    """Replace a user's grants, or disable or enable the user; effective with the next request of each key.

    Args:
        session: the write session that found the user.
        by: the hub's admin.
        user: who.
        grants: all that the user may do from now on; None leaves them.
        disabled: whether the user may do nothing; None leaves it.
    """
    detail: dict[str, Any] = {}
    if grants is not None:
        set_grants(session, user, grants)
        detail["grants"] = shown_grants(session, [user.id])[user.id]
    if disabled is not None and disabled != (user.disabled_at is not None):
        user.disabled_at = time.time() if disabled else None
        detail["disabled"] = disabled
    if detail:
        audit.record(session, by, "user.change", user.name, **detail)


def remove(session: Session, by: Principal, user: User) -> None:
    """Revoke a user's keys, take every grant back and disable the user. The name stays, as the audit log tells of it.

    Args:
        session: the write session that found the user.
        by: the hub's admin.
        user: who.
    """
    now = time.time()
    revoked = update(ApiKey).where(ApiKey.user_ref == user.id, ApiKey.revoked_at.is_(None)).values(revoked_at=now)
    session.execute(revoked, execution_options={"synchronize_session": False})
    session.execute(delete(Grant).where(Grant.user_ref == user.id))
    user.disabled_at = user.disabled_at or now
    audit.record(session, by, "user.remove", user.name)


def set_grants(session: Session, user: User, grants: Iterable[WantedGrant]) -> None:
    """Replace a user's grants; projects that are not there are made."""
    wanted = {None if one.project is None else project_named(session, one.project).id: one.role for one in grants}
    session.execute(delete(Grant).where(Grant.user_ref == user.id))
    session.add_all(Grant(user_ref=user.id, project_ref=project, role=role) for project, role in wanted.items())
    session.flush()


def shown_grants(session: Session, users: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
    """What some users were granted: for each a list of `{"project": name or None, "role": ...}`."""
    found: dict[int, list[dict[str, Any]]] = {number: [] for number in users}
    rows = session.execute(
        select(Grant.user_ref, Project.name, Grant.role)
        .outerjoin(Project, Project.id == Grant.project_ref)
        .where(Grant.user_ref.in_(users))
    )
    for user_ref, project, role in rows:
        found[user_ref].append({"project": project, "role": role})
    for grants in found.values():
        grants.sort(key=lambda grant: grant["project"] or "")
    return found


def shown(session: Session, users: Sequence[User]) -> list[dict[str, Any]]:
    """Users as they are told of."""
    grants = shown_grants(session, [user.id for user in users])
    return [
        {
            "id": user.public_id,
            "name": user.name,
            "created_at": user.created_at,
            "disabled_at": user.disabled_at,
            "grants": grants[user.id],
        }
        for user in users
    ]

"""Keys as people manage them: who may make which, who sees and revokes which.

Nobody makes a key that can do more than they: who has a user makes keys for that user; a project's admin also for the
project; the hub's admin any. A key that expires makes none that lasts longer, and one for a run makes none.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, or_, select, true
from sqlalchemy.orm import Session

from ddphub import names
from ddphub.server import audit
from ddphub.server.database import locked
from ddphub.server.keys import new_key, new_row
from ddphub.server.principal import Principal, stronger
from ddphub.server.problems import Problem
from ddphub.server.registration import project_named
from ddphub.server.tables import ApiKey, Project, User

YEAR_S: Final = 366 * 24 * 3600.0
LONGEST_S: Final = 100 * YEAR_S


@dataclass(frozen=True, kw_only=True)
class WantedKey:
    """A key that someone asks for; its fields are checked when it is made.

    Attributes:
        name: what people know it by.
        role: the most that it can do.
        project: the one project that it is good for, by name; None for all that its user may use.
        run_id: the one run that it is good for; None for all.
        expires_at: seconds since the epoch; None for never.
        user: whose it is, by name; None for whoever asks.
        of_nobody: it is no user's, and lasts until it is revoked or expires.
    """

    name: str
    role: str = "writer"
    project: str | None = None
    run_id: str | None = None
    expires_at: float | None = None
    user: str | None = None
    of_nobody: bool = False

    def __post_init__(self) -> None:
        if self.of_nobody and self.user is not None:
            raise Problem(422, "user: a key is a user's or nobody's")
        if self.run_id is not None:
            if self.project is None:
                raise Problem(422, "run_id: a key for a run needs its project, too")
            if wrong := names.wrong_run_id(self.run_id):
                raise Problem(422, f"run_id: {wrong}")
            if self.role == "admin":
                raise Problem(422, "role: a key for a run is a writer's or a reader's")
        if self.expires_at is not None and not time.time() < self.expires_at < time.time() + LONGEST_S:
            raise Problem(422, "expires_at: expected a time in the future, as seconds since the epoch")


def make(session: Session, by: Principal, wanted: WantedKey) -> tuple[ApiKey, str]:
    """Make a key; a project that is not there is made, for who may do that.

    Args:
        session: a write session.
        by: who asks.
        wanted: what it should be.

    Returns:
        Its row, and the key itself, which is not stored.

    Raises:
        Problem: 403 or 422 when `by` may not make it, 404 for a project or a user that is not there for `by`.
    """
    if not can_make(by):
        raise Problem(403, "keys are made by users and admins: this key is neither's, or is for one run")
    project = _project(session, by, wanted.project)
    project_ref = None if project is None else project.id
    user_ref = _owner(session, by, wanted, project_ref)
    if not _is_as_strong(by, wanted.role, project_ref, user_ref):
        where = "all projects" if wanted.project is None else f"the project {wanted.project}"
        raise Problem(403, f"you cannot make a key that can do more than you: you are no {wanted.role} in {where}")
    if wanted.expires_at is not None and by.expires_at is not None and wanted.expires_at > by.expires_at:
        raise Problem(403, "expires_at: the key that you use expires before")
    key = new_key()
    row = new_row(
        key,
        name=wanted.name,
        role=wanted.role,
        user_ref=user_ref,
        project_ref=project_ref,
        run_id=wanted.run_id,
        expires_at=by.expires_at if wanted.expires_at is None else wanted.expires_at,
    )
    session.add(row)
    session.flush()
    told = shown(session, [row])[0]
    kept = ("prefix", "user", "role", "project", "run_id", "expires_at")
    audit.record(session, by, "key.add", row.public_id, name=row.name, **{field: told[field] for field in kept})
    return row, key


def can_make(by: Principal) -> bool:
    """Whether there is any key that `by` may make."""
    if by.run_id is not None:
        return False
    return by.user is not None or by.may("admin", by.project)


def _is_as_strong(by: Principal, role: str, project_ref: int | None, user_ref: int | None) -> bool:
    if project_ref is None and by.project is None and by.user is not None and user_ref == by.user:
        return not stronger(role, by.role)  # what its user was granted limits it everywhere
    own = by.role_in(project_ref)
    return own is not None and not stronger(role, own)


def _project(session: Session, by: Principal, name: str | None) -> Project | None:
    if name is None:
        return None
    project = session.scalar(select(Project).where(Project.name == name))
    if project is not None and by.may("reader", project.id):
        return project
    if not by.may("writer", None):
        # The same whether or not the project is there.
        raise Problem(404, "project: there is none of this name that your key is good for")
    return project_named(session, name)


def _owner(session: Session, by: Principal, wanted: WantedKey, project_ref: int | None) -> int | None:
    """The number of the user whose key it will be; None for nobody's."""
    if wanted.user is None and not wanted.of_nobody and by.user is not None:
        return by.user
    if wanted.user is not None and wanted.user == by.who and by.user is not None:
        return by.user
    if wanted.user is not None:
        if not by.is_admin:
            raise Problem(403, "only the hub's admin makes keys for others")
        user = session.scalar(select(User).where(User.name == wanted.user))
        if user is None:
            raise Problem(404, "user: the hub has no user of this name")
        return user.id
    if not by.may("admin", project_ref):
        raise Problem(403, "a key of no user is made by the hub's admin, or for a project by its admin")
    return None


def seen_by(by: Principal) -> list[ColumnElement[bool]]:
    """What holds for the keys that someone sees, and may revoke: all, those of a project, or one's own."""
    if by.is_admin:
        return []
    own = [ApiKey.public_id == (by.key_id or "")]
    if by.user is not None and by.run_id is None:
        # A key for one project tells of none that its user has elsewhere.
        is_near = true() if by.project is None else ApiKey.project_ref == by.project
        own.append((ApiKey.user_ref == by.user) & is_near)
    places = [by.project] if by.project is not None else [project for project in by.grants or () if project is not None]
    projects = [project for project in places if by.may("admin", project)]
    return [or_(*own, ApiKey.project_ref.in_(projects))]


def is_good(now: float) -> list[ColumnElement[bool]]:
    """What holds for keys that were not revoked and have not expired."""
    return [ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now)]


def find(session: Session, by: Principal, key_id: str) -> ApiKey:
    """The key with this id; in a session that writes its row is locked.

    Raises:
        Problem: 404 when there is none that `by` sees.
    """
    row = session.scalar(locked(session, select(ApiKey).where(ApiKey.public_id == key_id, *seen_by(by))))
    if row is None:
        raise Problem(404, "the hub has no such key")
    return row


def revoke(session: Session, by: Principal, row: ApiKey) -> None:
    """Make a key good for nothing, with its browser sessions, from the next request on; a repeat changes nothing.

    Args:
        session: the write session that found it.
        by: who asks.
        row: the key.

    Raises:
        Problem: 403 for a key that can do more than the one that asks: a page that only reads must not stop trainings.
    """
    if stronger(row.role, by.role):
        raise Problem(403, f"this key can do more than yours: revoke it with one that has the role {row.role}")
    if row.revoked_at is None:
        row.revoked_at = time.time()
        audit.record(session, by, "key.revoke", row.public_id, name=row.name, prefix=row.prefix)


def shown(session: Session, rows: Sequence[ApiKey]) -> list[dict[str, Any]]:
    """Keys as they are told of, without a secret."""
    users = dict(_names(session, User, {row.user_ref for row in rows}))
    projects = dict(_names(session, Project, {row.project_ref for row in rows}))
    return [
        {
            "id": row.public_id,
            "prefix": row.prefix,
            "name": row.name,
            "user": users.get(row.user_ref),
            "role": row.role,
            "project": projects.get(row.project_ref),
            "run_id": row.run_id,
            "created_at": row.created_at,
            "expires_at": row.expires_at,
            "revoked_at": row.revoked_at,
            "last_used_at": row.last_used_at,
        }
        for row in rows
    ]


def _names(session: Session, table: type[User | Project], numbers: set[int | None]) -> list[tuple[int | None, str]]:
    rows = session.execute(
        select(table.id, table.name).where(table.id.in_([one for one in numbers if one is not None]))
    )
    return [(number, name) for number, name in rows]

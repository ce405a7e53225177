"""Who changed what, when and from where: written in the transaction of the change, or before it."""

import json
import time
from collections.abc import Sequence
from typing import Any, Final, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from ddphub.server.database import number_in_turn
from ddphub.server.principal import Principal
from ddphub.server.tables import AuditRecord

Action = Literal[
    "user.add",
    "user.change",
    "user.remove",
    "key.add",
    "key.revoke",
    "key.refused",
    "address.blocked",
    "sign-in",
    "sign-out",
    "model.stop",
    "model.delete",
    "checkpoint.delete",
    "project.retention",
    "backup",
]
"""What is recorded. A deletion by retention is one too, by the hub itself."""

_MAX_TEXT: Final = 500


def record(session: Session, by: Principal, action: Action, what: str, **detail: Any) -> None:  # noqa: ANN401  # JSON
    """Add a record.

    Args:
        session: the write session of the change. A deletion, which takes several, is recorded before the first.
        by: who does it.
        action: what is done.
        what: the id or the name of what is changed.
        detail: more, as JSON has it; never a key.
    """
    number_in_turn(session, AuditRecord.__tablename__)
    session.add(
        AuditRecord(
            time=time.time(),
            who=by.who[:_MAX_TEXT],
            key=by.key_id,
            action=action,
            object=what[:_MAX_TEXT],
            address=by.address,
            request_id=by.request_id,
            detail=json.dumps(detail),
        )
    )


def read(session: Session, after: int, limit: int) -> list[dict[str, Any]]:
    """The records after the one with this number, oldest first."""
    chosen = select(AuditRecord).where(AuditRecord.id > after).order_by(AuditRecord.id).limit(limit)
    return _as_dicts(session.scalars(chosen).all())


def newest(session: Session, before: int | None, limit: int) -> list[dict[str, Any]]:
    """The newest records, or those before one, newest first."""
    chosen = select(AuditRecord).order_by(AuditRecord.id.desc()).limit(limit)
    if before is not None:
        chosen = chosen.where(AuditRecord.id < before)
    return _as_dicts(session.scalars(chosen).all())


def _as_dicts(rows: Sequence[AuditRecord]) -> list[dict[str, Any]]:
    return [
        {
            "id": row.id,
            "time": row.time,
            "who": row.who,
            "key": row.key,
            "action": row.action,
            "object": row.object,
            "address": row.address,
            "request_id": row.request_id,
            "detail": json.loads(row.detail),
        }
        for row in rows
    ]

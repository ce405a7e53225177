"""What a hub tells of its projects, and the rules that they have."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, false, func, select
from sqlalchemy.orm import Session

from ddphub.server import audit
from ddphub.server.principal import Principal
from ddphub.server.retention import Rules
from ddphub.server.tables import Blob, Model, Project


def visible(principal: Principal) -> Select[Project]:
    """Selects the projects that a principal may read, by name."""
    chosen = select(Project).order_by(Project.name)
    if principal.only_run is not None:
        return chosen.where(false())  # its key is good for a run, not for what lies around it
    return chosen if principal.visible is None else chosen.where(Project.id.in_(principal.visible))


def tell(session: Session, projects: Sequence[Project]) -> list[dict[str, Any]]:
    """What a list says of projects: `bytes` is what their checkpoints take, equal ones once."""
    numbers = [project.id for project in projects]
    models = (
        select(Model.project_ref, func.count())
        .where(Model.project_ref.in_(numbers), Model.deleted_at.is_(None))
        .group_by(Model.project_ref)
    )
    held = select(Blob.project_ref, func.sum(Blob.size)).where(Blob.project_ref.in_(numbers)).group_by(Blob.project_ref)
    counts = {number: int(count) for number, count in session.execute(models)}
    sizes = {number: int(size) for number, size in session.execute(held)}
    return [
        {
            "id": project.public_id,
            "name": project.name,
            "meta": {"name": project.name},
            "created_at": project.created_at,
            "models": counts.get(project.id, 0),
            "bytes": sizes.get(project.id, 0),
            "retention": rules_of(project).to_dict(),
        }
        for project in projects
    ]


def rules_of(project: Project) -> Rules:
    """The rules of a project."""
    return Rules.parse(None if project.retention is None else json.loads(project.retention))


def set_rules(session: Session, project: Project, rules: Rules, by: Principal) -> None:
    """Give a project its rules; with none it keeps all.

    Args:
        session: a write session.
        project: whose rules.
        rules: all of them.
        by: who does it, for the audit log.
    """
    project.retention = json.dumps(rules.to_dict()) if rules else None
    audit.record(session, by, "project.retention", project.name, rules=rules.to_dict())

"""Projects: listing them, and which of their checkpoints are kept."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from fastapi.responses import Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ddphub.server.api.access import Reads, Writes, api_router, find_project, reads
from ddphub.server.body import JsonBody, parse_object
from ddphub.server.hub import HubDep
from ddphub.server.principal import Principal, Role
from ddphub.server.problems import Problem, answer
from ddphub.server.projects import rules_of, set_rules, tell, visible
from ddphub.server.pruning import Pruned, plan, prune
from ddphub.server.retention import Rules
from ddphub.server.tables import Project

_writing = api_router()
_reading = api_router(reads)

_AT_ONCE: Final = 200
"""Checkpoints that one request deletes or tells of at most."""

_Some = Annotated[int, Query(ge=1, le=_AT_ONCE)]


@_reading.get("/projects")
def read_all(
    *, hub: HubDep, principal: Reads, limit: Annotated[int, Query(ge=1, le=1000)] = 100, last_doc_id: str | None = None
) -> Response:
    """Projects that the principal may read, by name; `last_doc_id` is the page before's `lastRecordId`."""
    chosen = visible(principal)
    with hub.database.read() as session:
        total = session.scalar(select(func.count()).select_from(chosen.subquery()))
        if last_doc_id is not None:
            chosen = chosen.where(Project.name > find_readable(session, last_doc_id, principal, "reader").name)
        projects = session.scalars(chosen.limit(limit)).all()
        results = tell(session, projects)
    last = projects[-1].public_id if len(projects) == limit else None
    return answer({"results": results, "total": total, "lastRecordId": last})


@_reading.get("/projects/{project_id}")
def read(hub: HubDep, principal: Reads, project_id: str) -> Response:
    """One project."""
    with hub.database.read() as session:
        (told,) = tell(session, [find_readable(session, project_id, principal, "reader")])
    return answer(told)


@_reading.get("/projects/{project_id}/retention")
def read_retention(hub: HubDep, principal: Reads, project_id: str) -> Response:
    """The rules by which checkpoints are kept; without any of them all are."""
    with hub.database.read() as session:
        rules = rules_of(find_readable(session, project_id, principal, "reader"))
    return answer(rules.to_dict())


@_writing.put("/projects/{project_id}/retention")
def set_retention(hub: HubDep, principal: Writes, project_id: str, body: JsonBody) -> Response:
    """Set the rules, all of them; without any rule all checkpoints are kept."""
    rules = Rules.parse(parse_object(body))
    with hub.database.write() as session:
        set_rules(session, find_readable(session, project_id, principal, "admin"), rules, principal)
    return answer(rules.to_dict())


@_writing.post("/projects/{project_id}/retention/plan")
def plan_retention(
    hub: HubDep, principal: Writes, project_id: str, body: JsonBody, limit: _Some = _AT_ONCE
) -> Response:
    """What would go by the rules in the body, or without a body by those of the project; nothing is changed."""
    with hub.database.read() as session:
        project = find_readable(session, project_id, principal, "reader")
    return answer(
        _told(plan(hub, project, Rules.parse(parse_object(body)) if body else rules_of(project), limit=limit))
    )


@_writing.post("/projects/{project_id}/retention/apply")
def apply_retention(hub: HubDep, principal: Writes, project_id: str, limit: _Some = _AT_ONCE) -> Response:
    """Delete what the rules do not keep, some at a time: repeat it while the answer says that there is `more`."""
    with hub.database.read() as session:
        project = find_readable(session, project_id, principal, "admin")
    return answer(_told(prune(hub, project, principal, limit=limit)))


def find_readable(session: Session, project_id: str, principal: Principal, role: Role) -> Project:
    """The project with this id, for who may read more than one run of it.

    Raises:
        Problem: as `find_project`.
    """
    if principal.only_run is not None:
        raise Problem(404, "the hub has no such project")  # see `visible`
    return find_project(session, project_id, principal, role)


def _told(pruned: Pruned) -> dict[str, Any]:
    return {"checkpoints": [one.to_dict() for one in pruned.some], "bytes": pruned.size, "more": pruned.more}


router = APIRouter()
"""Both, as this must come before HUB v1's, whose routes say of all other requests that they are not for here."""
for _one in (_reading, _writing):
    router.include_router(_one)

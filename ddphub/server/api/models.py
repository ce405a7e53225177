"""Models: creating one for a run, finding them."""

import time
from typing import Annotated, Any

from fastapi import Query, Request
from fastapi.responses import Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ddphub import events, names
from ddphub.hubs.wire import IDEMPOTENCY_KEY
from ddphub.server import model_view
from ddphub.server.api.access import api_router, find_model
from ddphub.server.body import JsonBody, parse_object
from ddphub.server.commits import new_public_id
from ddphub.server.hub import HubDep
from ddphub.server.problems import Problem, answer
from ddphub.server.tables import Model, Project

router = api_router()


@router.post("/models")
def create(hub: HubDep, request: Request, body: JsonBody) -> Response:
    """Create a model; a repeat with the same run id finds it."""
    content = parse_object(body)
    project_name, name = _checked_names(content)
    run_id = request.headers.get(IDEMPOTENCY_KEY)
    if run_id is not None and (wrong := names.wrong_run_id(run_id)):
        raise Problem(422, f"{IDEMPOTENCY_KEY}: {wrong}")
    with hub.database.write() as session:
        project = _project(session, project_name)
        model = None
        if run_id is not None:
            model = session.scalar(select(Model).where(Model.project_ref == project.id, Model.run_id == run_id))
        if model is None:
            model = Model(
                public_id=new_public_id(),
                project_ref=project.id,
                run_id=run_id,
                name=name,
                request=events.to_json(content),
                created_at=time.time(),
            )
            session.add(model)
            session.flush()
        data = model_view.details(session, model, time.time(), hub.settings.heartbeat_s)
    return answer(data)


def _checked_names(content: dict[str, Any]) -> tuple[str, str]:
    # HUB v1 clients name no project and may leave the rest out.
    for field in ("meta", "config"):
        if not isinstance(content.get(field, {}), dict):
            raise Problem(422, f"{field}: expected an object")
    project, name = content.get("project", "default"), content.get("meta", {}).get("name", "model")
    if wrong := names.wrong_name(project):
        raise Problem(422, f"project: {wrong}")
    if wrong := names.wrong_name(name):
        raise Problem(422, f"meta.name: {wrong}")
    return project, name


def _project(session: Session, name: str) -> Project:
    project = session.scalar(select(Project).where(Project.name == name))
    if project is None:
        project = Project(public_id=new_public_id(), name=name, created_at=time.time())
        session.add(project)
        session.flush()
    return project


@router.get("/models")
def read_all(
    hub: HubDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    last_doc_id: str | None = None,
    project: str | None = None,
) -> Response:
    """Models, newest first; `last_doc_id` is the page before's `lastRecordId`."""
    with hub.database.read() as session:
        chosen = select(Model)
        if project is not None:
            chosen = chosen.join(Project, Project.id == Model.project_ref).where(Project.name == project)
        total = session.scalar(select(func.count()).select_from(chosen.subquery()))
        if last_doc_id:
            chosen = chosen.where(Model.id < find_model(session, last_doc_id).id)
        models = session.scalars(chosen.order_by(Model.id.desc()).limit(limit)).all()
        results = model_view.summaries(session, models, time.time(), hub.settings.heartbeat_s)
    return answer({"results": results, "total": total, "lastRecordId": results[-1]["id"] if results else None})


@router.get("/models/{model_id}")
def read(hub: HubDep, model_id: str) -> Response:
    """All that is known of one model."""
    with hub.database.read() as session:
        model = find_model(session, model_id)
        return answer(model_view.details(session, model, time.time(), hub.settings.heartbeat_s))

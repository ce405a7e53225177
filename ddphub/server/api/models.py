"""Models: creating one for a run, finding them, changing and deleting them."""

import json
import re
import time
from typing import Annotated, Any, Final
from urllib.parse import urljoin

from fastapi import Query, Request
from fastapi.responses import Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from ddphub import events, names
from ddphub.hubs.wire import IDEMPOTENCY_KEY, MAX_JSON_BODY
from ddphub.server import hub_v1_view, model_search, model_view
from ddphub.server.api.access import Reads, Writes, api_router, check_role, find_model, reads
from ddphub.server.audit import record
from ddphub.server.body import JsonBody, parse_object
from ddphub.server.deletion import delete_model
from ddphub.server.hub import Hub, HubDep
from ddphub.server.labels import FIELDS as LABELS
from ddphub.server.labels import set_labels
from ddphub.server.principal import Principal
from ddphub.server.problems import Problem, answer
from ddphub.server.registration import model_of_run, project_named
from ddphub.server.signing import Download
from ddphub.server.tables import Model, Project

router = api_router()
reading_router = api_router(reads)

_Words = Annotated[str | None, Query(max_length=model_search.MAX_WORDS)]
_Some = Annotated[list[str], Query(max_length=32)]
_STATE: Final = {"items": {"type": "string", "enum": list(events.MODEL_STATES)}}
_States = Annotated[list[str], Query(max_length=32, json_schema_extra=_STATE)]


@router.post("/models")
def create(hub: HubDep, request: Request, principal: Writes, body: JsonBody) -> Response:
    """Create a model; a repeat with the same run id finds it, with the labels that people gave it since."""
    content = parse_object(body)
    labels = {field: content.pop(field) for field in LABELS if field in content}
    run_id = request.headers.get(IDEMPOTENCY_KEY)
    if run_id is not None and (wrong := names.wrong_run_id(run_id)):
        raise Problem(422, f"{IDEMPOTENCY_KEY}: {wrong}")
    name = _checked_name(content, path_allowed=run_id is None and "project" not in content)
    if wrong := names.wrong_name(content.get("project", "default")):
        raise Problem(422, f"project: {wrong}")
    with hub.database.write() as session:
        project = _project(session, content, principal)
        _check_may_create(principal, project, run_id)
        model, is_new = model_of_run(session, project, run_id, name=name, request=events.to_json(content))
        if is_new:
            set_labels(session, model, labels)
        elif content.get("config") and content["config"] != (known := json.loads(model.request)).get("config"):
            # A later attempt may be made with something else; and `ddphub submit` registers a run before its program
            # has said what it is made with.
            model.request = events.to_json({**known, "config": content["config"]})
        data = _shown(hub, request, session, model)
    return answer(data)


def _checked_name(content: dict[str, Any], *, path_allowed: bool) -> str:
    # HUB v1 clients may leave everything out, and send null for what they do not know.
    for field in ("meta", "config", "dataset", "lineage"):
        if not isinstance(content.get(field), dict | None):
            raise Problem(422, f"{field}: expected an object")
    name = (content.get("meta") or {}).get("name", "model")
    if path_allowed and isinstance(name, str):
        # They name a model by the file that it begins with, and send that file's path.
        name = re.split(r"[/\\]", name)[-1]
    if wrong := names.wrong_name(name):
        raise Problem(422, f"meta.name: {wrong}")
    return name  # type: ignore[no-any-return]  # it is text, or it would be wrong


def _project(session: Session, content: dict[str, Any], principal: Principal) -> Project:
    project_id = content.get("projectId")
    if project_id is not None:
        if "project" in content:
            raise Problem(422, "projectId: expected it or project, not both")
        project = session.scalar(select(Project).where(Project.public_id == str(project_id)))
        if project is None or not principal.may("reader", project.id):
            raise Problem(404, "projectId: the hub has no such project; leave it out, or name one as project")
        return project
    if "project" not in content and principal.project is not None:
        # HUB v1 clients name no project; a key for one says which is meant.
        return session.get_one(Project, principal.project)
    name = content.get("project", "default")
    project = session.scalar(select(Project).where(Project.name == name))
    if project is not None and principal.may("reader", project.id):
        return project
    if not principal.may("writer", None):
        # The same whether or not the project is there.
        raise Problem(404, "project: there is none of this name that the key is good for")
    return project_named(session, name)


def _check_may_create(principal: Principal, project: Project, run_id: str | None) -> None:
    if principal.only_run is None:
        check_role(principal, "writer", project.id)
        return
    check_role(principal, "reporter", project.id)
    if principal.only_run != (project.id, run_id):
        raise Problem(403, f"the key is for the run {principal.run_id} alone")


@reading_router.get("/models")
def read_all(
    *,
    hub: HubDep,
    principal: Reads,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    last_doc_id: str | None = None,
    project: str | None = None,
    run_id: str | None = None,
    state: _States = [],  # noqa: B006  # FastAPI copies it
    tag: _Some = [],  # noqa: B006
    search: _Words = None,
) -> Response:
    """Models, newest first: of any given `state`, with every given `tag`, and with the text of `search` in them.

    `last_doc_id` is the page before's `lastRecordId`, null when there is nothing more: a page with few results or none
    is not the end. `total` is null where states are wanted.
    """
    wanted = model_search.Wanted(
        project=project,
        run_id=run_id,
        states=frozenset(state),
        tags=frozenset(tag),
        words=search,
        by=principal,
    )
    with hub.database.read() as session:
        after = find_model(session, last_doc_id, principal, "reader") if last_doc_id else None
        page = model_search.find(session, wanted, after=after, limit=limit, now=time.time(), patience=hub.patience)
    return answer({"results": page.results, "total": page.total, "lastRecordId": page.last})


@reading_router.get("/models/{model_id}")
def read(hub: HubDep, request: Request, principal: Reads, model_id: str) -> Response:
    """All that is known of one model."""
    with hub.database.read() as session:
        return answer(_shown(hub, request, session, find_model(session, model_id, principal, "reader")))


def _shown(hub: Hub, request: Request, session: Session, model: Model) -> dict[str, Any]:
    """HUB v1's fields, then the hub's own."""

    def url_of(download: Download) -> str:
        # Whole, as HUB v1 clients open it without knowing of which hub it is.
        return urljoin(str(request.base_url), hub.signer.download_url(download))

    return {
        **model_view.details(session, model, time.time(), hub.patience),
        **hub_v1_view.fields(session, model, url_of),
    }


@router.patch("/models/{model_id}")
def change(hub: HubDep, request: Request, principal: Writes, model_id: str, body: JsonBody) -> Response:
    """Change the labels, and what the model was created with: objects field by field, other values as a whole."""
    content = parse_object(body)
    labels = {field: content.pop(field) for field in LABELS if field in content}
    for field in ("project", "projectId"):
        if field in content:
            raise Problem(422, f"{field}: a model stays in its project")
    name = _checked_name(content, path_allowed=True)
    with hub.database.write() as session:
        model = find_model(session, model_id, principal, "writer")
        set_labels(session, model, labels)
        known = json.loads(model.request)
        for field, value in content.items():
            old = known.get(field)
            known[field] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        if "name" in (content.get("meta") or {}):
            model.name = name
        model.request = events.to_json(known)
        if len(model.request) > MAX_JSON_BODY:
            raise Problem(413, f"the model would have more than {MAX_JSON_BODY} bytes of JSON")
        data = _shown(hub, request, session, model)
    return answer(data)


@router.delete("/models/{model_id}")
def delete(hub: HubDep, principal: Writes, model_id: str, *, hard: bool = False) -> Response:
    """Hide the model, or with `hard` remove it and the bytes that nothing else needs."""
    with hub.database.write() as session:
        model = find_model(session, model_id, principal, "admin", or_deleted=hard)
        record(session, principal, "model.delete", model_id, name=model.name, hard=hard)
    delete_model(hub, model_id, hard=hard)
    return answer({})

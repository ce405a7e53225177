"""The models page: what there is, found by words, project, state and tag."""

import time
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.params import Depends
from fastapi.responses import Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from ddphub.events import MODEL_STATES
from ddphub.server import labels, model_search
from ddphub.server.api.access import find_model
from ddphub.server.hub import Hub, HubDep
from ddphub.server.pages.best import best
from ddphub.server.pages.rendering import Fragment, Fragments, FragmentsDep, fragment_answer, page, render
from ddphub.server.pages.spark import HEIGHT, WIDTH, spark
from ddphub.server.pages.visitor import SignedIn, Visitor, to_sign_in
from ddphub.server.principal import Principal
from ddphub.server.problems import Problem
from ddphub.server.tables import Model, Project, Series

router = APIRouter()

MODELS: Final = 50
"""Models on one page."""

_EVERY_S: Final = 3.0
_POINTS: Final = 40

_Text = Annotated[str, Query(max_length=model_search.MAX_WORDS)]


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which models to list, as the page's address says; `after` is the last one of the page before."""

    search: str = ""
    project: str = ""
    state: str = ""
    tag: str = ""
    after: str = ""

    @property
    def any(self) -> bool:
        """Whether some models are left out."""
        return bool(self.search or self.project or self.state or self.tag)

    def address(self, after: str) -> str:
        """The same list, further down."""
        fields = {"search": self.search, "project": self.project, "state": self.state, "tag": self.tag, "after": after}
        return f"/?{urlencode({name: value for name, value in fields.items() if value})}"


async def _filters(
    *, search: _Text = "", project: _Text = "", state: _Text = "", tag: _Text = "", after: _Text = ""
) -> Filters:
    # A state that there is not would be an error of a program; a person finds nothing.
    return Filters(search=search.strip(), project=project, state=state, tag=tag, after=after)


_FiltersDep = Annotated[Filters, Depends(_filters)]


@router.get("/")
def read(hub: HubDep, fragments: FragmentsDep, request: Request, visitor: Visitor, filters: _FiltersDep) -> Response:
    """The whole page."""
    if visitor is None:
        return to_sign_in(request)
    with hub.database.read() as session:
        is_there = Model.deleted_at.is_(None), *model_search.seen_by(visitor)
        projects = session.scalars(
            select(Project.name)
            .where(select(Model.id).where(Model.project_ref == Project.id, *is_there).exists())
            .order_by(Project.name)
        ).all()
        tags = labels.all_tags(session, *is_there)
        rows = _rows(hub, fragments, session, visitor=visitor, filters=filters, hub_url=_address(request), now=True)
    values: dict[str, Any] = {"projects": projects, "tags": tags, "states": MODEL_STATES, "rows": rows}
    return page("models.html", visitor=visitor, filters=filters, **values)


@router.get("/parts/models")
def read_rows(
    hub: HubDep, fragments: FragmentsDep, request: Request, visitor: SignedIn, filters: _FiltersDep
) -> Response:
    """The list as it is now."""
    with hub.database.read() as session:
        rows = _rows(hub, fragments, session, visitor=visitor, filters=filters, hub_url=_address(request))
    return fragment_answer(request, rows, _EVERY_S)


def _address(request: Request) -> str:
    return str(request.base_url).rstrip("/")


def _rows(
    hub: Hub,
    fragments: Fragments,
    session: Session,
    *,
    visitor: Principal,
    filters: Filters,
    hub_url: str,
    now: bool = False,
) -> Fragment:
    def make() -> str:
        return render(
            "parts/models.html", {"filters": filters, "hub_url": hub_url, **_found(hub, session, visitor, filters)}
        )

    return fragments.get(("models", filters, hub_url, visitor.visible, visitor.only_run), make, now=now)


def _found(hub: Hub, session: Session, visitor: Principal, filters: Filters) -> dict[str, Any]:
    found = model_search.Page(results=[], total=0, last=None)
    if not filters.state or filters.state in MODEL_STATES:
        wanted = model_search.Wanted(
            project=filters.project or None,
            states=frozenset({filters.state} if filters.state else ()),
            tags=frozenset({filters.tag} if filters.tag else ()),
            words=filters.search or None,
            by=visitor,
        )
        found = model_search.find(
            session,
            wanted,
            after=_last_of_the_page_before(session, visitor, filters.after),
            limit=MODELS,
            now=time.time(),
            patience=hub.patience,
        )
    further = found.last is not None and (len(found.results) == MODELS or not found.results)
    return {
        "models": _with_best(hub, session, found.results),
        "total": found.total,
        "further": filters.address(found.last) if further and found.last else None,
        "spark_size": (WIDTH, HEIGHT),
    }


def _last_of_the_page_before(session: Session, visitor: Principal, model_id: str) -> Model | None:
    try:
        return find_model(session, model_id, visitor, "reader") if model_id else None
    except Problem:
        return None  # it was deleted meanwhile: begin at the top


def _with_best(hub: Hub, session: Session, summaries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    models = {
        model.public_id: model
        for model in session.scalars(select(Model).where(Model.public_id.in_([one["id"] for one in summaries])))
    }
    series: dict[int, list[dict[str, Any]]] = {model.id: [] for model in models.values()}
    rows = session.execute(
        select(Series.model_ref, Series.name, Series.least, Series.greatest).where(
            Series.model_ref.in_(series), Series.name.not_like("system/%")
        )
    )
    for model_ref, name, least, greatest in rows:
        series[model_ref].append({"name": name, "least": least, "greatest": greatest})
    result = []
    for summary in summaries:
        model = models[summary["id"]]
        told = best(series[model.id])
        line = spark(hub.charts.spark(session, model, told.name, _POINTS)) if told else ""
        result.append({**summary, "best": told, "spark": line})
    return result

"""The compare page: several models side by side, what differs between them marked."""

import json
import time
from typing import Annotated, Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from ddphub.server import model_view
from ddphub.server.hub import Hub, HubDep
from ddphub.server.model_search import seen_by
from ddphub.server.pages.best import better
from ddphub.server.pages.model_parts import flat
from ddphub.server.pages.rendering import FragmentsDep, fragment_answer, page, render
from ddphub.server.pages.visitor import SignedIn, Visitor, to_sign_in
from ddphub.server.principal import Principal
from ddphub.server.tables import Model, Project, Series

router = APIRouter()

MOST: Final = 12
"""Models side by side; more would not be told apart."""

_OFFERED: Final = 200
_EVERY_S: Final = 3.0

_Ids = Annotated[list[str], Query(max_length=100)]


def chosen(models: list[str]) -> list[str]:
    """The ids in `models`, each once: a form sends one a field, an address has commas between them."""
    return list(dict.fromkeys(one for field in models for one in field[:1000].split(",") if one))[:MOST]


@router.get("/compare")
def read(
    hub: HubDep,
    request: Request,
    visitor: Visitor,
    fragments: FragmentsDep,
    models: _Ids = [],  # noqa: B006  # FastAPI copies it
) -> Response:
    """The whole page; a form's fields become one address that can be passed on."""
    if visitor is None:
        return to_sign_in(request)
    ids = chosen(models)
    if len(models) > 1:
        return RedirectResponse(_address(ids), 303)
    with hub.database.read() as session:
        rows = _models(session, ids, visitor)
        summaries = model_view.summaries(session, rows, time.time(), hub.patience)
        offered = session.execute(
            select(Model.public_id, Model.name, Project.name)
            .join(Project, Project.id == Model.project_ref)
            .where(Model.deleted_at.is_(None), Model.public_id.not_in(ids), *seen_by(visitor))
            .order_by(Model.id.desc())
            .limit(_OFFERED)
        ).all()
    seen = [row.public_id for row in rows]
    for summary in summaries:
        summary["without"] = _address([one for one in ids if one != summary["id"]])
    metrics = fragments.get(("compare", *seen), lambda: _metrics(hub, seen, visitor), now=True)
    return page(
        "compare.html",
        visitor=visitor,
        models=summaries,
        offered=offered if len(summaries) < MOST else [],
        ids=[summary["id"] for summary in summaries],
        missing=len(ids) - len(summaries),
        config=_side_by_side([dict(flat(json.loads(row.request).get("config") or {})) for row in rows]),
        metrics=metrics,
    )


@router.get("/parts/compare")
def read_metrics(
    hub: HubDep,
    request: Request,
    visitor: SignedIn,
    fragments: FragmentsDep,
    models: _Ids = [],  # noqa: B006
) -> Response:
    """The metrics side by side as they are now."""
    with hub.database.read() as session:
        seen = [row.public_id for row in _models(session, chosen(models), visitor)]
    fragment = fragments.get(("compare", *seen), lambda: _metrics(hub, seen, visitor))
    return fragment_answer(request, fragment, _EVERY_S)


def _address(ids: list[str]) -> str:
    return f"/compare?models={','.join(quote(one, safe='') for one in ids)}" if ids else "/compare"


def _models(session: Session, ids: list[str], visitor: Principal) -> list[Model]:
    """The models that there are of these for the visitor, in their order."""
    is_there = Model.public_id.in_(ids), Model.deleted_at.is_(None), *seen_by(visitor)
    found = session.scalars(select(Model).where(*is_there))
    return sorted(found, key=lambda model: ids.index(model.public_id))


def _metrics(hub: Hub, ids: list[str], visitor: Principal) -> str:
    with hub.database.read() as session:
        models = _models(session, ids, visitor)
        places = {model.id: place for place, model in enumerate(models)}
        found: dict[str, list[Series | None]] = {}
        for one in session.scalars(select(Series).where(Series.model_ref.in_(places)).order_by(Series.name)):
            found.setdefault(one.name, [None] * len(models))[places[one.model_ref]] = one
        summaries = model_view.summaries(session, models, time.time(), hub.patience)
    rows = [_metric(name, cells) for name, cells in found.items() if not name.startswith("system/")]
    return render("parts/compare.html", {"models": summaries, "rows": rows})


def _metric(name: str, cells: list[Series | None]) -> dict[str, Any]:
    more = better(name)
    bests = [None if cell is None or more is None else cell.greatest if more else cell.least for cell in cells]
    known = [value for value in bests if value is not None]
    winner = (max(known) if more else min(known)) if known else None
    return {
        "name": name,
        "more": more,
        "cells": [
            {
                "latest": None if cell is None else cell.latest,
                "best": best,
                "wins": best is not None and best == winner and len(known) > 1,
            }
            for cell, best in zip(cells, bests, strict=True)
        ],
    }


def _side_by_side(configs: list[dict[str, str]]) -> list[tuple[str, list[str | None], bool]]:
    """Name, the value of each model, and whether they differ; those that do come first."""
    names = sorted({name for config in configs for name in config})
    rows = [(name, [config.get(name) for config in configs]) for name in names]
    told = [(name, values, len(set(values)) > 1) for name, values in rows]
    return sorted(told, key=lambda row: not row[2])

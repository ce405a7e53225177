"""Pages: signing in, the models, one model. They read; nothing here changes a run."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.params import Depends
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy import select

from ddphub.server import event_log, model_view
from ddphub.server.api.access import find_model
from ddphub.server.auth import COOKIE
from ddphub.server.body import read_bounded
from ddphub.server.hub import HubDep
from ddphub.server.tables import Model

_FOLDER: Final = Path(__file__).parent
_MODELS: Final = 100
_POINTS: Final = 100
_MAX_FORM: Final = 4096

router = APIRouter()


def _date(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _plain(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _words(state: str | None) -> str:
    return (state or "").replace("_", " ")


_templates: Final = Environment(
    loader=FileSystemLoader(_FOLDER / "templates"), autoescape=True, undefined=StrictUndefined
)
_templates.filters.update(date=_date, plain=_plain, words=_words)


def _page(name: str, **values: Any) -> HTMLResponse:  # noqa: ANN401  # what the template needs
    return HTMLResponse(_templates.get_template(name).render(values))


async def _signed_in(request: Request, hub: HubDep) -> bool:
    return hub.keys.accepts_session(request.cookies.get(COOKIE, ""))


SignedIn = Annotated[bool, Depends(_signed_in)]


@router.get("/")
def models(hub: HubDep, signed_in: SignedIn, before: str | None = None) -> Response:
    """The models, newest first."""
    if not signed_in:
        return RedirectResponse("/sign-in", 303)
    with hub.database.read() as session:
        chosen = select(Model).where(Model.deleted_at.is_(None)).order_by(Model.id.desc()).limit(_MODELS)
        if before is not None:
            chosen = chosen.where(Model.id < find_model(session, before).id)
        found = session.scalars(chosen).all()
        rows = model_view.summaries(session, found, time.time(), hub.settings.heartbeat_s)
    return _page("models.html", models=rows, more=len(rows) == _MODELS)


@router.get("/models/{model_id}")
def model(hub: HubDep, signed_in: SignedIn, model_id: str) -> Response:
    """One model: its attempts, ranks, metrics and checkpoints."""
    if not signed_in:
        return RedirectResponse("/sign-in", 303)
    points = event_log.Query(kind="metrics", limit=_POINTS, newest=True)
    with hub.database.read() as session:
        row = find_model(session, model_id)
        return _page(
            "model.html",
            model=model_view.details(session, row, time.time(), hub.settings.heartbeat_s),
            latest=model_view.latest_metrics(session, row),
            points=event_log.read_metrics(session, row, points),
            checkpoints=model_view.checkpoints(session, row),
        )


@router.get("/sign-in")
async def sign_in_form(*, wrong: bool = False) -> Response:
    """The form that asks for the API key."""
    return _page("sign_in.html", wrong=wrong)


@router.post("/sign-in")
async def sign_in(hub: HubDep, request: Request) -> Response:
    """Exchange the API key for a session cookie."""
    form = parse_qs((await read_bounded(request, _MAX_FORM)).decode("utf-8", "replace"))
    cookie = hub.keys.new_session(form.get("key", [""])[0].strip())
    if cookie is None:
        return RedirectResponse("/sign-in?wrong=true", 303)
    response = RedirectResponse("/", 303)
    response.set_cookie(
        COOKIE,
        cookie,
        max_age=hub.settings.session_lifetime_s,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


@router.get("/style.css")
async def style() -> Response:
    """The stylesheet."""
    return FileResponse(_FOLDER / "style.css", media_type="text/css", headers={"cache-control": "no-cache"})

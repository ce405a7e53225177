"""Signing in with the API key, and out again."""

import asyncio
from typing import Final
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse, Response

from ddphub.server.auth import by_key
from ddphub.server.hub import Hub, HubDep
from ddphub.server.pages.rendering import page
from ddphub.server.pages.visitor import FromAPage, Visitor, read_form, safe_next
from ddphub.server.problems import Problem

router = APIRouter()

_MAX_FORM: Final = 4096
_READ_S: Final = 5.0
_AT_ONCE: Final = 20
"""Forms that are received at once."""


@router.get("/sign-in")
async def show(*, wrong: bool = False, next: str = "/") -> Response:  # noqa: A002  # the name people know it by
    """The form that asks for the API key; `next` is the page to go to then."""
    told = "The hub does not know this API key, or takes it no longer." if wrong else ""
    return page("sign_in.html", wrong=told, next=safe_next(next))


@router.post("/sign-in", dependencies=[FromAPage])
async def sign_in(hub: HubDep, request: Request) -> Response:
    """Exchange the API key for a session cookie."""
    form = await _read(request)
    place = safe_next(form.get("next", "/"))
    return await run_in_threadpool(_sign_in, hub, request, form.get("key", "").strip(), place)


async def _read(request: Request) -> dict[str, str]:
    # The one form that anybody may send: who sends many slowly keeps others from signing in, and nobody from training.
    state = request.app.state
    state.sign_ins = getattr(state, "sign_ins", 0) + 1
    try:
        if state.sign_ins > _AT_ONCE:
            raise Problem(503, "many sign in at this moment: try again", headers={"retry-after": "1"})
        return await asyncio.wait_for(read_form(request, _MAX_FORM), _READ_S)
    except TimeoutError as error:
        raise Problem(408, "the form did not come in time: try again") from error
    finally:
        state.sign_ins -= 1


def _sign_in(hub: Hub, request: Request, key: str, place: str) -> Response:
    try:
        cookie = hub.sessions.begin(by_key(hub, request, key))
    except Problem as problem:
        if problem.status == 429:
            waits = page("sign_in.html", 429, wrong=f"{problem.detail[:1].upper()}{problem.detail[1:]}.", next=place)
            waits.headers.update(problem.headers or {})
            return waits
        if problem.status != 401:
            raise
        again = "" if place == "/" else f"&next={quote(place, safe='')}"
        return RedirectResponse(f"/sign-in?wrong=true{again}", 303)
    response = RedirectResponse(place, 303)
    response.set_cookie(
        hub.sessions.cookie,
        cookie,
        max_age=hub.settings.session_lifetime_s,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


@router.post("/sign-out", dependencies=[FromAPage])
def sign_out(hub: HubDep, request: Request, visitor: Visitor) -> Response:
    """End the session, and take the cookie back."""
    if visitor is not None:
        hub.sessions.end(request.cookies[hub.sessions.cookie], visitor)
    response = RedirectResponse("/sign-in", 303)
    response.delete_cookie(hub.sessions.cookie, httponly=True, samesite="strict")
    return response

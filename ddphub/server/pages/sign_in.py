"""Signing in with the API key, and out again."""

from typing import Final
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from ddphub.server.hub import HubDep
from ddphub.server.pages.rendering import page
from ddphub.server.pages.visitor import FromAPage, read_form, safe_next

router = APIRouter()

_MAX_FORM: Final = 4096


@router.get("/sign-in")
async def show(*, wrong: bool = False, next: str = "/") -> Response:  # noqa: A002  # the name people know it by
    """The form that asks for the API key; `next` is the page to go to then."""
    return page("sign_in.html", wrong=wrong, next=safe_next(next))


@router.post("/sign-in", dependencies=[FromAPage])
async def sign_in(hub: HubDep, request: Request) -> Response:
    """Exchange the API key for a session cookie."""
    form = await read_form(request, _MAX_FORM)
    place = safe_next(form.get("next", "/"))
    cookie = hub.keys.new_session(form.get("key", "").strip())
    if cookie is None:
        again = "" if place == "/" else f"&next={quote(place, safe='')}"
        return RedirectResponse(f"/sign-in?wrong=true{again}", 303)
    response = RedirectResponse(place, 303)
    response.set_cookie(
        hub.keys.cookie,
        cookie,
        max_age=hub.settings.session_lifetime_s,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


@router.post("/sign-out", dependencies=[FromAPage])
async def sign_out(hub: HubDep) -> Response:
    """Take the cookie back."""
    response = RedirectResponse("/sign-in", 303)
    response.delete_cookie(hub.keys.cookie, httponly=True, samesite="strict")
    return response

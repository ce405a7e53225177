"""Who looks at a page: signing in, and whether a form came from a page of this hub."""

from typing import Annotated, Final
from urllib.parse import parse_qsl, quote, urlsplit

from fastapi import Request
from fastapi.params import Depends
from fastapi.responses import RedirectResponse, Response

from ddphub.server.auth import by_cookie
from ddphub.server.body import read_bounded
from ddphub.server.hub import HubDep
from ddphub.server.principal import Principal
from ddphub.server.problems import Problem

MAX_FORM: Final = 256 * 1024


def _visitor(request: Request, hub: HubDep) -> Principal | None:
    return by_cookie(hub, request)


Visitor = Annotated[Principal | None, Depends(_visitor)]
"""A page's parameter: who looks at it; None for who has not signed in."""


def _must_be_signed_in(visitor: Visitor) -> Principal:
    if visitor is None:
        raise Problem(401, "sign in to see this page")
    return visitor


SignedIn = Annotated[Principal, Depends(_must_be_signed_in)]
"""A fragment's or a form's parameter: who asks. Others get 401, by which an open page knows where it must lead."""


def to_sign_in(request: Request) -> Response:
    """Leads to the form, and from there back to this page."""
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse("/sign-in" if here == "/" else f"/sign-in?next={quote(here, safe='')}", 303)


def safe_next(path: str) -> str:
    """`path` when it is one of this hub's own; else the models page."""
    # Browsers leave out tabs and line breaks, and read a backslash as a slash: `/\\elsewhere` is another host.
    odd = not path.isascii() or not path.isprintable() or "\\" in path
    if odd or not path.startswith("/") or path.startswith("//") or urlsplit(path).netloc:
        return "/"
    return path


async def _from_a_page(request: Request) -> None:
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        good = site == "same-origin"
    else:
        # Only pages of https and of localhost send the former. A program sends neither, and has no one's cookie.
        good = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    if not good:
        raise Problem(403, "this form came from a page of another site")


FromAPage = Depends(_from_a_page)
"""A dependency of routes that change something: 403 when another site's page sent the request."""


async def read_form(request: Request, limit: int = MAX_FORM) -> dict[str, str]:
    """The fields of an urlencoded form; of a field that is there twice the last.

    Raises:
        Problem: 413 when it has more than `limit` bytes, 400 when it has too many fields, 422 when it holds NUL.
    """
    text = (await read_bounded(request, limit)).decode("utf-8", "replace")
    try:
        form = dict(parse_qsl(text, keep_blank_values=True, max_num_fields=100))
    except ValueError as error:
        raise Problem(400, "the form has too many fields") from error
    if any("\0" in part for field in form.items() for part in field):
        raise Problem(422, "the form must not contain NUL")
    return form


async def _form(request: Request) -> dict[str, str]:
    return await read_form(request)


Form = Annotated[dict[str, str], Depends(_form)]
"""A handler's parameter: the fields of an urlencoded form, at most `MAX_FORM` bytes."""

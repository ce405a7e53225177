"""What people see when an address leads nowhere, or a request cannot be answered."""

from typing import Final

from fastapi import Request
from fastapi.responses import Response

from ddphub.server.logs import request_id
from ddphub.server.pages.rendering import page
from ddphub.server.problems import Problem

_TITLES: Final = {
    401: "Sign in to see this page",
    403: "This is not for you to see or to change",
    404: "There is nothing here",
    405: "There is nothing here",
    413: "This is too much at once",
    422: "This address cannot be understood",
    429: "Too many requests",
    503: "The hub cannot answer at the moment",
    507: "The hub has no room left",
}
_ELSE: Final = "The hub could not answer this"


def problem_page(request: Request, problem: Problem) -> Response | None:
    """The page for a problem; None where no person looks, but a program or an open page that asks for its parts."""
    if request.url.path.startswith("/v1/") or "text/html" not in request.headers.get("accept", ""):
        return None
    title = _TITLES.get(problem.status, _ELSE)
    shown = page("problem.html", problem.status, title=title, detail=problem.detail, request_id=request_id.get())
    shown.headers.update(problem.headers or {})
    return shown

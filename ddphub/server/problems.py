"""Answers: the HUB v1 envelope, and RFC 9457 problem details for every error."""

import errno
import http
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnection
from starlette.exceptions import HTTPException
from starlette.routing import Match

from ddphub.hubs.wire import PROBLEM_JSON
from ddphub.server.database import problem_of
from ddphub.server.logs import request_id

_log = logging.getLogger(__name__)

_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_NO_ROOM: Final = "the hub has no room left; try again when its administrator made some"
_RETRY_S: Final = 2
"""Seconds after which a database that was busy, or did not answer, may be asked again."""


class Problem(Exception):
    """A request cannot be answered as asked.

    Args:
        status: the HTTP status, 4xx or 5xx.
        detail: what is wrong with this request and what to do; shown to the client.
        headers: more headers for the answer.
        members: more members for the problem object.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail
        self.headers = headers
        self.members = members or {}


def answer(data: object, *, status: int = 200, message: str = "") -> Response:
    """A success in HUB v1's envelope.

    Returns:
        `{"success": true, "message": ..., "data": ...}`.
    """
    return _json({"success": True, "message": message, "data": data}, status, "application/json", None)


def problem_answer(problem: Problem) -> Response:
    """A problem as RFC 9457 and the envelope have it."""
    content = {
        **problem.members,
        "type": "about:blank",
        "title": http.HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "success": False,
        "message": problem.detail,
    }
    if (known := request_id.get()) is not None:
        content["request_id"] = known
    return _json(content, problem.status, PROBLEM_JSON, problem.headers)


def _json(content: object, status: int, media_type: str, headers: Mapping[str, str] | None) -> Response:
    # ASCII: whatever text a client sent, the answer can be encoded.
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return Response(text, status, headers, media_type)


def _methods(request: Request) -> list[str]:
    """What can be asked of the address of a request."""

    def is_answered(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.router.routes)

    return [method for method in _METHODS if is_answered(method)]


def install(app: FastAPI, page_of: Callable[[Request, Problem], Response | None]) -> None:
    """Make every error of `app` a problem.

    Args:
        app: the application.
        page_of: makes a page for who looks at this in a browser; None for others.
    """

    def said(request: Request, problem: Problem) -> Response:
        return page_of(request, problem) or problem_answer(problem)

    async def told(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)  # noqa: S101  # registered for this class alone
        return said(request, error)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101  # registered for this class alone
        headers = error.headers
        if error.status_code == http.HTTPStatus.METHOD_NOT_ALLOWED:
            # Starlette names the methods of the first route with this address, and there may be several.
            headers = {"allow": ", ".join(_methods(request))}
        return said(request, Problem(error.status_code, str(error.detail), headers=headers))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101  # registered for this class alone
        # Only where and why: the value itself may be anything, of any size.
        wrong = [".".join(str(part) for part in one["loc"])[:200] + ": " + one["msg"] for one in error.errors()[:5]]
        return said(request, Problem(422, "; ".join(wrong)))

    async def no_room(request: Request, error: Exception) -> Response:
        assert isinstance(error, OSError)  # noqa: S101  # registered for this class alone
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise error
        _log.error("no room left in the data directory")
        return said(request, Problem(507, _NO_ROOM))

    async def database_failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, DBAPIError | NoConnection)  # noqa: S101  # registered for these classes alone
        problem = problem_of(error)
        if problem is None:
            raise error
        status, what = problem
        if status >= 500:
            # Without what the database adds in further lines, which may be what users sent.
            _log.error("the database failed: %s", str(getattr(error, "orig", error)).partition("\n")[0])
        headers = {"retry-after": str(_RETRY_S)} if status == 503 else None
        return said(request, Problem(status, what, headers=headers))

    async def unexpected(request: Request, _error: Exception) -> Response:
        return said(request, Problem(500, "the hub failed to answer; its log says why"))

    app.add_exception_handler(Problem, told)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(OSError, no_room)
    app.add_exception_handler(DBAPIError, database_failed)
    app.add_exception_handler(NoConnection, database_failed)
    app.add_exception_handler(Exception, unexpected)

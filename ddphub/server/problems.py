"""Answers: the HUB v1 envelope, and RFC 9457 problem details for every error."""

import errno
import http
import json
import logging
import sqlite3
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from ddphub.hubs.wire import PROBLEM_JSON

_log = logging.getLogger(__name__)

_NO_ROOM: Final = "the hub has no room left; try again when its administrator made some"
_DATABASE_PROBLEMS: Final = {
    sqlite3.SQLITE_FULL: (507, _NO_ROOM),
    sqlite3.SQLITE_IOERR: (503, "the hub's disk failed; try again"),
    sqlite3.SQLITE_BUSY: (503, "the hub's database is busy; try again"),
    sqlite3.SQLITE_READONLY: (503, "the hub's database cannot be written; try again when its administrator mended it"),
}


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
    return _json(content, problem.status, PROBLEM_JSON, problem.headers)


def _json(content: object, status: int, media_type: str, headers: Mapping[str, str] | None) -> Response:
    # ASCII: whatever text a client sent, the answer can be encoded.
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return Response(text, status, headers, media_type)


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem."""

    async def told(_request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)  # noqa: S101  # registered for this class alone
        return problem_answer(error)

    async def http_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101  # registered for this class alone
        return problem_answer(Problem(error.status_code, str(error.detail), headers=error.headers))

    async def invalid(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101  # registered for this class alone
        # Only where and why: the value itself may be anything, of any size.
        wrong = [".".join(str(part) for part in one["loc"])[:200] + ": " + one["msg"] for one in error.errors()[:5]]
        return problem_answer(Problem(422, "; ".join(wrong)))

    async def no_room(_request: Request, error: Exception) -> Response:
        assert isinstance(error, OSError)  # noqa: S101  # registered for this class alone
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise error
        _log.error("no room left in the data directory")
        return problem_answer(Problem(507, _NO_ROOM))

    async def database_failed(_request: Request, error: Exception) -> Response:
        assert isinstance(error, OperationalError)  # noqa: S101  # registered for this class alone
        # The low byte of SQLite's code, whatever the rest says of where it happened.
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        if code not in _DATABASE_PROBLEMS:
            raise error
        status, what = _DATABASE_PROBLEMS[code]
        _log.error("the database failed: %s", error.orig)
        return problem_answer(Problem(status, what))

    async def unexpected(_request: Request, _error: Exception) -> Response:
        return problem_answer(Problem(500, "the hub failed to answer; its log says why"))

    app.add_exception_handler(Problem, told)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(OSError, no_room)
    app.add_exception_handler(OperationalError, database_failed)
    app.add_exception_handler(Exception, unexpected)

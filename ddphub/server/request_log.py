"""Around every request: an id, a line in the log, and the figures.

The line says what was asked by the template of its address, as `/v1/models/{model_id}`: never a query or a key, as
signed URLs have their signature there.
"""

import asyncio
import logging
import re
import secrets
import time
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddphub.server.logs import REQUESTS, request_id
from ddphub.server.meters import Meters
from ddphub.server.problems import Problem, problem_answer

REQUEST_ID: Final = "X-Request-Id"

_GONE: Final = 499
"""The status in the log where a client went away before it was answered; as nginx has it."""

_SANE: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_FREQUENT: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds by programs: logged where someone wants to see every detail."""

_log = logging.getLogger(REQUESTS)


class RequestLog:
    """Middleware that gives every request an id, writes its line and counts it.

    The id is the one that the request came with, when it is sane. It is in the answer, in problems, and in every line
    that is logged for the request.

    Args:
        app: what answers.
        meters: counts.
    """

    def __init__(self, app: ASGIApp, meters: Meters) -> None:
        self._app = app
        self._meters = meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102  # as ASGI has it
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = _Seen(scope)
        request_id.set(seen.id)
        scope.setdefault("state", {})["request_id"] = seen.id
        self._meters.in_progress.inc()

        async def receive_counted() -> Message:
            message = await receive()
            seen.received += len(message.get("body", b""))
            return message

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = seen.id
            else:
                seen.sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive_counted, send_counted)
        except asyncio.CancelledError:
            # The hub stops, and has given this request its time.
            if seen.status is None:
                problem = Problem(503, "the hub is stopping: try again", headers={"retry-after": "1"})
                await problem_answer(problem)(scope, receive_counted, send_counted)
        except BaseException:
            seen.status = seen.status or 500
            raise
        finally:
            self._meters.in_progress.dec()
            self._note(seen)

    def _note(self, seen: "_Seen") -> None:
        seconds = time.perf_counter() - seen.began
        route = getattr(seen.scope.get("route"), "path", None) or "unknown"
        method = seen.scope["method"] if seen.scope["method"] in _METHODS else "other"
        status = seen.status or _GONE
        meters = self._meters
        meters.requests.labels(method, route, str(status)).inc()
        meters.seconds.labels(method, route).observe(seconds)
        meters.received.inc(seen.received)
        meters.sent.inc(seen.sent)
        level = logging.DEBUG if route in _FREQUENT and status < 400 else logging.INFO
        if not _log.isEnabledFor(level):
            return
        client = seen.scope.get("client")
        principal = seen.scope["state"].get("principal")
        fields = {
            "request_id": seen.id,
            "method": method,
            "route": route,
            "status": status,
            "ms": round(seconds * 1000, 1),
            "received": seen.received,
            "sent": seen.sent,
            "client": client[0] if client else None,
            "who": getattr(principal, "who", None),
            "key": getattr(principal, "key_id", None),
        }
        _log.log(
            level,
            "%s %s %d, %.1f ms, %d bytes in, %d out, %s, %s",
            method,
            route,
            status,
            fields["ms"],
            seen.received,
            seen.sent,
            fields["client"],
            fields["who"],
            extra=fields,
        )


class _Seen:
    """What is seen of one request."""

    def __init__(self, scope: Scope) -> None:
        given = Headers(scope=scope).get(REQUEST_ID, "")
        self.scope = scope
        self.id = given if _SANE.fullmatch(given) else secrets.token_hex(16)
        self.began = time.perf_counter()
        self.status: int | None = None
        self.received = 0
        self.sent = 0

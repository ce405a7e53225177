"""What one client may ask of the hub, and what all may ask at once."""

import hashlib
import ipaddress
import math
import time
from collections import Counter, OrderedDict
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ddphub.server.auth import sent_key
from ddphub.server.meters import Meters
from ddphub.server.problems import Problem, problem_answer
from ddphub.server.signing import PARTS_PATH

BURST_S: Final = 2.0
"""A client that was quiet may send what it may send in so many seconds at once."""

_CLIENTS: Final = 20_000
_PARTS: Final = b"parts"
_FREE: Final = frozenset({"/healthz", "/readyz"})
"""Asked by those who decide whether the hub lives."""


class Limits:
    """Middleware: requests that are too many are answered 429 or 503 with `Retry-After`, before anything is read.

    A token bucket for each key, or for each address where there is none. Whether a key is good is not known here; who
    tries many wrong ones is stopped where keys are looked up. A client that is told to wait keeps what it has to send.

    Args:
        app: what answers.
        meters: counts what is refused.
        rate: requests a second of one client; 0 for no limit.
        max_requests: requests in progress; half of them of one key, as a body may be sent slowly, and half of them
            parts of checkpoints, which come without a key and several at once.
    """

    def __init__(self, app: ASGIApp, meters: Meters, *, rate: float, max_requests: int) -> None:
        self._app = app
        self._meters = meters
        self._rate = rate
        self._max_requests = max_requests
        self._in_progress = 0
        self._by_key: Counter[bytes | None] = Counter()
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102  # as ASGI has it
        if scope["type"] == "http" and _LENGTHS.issubset(name for name, _ in scope["headers"]):
            # A server in front may have gone by the other length, and taken the rest for the next request.
            await self._refuse(
                "lengths", Problem(400, _TWO_LENGTHS, headers={"connection": "close"}), scope, receive, send
            )
            return
        if scope["type"] != "http" or scope["path"] in _FREE:
            await self._app(scope, receive, send)
            return
        wait = self._wait(scope) if self._rate else 0.0
        if wait > 0:
            await self._refuse("rate", Problem(429, _TOO_MANY, headers=_after(wait)), scope, receive, send)
            return
        key = _PARTS if scope["path"].startswith(f"{PARTS_PATH}/") else _key(scope)
        is_much = key is not None and self._by_key[key] >= max(1, self._max_requests // 2)
        if is_much or self._in_progress >= self._max_requests:
            await self._refuse("requests", Problem(503, _BUSY, headers=_after(1)), scope, receive, send)
            return
        self._in_progress += 1
        self._by_key[key] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._in_progress -= 1
            self._by_key[key] -= 1
            if not self._by_key[key]:
                del self._by_key[key]

    async def _refuse(self, limit: str, problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
        self._meters.refused.labels(limit).inc()
        await problem_answer(problem)(scope, receive, send)

    def _wait(self, scope: Scope) -> float:
        """Takes a token; seconds until there is one, when there is none."""
        now = time.monotonic()
        client = _client(scope)
        most = self._rate * BURST_S
        tokens, since = self._buckets.pop(client, (most, now))
        tokens = min(most, tokens + (now - since) * self._rate)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / self._rate
        self._buckets[client] = (tokens if wait else tokens - 1, now)
        # The one that was quiet for longest; its bucket is full again, or there are very many clients.
        if len(self._buckets) > _CLIENTS:
            self._buckets.popitem(last=False)
        return wait


_LENGTHS: Final = frozenset({b"content-length", b"transfer-encoding"})
_TWO_LENGTHS: Final = (
    "the request says its length in two ways: send Content-Length or Transfer-Encoding (RFC 9112, 6.3)"
)
_TOO_MANY: Final = "too many requests: wait as long as Retry-After says"
_BUSY: Final = "the hub answers as many requests as it can: try again"


def _after(seconds: float) -> dict[str, str]:
    return {"retry-after": str(max(1, math.ceil(seconds)))}


def _key(scope: Scope) -> bytes | None:
    # As it is looked up: there are many ways to write a header, and each would have a bucket of its own.
    key = sent_key(Request(scope))
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest() if key else None


def _client(scope: Scope) -> bytes:
    if (key := _key(scope)) is not None:
        return key
    address = scope["client"][0] if scope.get("client") else ""
    try:
        # Who has one IPv6 address has 2**64 of them.
        if (known := ipaddress.ip_address(address)).version == 6:
            address = str(ipaddress.ip_network((known, 64), strict=False))
    except ValueError:
        pass
    return address.encode()

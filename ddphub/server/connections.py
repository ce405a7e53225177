"""Connections: how many there may be, and how slow.

uvicorn has no time-out for a request that does not end, nor for an answer that nobody reads: whoever opens connections
and sends a byte now and then would keep all of them. So each is given

- `receive_s` for the head of a request,
- `receive_s` for its body, and a second more for every `SLOWEST` bytes of it that have come,
- `receive_s` for the rest of a body after the answer to it (that is read, so that the answer arrives),
- `SEND_S` to read some of an answer.

Time during which the hub itself does not read counts for nobody.
"""

import asyncio
import logging
from enum import Enum
from typing import Any, Final, cast

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from ddphub.server.meters import Meters
from ddphub.server.problems import Problem, problem_answer

SLOWEST: Final = 500
"""Bytes a second of a body, as Apache's mod_reqtimeout has it."""

SEND_S: Final = 300.0

_TOLD: Final = 100
"""Connections beyond the most that get an answer."""

_log = logging.getLogger(__name__)


class HubConnection(H11Protocol):
    """One connection of a client. Event loop only.

    Args:
        arguments: what uvicorn gives to a protocol.
        meters: counts.
        receive_s: see above.
        max_connections: how many there may be; more are answered 503 and closed.
        options: what uvicorn gives to a protocol.
    """

    def __init__(
        self,
        *arguments: Any,  # noqa: ANN401  # uvicorn's own
        meters: Meters,
        receive_s: float,
        max_connections: int,
        **options: Any,  # noqa: ANN401  # uvicorn's own
    ) -> None:
        super().__init__(*arguments, **options)
        self._meters = meters
        self._receive_s = receive_s
        self._max_connections = max_connections
        self._phase: _Phase | None = None
        self._began = 0.0
        self._received = 0
        self._receiving: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Begin; one too many is told so, many too many are not even that."""
        super().connection_made(transport)
        if len(self.connections) > self._max_connections + _TOLD:
            self._meters.refused.labels("connections").inc()
            transport.abort()
        elif len(self.connections) > self._max_connections:
            self.app = cast("Any", self._refuse)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        super().connection_lost(exc)
        for timer in (self._receiving, self._sending):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request."""
        self._received += len(data)
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for another request, or for the rest of this one."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """The client does not read what is sent."""
        super().pause_writing()
        if self._sending is None:
            self._sending = self.loop.call_later(SEND_S, self._cut, "an answer is not read")

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _watch(self) -> None:
        phase = self._current_phase()
        if phase is not self._phase:
            self._phase = phase
            self._began = self.loop.time()
            self._received = 0
        if phase is None:
            if self._receiving is not None:
                self._receiving.cancel()
                self._receiving = None
        elif self._receiving is None:
            self._receiving = self.loop.call_later(self._receive_s, self._check)

    def _current_phase(self) -> "_Phase | None":
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            return _Phase.REST if self.cycle.response_complete else _Phase.BODY
        # Between two requests uvicorn's keep-alive time counts.
        if state is h11.IDLE and (self.cycle is None or self.conn.trailing_data[0]):
            return _Phase.HEAD
        return None

    def _check(self) -> None:
        self._receiving = None
        if self._phase is None:
            return
        now = self.loop.time()
        if self.flow.read_paused:
            self._began = now
        more = self._received / SLOWEST if self._phase is _Phase.BODY else 0.0
        left = self._began + self._receive_s + more - now
        if left > 0:
            self._receiving = self.loop.call_later(left, self._check)
        else:
            self._cut(f"{self._phase.value} did not come in time")

    def _cut(self, why: str) -> None:
        self._meters.refused.labels("slow").inc()
        _log.info("cut the connection of %s: %s", self.client[0] if self.client else None, why)
        self.transport.abort()

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._meters.refused.labels("connections").inc()
        headers = {"retry-after": "5", "connection": "close"}
        await problem_answer(Problem(503, "the hub has as many connections as it can: try again", headers=headers))(
            scope, receive, send
        )


class _Phase(Enum):
    """What a client owes."""

    HEAD = "the head of a request"
    BODY = "the body of a request"
    REST = "the rest of a body that was answered already"

"""A loopback TCP proxy that breaks the wire on demand.

| fault | what happens while it is set |
| --- | --- |
| `delay` | every piece of bytes waits `amount` seconds |
| `cut` | a connection ends after `amount` more bytes of its client |
| `truncate` | a connection ends after `amount` more bytes of answers |
| `reset` | the same by a reset, after `amount` more bytes of either side; at once with 0, idle connections too |
| `stall` | nothing passes; what waits goes on when the fault is over |
| `blackhole` | what is sent vanishes, new connections are accepted and hear nothing; they are reset when it is over |
| `500`, `502`, `503`, `401` | the proxy answers a request itself; the server does not see it |
| `429` | the same, with `Retry-After: <amount>` |
| `garbage` | the same: 200, and a body that is no JSON |
| `unanswered` | the server does what it was asked, and the connection ends without its answer |
| `late-502` | the server does what it was asked, and the client is told 502 |

The last four rows and the statuses need a proxy made with `http=True`: it looks for the bounds of requests.
"""

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

BYTE_FAULTS = ("delay", "cut", "truncate", "reset", "stall", "blackhole")
ANSWERS = {
    "500": b"HTTP/1.1 500 Internal Server Error\r\n",
    "502": b"HTTP/1.1 502 Bad Gateway\r\n",
    "503": b"HTTP/1.1 503 Service Unavailable\r\n",
    "401": b"HTTP/1.1 401 Unauthorized\r\n",
    "429": b"HTTP/1.1 429 Too Many Requests\r\n",
    "garbage": b"HTTP/1.1 200 OK\r\n",
    "late-502": b"HTTP/1.1 502 Bad Gateway\r\n",
    "unanswered": b"",
}
HTTP_FAULTS = (*BYTE_FAULTS, *ANSWERS)
LATE = ("late-502", "unanswered")
LASTING = ("delay", "stall", "blackhole")

UNLIMITED = 1_000_000
PIECE = 64 * 1024
SERVER_PATIENCE = 10.0
"""Seconds that the proxy waits for a server whose answer it is going to swallow."""


@dataclass(frozen=True)
class WireFault:
    """What is wrong with the wire.

    Attributes:
        kind: of the table above.
        amount: seconds or bytes, as there.
        times: hits after which the wire is clean again.
    """

    kind: str
    amount: float = 0.0
    times: int = UNLIMITED


@dataclass(eq=False)
class _Link:
    """One connection through the proxy."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    passed: dict[tuple[int, str], int] = field(default_factory=dict)
    swallowing: bool = False
    answered: asyncio.Event = field(default_factory=asyncio.Event)


class _Broken(Exception):
    """The connection ends here; `reset`: by RST."""

    def __init__(self, *, reset: bool) -> None:
        self.reset = reset


class TcpProxy:
    """Forwards connections to a port of loopback; one thread of its own.

    Args:
        target: asked for the port at every connection; None refuses it.
        http: whether requests go through it.

    Attributes:
        hits: kind -> how often a fault really hit something; one that lasts counts once.
        hurt: (first, last) monotonic times of every fault that hit.
    """

    def __init__(self, target: Callable[[], int | None], *, http: bool = False) -> None:
        self.hits: Counter[str] = Counter()
        self.hurt: list[tuple[float, float]] = []
        self._target = target
        self._http = http
        self._fault: WireFault | None = None
        self._generation = 0
        self._counted = -1
        self._left = 0
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._main, args=(listener,), name="tcp-proxy", daemon=True)
        self._thread.start()

    def set(self, fault: WireFault | None) -> None:
        """From now on the wire has this fault; None: it is clean. Any thread."""
        asyncio.run_coroutine_threadsafe(self._set(fault), self._loop).result(10)

    def close(self) -> None:
        """Ends every connection and the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _main(self, listener: socket.socket) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, sock=listener, limit=PIECE))
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(self._loop), return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _set(self, fault: WireFault | None) -> None:
        self._fault = fault
        self._generation += 1
        self._left = fault.times if fault else 0
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if fault and fault.kind == "reset" and not fault.amount:
            for link in list(self._links):
                self._hit(fault)
                _end(link, reset=True)

    def _hit(self, fault: WireFault) -> None:
        now = time.monotonic()
        if not (fault.kind in LASTING and self._generation == self._counted):
            self.hits[fault.kind] += 1
            self._counted = self._generation
        self.hurt.append((now, now))
        self._left -= 1
        if self._left <= 0 and self._fault is fault:
            self._fault = None  # whoever waits for the end of a stall still waits for `set`

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer)
        self._links.add(link)
        try:
            if self._fault and self._fault.kind == "blackhole":
                await self._vanish(self._fault)
            # Port 0: a refused connection, as long as there is no target.
            place = ("127.0.0.1", self._target() or 0)
            server_reader, link.server = await asyncio.open_connection(*place, limit=PIECE)
            upwards = self._requests if self._http else self._bytes_up
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(upwards(link, reader))
                pumps.create_task(self._bytes_down(link, server_reader))
        except* _Broken as broken:
            _end(link, reset=any(error.reset for error in broken.exceptions if isinstance(error, _Broken)))
        except* (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            _end(link, reset=True)
        finally:
            _end(link, reset=False)
            self._links.discard(link)

    async def _bytes_up(self, link: _Link, reader: asyncio.StreamReader) -> None:
        while piece := await reader.read(PIECE):
            await self._pass(link, "up", piece)
        _half_close(link.server)

    async def _bytes_down(self, link: _Link, reader: asyncio.StreamReader) -> None:
        while piece := await reader.read(PIECE):
            if link.swallowing:
                link.answered.set()
                continue
            await self._pass(link, "down", piece)
        link.answered.set()
        if not link.swallowing:
            _half_close(link.client)

    async def _requests(self, link: _Link, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError as error:
                if error.partial:
                    await self._pass(link, "up", error.partial)
                _half_close(link.server)
                return
            length = _content_length(head)
            fault = self._fault
            if fault and fault.kind in ANSWERS:
                self._hit(fault)
                await self._answer(link, fault, head + await reader.readexactly(length))
            await self._pass(link, "up", head)
            while length:
                piece = await reader.read(min(length, PIECE))
                if not piece:
                    _half_close(link.server)
                    return
                length -= len(piece)
                await self._pass(link, "up", piece)

    async def _answer(self, link: _Link, fault: WireFault, request: bytes) -> None:
        if fault.kind in LATE and link.server:
            link.swallowing = True
            link.server.write(request)
            await link.server.drain()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(link.answered.wait(), SERVER_PATIENCE)
        if head := ANSWERS[fault.kind]:
            body = b"<html>not json</html>" if fault.kind == "garbage" else b'{"message":"a fault"}'
            if fault.kind == "429":
                head += f"Retry-After: {fault.amount:.0f}\r\n".encode()
            head += f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
            link.client.write(head + body)
            await link.client.drain()
        raise _Broken(reset=False)

    async def _pass(self, link: _Link, way: str, piece: bytes) -> None:
        """Forwards a piece as the fault of this moment has it."""
        fault, generation = self._fault, self._generation
        writer = link.server if way == "up" else link.client
        if writer is None:
            raise _Broken(reset=True)
        if fault is None:
            writer.write(piece)
            await writer.drain()
            return
        match fault.kind:
            case "delay":
                self._hit(fault)
                await asyncio.sleep(fault.amount)
            case "stall":
                self._hit(fault)
                changed, began = self._changed, time.monotonic()
                await changed.wait()
                self.hurt.append((began, time.monotonic()))
                await self._pass(link, way, piece)
                return
            case "blackhole":
                await self._vanish(fault)
            case "cut" | "truncate" | "reset":
                counts = {"cut": way == "up", "truncate": way == "down"}.get(fault.kind, True)
                before = link.passed.get((generation, fault.kind), 0)
                allowed = int(fault.amount) - before
                if counts and len(piece) > allowed:
                    self._hit(fault)
                    writer.write(piece[:allowed])
                    with contextlib.suppress(OSError):
                        await writer.drain()
                    raise _Broken(reset=fault.kind == "reset")
                link.passed[generation, fault.kind] = before + (len(piece) if counts else 0)
        writer.write(piece)
        await writer.drain()

    async def _vanish(self, fault: WireFault) -> None:
        changed, began = self._changed, time.monotonic()
        self._hit(fault)
        await changed.wait()
        self.hurt.append((began, time.monotonic()))
        raise _Broken(reset=True)


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0


def _half_close(writer: asyncio.StreamWriter | None) -> None:
    with contextlib.suppress(OSError):
        if writer is not None and writer.can_write_eof():
            writer.write_eof()


def _end(link: _Link, *, reset: bool) -> None:
    for writer in (link.client, link.server):
        if writer is None or writer.is_closing():
            continue
        if reset:
            with contextlib.suppress(OSError):
                # Linger of 0 s: the close is a reset.
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        else:
            writer.close()

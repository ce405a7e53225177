"""A loopback proxy in front of a real hub that misbehaves on demand."""

import contextlib
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

Fault = Callable[[BaseHTTPRequestHandler], bool]
"""Answers a request itself and returns True, or returns False to let it through."""


def answer(status: int, body: bytes = b"", **headers: str) -> Fault:
    """A fault that answers `status` and `body` instead of the hub."""

    def fault(handler: BaseHTTPRequestHandler) -> bool:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
        return True

    return fault


def cut(handler: BaseHTTPRequestHandler) -> bool:
    """A fault that closes the connection without an answer."""
    handler.close_connection = True
    return True


def cut_after_the_hub(handler: BaseHTTPRequestHandler) -> bool:
    """A fault that lets the hub do it and then loses the answer."""
    handler.server.forward(handler, reply=False)
    handler.close_connection = True
    return True


class FaultyProxy:
    """Forwards to `target`; `fault` (None: no fault) sees each request first.

    Attributes:
        seen: (method, path without query) of every request.
    """

    def __init__(self, target: str) -> None:
        self.fault: Fault | None = None
        self.seen: list[tuple[str, str]] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                self.body = self.rfile.read(length)
                proxy.seen.append((self.command, self.path.partition("?")[0]))
                with contextlib.suppress(OSError):
                    if proxy.fault is None or not proxy.fault(self):
                        self.server.forward(self, reply=True)

            do_POST = do_PUT = do_DELETE = do_GET

            def log_message(self, *_arguments: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def forward(self, handler: Handler, *, reply: bool) -> None:
                drop = {"host", "content-length", "connection", "accept-encoding"}
                headers = {name: value for name, value in handler.headers.items() if name.lower() not in drop}
                with requests.Session() as session:
                    session.trust_env = False
                    got = session.request(
                        handler.command, target + handler.path, data=handler.body, headers=headers, timeout=30
                    )
                if reply:
                    answer(got.status_code, got.content, Content_Type=got.headers.get("Content-Type", ""))(handler)

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        """Stops serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait_for(self, count: int, timeout: float = 30) -> None:
        """Waits until `count` requests have been seen."""
        until = time.monotonic() + timeout
        while len(self.seen) < count:
            assert time.monotonic() < until, f"only {len(self.seen)} requests came: {self.seen}"
            time.sleep(0.02)

"""A relay in front of a server that counts what clients send, and cuts their connections when told to."""

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

_BLOCK: Final = 1024 * 1024


class CountingRelay:
    """Passes connections on to one server.

    Args:
        url: the server's.

    Attributes:
        url: its own, for clients.
        sent: bytes that clients have sent so far, the heads of their requests too.
    """

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = self._target._replace(netloc=f"127.0.0.1:{self._listener.getsockname()[1]}").geturl()
        self.sent = 0
        self._counting = threading.Lock()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Resets every connection, as a network does that forgets them; new ones are taken."""
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Takes no more connections, and ends those that are open."""
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection((self._target.hostname, self._target.port))
            except OSError:
                return
            threading.Thread(target=self._pass, args=(client, server), daemon=True).start()

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        self._open |= {client, server}
        buffer = memoryview(bytearray(_BLOCK))
        with client, server, selectors.DefaultSelector() as selector, contextlib.suppress(OSError):
            for one, other in ((client, server), (server, client)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(one, selectors.EVENT_READ, other)
            while True:
                for key, _ in selector.select():
                    source: socket.socket = key.fileobj  # type: ignore[assignment]  # as it was registered
                    count = source.recv_into(buffer)
                    if count == 0:
                        return
                    if source is client:
                        with self._counting:
                            self.sent += count
                    key.data.sendall(buffer[:count])
        self._open -= {client, server}


@contextlib.contextmanager
def counting_relay(url: str) -> Iterator[CountingRelay]:
    """A relay that is closed afterwards."""
    relay = CountingRelay(url)
    try:
        yield relay
    finally:
        relay.close()

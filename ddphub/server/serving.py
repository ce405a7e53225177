"""Running the hub as a process: its socket, its first key, the line that says it is ready."""

import contextlib
import socket
import sys
from typing import Final

import uvicorn

from ddphub.errors import SettingsError
from ddphub.server.app import create_app
from ddphub.server.auth import new_key
from ddphub.server.hub import Hub
from ddphub.server.settings import ServerSettings

KEEP_ALIVE_S: Final = 75
"""Longer than clients pause between two requests, so that a connection is not closed under the next one."""

_ANY: Final = ("0.0.0.0", "::", "*")  # noqa: S104  # compared with, not bound to


def serve(settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Prints one line on stdout once the hub can serve, after the API key if this start made one.

    Raises:
        SettingsError: when the data directory cannot be used or the address cannot be listened on.
    """
    listener = _listen(settings)
    try:
        hub = Hub.open(settings)
    except BaseException:
        listener.close()
        raise
    url = _url(settings.host, listener)
    if not hub.keys:
        _make_key(hub, url)
    config = uvicorn.Config(
        create_app(hub),
        access_log=False,  # its lines hold signed URLs
        log_level="warning",
        lifespan="on",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.shutdown_s,
    )
    with contextlib.suppress(KeyboardInterrupt):
        _Server(config, url).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Says on stdout that it serves."""

    def __init__(self, config: uvicorn.Config, url: str) -> None:
        super().__init__(config)
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            _say(f"ddphub hub on {self._url}")


def _listen(settings: ServerSettings) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        # A hub that restarts gets its port back although old connections linger.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        raise SettingsError("port", where, "server settings", f"cannot listen there: {error}") from error
    return listener


def _url(host: str, listener: socket.socket) -> str:
    # Nobody can connect to "any address": say a name that other machines may know.
    name = socket.gethostname() if host in _ANY else host
    return f"http://{f'[{name}]' if ':' in name else name}:{listener.getsockname()[1]}"


def _make_key(hub: Hub, url: str) -> None:
    key = new_key()
    # Shown before it is stored: a crash in between leaves no key that nobody has seen.
    _say(f"A new API key, shown only now:\nexport DDPHUB_URL={url}\nexport DDPHUB_API_KEY={key}")
    hub.keys.add(key)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()

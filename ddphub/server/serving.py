"""Running the hub as a process: its socket, its first key, the line that says it is ready, and its end.

On SIGTERM or SIGINT the hub says at /readyz that it will stop, serves on for `drain_s`, takes no new connections, lets
requests in progress end for `shutdown_s`, answers 503 to the others, and ends with exit code 0. On SIGHUP it loads its
certificate anew.
"""

import asyncio
import functools
import gc
import logging
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, cast

import uvicorn

from ddphub.errors import SettingsError
from ddphub.server import tls
from ddphub.server.app import create_app
from ddphub.server.connections import HubConnection
from ddphub.server.hub import Hub
from ddphub.server.keys import new_key
from ddphub.server.logs import HubLog
from ddphub.server.settings import ServerSettings
from ddphub.server.workers import Workers

KEEP_ALIVE_S: Final = 75
"""Longer than clients pause between two requests, so that a connection is not closed under the next one."""

_ANY: Final = ("0.0.0.0", "::", "*")  # noqa: S104  # compared with, not bound to
_FILES: Final = 256
"""Descriptors that a process needs beside those of its connections."""

_AT_ONCE: Final = 8
_WAITING: Final = 2048
"""Connections that the system keeps until they are taken."""

_COLLECT_EVERY: Final = 20_000
"""New objects between two looks for garbage in cycles. A request brings thousands, which go with it: at Python's 700
the hub would spend a tenth of its time on looking in vain."""

_LOOK_EVERY: Final = 50
"""Ticks of a tenth of a second between two looks at the gauges."""

_log = logging.getLogger(__name__)


def serve(settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Prints one line on stdout once the hub can serve, after the API key if this start made one.

    Raises:
        SettingsError: when the data directory cannot be used or the address cannot be listened on.
    """
    with HubLog(settings.log_format, settings.log_level):
        listener = _listen(settings)
        try:
            hub = Hub.open(settings)
        except BaseException:
            listener.close()
            raise
        url = _url(settings, listener)
        if settings.new_admin_key or not hub.keys:
            _make_key(hub, url)
        say_ready = functools.partial(_say, f"ddphub hub on {url}")
        if settings.workers == 1:
            serve_hub(hub, listener, say_ready)
            return
        try:
            # What it has open is no worker's.
            hub.database.close()
            Workers(settings, listener, hub.directory.lock_file, say_ready).run()
        finally:
            hub.close()


def serve_hub(hub: Hub, listener: socket.socket, say_ready: Callable[[], None]) -> None:
    """Serve a hub on a socket until a signal says to stop."""
    settings = hub.settings
    protocol = functools.partial(
        HubConnection,
        meters=hub.meters,
        receive_s=settings.receive_s,
        max_connections=_connections(settings.max_connections),
    )
    config = uvicorn.Config(
        create_app(hub),
        http=cast("Any", protocol),
        ws="none",
        log_config=None,
        access_log=False,  # its lines hold signed URLs
        proxy_headers=False,  # it trusts whatever comes from 127.0.0.1
        lifespan="on",
        server_header=False,
        # So many does asyncio take at once: where there are workers, each gets its share of many that come together.
        backlog=_AT_ONCE,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.shutdown_s,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    # What is there by now stays: modules and routes.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY)
    HubServer(config, hub, say_ready).run(sockets=[listener])


class HubServer(uvicorn.Server):
    """Says when it serves, and ends as the module's text says.

    Args:
        config: uvicorn's.
        hub: what it serves.
        say_ready: called once it serves.
    """

    def __init__(self, config: uvicorn.Config, hub: Hub, say_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._hub = hub
        self._say_ready = say_ready
        self._stop_at: float | None = None
        hub.meters.watch("ddphub_connections", "Connections of clients.", self.server_state.connections.__len__)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_WAITING)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
        if self._stop_at is None:
            self._say_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  # uvicorn's own
        """Begin to stop; a second SIGINT, which a person sends, waits for nothing."""
        # uvicorn's own raises the signal again at the end, so that a stop that was asked for would look like a crash.
        if self._stop_at is None:
            self._hub.readiness.is_stopping = True
            self._stop_at = time.monotonic() + self._hub.settings.drain_s
        elif sig == signal.SIGINT:
            self.should_exit = self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to stop now."""
        if counter % _LOOK_EVERY == 0:
            self._hub.meters.look()
        is_time = self._stop_at is not None and time.monotonic() >= self._stop_at
        return await super().on_tick(counter) or is_time

    def _reload(self) -> None:
        settings = self._hub.settings
        if self.config.ssl is None or settings.tls_cert is None or settings.tls_key is None:
            return
        if (wrong := tls.wrong_certificate(settings.tls_cert, settings.tls_key)) is not None:
            _log.error("the certificate is not loaded anew, the one before stays: %s: %s", wrong[1], wrong[2])
            return
        tls.load(self.config.ssl, settings.tls_cert, settings.tls_key)
        _log.info("the certificate was loaded anew")


def _connections(wanted: int) -> int:
    """How many connections there may be: no more than the system lets this process have files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = wanted + _FILES
    if soft == resource.RLIM_INFINITY or soft >= files:
        return wanted
    most = files if hard == resource.RLIM_INFINITY else min(files, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < files:
        _log.warning("the system lets this process have %d files: it takes %d connections", most, most - _FILES)
    return max(1, most - _FILES)


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


def _url(settings: ServerSettings, listener: socket.socket) -> str:
    # Nobody can connect to "any address": say a name that other machines may know.
    name = socket.gethostname() if settings.host in _ANY else settings.host
    scheme = "http" if settings.tls_cert is None else "https"
    return f"{scheme}://{f'[{name}]' if ':' in name else name}:{listener.getsockname()[1]}"


def _make_key(hub: Hub, url: str) -> None:
    key = new_key()
    # Shown before it is stored: a crash in between leaves no key that nobody has seen.
    _say(f"A new API key, shown only now:\nexport DDPHUB_URL={url}\nexport DDPHUB_API_KEY={key}")
    hub.keys.add(key)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()

"""What a hub is told when it starts; checked when made."""

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from ddphub.errors import SettingsError
from ddphub.hubs.wire import HEARTBEAT_S, PART_SIZE
from ddphub.server import postgresql
from ddphub.server.states import Patience
from ddphub.server.storage.address import LEAST_PART, S3Address
from ddphub.server.tls import wrong_certificate

MIB: Final = 1024 * 1024

LOG_FORMATS: Final = ("text", "json")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")

_SOURCE: Final = "server settings"
_RANGES: Final = {
    "url_lifetime_s": (1, 7 * 24 * 3600),
    "session_lifetime_s": (1, 7 * 24 * 3600),
    "shutdown_s": (1, 600),
    "drain_s": (0, 600),
    "receive_s": (1, 3600),
    "workers": (1, 256),
    "upkeep_s": (0.1, 7 * 24 * 3600),
    "rate_limit": (0, 1_000_000),
    "max_requests": (1, 100_000),
    "max_connections": (1, 1_000_000),
}


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of one hub.

    Args:
        data: the directory that holds everything the hub keeps; made when it is not there.
        database_url: the PostgreSQL database, see `postgresql.checked_url`; None for SQLite in `data`.
        storage: the object storage for checkpoints, see `S3Address`; None for a folder in `data`.
        host: the address to listen on.
        port: the port to listen on; 0 lets the system choose one.
        api_key: a key that the hub accepts beside the ones it stores; None for the stored ones alone.
        new_admin_key: make one more key that can do everything, for who lost theirs.
        part_size: bytes of an uploaded part; the last part of a file is shorter.
        heartbeat_s: seconds between heartbeats; a run that is silent for three of them is lost.
        url_lifetime_s: seconds that a signed URL is good for.
        session_lifetime_s: seconds that a browser stays signed in.
        inline_check_bytes: a checkpoint with more bytes to check is checked after its request was answered.
        stall_s: seconds without a step that never make a run stalled, see states.py.
        first_step_s: seconds without a first step after which a run is stalled.
        shutdown_s: seconds that requests in progress are given when the hub is asked to stop.
        drain_s: seconds for which it serves on before that and says at /readyz that it will stop.
        tls_cert: file with the certificate and those that it is signed with, as PEM; None for no TLS.
        tls_key: file with its key, as PEM, without a passphrase.
        trusted_proxies: addresses and networks whose X-Forwarded-* headers are believed; nobody else's are.
        log_format: `text` for people, `json` for programs; one line an event.
        log_level: the least important level that is written; requests are of level info.
        metrics_open: whether /metrics answers without a key.
        rate_limit: requests a second that each key, or each address without one, may send for long; 0 for no limit.
        max_requests: requests in progress; more are answered 503. For each process.
        max_connections: connections at once; more are answered 503. For each process.
        receive_s: seconds that a sender has for the head of a request and to begin its body.
        workers: processes that serve; more than one needs PostgreSQL.
        upkeep_s: seconds between two looks at which checkpoints the rules of projects do not keep.

    Raises:
        SettingsError: when a setting is wrong.
    """

    data: Path
    database_url: str | None = field(default=None, repr=False)
    storage: str | None = None
    host: str = "127.0.0.1"
    port: int = 8765
    api_key: str | None = field(default=None, repr=False)
    new_admin_key: bool = False
    part_size: int = PART_SIZE
    heartbeat_s: float = HEARTBEAT_S
    url_lifetime_s: int = 3600
    session_lifetime_s: int = 12 * 3600
    inline_check_bytes: int = 64 * MIB
    stall_s: float = Patience.stall_s
    first_step_s: float = Patience.first_step_s
    shutdown_s: int = 5
    drain_s: float = 0.0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    trusted_proxies: tuple[str, ...] = ()
    log_format: str = "text"
    log_level: str = "info"
    metrics_open: bool = False
    rate_limit: float = 1000.0
    max_requests: int = 500
    max_connections: int = 10_000
    receive_s: float = 30.0
    workers: int = 1
    upkeep_s: float = 3600.0

    def __post_init__(self) -> None:
        """Check every field."""
        if self.database_url is not None:
            postgresql.checked_url(self.database_url, _SOURCE)
        if not self.host or not self.host.isprintable() or " " in self.host:
            raise SettingsError("host", self.host, _SOURCE, "expected a host name or an address")
        if not 0 <= self.port <= 65535:
            raise SettingsError("port", self.port, _SOURCE, "expected 0 to 65535 (0: any free port)")
        if self.api_key is not None and wrong_key(self.api_key):
            # The value stays out of the message: it is a secret even when it is a bad one.
            raise SettingsError("api_key", "***", _SOURCE, wrong_key(self.api_key) or "")
        if not 1024 <= self.part_size <= 1024 * MIB:
            raise SettingsError("part_size", self.part_size, _SOURCE, "expected 1 KiB to 1 GiB, in bytes")
        if not 0 < self.heartbeat_s <= 3600:
            raise SettingsError("heartbeat_s", self.heartbeat_s, _SOURCE, "expected more than 0, at most 3600 s")
        if self.storage is not None:
            S3Address.parse(self.storage, _SOURCE)
            if self.part_size < LEAST_PART:
                raise SettingsError("part_size", self.part_size, _SOURCE, "an object storage takes 5 MiB or more")
        if self.inline_check_bytes < 0:
            raise SettingsError("inline_check_bytes", self.inline_check_bytes, _SOURCE, "expected 0 or more")
        for name in ("stall_s", "first_step_s"):
            if not 0 < getattr(self, name) <= 7 * 24 * 3600:
                raise SettingsError(name, getattr(self, name), _SOURCE, "expected more than 0, at most 7 days, in s")
        self._check_serving()

    def _check_serving(self) -> None:
        for name, (least, most) in _RANGES.items():
            if not least <= getattr(self, name) <= most:
                raise SettingsError(name, getattr(self, name), _SOURCE, f"expected {least} to {most}")
        for name, known in (("log_format", LOG_FORMATS), ("log_level", LOG_LEVELS)):
            if getattr(self, name) not in known:
                raise SettingsError(name, getattr(self, name), _SOURCE, f"expected one of {', '.join(known)}")
        if self.workers > 1 and self.database_url is None:
            expected = "expected 1 with SQLite, which one process writes: more need --database-url postgresql://..."
            raise SettingsError("workers", self.workers, _SOURCE, expected)
        for proxy in self.trusted_proxies:
            try:
                ipaddress.ip_network(proxy)
            except ValueError as error:
                expected = f"expected an address or a network as 10.0.0.0/8 ({error})"
                raise SettingsError("trusted_proxies", proxy, _SOURCE, expected) from error
        if (self.tls_cert is None) != (self.tls_key is None):
            name = "tls_key" if self.tls_key is None else "tls_cert"
            raise SettingsError(name, None, _SOURCE, "expected both files, of the certificate and of its key")
        if self.tls_cert is not None and self.tls_key is not None:
            wrong = wrong_certificate(self.tls_cert, self.tls_key)
            if wrong is not None:
                raise SettingsError(*wrong[:2], _SOURCE, wrong[2])

    def to_json(self) -> str:
        """All settings in one line, the key too: for a pipe to a process of the same hub."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, line: str | bytes) -> "ServerSettings":
        """What `to_json` wrote."""
        values = json.loads(line)
        for name in ("data", "tls_cert", "tls_key"):
            values[name] = None if values[name] is None else Path(values[name])
        values["trusted_proxies"] = tuple(values["trusted_proxies"])
        return cls(**values)

    def patience(self, *, up_since: float) -> Patience:
        """How long the hub waits for what.

        Args:
            up_since: when it began to listen, seconds since the epoch.
        """
        return Patience(
            heartbeat_s=self.heartbeat_s, stall_s=self.stall_s, first_step_s=self.first_step_s, up_since=up_since
        )


def given_database_url(argument: str | None, environment: Mapping[str, str]) -> str | None:
    """The database's URL as a program's argument `--database-url` or DDPHUB_DATABASE_URL gives it.

    Raises:
        SettingsError: when the argument is none, or has a password in it.
    """
    if argument is None:
        return environment.get("DDPHUB_DATABASE_URL") or None
    source = "--database-url"
    url = postgresql.checked_url(argument, source)
    if url.password is not None or "password" in url.query:
        expected = (
            "expected no password, as everyone on the machine sees arguments: give the URL in DDPHUB_DATABASE_URL, "
            "or the password in PGPASSWORD or a file that PGPASSFILE names"
        )
        raise SettingsError("database_url", postgresql.shown(url), source, expected)
    return argument


def wrong_key(key: str) -> str | None:
    """Why `key` cannot be an API key; None when it can."""
    if not 16 <= len(key) <= 256:
        return "expected 16 to 256 characters"
    if not key.isascii() or not key.isprintable() or " " in key:
        return "expected printable ASCII without spaces, as a header can carry it"
    return None

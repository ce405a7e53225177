"""What a hub is told when it starts; checked when made."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ddphub.errors import SettingsError
from ddphub.hubs.wire import HEARTBEAT_S, PART_SIZE
from ddphub.server.states import Patience

MIB: Final = 1024 * 1024

_SOURCE: Final = "server settings"


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of one hub.

    Args:
        data: the directory that holds everything the hub keeps; made when it is not there.
        host: the address to listen on.
        port: the port to listen on; 0 lets the system choose one.
        api_key: a key that the hub accepts beside the ones it stores; None for the stored ones alone.
        part_size: bytes of an uploaded part; the last part of a file is shorter.
        heartbeat_s: seconds between heartbeats; a run that is silent for three of them is lost.
        url_lifetime_s: seconds that a signed URL is good for.
        session_lifetime_s: seconds that a browser stays signed in.
        inline_check_bytes: a checkpoint with more bytes to check is checked after its request was answered.
        stall_s: seconds without a step that never make a run stalled, see states.py.
        first_step_s: seconds without a first step after which a run is stalled.
        shutdown_s: seconds that requests in progress are given when the hub is asked to stop.

    Raises:
        SettingsError: when a setting is wrong.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = 8765
    api_key: str | None = field(default=None, repr=False)
    part_size: int = PART_SIZE
    heartbeat_s: float = HEARTBEAT_S
    url_lifetime_s: int = 3600
    session_lifetime_s: int = 12 * 3600
    inline_check_bytes: int = 64 * MIB
    stall_s: float = Patience.stall_s
    first_step_s: float = Patience.first_step_s
    shutdown_s: int = 5

    def __post_init__(self) -> None:
        """Check every field."""
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
        for name in ("url_lifetime_s", "session_lifetime_s"):
            value = getattr(self, name)
            if not 1 <= value <= 7 * 24 * 3600:
                raise SettingsError(name, value, _SOURCE, "expected 1 second to 7 days, in seconds")
        if self.inline_check_bytes < 0:
            raise SettingsError("inline_check_bytes", self.inline_check_bytes, _SOURCE, "expected 0 or more")
        for name in ("stall_s", "first_step_s"):
            if not 0 < getattr(self, name) <= 7 * 24 * 3600:
                raise SettingsError(name, getattr(self, name), _SOURCE, "expected more than 0, at most 7 days, in s")
        if not 1 <= self.shutdown_s <= 600:
            raise SettingsError("shutdown_s", self.shutdown_s, _SOURCE, "expected 1 to 600 s")

    def patience(self, *, up_since: float) -> Patience:
        """How long the hub waits for what.

        Args:
            up_since: when it began to listen, seconds since the epoch.
        """
        return Patience(
            heartbeat_s=self.heartbeat_s, stall_s=self.stall_s, first_step_s=self.first_step_s, up_since=up_since
        )


def wrong_key(key: str) -> str | None:
    """Why `key` cannot be an API key; None when it can."""
    if not 16 <= len(key) <= 256:
        return "expected 16 to 256 characters"
    if not key.isascii() or not key.isprintable() or " " in key:
        return "expected printable ASCII without spaces, as a header can carry it"
    return None

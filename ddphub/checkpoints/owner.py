"""Which process holds a claim, and whether it is still there.

A pid alone names nothing: it is used again after the process died, on every host and in every container. So an
owner is a host (its name, its boot and its pid namespace), a pid, and the time that pid was started.
"""

import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, Self

State = Literal["alive", "dead", "unknown"]
"""`unknown`: on another host, before its last boot, or in another container; only a person can tell."""

_PROC: Final = Path("/proc")


@dataclass(frozen=True)
class Owner:
    """One process, for as long as it lives.

    Attributes:
        host: host name, boot id and pid namespace, joined by '/'.
        pid: process id there.
        started: when it was started, in clock ticks after boot (field 22 of proc_pid_stat(5)); 0 if not known.
    """

    host: str
    pid: int
    started: int

    @classmethod
    def current(cls) -> Self:
        """The calling process."""
        return cls(*_current())

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The owner that `to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        if not isinstance(value, dict):
            raise ValueError("owner: expected a JSON object")  # noqa: TRY004 - callers catch one error for bad content
        host, pid, started = value.get("host"), value.get("pid"), value.get("started")
        if not isinstance(host, str) or type(pid) is not int or type(started) is not int:
            raise ValueError("owner: expected host: str, pid: int, started: int")
        return cls(host=host, pid=pid, started=started)

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {"host": self.host, "pid": self.pid, "started": self.started}

    def state(self) -> State:
        """Whether the process is alive; "dead" only when that is certain."""
        if self.host != _host() or self.started <= 0 or self.pid <= 0:
            return "unknown"
        try:
            started = _started(self.pid)
        except OSError:
            return "unknown"
        return "alive" if started == self.started else "dead"


@cache
def _current() -> tuple[str, int, int]:
    """What `Owner.current` is made of; a save asks several times."""
    pid = os.getpid()
    return _host(), pid, _started(pid) or 0


# After a fork the child is another process.
os.register_at_fork(after_in_child=_current.cache_clear)


@cache
def _host() -> str:
    """This host as no other host and no other boot is called; containers that share a kernel differ too."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        pids = (_PROC / "self/ns/pid").readlink().name
    except OSError:
        boot = pids = "?"
    return f"{socket.gethostname()}/{boot}/{pids}"


# The child may be the first one of another pid namespace (unshare(2)), where the same pid is another process.
os.register_at_fork(after_in_child=_host.cache_clear)


def _started(pid: int) -> int | None:
    """When a pid was started, in clock ticks after boot; None when there is no such process, or only its zombie.

    Raises:
        OSError: /proc does not say.
    """
    folder = _PROC / str(pid)
    try:
        # The command's name, in parentheses, may hold spaces and parentheses itself.
        fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
        if fields[0] in {b"Z", b"X"} and len(list((folder / "task").iterdir())) <= 1:
            return None
        return int(fields[19])
    except (FileNotFoundError, ProcessLookupError):
        if not (_PROC / "self/stat").exists():
            raise
        return None
    except (IndexError, ValueError) as problem:
        raise OSError(f"/proc/{pid}/stat is not what proc_pid_stat(5) says") from problem

"""What ddphub holds once a process, whatever the number of runs: signals, exit, failures, forks, the owner's mark.

A child that inherits rank 0's environment (a DataLoader worker, a subprocess) is not rank 0: the mark tells it so. A
forked child's copies of the runs are disabled.
"""

import atexit
import os
import signal
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol

from ddphub.session.preemption import SignalWatch

OWNER_VARIABLE: Final = "_DDPHUB_OWNER"
"""`<host>:<pid>:<start time>:<SLURM job>:<run id>` of the process that holds a run, for its children: they are never a
second owner. It counts only while that process lives, here, in the same job: `sbatch` exports the environment too."""


class LiveRun(Protocol):
    """What a process tells its runs."""

    def on_signal(self, number: int, *, ends: bool) -> bool:
        """The process was told to leave, and ends when this returns if `ends`, unless it says True; signal thread."""

    def on_failure(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """An exception ends the process; `on_exit` follows."""

    def on_exit(self) -> None:
        """The interpreter exits."""

    def on_fork(self) -> None:
        """This is a forked child."""


_live: set[LiveRun] = set()  # strong: a script that keeps no reference to its run still has it finished at exit
_watch: SignalWatch | None = None
_previous_hook = sys.excepthook
_hooked = False  # stays True while another hook wraps ours: hooking again would make a circle


def is_owned_by_parent(explicit_run_id: str | None) -> bool:
    """Whether a parent process holds a run that this process must not report again.

    A child with a run id of its own, other than its parent's, is a run of its own.
    """
    owner, _, run_id = os.environ.get(OWNER_VARIABLE, "").rpartition(":")
    pid = owner.split(":")[1] if owner.count(":") == 3 else ""
    if not pid or pid == str(os.getpid()) or owner != _mark(pid):
        return False
    return not explicit_run_id or explicit_run_id == run_id


def _mark(pid: str) -> str:
    """A process of this machine and job, so that neither another one's nor a later one's pid is taken for it."""
    try:
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started = ""
    return ":".join((socket.gethostname(), pid, started, os.environ.get("SLURM_JOB_ID", "")))


def enter(run: LiveRun, run_id: str | None, signals: Iterable[int] = (signal.SIGTERM,)) -> None:
    """A run begins in this process; the first one says which signals tell it to leave."""
    global _watch, _previous_hook, _hooked
    os.environ[OWNER_VARIABLE] = f"{_mark(str(os.getpid()))}:{run_id or ''}"
    if not _live:
        _watch = SignalWatch(_on_signal, signals)
        _watch.install()
        if not _hooked:
            _previous_hook, sys.excepthook, _hooked = sys.excepthook, _on_failure, True
        atexit.register(_on_exit)
    _live.add(run)


def received_signal() -> int | None:
    """The signal that told this process to leave, if any."""
    return _watch.received if _watch is not None and _live else None


def leave(run: LiveRun) -> None:
    """A run has ended; after the last one the process is as it was."""
    global _hooked
    _live.discard(run)
    if _live:
        return
    os.environ.pop(OWNER_VARIABLE, None)
    if _watch is not None:
        _watch.remove()
    if sys.excepthook is _on_failure:
        sys.excepthook, _hooked = _previous_hook, False
    atexit.unregister(_on_exit)


def _on_signal(number: int, ends: bool) -> bool:
    answers = [run.on_signal(number, ends=ends) for run in list(_live)]
    return bool(answers) and all(answers)


def _on_failure(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    for run in list(_live):
        run.on_failure(kind, error, trace)
    _previous_hook(kind, error, trace)


def _on_exit() -> None:
    for run in list(_live):
        run.on_exit()


def _on_fork() -> None:
    """In the child; its copy of the mark names the parent, so `init` there is disabled too."""
    for run in list(_live):
        run.on_fork()
    if _live and _watch is not None:
        _watch.remove()  # a SIGTERM to the child must not write to the pipe that the parent reads
    _live.clear()


os.register_at_fork(after_in_child=_on_fork)

"""What ddphub holds once a process, whatever the number of runs: signals, exit, failures, forks, the owner's mark.

A child that inherits rank 0's environment (a DataLoader worker, a subprocess) is not rank 0: the mark tells it so. A
forked child's copies of the runs are disabled.
"""

import atexit
import os
import sys
from types import TracebackType
from typing import Final, Protocol

from ddphub.session.preemption import SignalWatch

OWNER_VARIABLE: Final = "_DDPHUB_OWNER"
"""`<pid>:<run id>` of the process that holds a run, for its children: they are never a second owner."""


class LiveRun(Protocol):
    """What a process tells its runs."""

    def on_signal(self, number: int, *, ends: bool) -> None:
        """The process was told to leave, and ends when this returns if `ends`; in the signal thread."""

    def on_failure(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """An exception ends the process; `on_exit` follows."""

    def on_exit(self) -> None:
        """The interpreter exits."""

    def on_fork(self) -> None:
        """This is a forked child."""


_live: set[LiveRun] = set()  # strong: a script that keeps no reference to its run still has it finished at exit
_watch: SignalWatch | None = None
_previous_hook = sys.excepthook


def is_owned_by_parent(explicit_run_id: str | None) -> bool:
    """Whether a parent process holds a run that this process must not report again.

    A child with a run id of its own, other than its parent's, is a run of its own.
    """
    pid, _, run_id = os.environ.get(OWNER_VARIABLE, "").partition(":")
    return bool(pid) and pid != str(os.getpid()) and (not explicit_run_id or explicit_run_id == run_id)


def enter(run: LiveRun, run_id: str | None) -> None:
    """A run begins in this process."""
    global _watch, _previous_hook
    os.environ[OWNER_VARIABLE] = f"{os.getpid()}:{run_id or ''}"
    if not _live:
        _watch = SignalWatch(_on_signal)
        _watch.install()
        _previous_hook, sys.excepthook = sys.excepthook, _on_failure
        atexit.register(_on_exit)
    _live.add(run)


def leave(run: LiveRun) -> None:
    """A run has ended; after the last one the process is as it was."""
    _live.discard(run)
    if _live:
        return
    os.environ.pop(OWNER_VARIABLE, None)
    if _watch is not None:
        _watch.remove()
    if sys.excepthook is _on_failure:
        sys.excepthook = _previous_hook
    atexit.unregister(_on_exit)


def _on_signal(number: int, ends: bool) -> None:
    for run in list(_live):
        run.on_signal(number, ends=ends)


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

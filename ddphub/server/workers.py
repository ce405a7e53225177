"""Several processes that serve one hub: on one socket, over one PostgreSQL database.

The parent has the socket and the lock of the data directory, brings the database up to date, starts the workers,
starts one anew that dies, and passes signals on. It serves nothing itself. A worker reads the hub's settings from its
standard input, where no other process sees them, and ends when that closes: with its parent. It inherits the
directory's lock, so that no other hub takes the directory before all workers of this one have ended.
"""

import contextlib
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Final, cast

from prometheus_client.multiprocess import mark_process_dead

from ddphub.errors import DdphubError
from ddphub.server.meters import FOLDER
from ddphub.server.settings import ServerSettings

READY: Final = b"ready\n"

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
"""Until a worker that died is started again: twice as long each time, from the beginning after it ran for long."""

_LONG_S: Final = 60.0
_GRACE_S: Final = 10.0
"""Seconds for which workers are waited for beyond what they were given to stop."""

_log = logging.getLogger(__name__)


@dataclass
class _Worker:
    """One worker's place: its process now, or when there is to be one again."""

    process: subprocess.Popen[bytes] | None = None
    stdout: IO[bytes] | None = None
    is_ready: bool = False
    started_at: float = 0.0
    start_at: float = 0.0
    pause_s: float = FIRST_PAUSE_S


class Workers:
    """The workers of one hub. Main thread of the parent only.

    Args:
        settings: the hub's.
        listener: the socket that they serve on; it is bound.
        lock: descriptor of the lock that they keep.
        say_ready: called once all of them serve.
    """

    def __init__(
        self, settings: ServerSettings, listener: socket.socket, lock: int, say_ready: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._lock = lock
        self._say_ready = say_ready
        self._workers = [_Worker() for _ in range(settings.workers)]
        self._selector = selectors.DefaultSelector()
        self._serves = False
        self._stop_by: float | None = None

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            DdphubError: the workers could not begin, or one of them had to be killed.
        """
        with tempfile.TemporaryDirectory(prefix="ddphub-figures-") as folder, _woken_by_signals() as signals:
            self._folder = folder
            self._selector.register(signals, selectors.EVENT_READ, signals)
            try:
                self._run(signals)
            finally:
                self._kill()

    def _run(self, signals: socket.socket) -> None:
        while True:
            if self._stop_by is None:
                for worker in self._workers:
                    if worker.process is None and time.monotonic() >= worker.start_at:
                        self._start(worker)
            elif not any(worker.process for worker in self._workers):
                return
            elif time.monotonic() >= self._stop_by:
                raise DdphubError("workers did not stop in time, and were killed")
            for key, _ in self._selector.select(0.1):
                if key.data is signals:
                    for number in signals.recv(64):
                        self._handle(signal.Signals(number))
                else:
                    self._hear(cast("_Worker", key.data))

    def _start(self, worker: _Worker) -> None:
        process = subprocess.Popen(  # noqa: S603  # ourselves
            [sys.executable, "-m", "ddphub.server.worker", str(self._listener.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self._listener.fileno(), self._lock],
            env={**os.environ, FOLDER: self._folder},
            bufsize=0,
        )
        assert process.stdin is not None  # noqa: S101  # it is a pipe
        assert process.stdout is not None  # noqa: S101  # it is a pipe
        with contextlib.suppress(BrokenPipeError):  # it died already, as its output says
            process.stdin.write(self._settings.to_json().encode() + b"\n")
        worker.process, worker.stdout, worker.is_ready = process, process.stdout, False
        worker.started_at = time.monotonic()
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)

    def _hear(self, worker: _Worker) -> None:
        assert worker.stdout is not None  # noqa: S101  # it is registered
        if worker.stdout.read(64):
            worker.is_ready = True
            if not self._serves and all(one.is_ready for one in self._workers):
                self._serves = True
                self._say_ready()
            return
        process = worker.process
        assert process is not None  # noqa: S101  # it is registered
        self._selector.unregister(worker.stdout)
        worker.stdout.close()
        code = process.wait()
        with contextlib.suppress(OSError):
            cast("IO[bytes]", process.stdin).close()
        mark_process_dead(process.pid, self._folder)  # type: ignore[no-untyped-call]  # the library's
        worker.process = worker.stdout = None
        if self._stop_by is not None:
            if code != 0:
                _log.error("worker %d stopped with exit code %d", process.pid, code)
            return
        if not self._serves:
            raise DdphubError(f"a worker ended with exit code {code} before it could serve; the log says why")
        now = time.monotonic()
        if now - worker.started_at > _LONG_S:
            worker.pause_s = FIRST_PAUSE_S
        worker.start_at = now + worker.pause_s
        _log.error("worker %d died with exit code %d; another starts in %g s", process.pid, code, worker.pause_s)
        worker.pause_s = min(2 * worker.pause_s, LONGEST_PAUSE_S)

    def _handle(self, number: signal.Signals) -> None:
        if number != signal.SIGHUP and self._stop_by is None:
            settings = self._settings
            self._stop_by = time.monotonic() + settings.drain_s + settings.shutdown_s + _GRACE_S
            # While any process has it, connections are taken that nobody will serve.
            self._listener.close()
        for worker in self._workers:
            if worker.process is not None:
                worker.process.send_signal(number)

    def _kill(self) -> None:
        for worker in self._workers:
            if worker.process is not None:
                worker.process.kill()
                worker.process.wait()


@contextlib.contextmanager
def _woken_by_signals() -> Iterator[socket.socket]:
    """A socket from which the numbers of signals that come can be read, a byte each."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    numbers = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
    before = [signal.signal(number, lambda _number, _frame: None) for number in numbers]
    waking = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        with reader, writer:
            yield reader
    finally:
        signal.set_wakeup_fd(waking)
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)

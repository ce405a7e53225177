"""Leaving on a signal: what is complete gets to disk and hub before the process ends.

A Python signal handler runs in the main thread only, which may sit in a collective for minutes. So the signal wakes a
thread through `signal.set_wakeup_fd`, and that thread flushes. Then the process ends by the signal, if that is what
would have happened without us; a handler that was there before is called as if nothing had come between.
"""

import contextlib
import ctypes
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Final

logger = logging.getLogger(__name__)

_FROM_HANDLER: Final = 0x80
"""Marks a byte that our handler sent; signal numbers are smaller."""

_Handler = Callable[[int, FrameType | None], Any] | int | None


class SignalWatch:
    """Watches signals for one process. `install` in the main thread; the callbacks run in the watch's thread.

    Args:
        leave: called once for each signal with its number and whether the process ends then; returns when everything
            is safe or its budget is spent, and True where the process goes on all the same. A process whose own
            handler takes the signal decides for itself.
        numbers: the signals.

    Attributes:
        received: the last one that this process has seen.
    """

    def __init__(self, leave: Callable[[int, bool], bool | None], numbers: Iterable[int] = (signal.SIGTERM,)) -> None:
        self._leave = leave
        self._numbers = tuple(numbers)
        self._previous: dict[int, _Handler] = {}
        self._previous_fd = -1
        self._told: set[int] = set()
        self.received: int | None = None
        self._pid = os.getpid()
        self._writer: socket.socket | None = None

    def install(self) -> bool:
        """Takes the signals; False (and nothing done) outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            logger.info("not in the main thread: no signal is watched, so a preempted run is marked by `ddphub sync`")
            return False
        reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)  # signal.set_wakeup_fd demands it
        self._previous_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in self._numbers:
            previous = signal.getsignal(number)
            if previous != signal.SIG_IGN:  # who ignores a signal is not to be told to leave by it
                self._previous[number] = previous
                signal.signal(number, self._handle)
        threading.Thread(target=self._main, args=(reader,), name="ddphub-signals", daemon=True).start()
        return True

    def remove(self) -> None:
        """Gives the signals back, where nobody has taken them since. Main thread only; elsewhere nothing happens."""
        if self._writer is None or threading.current_thread() is not threading.main_thread():
            return
        for number, previous in list(self._previous.items()):
            if signal.getsignal(number) == self._handle:
                signal.signal(number, previous if previous is not None else signal.SIG_DFL)
                del self._previous[number]  # one that another handler wraps is still called through ours
        with contextlib.suppress(OSError, ValueError):  # the earlier descriptor may be closed by now
            current = signal.set_wakeup_fd(-1)
            signal.set_wakeup_fd(self._previous_fd if current == self._writer.fileno() else current)
        self._writer.close()  # ends the thread
        self._writer = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """In the main thread, whenever it next runs Python: the thread may be long at work by then, or not begun."""
        self.received = number
        if self._writer is not None:
            with contextlib.suppress(OSError):
                # In case someone else has taken the wakeup fd; marked, because that one is not to hear it twice.
                self._writer.send(bytes([number | _FROM_HANDLER]))
        previous = self._previous.get(number)
        if callable(previous):
            previous(number, frame)

    def _main(self, reader: socket.socket) -> None:
        while received := reader.recv(64):
            forwarded = bytes(byte for byte in received if not byte & _FROM_HANDLER)
            if self._previous_fd >= 0 and forwarded:
                with contextlib.suppress(OSError):  # its owner is gone or does not read: not ours to mend
                    os.write(self._previous_fd, forwarded)
            numbers = (byte & ~_FROM_HANDLER for byte in received)
            for number in numbers:
                if number in self._previous and number not in self._told and os.getpid() == self._pid:
                    self._told.add(number)
                    self.received = number
                    self._go(number)
        reader.close()

    def _go(self, number: int) -> None:
        # A handler that came before ours, or has been put over it since, decides for itself.
        current = getattr(signal.getsignal(number), "__func__", None)
        ends = self._previous.get(number) == signal.SIG_DFL and current is SignalWatch._handle
        goes_on = False
        try:
            goes_on = bool(self._leave(number, ends))
        except Exception:  # the process must end all the same
            logger.exception("leaving on signal %d failed", number)
        if ends and not goes_on:
            # signal.signal works in the main thread only, and that one may be in a collective.
            ctypes.CDLL(None).signal(number, 0)  # 0: SIG_DFL
            os.kill(self._pid, number)

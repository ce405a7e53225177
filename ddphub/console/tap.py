"""The tap: takes a copy of what the process prints, at the cost of an append.

The `write` of the objects that are sys.stdout and sys.stderr is replaced, not the objects: loggers and progress bars
hold those. So what Python prints is seen, whoever prints it, while what C libraries write to the file descriptor is
not: for that the descriptor would have to be a pipe of ours, and a pipe that its reader does not empty in time stops
who prints. A stream that is put in place of sys.stdout later is seen as far as it writes to the one that was there.
"""

import contextlib
import functools
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

logger = logging.getLogger(__name__)

STREAMS: Final = ("stdout", "stderr")

CAPACITY: Final = 256 * 1024
"""Characters that wait to be taken; past it the older half goes: the last lines before an end matter most."""

ARRIVED: Final = 10_000
"""Writes that wait while somebody is at work on those before them, for microseconds."""

PATIENCE: Final = 0.1
"""Seconds that a reader waits for who is at work; longer is somebody who was interrupted there, and will not mind."""

PIECE: Final = 100
"""What a write costs beside its characters, so that many short ones do not fill the memory."""

Write = Callable[..., Any]


Piece = tuple[str, int, str]
"""One write: `stdout` or `stderr`, the writer's `threading.get_ident`, the text."""


class Tap:
    """Records what is written to sys.stdout and sys.stderr. Any rank.

    The original `write` runs first, and what it returns or raises is what the caller gets.
    """

    def __init__(self) -> None:
        self._arrived: deque[Piece] = deque()
        self._pieces: deque[Piece] = deque()
        self._size = 0
        self._lost: dict[str, int] = {}
        self._dropped: dict[tuple[str, int], tuple[int, int]] = {}  # of a stream by a thread: writes, and line ends
        self._counted: dict[tuple[str, int], tuple[int, int]] = {}  # of these what `_lost` has
        self._open = False
        # Around everything but what has arrived. No writer waits for it: a signal's handler may run in its midst, for
        # long, and print, and wait for a thread that prints.
        self._lock = threading.Lock()
        self._replaced: list[_Replaced] = []

    def open(self) -> None:
        """Begins to record."""
        self._open = True
        for name in STREAMS:
            stream = getattr(sys, name)
            if any(stream is known.stream for known in self._replaced):
                continue  # one object under both names
            try:
                original = stream.write
                is_own = "write" in vars(stream)
                stream.write = write = self._recording(name, original)
            except Exception as error:  # noqa: BLE001  # there is none, or it lets nobody replace its parts
                logger.info("sys.%s is not captured: %s", name, error)
                continue
            self._replaced.append(_Replaced(stream, write, original, is_own))

    def close(self) -> None:
        """Records nothing more; the streams are as they were, unless somebody else has replaced their `write` since."""
        self._open = False
        replaced, self._replaced = self._replaced, []
        for one in replaced:
            one.restore()

    def take(self) -> tuple[list[Piece], dict[str, int]]:
        """What was recorded since the last call, and of each stream how many line ends are missing before that.

        A stream that misses something, be it no line end, is named.
        """
        has_lock = self._lock.acquire(timeout=PATIENCE)
        try:
            self._gather()
            pieces, lost = list(self._pieces), self._lost
            self._pieces.clear()
            self._size, self._lost = 0, {}
        finally:
            if has_lock:
                self._lock.release()
        return [piece for piece in pieces if isinstance(piece[2], str)], lost

    def _recording(self, name: str, original: Write) -> Write:
        lock, arrived, get_ident = self._lock, self._arrived, threading.get_ident

        @functools.wraps(original)
        def write(text: Any, *rest: Any, **named: Any) -> Any:  # noqa: ANN401  # whatever the stream takes and returns
            result = original(text, *rest, **named)
            if self._open:
                try:
                    arrived.append((name, get_ident(), text))
                    if len(arrived) > ARRIVED:
                        self._drop(arrived.popleft())
                    if lock.acquire(blocking=False):
                        try:
                            self._gather()
                        finally:
                            lock.release()
                except Exception:  # noqa: BLE001, S110  # nobody to tell: who prints must not pay for it
                    pass
            return result

        return write

    def _drop(self, piece: Piece) -> None:
        """Gives up a write that nobody takes in. Only its own thread changes a count, so none is lost."""
        key = piece[0], threading.get_ident()
        writes, ends = self._dropped.get(key, (0, 0))
        self._dropped[key] = writes + 1, ends + piece[2].count("\n")

    def _gather(self) -> None:
        """Takes in what has arrived, and bounds it. With the lock."""
        arrived, pieces = self._arrived, self._pieces
        for key, (writes, ends) in list(self._dropped.items()):
            known = self._counted.get(key, (0, 0))
            if writes > known[0]:
                self._counted[key] = writes, ends
                for stream, _, text in pieces:  # what is missing comes after these, and has to come before all
                    self._lost[stream] = self._lost.get(stream, 0) + text.count("\n")
                pieces.clear()
                self._size = 0
                self._lost[key[0]] = self._lost.get(key[0], 0) + ends - known[1]
        while arrived:
            piece = arrived.popleft()
            pieces.append(piece)
            self._size += len(piece[2]) + PIECE
        if self._size > CAPACITY:
            self._make_room()

    def _make_room(self) -> None:
        while self._size > CAPACITY // 2:
            stream, thread, text = self._pieces.popleft()
            self._size -= len(text) + PIECE
            cut = len(text)
            if not self._pieces:  # one write larger than all that may wait: its end stays
                cut -= CAPACITY // 4
                self._pieces.append((stream, thread, text[cut:]))
                self._size = CAPACITY // 4
            self._lost[stream] = self._lost.get(stream, 0) + text.count("\n", 0, cut)


class _Replaced(NamedTuple):
    """A stream whose `write` is ours; `is_own`: it had one of its own, beside that of its class."""

    stream: Any
    write: Write
    original: Write
    is_own: bool

    def restore(self) -> None:
        """Gives it back, if it is still ours."""
        if self.stream.write is not self.write:
            return
        if not self.is_own:
            with contextlib.suppress(AttributeError):
                del self.stream.write
                return
        self.stream.write = self.original

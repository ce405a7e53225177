"""The console: what a rank prints, as events.

```
print() --> Tap --(every second)--> Screen --> Keys --> waiting lines --> events
```

Everything is bounded: PACE_LINES and PACE_BYTES a second, ATTEMPT_BYTES an attempt. Lines that are too many wait;
of more than WAITING_LINES the oldest are left out, and the next event says how many. At the end the newest that wait
are sent whatever the bounds, LAST_BYTES of them: the lines before an end matter most.
"""

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Final

from ddphub.console.keys import WITHHELD, Keys
from ddphub.console.screen import Line, Screen
from ddphub.console.tap import STREAMS, Tap
from ddphub.events import MAX_CONSOLE_LINES, Event, plain_text

logger = logging.getLogger(__name__)

PACE: Final = 1.0
"""Seconds between two looks at what was printed."""

PACE_LINES: Final = 50
PACE_BYTES: Final = 32 * 1024
"""Lines, and bytes of them as JSON, in one look's events."""

WAITING_LINES: Final = 1000
"""Lines that wait."""

ATTEMPT_BYTES: Final = 8 * 1024 * 1024
"""Bytes of an attempt's lines as JSON, but for the last ones."""

LAST_BYTES: Final = 128 * 1024
"""Bytes of the lines that a flush sends."""

EVENT_BYTES: Final = 32 * 1024
"""Bytes of the lines of one event: half of what an event may have."""

LINE_LENGTH: Final = 1000
"""Characters of a line; of a longer one the beginning is kept, and the number of those behind it."""

PATIENCE: Final = 1.0
"""Seconds that a flush waits for a look under way."""


@dataclass(slots=True)
class _Waiting:
    """A line that waits, as it was printed.

    Attributes:
        time: when it was seen.
        left_out: how many lines are missing before it.
        text: the line as it may leave, once somebody wants it: most of a flood nobody does.
        size: its bytes as JSON then.
    """

    time: float
    stream: str
    line: Line
    left_out: int
    text: str = ""
    size: int = 0


class Console:
    """Reports what this process prints. Any rank.

    What ddphub's own threads say is left out: a report of trouble with reporting would make more of it.

    Args:
        put: takes events.
        secrets: keys that no line may hold.
    """

    def __init__(self, put: Callable[[Event], None], secrets: Iterable[str]) -> None:
        self._put = put
        self._keys = Keys(secrets)
        self._withheld = "" if self._keys.are_in(WITHHELD) else WITHHELD
        self._tap = Tap()
        self._screens = {stream: Screen(LINE_LENGTH + self._keys.longest) for stream in STREAMS}
        self._waiting: deque[_Waiting] = deque()
        self._left_out = 0  # lines that are missing before the next one
        self._bytes_left = ATTEMPT_BYTES
        self._looking = threading.Lock()  # around a look: the thread's, or that of who flushes
        self._ended = threading.Event()

    def start(self) -> None:
        """Begins to listen."""
        self._tap.open()
        threading.Thread(target=self._main, name="ddphub-console", daemon=True).start()

    def turn(self) -> None:
        """Reports what was printed, within the bounds; done by the thread every PACE seconds."""
        with self._looking:
            try:
                self._look()
                self._report(PACE_LINES, min(PACE_BYTES, self._bytes_left))
            except Exception:  # nobody else would hear of it, and the lines behind must flow
                logger.exception("what was printed could not be reported")

    def flush(self) -> None:
        """Reports what was printed so far, lines that are not ended included. Any thread; takes milliseconds."""
        if self._looking.acquire(timeout=PATIENCE):
            try:
                self._look(everything=True)
                too_much = sum(self._cleaned(waiting).size for waiting in self._waiting) - LAST_BYTES
                while too_much > 0:
                    too_much -= self._leave_out()
                self._report(len(self._waiting), LAST_BYTES)
                if self._left_out:
                    self._put(_event(time.time(), STREAMS[0], self._left_out))
                    self._left_out = 0
            except Exception:  # an end goes on without it
                logger.exception("what was printed could not be reported")
            finally:
                self._looking.release()

    def stop(self) -> None:
        """Listens no more, and reports what was printed so far."""
        self._tap.close()
        self._ended.set()
        self.flush()

    def forget(self) -> None:
        """In a forked child: its prints are not this rank's."""
        self._tap.close()

    def _main(self) -> None:
        while not self._ended.wait(PACE):
            self.turn()

    def _look(self, *, everything: bool = False) -> None:
        """Makes lines of what was printed since the last look."""
        pieces, lost = self._tap.take()
        for stream, count in lost.items():
            self._left_out += count + 1  # that in whose middle it goes on is skipped
            self._screens[stream].skip()
        now = time.monotonic()
        own = {thread.ident for thread in threading.enumerate() if thread.name.startswith("ddphub-")}
        said = (piece for piece in pieces if piece[1] not in own)
        for stream, run in groupby(said, itemgetter(0)):
            screen = self._screens[stream]
            text = "".join(text for _, _, text in run)
            if (too_many := text.count("\n") - 2 * WAITING_LINES) > 0:
                self._left_out += too_many - screen.is_skipping
                screen.skip()
                text = "\n" + text.split("\n", too_many)[-1]
            screen.feed(text, now)
            self._keep(stream, screen.lines(now))
        for stream, screen in self._screens.items():
            self._keep(stream, screen.lines(now, everything=everything))

    def _keep(self, stream: str, lines: Iterable[Line]) -> None:
        for line in lines:
            self._waiting.append(_Waiting(time.time(), stream, line, self._left_out))
            self._left_out = 0
            if len(self._waiting) > WAITING_LINES:
                self._leave_out()

    def _leave_out(self) -> int:
        """Gives up the oldest line that waits; returns its bytes."""
        gone = self._waiting.popleft()
        if self._waiting:
            self._waiting[0].left_out += gone.left_out + 1
        else:
            self._left_out += gone.left_out + 1
        return gone.size

    def _cleaned(self, waiting: _Waiting) -> _Waiting:
        if not waiting.size:
            waiting.text = self._clean(waiting.line)
            waiting.size = len(json.dumps(waiting.text)) + 1
        return waiting

    def _clean(self, line: Line) -> str:
        whole = plain_text(line.text, len(line.text))
        text = whole[:LINE_LENGTH]
        if more := line.more + len(whole) - len(text):
            text += f"... ({more} more characters)"
        return self._withheld if self._keys.are_in(line.text) or self._keys.are_in(text) else text

    def _report(self, most: int, most_bytes: int) -> None:
        """Puts events of the lines that wait, the oldest first."""
        event: Event | None = None
        event_bytes = 0
        waiting = self._waiting
        while waiting and most > 0 and self._cleaned(waiting[0]).size <= most_bytes:
            line = waiting.popleft()
            most, most_bytes, self._bytes_left = most - 1, most_bytes - line.size, self._bytes_left - line.size
            event_bytes += line.size
            if (
                event is None
                or line.left_out
                or line.stream != event["stream"]
                or len(event["lines"]) == MAX_CONSOLE_LINES
                or event_bytes > EVENT_BYTES
            ):
                if event is not None:
                    self._put(event)
                event, event_bytes = _event(line.time, line.stream, line.left_out), line.size
            event["lines"].append(line.text)
        if event is not None:
            self._put(event)


def _event(when: float, stream: str, left_out: int) -> Event:
    return {"time": when, "kind": "console", "stream": stream, "lines": [], "left_out": left_out}

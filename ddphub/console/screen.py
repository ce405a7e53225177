r"""The screen: what a terminal would show of a stream, as lines.

Progress bars rewrite their line with `\r`, several of them move up and down with escape sequences. A terminal shows
the last state of each, and so does this: a line is done once the stream has gone on below it, and a bar that rewrites
itself ten times a second is shown as it stands every SNAPSHOT seconds, and when it is done.
"""

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

SNAPSHOT: Final = 10.0
"""Seconds after which a line that is not done is shown as it stands, if it has changed."""

MOVING: Final = 10.0
"""Seconds since the last move upwards for which the lines within its reach may still be rewritten."""

FARTHEST: Final = 100
"""Lines that a move upwards may reach."""

_TOKENS: Final = re.compile(
    r"(?P<text>[^\x00-\x08\x0a-\x1f\x7f-\x9f]+)"
    r"|(?P<down>\n)"
    r"|(?P<back>\r)"
    r"|\x1b\[(?P<number>[0-9]{0,4})(?P<move>[ABEFGKJ])"  # cursor up, down, ...; erase line, screen
    r"|\x1b\[[0-?]*[ -/]*[@-~]"  # colours, and everything else of this form
    r"|\x1b[\]PX^_][^\x07\x1b\r\n]*(?:\x07|\x1b\\)"  # titles, links
    r"|\x1b[ -/]*[0-~]"
    r"|[\x00-\x1f\x7f-\x9f]"
)
"""https://ecma-international.org/publications-and-standards/standards/ecma-48/"""

_UNFINISHED: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b\r\n]*\x1b?|[ -/]*)$")
_LONGEST_SEQUENCE: Final = 4096


class Line(NamedTuple):
    """A line to show: its beginning, and how many characters are behind that."""

    text: str
    more: int


@dataclass(slots=True)
class Row:
    """A line that may still change.

    Attributes:
        since: when it began, or was shown last.
        text: its beginning, as much of it as is held.
        more: characters behind that.
        is_back: the cursor is at its start, so that the next text replaces it.
        is_bar: it has been rewritten.
        shown: what was shown of it last.
    """

    since: float
    text: str = ""
    more: int = 0
    is_back: bool = False
    is_bar: bool = False
    shown: Line | None = None

    def write(self, text: str, width: int, now: float) -> None:
        """Adds text, or begins anew with it."""
        if self.is_back:
            self.clear()
        if not (self.text or self.is_bar):
            self.since = now
        kept = text[: width - len(self.text)]
        self.text += kept
        self.more += len(text) - len(kept)

    def clear(self) -> None:
        """Nothing stands there any more."""
        self.is_bar = self.is_bar or bool(self.text)
        self.text, self.more, self.is_back = "", 0, False

    def show(self, now: float) -> Line | None:
        """The line, if it was not shown as it is; nothing of a bar that has been wiped away."""
        line = Line(self.text.rstrip(), self.more)
        if line == self.shown or (self.is_bar and not line.text):
            return None
        self.shown, self.since = line, now
        return line


class Screen:
    """One stream's end. Not for two threads at once.

    Args:
        width: characters of a line that are held.

    Attributes:
        is_skipping: after `skip`, until a line ends.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._rows = [Row(0.0)]
        self._cursor = 0
        self._reach = 0
        self._moved = 0.0
        self._rest = ""  # the beginning of an escape sequence
        self.is_skipping = False

    def skip(self) -> None:
        """Something is missing here: what is not done is forgotten, and what follows up to a line's end, too."""
        self._rows, self._cursor, self._rest = [Row(0.0)], 0, ""
        self.is_skipping = True

    def feed(self, text: str, now: float) -> None:
        """The stream's next text.

        Args:
            text: as it was written.
            now: seconds, of any clock that does not go back.
        """
        if self.is_skipping:
            _, end, text = text.partition("\n")
            if not end:
                return
            self.is_skipping = False
        text = self._rest + text
        unfinished = _UNFINISHED.search(text, max(0, len(text) - _LONGEST_SEQUENCE))
        self._rest = unfinished[0] if unfinished else ""
        for token in _TOKENS.finditer(text, 0, len(text) - len(self._rest)):
            kind = token.lastgroup
            row = self._rows[self._cursor]
            if kind == "text":
                row.write(token[0], self._width, now)
            elif kind == "down":
                self._down(1, now)
            elif kind == "back":
                row.is_back = True
            elif kind == "move":
                self._move(token["move"], token["number"], now)

    def lines(self, now: float, *, everything: bool = False) -> list[Line]:
        """The lines that are done, and of the others those that have stood long enough, or all for `everything`."""
        if everything or now - self._moved > MOVING:
            self._reach = 0
        done = max(0, self._cursor - self._reach)
        lines = [line for row in self._rows[:done] if (line := row.show(now))]
        self._rows = self._rows[done : self._cursor + FARTHEST]
        self._cursor -= done
        standing = [row for row in self._rows if row.text.strip() and (everything or now - row.since >= SNAPSHOT)]
        return lines + [line for row in standing if (line := row.show(now))]

    def _down(self, count: int, now: float) -> None:
        for _ in range(count):
            self._cursor += 1
            if self._cursor == len(self._rows):
                self._rows.append(Row(now))
            elif self._rows[self._cursor].text:
                self._rows[self._cursor].is_back = True

    def _cursor_room(self) -> int:
        written = max((place for place, row in enumerate(self._rows) if row.text), default=0)
        return max(0, written + FARTHEST - self._cursor)

    def _move(self, move: str, number: str, now: float) -> None:
        row = self._rows[self._cursor]
        count = min(int(number or 1), FARTHEST)
        if move in "AF":
            self._moved, self._reach = now, max(self._reach, count)
            self._cursor = max(0, self._cursor - count)
            if move == "F" or row.is_back or not row.text:
                self._rows[self._cursor].is_back = True
        elif move in "BE":
            # A terminal's cursor stops at the last line.
            self._down(min(count, self._cursor_room()), now)
        elif move == "G":
            row.is_back = row.is_back or number in {"", "0", "1"}
        elif row.is_back or number in {"1", "2"}:  # K or J: a line, or the screen below it
            row.clear()
        if move == "J":
            del self._rows[self._cursor + 1 :]

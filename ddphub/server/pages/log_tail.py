"""The end of what ranks printed and of what ddphub said: console and log events, as lines."""

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ddphub.server import event_log
from ddphub.server.tables import Event, Model

STREAMS: Final = ("stdout", "stderr", "log")
"""`log` are ddphub's own words about the run."""

LINES: Final = 400
"""Lines that a page holds."""

_EVENTS: Final = 200
_MAX_LINE: Final = 2000
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Line:
    """One line. `id` is the same each time it is shown."""

    id: str
    time: float
    attempt: int
    rank: int
    stream: str
    text: str


def newest_event(session: Session, model: Model) -> int:
    """The id of the newest event that may have a line; 0 when there is none."""
    ids = [
        session.scalar(select(func.max(Event.id)).where(Event.model_ref == model.id, Event.kind == kind)) or 0
        for kind in ("console", "log")
    ]
    return max(ids)


def tail(session: Session, model: Model, rank: int | None, stream: str) -> list[Line]:
    """The newest lines, at most `LINES`, the newest last.

    Args:
        session: any session.
        model: whose.
        rank: only this rank's; None for all.
        stream: one of `STREAMS`; empty for all.
    """
    kinds = ["log"] if stream == "log" else ["console"] if stream else ["console", "log"]
    events = []
    for kind in kinds:
        query = event_log.Query(kind=kind, rank=rank, limit=_EVENTS, newest=True)
        events += event_log.read(session, model, query)
    lines: deque[Line] = deque(maxlen=LINES)
    for event in sorted(events, key=lambda one: one["id"]):
        lines.extend(line for line in _lines(event) if not stream or line.stream == stream)
    return list(lines)


def _lines(event: dict[str, Any]) -> Iterator[Line]:
    for index, (stream, text) in enumerate(_texts(event)):
        number = f"line-{event['id']}-{index}"
        yield Line(number, event["time"], event["attempt"], event["rank"], stream, _readable(text))


def _texts(event: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if event["kind"] == "log":
        yield "log", str(event.get("message") or "")
        return
    if event["left_out"]:
        yield event["stream"], f"({event['left_out']} lines are missing here)"
    for line in event["lines"]:
        yield event["stream"], line


def _readable(text: str) -> str:
    """Text without a terminal's colours and controls, at most `_MAX_LINE` characters."""
    text = _CONTROLS.sub("", _ESCAPES.sub("", text))
    return text if len(text) <= _MAX_LINE else f"{text[:_MAX_LINE]} …"

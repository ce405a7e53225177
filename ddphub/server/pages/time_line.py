"""Attempts on a time line: where each one's bar begins, and how long it is."""

from dataclasses import dataclass
from typing import Any, Final

WIDTH: Final = 1000
"""Units of the picture's width; it is stretched to its cell's."""

_LEAST: Final = 4.0
"""Units of a bar's width at least, so that a short attempt can be seen."""


@dataclass(frozen=True)
class Bar:
    """One attempt's place: left edge and width, and its end (seconds since the epoch; None while it goes on)."""

    x: float
    width: float
    began: float
    ended: float | None
    seconds: float


def time_line(attempts: list[dict[str, Any]], now: float, *, going_on: int | None) -> list[Bar]:
    """A bar for each attempt, on one scale from the first start to the last end.

    Args:
        attempts: as `model_view` tells of them.
        now: seconds since the epoch.
        going_on: the number of the attempt that goes on; None when the run has ended or is lost.
    """
    spans: list[tuple[float, float, float | None]] = []
    starts = sorted(one["started_at"] for one in attempts if one["started_at"] is not None)
    for attempt in attempts:
        known = [attempt[name] for name in ("started_at", "ended_at", "heard_at") if attempt[name] is not None]
        began = min([known[0] if known else now, now])
        ended = attempt["ended_at"]
        if ended is None and attempt["number"] != going_on:
            # It said no end: it was there as long as it was heard, and until the next one began.
            ended = min([attempt["heard_at"] or began, *(start for start in starts if start > began)])
        end = now if ended is None else ended
        spans.append((began, max(began, end), ended))
    if not spans:
        return []
    first = min(began for began, _, _ in spans)
    whole = max(1.0, max(end for _, end, _ in spans) - first)
    bars = []
    for began, end, ended in spans:
        width = max(_LEAST, (end - began) / whole * WIDTH)
        x = min((began - first) / whole * WIDTH, WIDTH - width)
        bars.append(Bar(round(x, 1), round(width, 1), began, ended, end - began))
    return bars

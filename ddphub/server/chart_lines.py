"""The lines of a chart, computed from points in memory.

| show | lines |
| --- | --- |
| rank0 | rank 0's values |
| ranks | the values of chosen ranks, a line for each |
| band | the mean over all ranks at each x, with the least and the greatest |

Each attempt has lines of its own. Where attempts overlap the newest wins: of an older one only what lies before the
first x of a newer one is shown, and the rest on demand. The points that tell this first x are those that are read:
rank 0's for `rank0`, and those of all other ranks where one of them is shown.

x is the step, the epoch (points without one are left out) or the time, in seconds since the epoch. Two values of one
rank at one x are two points of its line, and both count for the band's mean. Ranks do not log at the same moment, so
a band over time has the mean of all values in a bucket of time, which is as wide as it takes to hold one of each rank.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ddphub.server.downsampling import Floats, band, bucket_starts, bucket_width, extremes, thin_band
from ddphub.server.tracks import Track

Show = Literal["rank0", "band", "ranks"]
X = Literal["step", "epoch", "time"]


@dataclass(frozen=True, kw_only=True)
class ChartQuery:
    """What to show. `start` and `end` None: from the first x, to the last one."""

    name: str
    show: Show = "rank0"
    ranks: tuple[int, ...] = ()
    x: X = "step"
    start: float | None = None
    end: float | None = None
    points: int = 600
    older: bool = False

    @property
    def lines(self) -> tuple[object, ...]:
        """What decides on the lines, whatever part of them is shown."""
        return self.show, self.ranks, self.x, self.older

    @property
    def tracks(self) -> tuple[bool, ...]:
        """Which points to read: rank 0's (True), those of the other ranks (False)."""
        if self.show == "rank0" or (self.show == "ranks" and set(self.ranks) == {0}):
            return (True,)
        return (True, False) if self.show == "band" or 0 in self.ranks else (False,)


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points of one line at a rising x: of one rank, or of all when `rank` is None; `ranks` is how many have points."""

    attempt: int
    rank: int | None
    ranks: int
    older: bool
    x: Floats
    y: Floats

    def __getitem__(self, part: slice) -> Self:
        return replace(self, x=self.x[part], y=self.y[part])


def lines_of(query: ChartQuery, tracks: Sequence[Track], order: Sequence[int]) -> list[Line]:
    """Every line from its first to its last point, the oldest attempt's first.

    Args:
        query: what to show; its window and its number of points are not looked at.
        tracks: those that `query.tracks` names.
        order: the attempts' numbers from the oldest to the newest.
    """
    first: dict[int, float] = {}
    parts = [_chosen(query, track, first) for track in tracks]
    attempt, rank, x, y = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
    lines: dict[int, list[Line]] = {}
    for line in _split(attempt, rank, x, y, together=query.show == "band"):
        lines.setdefault(line.attempt, []).append(line)
    found: list[Line] = []
    newer = math.inf
    for number in reversed(order):
        kept = []
        for line in lines.get(number, ()):
            cut = int(np.searchsorted(line.x, newer))
            kept += [line[:cut], replace(line[cut:], older=True)] if query.older else [line[:cut]]
        found = [line for line in kept if len(line.x)] + found
        newer = min(newer, first.get(number, math.inf))
    return found


def _chosen(query: ChartQuery, track: Track, first: dict[int, float]) -> tuple[NDArray[Any], ...]:
    """The points of a track that are shown; notes in `first` where each attempt begins."""
    columns = [track[name] for name in ("attempt", "rank", query.x, "value")]
    if query.x == "epoch":
        known = ~np.isnan(columns[2])
        columns = columns if known.all() else [column[known] for column in columns]
    attempt, rank, x, _ = columns
    numbers = _different(attempt)
    for number in numbers:
        begin = float((x[attempt == number] if len(numbers) > 1 else x).min())
        first[number] = min(begin, first.get(number, math.inf))
    if query.show == "ranks":
        asked = np.isin(rank, query.ranks)
        columns = [column[asked] for column in columns]
    return tuple(columns)


def _different(numbers: NDArray[Any]) -> list[int]:
    """The different numbers; most often there is one."""
    if not len(numbers):
        return []
    least = numbers.min()
    return [int(least)] if least == numbers.max() else np.unique(numbers).tolist()


def _split(attempt: NDArray[Any], rank: NDArray[Any], x: Floats, y: Floats, *, together: bool) -> Iterator[Line]:
    """Lines from points: one for each attempt and rank, or with `together` one for each attempt."""
    groups = [column for column in ((attempt,) if together else (rank, attempt)) if len(_different(column)) > 1]
    # Stable: of two values at one x the one that arrived first comes first.
    order = np.lexsort([x, *groups]) if groups else np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    changes = np.zeros(max(0, len(x) - 1), np.bool_)
    for column in groups:
        sorted_column = column[order]
        changes |= sorted_column[1:] != sorted_column[:-1]
    ranks = _how_many(rank) if together else 1
    bounds = [0, *(np.flatnonzero(changes) + 1).tolist(), len(x)]
    for begin, end in itertools.pairwise(bounds):
        if begin < end:
            at = order[begin]
            yield Line(
                attempt=int(attempt[at]),
                rank=None if together else int(rank[at]),
                ranks=ranks,
                older=False,
                x=x[begin:end],
                y=y[begin:end],
            )


def _how_many(ranks: NDArray[Any]) -> int:
    if not len(ranks):
        return 0
    # Counting is quick, and needs room up to the highest.
    return int(np.count_nonzero(np.bincount(ranks))) if ranks.max() < 1_000_000 else len(np.unique(ranks))


def drawn(query: ChartQuery, lines: Sequence[Line]) -> dict[str, Any]:
    """The window of the lines, in as few points as the query wants: what the answer says of them.

    A line of values goes on to the next point on either side of the window, so that it reaches its border.
    """
    least = min((float(line.x[0]) for line in lines), default=0.0)
    greatest = max((float(line.x[-1]) for line in lines), default=0.0)
    start = least if query.start is None else query.start
    end = greatest if query.end is None else query.end
    span = min(end, greatest) - max(start, least)
    shown, lost = [], 0
    for line in lines:
        begin, stop = int(np.searchsorted(line.x, start)), int(np.searchsorted(line.x, end, "right"))
        lost += int(np.count_nonzero(~np.isfinite(line.y[begin:stop])))
        draw = _drawn_values if line.rank is not None else _drawn_band
        if content := draw(query, line, begin, stop, span):
            shown.append({"attempt": line.attempt, "rank": line.rank, "older": line.older, **content})
    return {"range": [_x(query, least), _x(query, greatest)] if lines else None, "non_finite": lost, "lines": shown}


def _drawn_values(query: ChartQuery, line: Line, begin: int, stop: int, span: float) -> dict[str, Any] | None:
    line = line[max(0, begin - 1) : stop + 1]
    x, y = line.x, line.y
    if len(x) > query.points:
        kept = extremes(x, y, bucket_width(span, query.points))
        x, y = x[kept], y[kept]
    return {"x": _xs(query, x), "y": _ys(y), "low": None, "high": None} if len(x) else None


def _drawn_band(query: ChartQuery, line: Line, begin: int, stop: int, span: float) -> dict[str, Any] | None:
    if query.x == "time":
        width = bucket_width(span, max(1, min(query.points, (stop - begin) // line.ranks)))
        if begin < stop:
            # Whole buckets, and one more on either side.
            first, last = (math.floor(at / width) for at in (line.x[begin], line.x[stop - 1]))
            begin, stop = (int(np.searchsorted(line.x, at * width)) for at in (first - 1, last + 2))
        line = line[begin:stop]
        found = band(line.x, line.y, bucket_starts(line.x, width))
    else:
        begin = int(np.searchsorted(line.x, line.x[begin - 1])) if begin else 0
        stop = int(np.searchsorted(line.x, line.x[stop], "right")) if stop < len(line.x) else stop
        line = line[begin:stop]
        found = band(line.x, line.y)
        if len(found.x) > query.points:
            found = thin_band(found, bucket_width(span, query.points))
    if not len(found.x):
        return None
    return {"x": _xs(query, found.x), "y": _ys(found.mean), "low": _ys(found.low), "high": _ys(found.high)}


def _x(query: ChartQuery, x: float) -> float:
    return x if query.x == "time" else int(x)


def _xs(query: ChartQuery, x: Floats) -> list[float]:
    return x.tolist() if query.x == "time" else [int(value) for value in x.tolist()]


def _ys(y: Floats) -> list[float | None]:
    values: list[float | None] = y.tolist()
    if not np.isfinite(y).all():
        values = [value if value is not None and math.isfinite(value) else None for value in values]
    return values


def means(values: Floats, parts: int) -> list[float]:
    """The means of the finite ones among `values`, in at most so many equal parts."""
    values = values[np.isfinite(values)]
    starts = np.unique(np.linspace(0, len(values), parts, endpoint=False).astype(np.intp))
    found: list[float] = band(values, values, starts[starts < len(values)]).mean.tolist()
    return found

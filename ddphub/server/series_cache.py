"""The points of the series that people look at, so that a refresh reads what is new alone.

A cache of one process: it may be empty, full or behind at any time, and the answers are the same.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy.orm import Session

from ddphub.server.chart_lines import ChartQuery, Line, lines_of
from ddphub.server.tracks import Track


@dataclass(frozen=True, kw_only=True)
class StoredSeries:
    """What is stored of a series at one moment.

    `model_id` is the model's public id, as the numbers of rows are given again. `attempts` are the numbers of the
    model's attempts from the oldest to the newest.
    """

    model_id: str
    name: str
    number: int
    count: int
    rank0_count: int
    attempts: tuple[int, ...]


class SeriesPoints:
    """What is held of one series: its points, and the lines that were made of them last."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.held = 0
        self._tracks = {True: Track(), False: Track()}
        self._lines: list[Line] = []
        self._made_of: object = None

    def lines(self, session: Session, stored: StoredSeries, query: ChartQuery) -> list[Line]:
        """The lines of a query; a query for another part of them finds them made.

        Args:
            session: the session that sees `stored`.
            stored: the series.
            query: what to show.
        """
        made_of = stored, query.lines
        if self._made_of != made_of:
            self._made_of, self._lines = None, []
            counts = {True: stored.rank0_count, False: stored.count - stored.rank0_count}
            for rank0 in query.tracks:
                self._tracks[rank0].load(session, stored.number, rank0=rank0, count=counts[rank0])
            self._lines = lines_of(query, [self._tracks[rank0] for rank0 in query.tracks], stored.attempts)
            self._made_of = made_of
        return self._lines

    def bytes(self) -> int:
        """Memory of what is held, with what objects cost."""
        lines = 8192 + sum(line.x.nbytes + line.y.nbytes for line in self._lines)
        return lines + sum(track.bytes for track in self._tracks.values())


class SeriesCache:
    """The series used last.

    Args:
        limit: bytes that are kept; one series may be larger while it is used.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str], SeriesPoints] = OrderedDict()
        self._held = 0

    @contextmanager
    def use(self, stored: StoredSeries) -> Iterator[SeriesPoints]:
        """What is held of a series; nobody else uses it meanwhile."""
        key = stored.model_id, stored.name
        with self._lock:
            points = self._kept.setdefault(key, SeriesPoints())
            self._kept.move_to_end(key)
        with points.lock:
            yield points
            held = points.bytes()
            with self._lock:
                # It may have been dropped while it was used.
                if self._kept.get(key) is points:
                    self._held += held - points.held
                    points.held = held
                while self._held > self._limit:
                    self._held -= self._kept.popitem(last=False)[1].held

    def forget(self, model_id: str) -> None:
        """Drop what is held of a model."""
        with self._lock:
            for key in [key for key in self._kept if key[0] == model_id]:
                self._held -= self._kept.pop(key).held

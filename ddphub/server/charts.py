"""Charts of metrics: found cheaply, drawn once for all who ask for the same."""

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session, load_only

from ddphub import __version__
from ddphub.server.attempts import age
from ddphub.server.chart_lines import ChartQuery, drawn, means
from ddphub.server.problems import Problem, answer
from ddphub.server.series_cache import SeriesCache, StoredSeries
from ddphub.server.tables import Attempt, Model, Series

MAX_CHART_RANKS: Final = 64
"""More lines than anyone can tell apart."""

SERIES_BYTES: Final = 256 * 1024 * 1024
"""Points in memory: about five million."""

_ANSWER_BYTES: Final = 32 * 1024 * 1024
_SPARKS_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart that can be drawn. `etag` changes whenever what it shows may have changed."""

    query: ChartQuery
    etag: str
    stored: StoredSeries


class Charts:
    """Draws charts from packed points; one for each process.

    What is kept in memory only saves time: any process of a hub gives the same answers.

    Args:
        series_bytes: how much of the points of the series that were looked at last is kept.
    """

    def __init__(self, series_bytes: int = SERIES_BYTES) -> None:
        self._series = SeriesCache(series_bytes)
        self._bodies = _Recent(_ANSWER_BYTES)
        self._sparks = _Recent(_SPARKS_BYTES)

    def find(self, session: Session, model: Model, query: ChartQuery) -> Chart:
        """The chart, not drawn yet: this reads a few small rows.

        Args:
            session: any session.
            model: whose metric.
            query: what to show.

        Raises:
            Problem: 404 when the model has no such metric.
        """
        series = session.execute(
            select(Series.id, Series.count, Series.rank0_count).where(
                Series.model_ref == model.id, Series.name == query.name
            )
        ).first()
        if series is None:
            raise Problem(404, "the model has no such metric, or none yet")
        number, count, rank0_count = series
        sorted_by = load_only(
            Attempt.number, Attempt.state, Attempt.started_at, Attempt.first_time, Attempt.seen_at, Attempt.heard_at
        )
        attempts = session.scalars(select(Attempt).where(Attempt.model_ref == model.id).options(sorted_by)).all()
        stored = StoredSeries(
            model_id=model.public_id,
            name=query.name,
            number=number,
            count=count,
            rank0_count=rank0_count,
            attempts=tuple(attempt.number for attempt in sorted(attempts, key=age)),
        )
        what = hashlib.sha256(repr((__version__, query, stored)).encode())
        return Chart(query=query, etag=f'"{what.hexdigest()[:32]}"', stored=stored)

    def draw(self, session: Session, chart: Chart) -> bytes:
        """The body of the answer.

        Args:
            session: the session that found the chart.
            chart: the chart.
        """
        body = self._bodies.get(chart.etag)
        if body is None:
            with self._series.use(chart.stored) as points:
                # Whoever waited for another one's points often finds what that one made of them.
                body = self._bodies.get(chart.etag)
                if body is None:
                    query, stored = chart.query, chart.stored
                    about = {"name": query.name, "show": query.show, "x": query.x, "points": stored.count}
                    lines = points.lines(session, stored, query)
                    body = bytes(answer({**about, **drawn(query, lines)}).body)
                    self._bodies.put(chart.etag, body)
        return body

    def spark(self, session: Session, model: Model, name: str, points: int = 40) -> list[float]:
        """Rank 0's values in few numbers, oldest first: the means of equal parts.

        Args:
            session: any session.
            model: whose metric.
            name: the metric.
            points: how many numbers at most.

        Returns:
            Finite numbers; none when the model has no such metric.
        """
        count = select(Series.rank0_count).where(Series.model_ref == model.id, Series.name == name)
        key = repr((model.public_id, name, session.scalar(count), points))
        packed = self._sparks.get(key)
        if packed is None:
            packed = np.array(self._spark(session, model, name, points)).tobytes()
            self._sparks.put(key, packed)
        values: list[float] = np.frombuffer(packed).tolist()
        return values

    def _spark(self, session: Session, model: Model, name: str, points: int) -> list[float]:
        try:
            chart = self.find(session, model, ChartQuery(name=name))
        except Problem:
            return []
        with self._series.use(chart.stored) as held:
            lines = held.lines(session, chart.stored, chart.query)
            return means(np.concatenate([np.empty(0), *(line.y for line in lines)]), points)

    def forget(self, model_id: str) -> None:
        """Drop the points that are held of a model that is gone."""
        self._series.forget(model_id)


class _Recent:
    """Bytes that were used last.

    Args:
        limit: how many bytes are kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._held = 0

    def get(self, key: str) -> bytes | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: str, content: bytes) -> None:
        with self._lock:
            self._held += len(content) - len(self._kept.pop(key, b""))
            self._kept[key] = content
            while self._held > self._limit:
                self._held -= len(self._kept.popitem(last=False)[1])

"""The points of charts: every value of every metric, packed.

An event's body is made to be kept, not to be drawn: a chart of a million of them would parse a million JSON texts. So
each value is stored a second time, as one packed `POINT`, in the transaction that stores its event. A series keeps
rank 0's points apart from those of the other ranks, as most charts show rank 0 alone.

Each batch appends one row of points to each series that it speaks of. Rows are merged as their number grows: when a
series passes a multiple of 32 points, the rows since the multiple before become one, and again at multiples of 256,
2,048 and 16,384. So each point is written at most five times, and a series of n points is about n / 16,384 rows, and
fewer than 60 smaller ones.
"""

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import RowMapping, bindparam, delete, insert, select, update
from sqlalchemy.orm import Session

from ddphub.server.incoming_events import IncomingEvent
from ddphub.server.tables import Model, Points, Series

POINT: Final = np.dtype(
    [("attempt", "<i4"), ("rank", "<i8"), ("step", "<i8"), ("epoch", "<f8"), ("time", "<f8"), ("value", "<f8")]
)
"""One point, 44 bytes. `attempt` is the attempt's number; `epoch` is NaN where the event had none."""

_KEY: Final = struct.Struct("<iqqdd")
_VALUE: Final = struct.Struct("<d")

_MERGED: Final = (32, 256, 2048, 16_384)
"""Points between two merges, from the frequent small one to the rare large one."""

_NAMES_A_QUERY: Final = 1000
"""SQLite takes 32,766 parameters; a batch may have more names."""


class _Arrived:
    """What a batch brings to one series."""

    __slots__ = ("latest", "latest_time", "others", "rank0", "values")

    def __init__(self) -> None:
        self.rank0: list[bytes] = []
        self.others: list[bytes] = []
        self.values: list[float] = []
        self.latest: float | None = None
        self.latest_time = -math.inf


def append(session: Session, model: Model, new: Sequence[IncomingEvent], numbers: Mapping[str, int]) -> None:
    """Append the values of events to their series.

    Args:
        session: the write session that stored the events, with the model's row locked.
        model: whose.
        new: events that were not stored before.
        numbers: the number of each attempt_id.
    """
    arrived = _arrived(new, numbers)
    if not arrived:
        return
    known = _known(session, model, list(arrived))
    rows, counts = [], []
    for name, one in arrived.items():
        series = known[name]
        others = series["count"] - series["rank0_count"]
        for rank0, first, packed in ((True, series["rank0_count"], one.rank0), (False, others, one.others)):
            if packed:
                data = b"".join(packed)
                row = {"series_ref": series["id"], "rank0": rank0, "first": first, "count": len(packed), "data": data}
                rows.append(row)
        counts.append(_counted(series, one))
    connection = session.connection()
    connection.execute(insert(Points), rows)
    connection.execute(_COUNT, counts)
    for row in rows:
        _merge(session, row["series_ref"], row["rank0"], row["first"], row["count"])


def _arrived(new: Sequence[IncomingEvent], numbers: Mapping[str, int]) -> dict[str, _Arrived]:
    arrived: dict[str, _Arrived] = {}
    for event in new:
        if event.kind != "metrics":
            continue
        epoch = event.fields.get("epoch")
        key = _KEY.pack(
            numbers[event.attempt_id],
            event.rank,
            event.fields["step"],
            math.nan if epoch is None else epoch,
            event.time,
        )
        for name, sent in event.fields["values"].items():
            # Python's float reads the names of non-finite numbers as events have them.
            value = float(sent)
            one = arrived.get(name)
            if one is None:
                one = arrived[name] = _Arrived()
            if event.rank:
                one.others.append(key + _VALUE.pack(value))
                continue
            one.rank0.append(key + _VALUE.pack(value))
            if math.isfinite(value):
                one.values.append(value)
                if event.time >= one.latest_time:
                    one.latest, one.latest_time = value, event.time
    return arrived


def _known(session: Session, model: Model, names: Sequence[str]) -> dict[str, RowMapping]:
    """The rows of these series, new ones made."""
    known = _found(session, model, names)
    missing = [name for name in names if name not in known]
    if missing:
        empty = {"model_ref": model.id, "count": 0, "rank0_count": 0}
        session.connection().execute(insert(Series), [{**empty, "name": name} for name in missing])
        known.update(_found(session, model, missing))
    return known


def _found(session: Session, model: Model, names: Sequence[str]) -> dict[str, RowMapping]:
    found: dict[str, RowMapping] = {}
    for start in range(0, len(names), _NAMES_A_QUERY):
        chosen = Series.name.in_(names[start : start + _NAMES_A_QUERY])
        rows = session.connection().execute(select(Series.__table__).where(Series.model_ref == model.id, chosen))
        found.update({row["name"]: row for row in rows.mappings()})
    return found


_COUNT: Final = (
    update(Series)
    .where(Series.id == bindparam("of"))
    .values({name: bindparam(f"new_{name}") for name in ("count", "rank0_count", "least", "greatest")})
    .values({name: bindparam(f"new_{name}") for name in ("latest", "latest_time")})
)


def _counted(series: RowMapping, one: _Arrived) -> dict[str, Any]:
    known = [value for value in (series["least"], series["greatest"]) if value is not None]
    newer = one.latest is not None and (series["latest_time"] is None or one.latest_time >= series["latest_time"])
    return {
        "of": series["id"],
        "new_count": series["count"] + len(one.rank0) + len(one.others),
        "new_rank0_count": series["rank0_count"] + len(one.rank0),
        "new_least": min(one.values + known, default=None),
        "new_greatest": max(one.values + known, default=None),
        "new_latest": one.latest if newer else series["latest"],
        "new_latest_time": one.latest_time if newer else series["latest_time"],
    }


def _merge(session: Session, series_ref: int, rank0: bool, first: int, count: int) -> None:
    """Merge small rows, if the row just appended passed a multiple at which that is due."""
    passed = [size for size in _MERGED if size > count and first // size != (first + count) // size]
    if not passed:
        return
    start = first // passed[-1] * passed[-1]
    rows = session.execute(
        select(Points.id, Points.data)
        .where(Points.series_ref == series_ref, Points.rank0 == rank0, Points.first >= start)
        .order_by(Points.first)
    ).all()
    if len(rows) == 1:
        return
    kept, *gone = (row.id for row in rows)
    data = b"".join(row.data for row in rows)
    merged = {"count": len(data) // POINT.itemsize, "data": data}
    connection = session.connection()
    connection.execute(delete(Points).where(Points.id.in_(gone)))
    connection.execute(update(Points).where(Points.id == kept).values(merged))


def read(session: Session, series_ref: int, *, rank0: bool, after: int) -> Iterator[NDArray[np.void]]:
    """Points in the order of arrival, as arrays of `POINT`.

    Args:
        session: any session.
        series_ref: the series' number.
        rank0: those of rank 0, or those of all others.
        after: how many to leave out.
    """
    rows = session.execute(
        select(Points.first, Points.data)
        # What was read before may have been merged with what came after it.
        .where(Points.series_ref == series_ref, Points.rank0 == rank0, Points.first + Points.count > after)
        .order_by(Points.first)
    )
    for first, data in rows:
        yield np.frombuffer(data, POINT)[max(0, after - first) :]

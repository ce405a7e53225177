"""The points of charts: every value of every metric, packed.

An event's body is made to be kept, not to be drawn: a chart of a million of them would parse a million JSON texts. So
each value is stored a second time, as one packed `POINT`, in the transaction that stores its event. A series keeps
rank 0's points apart from those of the other ranks, as most charts show rank 0 alone.

Each batch appends one row of points to each series that it speaks of. Rows are merged as their number grows: when a
series passes a multiple of 32 points, the rows since the multiple before become one, and again at multiples of 256 and
2,048, unless that would join but a few large rows. So each point is written at most four times, those of a large batch
once or twice: what is written most decides how fast a hub takes events in. A series of n points is at most n / 512 rows
and some dozens of smaller ones; that costs a chart next to nothing, as it is the bytes that take time.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
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

_MERGED: Final = (32, 256, 2048)
"""Points between two merges, from the frequent small one to the rare large one."""

_WORTH: Final = 4
"""Rows of the size of the one just appended for which a merge is worth its writing."""

_NAMES_A_QUERY: Final = 1000
"""SQLite takes 32,766 parameters; a batch may have more names."""


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
    known = _known(session, model, list(dict.fromkeys(name for name, _ in arrived)))
    rows, counts = [], []
    for name, series in known.items():
        rank0, others = arrived.get((name, True)), arrived.get((name, False))
        of_others = series["count"] - series["rank0_count"]
        for is_rank0, first, points in ((True, series["rank0_count"], rank0), (False, of_others, others)):
            if points is not None:
                row = {"series_ref": series["id"], "rank0": is_rank0, "first": first}
                rows.append({**row, "count": len(points), "data": points.tobytes()})
        counts.append(_counted(series, rank0, 0 if others is None else len(others)))
    connection = session.connection()
    connection.execute(insert(Points), rows)
    connection.execute(_COUNT, counts)
    for row in rows:
        _merge(session, row["series_ref"], row["rank0"], row["first"], row["count"])


def _arrived(new: Sequence[IncomingEvent], numbers: Mapping[str, int]) -> dict[tuple[str, bool], NDArray[np.void]]:
    """The points of each series, those of rank 0 and of the others, in the order of arrival."""
    shapes: dict[tuple[str, ...], list[int]] = {}
    for index, event in enumerate(new):
        if event.kind == "metrics":
            shapes.setdefault(tuple(event.fields["values"]), []).append(index)
    parts: dict[tuple[str, bool], list[tuple[NDArray[np.intp], NDArray[np.void]]]] = {}
    for names, indexes in shapes.items():
        some = [new[index] for index in indexes]
        fields = [event.fields for event in some]
        keys = np.empty(len(some), POINT)
        keys["attempt"] = [numbers[event.attempt_id] for event in some]
        keys["rank"] = [event.rank for event in some]
        keys["step"] = [one["step"] for one in fields]
        keys["epoch"] = [one.get("epoch") for one in fields]  # NaN for None
        keys["time"] = [event.time for event in some]
        # It reads the names of non-finite numbers as events have them.
        values = np.fromiter(chain.from_iterable([one["values"].values() for one in fields]), np.float64)
        values = values.reshape(len(some), len(names))
        is_rank0 = keys["rank"] == 0
        for rank0 in (True, False):
            chosen = np.flatnonzero(is_rank0 == rank0)
            if not chosen.size:
                continue
            arrivals = np.array(indexes)[chosen]
            for name, column in zip(names, values[chosen].T, strict=True):
                points = keys[chosen]
                points["value"] = column
                parts.setdefault((name, rank0), []).append((arrivals, points))
    return {which: _in_order(found) for which, found in parts.items()}


def _in_order(parts: Sequence[tuple[NDArray[np.intp], NDArray[np.void]]]) -> NDArray[np.void]:
    if len(parts) == 1:
        return parts[0][1]
    arrivals = np.concatenate([part[0] for part in parts])
    return np.concatenate([part[1] for part in parts])[np.argsort(arrivals)]


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


def _counted(series: RowMapping, rank0: NDArray[np.void] | None, others: int) -> dict[str, Any]:
    """The series' row with what has arrived; least, greatest and latest are of rank 0's finite values."""
    new = {name: series[name] for name in ("least", "greatest", "latest", "latest_time")}
    finite = None if rank0 is None else rank0[np.isfinite(rank0["value"])]
    if finite is not None and finite.size:
        values = finite["value"]
        least, greatest = float(values.min()), float(values.max())
        new["least"] = least if new["least"] is None else min(least, new["least"])
        new["greatest"] = greatest if new["greatest"] is None else max(greatest, new["greatest"])
        last = finite.size - 1 - int(np.argmax(finite["time"][::-1]))  # of several at that time the last one
        if new["latest_time"] is None or finite["time"][last] >= new["latest_time"]:
            new["latest"], new["latest_time"] = float(values[last]), float(finite["time"][last])
    of_rank0 = 0 if rank0 is None else len(rank0)
    new["count"] = series["count"] + of_rank0 + others
    new["rank0_count"] = series["rank0_count"] + of_rank0
    return {"of": series["id"], **{f"new_{name}": value for name, value in new.items()}}


def _merge(session: Session, series_ref: int, rank0: bool, first: int, count: int) -> None:
    """Merge small rows, if the row just appended passed a multiple at which that is due."""
    passed = [size for size in _MERGED if size >= _WORTH * count and first // size != (first + count) // size]
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

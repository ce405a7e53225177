"""Metrics packed for charts, those of the events that are stored already included."""

import json
import math
import struct
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

_POINT = struct.Struct("<iqqddd")
_ROW_BYTES = 16_384 * _POINT.size
_HELD_BYTES = 16 * 1024 * 1024
"""What is packed in memory before it is written, of all series of a model together."""

_EVENTS = sa.text("""
    SELECT events.id, attempts.number, events.rank, events.time, events.body
    FROM events JOIN attempts ON attempts.id = events.attempt_ref
    WHERE events.model_ref = :model AND events.kind = 'metrics' AND events.id > :after
    ORDER BY events.id LIMIT 1000
""")


def upgrade() -> None:
    """Add series and their points."""
    series = op.create_table(
        "series",
        sa.Column("id", _INT64, nullable=False),
        sa.Column("model_ref", _INT64, nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("count", _INT64, nullable=False),
        sa.Column("rank0_count", _INT64, nullable=False),
        sa.Column("least", sa.Double(), nullable=True),
        sa.Column("greatest", sa.Double(), nullable=True),
        sa.Column("latest", sa.Double(), nullable=True),
        sa.Column("latest_time", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["model_ref"], ["models.id"], name=op.f("fk_series_model_ref")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_series")),
        sa.UniqueConstraint("model_ref", "name", name=op.f("uq_series_model_ref_name")),
    )
    points = op.create_table(
        "points",
        sa.Column("id", _INT64, nullable=False),
        sa.Column("series_ref", _INT64, nullable=False),
        sa.Column("rank0", sa.Boolean(), nullable=False),
        sa.Column("first", _INT64, nullable=False),
        sa.Column("count", _INT64, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["series_ref"], ["series.id"], name=op.f("fk_points_series_ref")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_points")),
        sa.UniqueConstraint("series_ref", "rank0", "first", name=op.f("uq_points_series_ref_rank0_first")),
    )
    connection = op.get_bind()
    for model in connection.scalars(sa.text("SELECT id FROM models ORDER BY id")).all():
        _pack(connection, model, series, points)


def _pack(connection: sa.Connection, model: int, series: sa.Table, points: sa.Table) -> None:
    known: dict[str, _Series] = {}
    after, held = 0, 0
    while events := connection.execute(_EVENTS, {"model": model, "after": after}).all():
        for _, attempt, rank, time, body in events:
            fields = json.loads(body)
            epoch = math.nan if fields.get("epoch") is None else fields["epoch"]
            for name, sent in fields["values"].items():
                one = known.get(name) or known.setdefault(name, _Series(connection, model, name, series))
                value = float(sent)
                one.add(rank == 0, _POINT.pack(attempt, rank, fields["step"], epoch, time, value), time, value)
                held += _POINT.size
        after = events[-1].id
        if held > _HELD_BYTES:
            _write(connection, known, points)
            held = 0
    _write(connection, known, points)
    for one in known.values():
        connection.execute(series.update().where(series.c.id == one.id).values(one.summary()))


def _write(connection: sa.Connection, known: dict[str, "_Series"], points: sa.Table) -> None:
    for one in known.values():
        for row in one.rows():
            connection.execute(points.insert().values(row))


class _Series:
    """What is known of one series; `packed` is not written yet, rank 0's under True."""

    def __init__(self, connection: sa.Connection, model: int, name: str, series: sa.Table) -> None:
        empty = {"model_ref": model, "name": name, "count": 0, "rank0_count": 0}
        key = connection.execute(series.insert().values(empty)).inserted_primary_key
        self.id = key[0] if key else None
        self.packed = {True: bytearray(), False: bytearray()}
        self.counts = {True: 0, False: 0}
        self.least: float | None = None
        self.greatest: float | None = None
        self.latest: float | None = None
        self.latest_time: float | None = None

    def add(self, rank0: bool, point: bytes, time: float, value: float) -> None:
        self.packed[rank0] += point
        if not rank0 or not math.isfinite(value):
            return
        self.least = value if self.least is None else min(value, self.least)
        self.greatest = value if self.greatest is None else max(value, self.greatest)
        if self.latest_time is None or time >= self.latest_time:
            self.latest, self.latest_time = value, time

    def rows(self) -> list[dict[str, Any]]:
        """Rows of what is packed, each of 16,384 points at most."""
        rows = []
        for rank0, packed in self.packed.items():
            for start in range(0, len(packed), _ROW_BYTES):
                data = bytes(packed[start : start + _ROW_BYTES])
                count = len(data) // _POINT.size
                place = {"series_ref": self.id, "rank0": rank0, "first": self.counts[rank0]}
                rows.append({**place, "count": count, "data": data})
                self.counts[rank0] += count
            packed.clear()
        return rows

    def summary(self) -> dict[str, Any]:
        return {
            "count": sum(self.counts.values()),
            "rank0_count": self.counts[True],
            "least": self.least,
            "greatest": self.greatest,
            "latest": self.latest,
            "latest_time": self.latest_time,
        }

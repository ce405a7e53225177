"""Metrics packed for charts."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add series and their points."""
    op.create_table(
        "series",
        sa.Column("id", _INT64, nullable=False),
        sa.Column("model_ref", _INT64, nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("count", _INT64, nullable=False),
        sa.Column("least", sa.Double(), nullable=True),
        sa.Column("greatest", sa.Double(), nullable=True),
        sa.Column("latest", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["model_ref"], ["models.id"], name=op.f("fk_series_model_ref")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_series")),
        sa.UniqueConstraint("model_ref", "name", name=op.f("uq_series_model_ref_name")),
    )
    op.create_table(
        "points",
        sa.Column("id", _INT64, nullable=False),
        sa.Column("series_ref", _INT64, nullable=False),
        sa.Column("first", _INT64, nullable=False),
        sa.Column("count", _INT64, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["series_ref"], ["series.id"], name=op.f("fk_points_series_ref")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_points")),
        sa.UniqueConstraint("series_ref", "first", name=op.f("uq_points_series_ref_first")),
    )

"""Progress of attempts and ranks; notes and tags."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Say when steps rose and how fast, and let people write something about a model."""
    for name in ("progress_at", "progress_time", "longest_gap"):
        op.add_column("attempts", sa.Column(name, sa.Double(), nullable=True))
    for name in ("last_step_time", "rate"):
        op.add_column("ranks", sa.Column(name, sa.Double(), nullable=True))
    op.add_column("models", sa.Column("notes", sa.Text(), nullable=True))
    op.create_table(
        "tags",
        sa.Column("id", _INT64, nullable=False),
        sa.Column("model_ref", _INT64, nullable=False),
        sa.Column("tag", sa.String(length=128), nullable=False),
        sa.ForeignKeyConstraint(["model_ref"], ["models.id"], name=op.f("fk_tags_model_ref")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tags")),
        sa.UniqueConstraint("model_ref", "tag", name=op.f("uq_tags_model_ref_tag")),
    )
    op.create_index(op.f("ix_tags_tag"), "tags", ["tag"])

"""Progress of attempts and ranks; notes and tags; checkpoints that were deleted."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Say when steps rose and how fast, and let people write something about a model."""
    for name in ("seen_at", "heard_at", "heard_since", "progress_at", "longest_gap", "activity_at", "rate"):
        op.add_column("attempts", sa.Column(name, sa.Double(), nullable=True))
    for name in ("last_step_time", "progress_at", "longest_gap", "mark_time", "rate"):
        op.add_column("ranks", sa.Column(name, sa.Double(), nullable=True))
    for table, names in (("attempts", ("step", "epoch")), ("ranks", ("last_epoch", "stride", "moved", "local_rank"))):
        for name in names:
            op.add_column(table, sa.Column(name, _INT64, nullable=True))
    op.add_column("ranks", sa.Column("reason", sa.Text(), nullable=True))
    # What an older hub knows of heartbeats, it knows of the model; and nothing of how steps rose.
    seen = "(SELECT last_seen FROM models WHERE models.id = attempts.model_ref)"
    step = "(SELECT max(last_step) FROM ranks WHERE ranks.attempt_ref = attempts.id)"
    op.execute(f"UPDATE attempts SET seen_at = {seen}, heard_at = {seen}, heard_since = {seen}, step = {step}")  # noqa: S608  # the two above
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
    op.create_table(
        "deleted_checkpoints",
        sa.Column("id", _INT64, nullable=False),
        sa.Column("model_ref", _INT64, nullable=False),
        sa.Column("public_id", sa.String(length=20), nullable=False),
        sa.Column("entry_id", sa.String(length=32), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(length=32), nullable=False),
        sa.ForeignKeyConstraint(["model_ref"], ["models.id"], name=op.f("fk_deleted_checkpoints_model_ref")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deleted_checkpoints")),
        sa.UniqueConstraint("model_ref", "entry_id", name=op.f("uq_deleted_checkpoints_model_ref_entry_id")),
        sa.UniqueConstraint("public_id", name=op.f("uq_deleted_checkpoints_public_id")),
    )

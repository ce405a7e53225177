"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "api_keys",
        sa.Column("id", _INT64, nullable=False),
        sa.Column("salt", sa.LargeBinary(length=16), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
    )
    op.create_table(
        "projects",
        sa.Column("id", _INT64, nullable=False),
        sa.Column("public_id", sa.String(length=20), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_projects")),
        sa.UniqueConstraint("name", name=op.f("uq_projects_name")),
        sa.UniqueConstraint("public_id", name=op.f("uq_projects_public_id")),
    )
    op.create_table(
        "blobs",
        sa.Column("id", _INT64, nullable=False),
        sa.Column("project_ref", _INT64, nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", _INT64, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["project_ref"], ["projects.id"], name=op.f("fk_blobs_project_ref")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_blobs")),
        sa.UniqueConstraint("project_ref", "sha256", name=op.f("uq_blobs_project_ref_sha256")),
    )
    op.create_table(
        "models",
        sa.Column("id", _INT64, nullable=False),
        sa.Column("public_id", sa.String(length=20), nullable=False),
        sa.Column("project_ref", _INT64, nullable=False),
        sa.Column("run_id", sa.String(length=128), nullable=True),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("last_seen", sa.Double(), nullable=True),
        sa.Column("stop_requested_at", sa.Double(), nullable=True),
        sa.Column("events", _INT64, nullable=False),
        sa.ForeignKeyConstraint(["project_ref"], ["projects.id"], name=op.f("fk_models_project_ref")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_models")),
        sa.UniqueConstraint("project_ref", "run_id", name=op.f("uq_models_project_ref_run_id")),
        sa.UniqueConstraint("public_id", name=op.f("uq_models_public_id")),
    )
    op.create_table(
        "attempts",
        sa.Column("id", _INT64, nullable=False),
        sa.Column("model_ref", _INT64, nullable=False),
        sa.Column("attempt_id", sa.String(length=32), nullable=False),
        sa.Column("number", _INT64, nullable=False),
        sa.Column("first_time", sa.Double(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=True),
        sa.Column("state_time", sa.Double(), nullable=True),
        sa.Column("state_seq", _INT64, nullable=True),
        sa.Column("world_size", _INT64, nullable=True),
        sa.Column("host", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("started_at", sa.Double(), nullable=True),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["model_ref"], ["models.id"], name=op.f("fk_attempts_model_ref")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempts")),
        sa.UniqueConstraint("model_ref", "attempt_id", name=op.f("uq_attempts_model_ref_attempt_id")),
        sa.UniqueConstraint("model_ref", "number", name=op.f("uq_attempts_model_ref_number")),
    )
    op.create_table(
        "latest_metrics",
        sa.Column("id", _INT64, nullable=False),
        sa.Column("model_ref", _INT64, nullable=False),
        sa.Column("rank", _INT64, nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("step", _INT64, nullable=False),
        sa.Column("epoch", _INT64, nullable=True),
        sa.Column("time", sa.Double(), nullable=False),
        sa.Column("attempt", _INT64, nullable=False),
        sa.Column("seq", _INT64, nullable=False),
        sa.ForeignKeyConstraint(["model_ref"], ["models.id"], name=op.f("fk_latest_metrics_model_ref")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_latest_metrics")),
        sa.UniqueConstraint("model_ref", "rank", "name", name=op.f("uq_latest_metrics_model_ref_rank_name")),
    )
    op.create_table(
        "checkpoints",
        sa.Column("id", _INT64, nullable=False),
        sa.Column("public_id", sa.String(length=20), nullable=False),
        sa.Column("model_ref", _INT64, nullable=False),
        sa.Column("attempt_ref", _INT64, nullable=False),
        sa.Column("entry_id", sa.String(length=32), nullable=False),
        sa.Column("epoch", _INT64, nullable=True),
        sa.Column("step", _INT64, nullable=True),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("metrics", sa.Text(), nullable=False),
        sa.Column("part_size", _INT64, nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(length=32), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("committed_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["attempt_ref"], ["attempts.id"], name=op.f("fk_checkpoints_attempt_ref")),
        sa.ForeignKeyConstraint(["model_ref"], ["models.id"], name=op.f("fk_checkpoints_model_ref")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoints")),
        sa.UniqueConstraint("model_ref", "entry_id", name=op.f("uq_checkpoints_model_ref_entry_id")),
        sa.UniqueConstraint("public_id", name=op.f("uq_checkpoints_public_id")),
    )
    op.create_table(
        "events",
        sa.Column("id", _INT64, nullable=False),
        sa.Column("model_ref", _INT64, nullable=False),
        sa.Column("attempt_ref", _INT64, nullable=False),
        sa.Column("rank", _INT64, nullable=False),
        sa.Column("seq", _INT64, nullable=False),
        sa.Column("time", sa.Double(), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(length=32), nullable=False),
        sa.ForeignKeyConstraint(["attempt_ref"], ["attempts.id"], name=op.f("fk_events_attempt_ref")),
        sa.ForeignKeyConstraint(["model_ref"], ["models.id"], name=op.f("fk_events_model_ref")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sa.UniqueConstraint("attempt_ref", "rank", "seq", name=op.f("uq_events_attempt_ref_rank_seq")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_events_model_ref_kind_id"), "events", ["model_ref", "kind", "id"], unique=False)
    op.create_table(
        "ranks",
        sa.Column("id", _INT64, nullable=False),
        sa.Column("attempt_ref", _INT64, nullable=False),
        sa.Column("rank", _INT64, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=True),
        sa.Column("state_time", sa.Double(), nullable=True),
        sa.Column("state_seq", _INT64, nullable=True),
        sa.Column("host", sa.Text(), nullable=True),
        sa.Column("pid", _INT64, nullable=True),
        sa.Column("last_step", _INT64, nullable=True),
        sa.Column("last_step_seq", _INT64, nullable=True),
        sa.Column("last_seen", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["attempt_ref"], ["attempts.id"], name=op.f("fk_ranks_attempt_ref")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ranks")),
        sa.UniqueConstraint("attempt_ref", "rank", name=op.f("uq_ranks_attempt_ref_rank")),
    )
    op.create_table(
        "checkpoint_files",
        sa.Column("id", _INT64, nullable=False),
        sa.Column("checkpoint_ref", _INT64, nullable=False),
        sa.Column("number", _INT64, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("size", _INT64, nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("parts", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["checkpoint_ref"], ["checkpoints.id"], name=op.f("fk_checkpoint_files_checkpoint_ref")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoint_files")),
        sa.UniqueConstraint("checkpoint_ref", "name", name=op.f("uq_checkpoint_files_checkpoint_ref_name")),
        sa.UniqueConstraint("checkpoint_ref", "number", name=op.f("uq_checkpoint_files_checkpoint_ref_number")),
    )

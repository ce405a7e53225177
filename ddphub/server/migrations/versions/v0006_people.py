"""People, their keys and sessions; where bytes are stored, and which are kept."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Give keys owners and limits; the keys of an older hub stay what they were: good for everything."""
    op.create_table(
        "users",
        sa.Column("id", _INT64, nullable=False),
        sa.Column("public_id", sa.String(length=20), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("disabled_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("public_id", name=op.f("uq_users_public_id")),
        sa.UniqueConstraint("name", name=op.f("uq_users_name")),
    )
    op.create_table(
        "grants",
        sa.Column("id", _INT64, nullable=False),
        sa.Column("user_ref", _INT64, nullable=False),
        sa.Column("project_ref", _INT64, nullable=True),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.ForeignKeyConstraint(["user_ref"], ["users.id"], name=op.f("fk_grants_user_ref")),
        sa.ForeignKeyConstraint(["project_ref"], ["projects.id"], name=op.f("fk_grants_project_ref")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_grants")),
        sa.UniqueConstraint("user_ref", "project_ref", name=op.f("uq_grants_user_ref_project_ref")),
    )
    _extend_keys()
    op.create_table(
        "browser_sessions",
        sa.Column("id", _INT64, nullable=False),
        sa.Column("public_id", sa.String(length=32), nullable=False),
        sa.Column("key_ref", _INT64, nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["key_ref"], ["api_keys.id"], name=op.f("fk_browser_sessions_key_ref")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_browser_sessions")),
        sa.UniqueConstraint("public_id", name=op.f("uq_browser_sessions_public_id")),
    )
    op.create_table(
        "sign_in_failures",
        sa.Column("id", _INT64, nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("count", _INT64, nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("keys", sa.LargeBinary(length=128), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sign_in_failures")),
        sa.UniqueConstraint("address", name=op.f("uq_sign_in_failures_address")),
    )
    op.create_table(
        "audit",
        sa.Column("id", _INT64, nullable=False),
        sa.Column("time", sa.Double(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("key", sa.String(length=20), nullable=True),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("object", sa.Text(), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=True),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_table(
        "chores",
        sa.Column("id", _INT64, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("next_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_chores")),
        sa.UniqueConstraint("name", name=op.f("uq_chores_name")),
    )
    op.add_column("projects", sa.Column("retention", sa.Text(), nullable=True))
    op.add_column("checkpoints", sa.Column("checking_by", sa.String(length=32), nullable=True))
    op.add_column("checkpoints", sa.Column("checking_until", sa.Double(), nullable=True))
    op.add_column("checkpoints", sa.Column("failure", sa.Text(), nullable=True))
    op.add_column("checkpoint_files", sa.Column("location", sa.Text(), nullable=True))
    op.add_column("checkpoint_files", sa.Column("upload_id", sa.Text(), nullable=True))
    op.add_column("blobs", sa.Column("location", sa.Text(), nullable=True))


def _extend_keys() -> None:
    with op.batch_alter_table("api_keys") as keys:
        keys.add_column(sa.Column("public_id", sa.String(length=20), nullable=True))
        keys.add_column(sa.Column("prefix", sa.String(length=8), nullable=True))
        keys.add_column(sa.Column("user_ref", _INT64, nullable=True))
        keys.add_column(sa.Column("name", sa.String(length=128), nullable=False, server_default="the first key"))
        keys.add_column(sa.Column("role", sa.String(length=16), nullable=False, server_default="admin"))
        keys.add_column(sa.Column("project_ref", _INT64, nullable=True))
        keys.add_column(sa.Column("run_id", sa.String(length=128), nullable=True))
        keys.add_column(sa.Column("expires_at", sa.Double(), nullable=True))
        keys.add_column(sa.Column("revoked_at", sa.Double(), nullable=True))
        keys.add_column(sa.Column("last_used_at", sa.Double(), nullable=True))
    connection = op.get_bind()
    for (number,) in connection.execute(sa.text("SELECT id FROM api_keys")).all():
        values = {"number": number, "public_id": secrets.token_hex(10)}
        connection.execute(sa.text("UPDATE api_keys SET public_id = :public_id WHERE id = :number"), values)
    with op.batch_alter_table("api_keys") as keys:
        keys.alter_column("public_id", existing_type=sa.String(length=20), nullable=False)
        keys.alter_column("name", existing_type=sa.String(length=128), server_default=None)
        keys.alter_column("role", existing_type=sa.String(length=16), server_default=None)
        keys.create_unique_constraint(op.f("uq_api_keys_public_id"), ["public_id"])
        keys.create_foreign_key(op.f("fk_api_keys_user_ref"), "users", ["user_ref"], ["id"])
        keys.create_foreign_key(op.f("fk_api_keys_project_ref"), "projects", ["project_ref"], ["id"])
    op.create_index(op.f("ix_api_keys_prefix"), "api_keys", ["prefix"])

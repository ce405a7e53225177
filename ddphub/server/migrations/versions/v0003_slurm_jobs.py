"""Attempts that ran in a SLURM job."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Say of an attempt which job it was, and whether SLURM gave its state."""
    op.add_column("attempts", sa.Column("slurm", sa.Text(), nullable=True))
    op.add_column("attempts", sa.Column("said_by", sa.String(length=16), nullable=True))

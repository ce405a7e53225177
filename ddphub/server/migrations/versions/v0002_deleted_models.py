"""Models that were deleted and can still be removed for good."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Say of a model when it was deleted."""
    op.add_column("models", sa.Column("deleted_at", sa.Double(), nullable=True))

"""Events without a fingerprint, whose bodies are compared: a hub that knows no such events must not serve them."""

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Nothing to change: rows that older hubs made keep their fingerprints, which count."""

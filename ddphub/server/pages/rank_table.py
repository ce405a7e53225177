"""The ranks of a model's newest attempt: the worst first."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

WORST_FIRST: Final = ("dead", "silent", "stalled", "slow", "ok", "done")
"""What can be said of a rank's health, see `ranks.py`."""

ROWS: Final = 50
"""Ranks on one page of the table."""


def counts(ranks: Sequence[dict[str, Any]]) -> list[tuple[str, int]]:
    """How many ranks there are of each health, the worst first."""
    number = Counter(rank["health"] for rank in ranks)
    return [(health, number[health]) for health in WORST_FIRST if number[health]]


def in_order(ranks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ranks by health; those of one health by how far they lag, then by number."""
    return sorted(ranks, key=lambda rank: (WORST_FIRST.index(rank["health"]), -(rank["lag"] or 0), rank["rank"]))

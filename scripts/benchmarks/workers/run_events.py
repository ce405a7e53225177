"""Events as a training on several ranks makes them: 5 scalars a step, in the text that a rank writes."""

import json
import math
from collections.abc import Iterator
from typing import Final

RANKS: Final = 8

ATTEMPT: Final = "be" * 16
"""The attempt's id; a hub keeps the attempts of two models apart."""

BEGAN: Final = 1_760_000_000.0
STEP_S: Final = 0.1
STEPS_AN_EPOCH: Final = 1000


def scalars(rank: int, step: int) -> dict[str, float]:
    """What a rank logs of a step: numbers with as many digits as real ones have."""
    return {
        "train/loss": 2.0 / (1.0 + step / 10_000) + rank / 81,
        "train/accuracy": 0.5 + math.atan(step / 30_000) / math.pi,
        "lr": 0.001 * math.cos(step / 200_000),
        "grad_norm": 1.2 + math.sin(step + rank) / 7,
        "images_per_s": 1234.5 + 30 * math.sin(step / 7 + rank),
    }


def at(rank: int, step: int) -> float:
    """When: the ranks are not quite in step."""
    return BEGAN + step * STEP_S + rank * 0.001234567


def text(rank: int, step: int) -> str:
    """One event as `run.log` makes it, without its key."""
    event = {
        "time": at(rank, step),
        "kind": "metrics",
        "step": step,
        "epoch": step // STEPS_AN_EPOCH,
        "values": scalars(rank, step),
    }
    return json.dumps(event, separators=(",", ":"))


def stretches(events: int, steps: int) -> Iterator[tuple[int, range]]:
    """(rank, steps) of each stretch in which a rank's events come, as rank 0 gathers them: rank after rank.

    Args:
        events: how many in all; the last stretches are shorter.
        steps: in one stretch.
    """
    left, first = events, 0
    while left:
        for rank in range(RANKS):
            count = min(steps, left)
            if count:
                yield rank, range(first, first + count)
            left -= count
        first += steps

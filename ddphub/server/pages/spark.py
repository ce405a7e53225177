"""Lines and bars as SVG attributes: small pictures that the hub draws, without a script."""

import math
from collections.abc import Sequence
from typing import Final

WIDTH: Final = 120
HEIGHT: Final = 28


def spark(values: Sequence[float]) -> str:
    """The `points` of a polyline through `values`, in a box of WIDTH x HEIGHT; empty with fewer than two.

    Args:
        values: from the oldest to the newest; what is not finite is left out.
    """
    finite = [(index, value) for index, value in enumerate(values) if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    least = min(value for _, value in finite)
    # Halved, as the difference of two finite numbers may not be finite.
    half = max(value for _, value in finite) / 2 - least / 2
    across = WIDTH / (len(values) - 1)
    points = []
    for index, value in finite:
        part = (value / 2 - least / 2) / half if half > 0 else 0.5
        points.append(f"{index * across:.1f},{(1 - part) * (HEIGHT - 2) + 1:.1f}")
    return " ".join(points)

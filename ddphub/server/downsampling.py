"""Fewer points that look the same: what a chart shows of more points than it has pixels.

Points fall into buckets of x. Buckets are a power of two wide and begin at a multiple of it, so that a line that grows
or is panned keeps its shape. A bucket that has no finite value leaves a gap.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

_TINY: Final = 2.0**-1000
"""No bucket is narrower, so that no quotient overflows for an x of today."""


def bucket_width(span: float, points: int) -> float:
    """The width of a bucket, so that a span of x has `points` buckets at most, and more than half as many."""
    if span <= 0:
        return 1.0
    # Divided first: the span may be as large as a float can be.
    return max(_TINY, 2.0 ** min(1023, math.ceil(math.log2(span) - math.log2(points))))


def bucket_starts(x: Floats, width: float) -> Indices:
    """Where the buckets of a rising x begin, as indices into it."""
    if not len(x):
        return np.empty(0, np.intp)
    buckets = np.floor(x / width)
    return np.flatnonzero(np.concatenate(([True], buckets[1:] != buckets[:-1])))


def extremes(x: Floats, y: Floats, width: float) -> Indices:
    """The points to keep: of each bucket a least and a greatest value, and the first and the last point of all.

    Args:
        x: rising, at least one.
        y: the values; NaN and infinities are no values.
        width: of a bucket.

    Returns:
        Indices in rising order, at most two for a bucket, and two. A bucket without a finite value gives its first.
    """
    starts = bucket_starts(x, width)
    lengths = np.diff(np.append(starts, len(x)))
    bucket = np.repeat(np.arange(len(starts)), lengths)
    finite = np.isfinite(y)
    kept = [np.array([0, len(x) - 1])]
    for reduce, nothing in ((np.minimum, np.inf), (np.maximum, -np.inf)):
        values = np.where(finite, y, nothing)
        here = np.flatnonzero(values == reduce.reduceat(values, starts)[bucket])
        kept.append(here[np.concatenate(([True], bucket[here][1:] != bucket[here][:-1]))])
    return np.unique(np.concatenate(kept))


@dataclass(frozen=True)
class Band:
    """What several ranks say at each x: their mean, least and greatest value; NaN where none is finite.

    `lost` counts the values that are not finite.
    """

    x: Floats
    mean: Floats
    low: Floats
    high: Floats
    lost: Indices

    def __getitem__(self, part: slice) -> "Band":
        return Band(self.x[part], self.mean[part], self.low[part], self.high[part], self.lost[part])


def band(x: Floats, y: Floats, starts: Indices | None = None) -> Band:
    """The band of points: one x for each different one, or for each bucket.

    Args:
        x: rising.
        y: the values; those that are not finite count as `lost` alone.
        starts: where the buckets begin; None: at each different x.

    Returns:
        The mean over all values of a bucket, at the x in its middle.
    """
    if starts is None:
        starts = np.flatnonzero(np.concatenate(([True], x[1:] != x[:-1]))) if len(x) else np.empty(0, np.intp)
    if not len(starts):
        return Band(x, y, y, y, np.empty(0, np.intp))
    ends = np.append(starts[1:], len(x))
    finite = np.isfinite(y)
    count = np.add.reduceat(finite.astype(np.intp), starts)
    with np.errstate(all="ignore"):
        low = np.minimum.reduceat(np.where(finite, y, np.inf), starts)
        high = np.maximum.reduceat(np.where(finite, y, -np.inf), starts)
        mean = np.add.reduceat(np.where(finite, y, 0.0), starts) / count
        # A sum that no float can hold.
        mean = np.where(np.isfinite(mean), np.clip(mean, low, high), low / 2 + high / 2)
    nothing = count == 0
    mean[nothing] = low[nothing] = high[nothing] = np.nan
    return Band(x[(starts + ends - 1) // 2], mean, low, high, ends - starts - count)


def thin_band(known: Band, width: float) -> Band:
    """The same band with one x for each bucket: the mean of means, the least and the greatest of all."""
    starts = bucket_starts(known.x, width)
    thin = band(known.x, known.mean, starts)
    with np.errstate(all="ignore"):
        low = np.fmin.reduceat(known.low, starts)
        high = np.fmax.reduceat(known.high, starts)
    return Band(thin.x, thin.mean, low, high, np.add.reduceat(known.lost, starts))

"""Downsampling: fewer points, and nobody who looks at them misses a spike."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ddphub.server.chart_lines import means
from ddphub.server.downsampling import band, bucket_starts, bucket_width, extremes, thin_band

X = st.one_of(
    st.integers(-(2**63), 2**63 - 1).map(float),
    st.integers(0, 300).map(float),
    st.floats(1.7e9, 1.7e9 + 100),
    st.floats(-(2.0**63), 2.0**63),  # a step has 64 bits, and so has an epoch
)
Y = st.one_of(st.floats(), st.integers(-5, 5).map(float), st.just(math.nan))


@st.composite
def lines(draw, least=1):
    """Points at an x that rises: all x, and all y."""
    pairs = draw(st.lists(st.tuples(X, Y), min_size=least, max_size=60))
    x, y = (np.array(column, float) for column in zip(*sorted(pairs, key=lambda pair: pair[0]), strict=True))
    return x, y


def width_of(x, points):
    return bucket_width(float(x[-1]) / 2 - float(x[0]) / 2, points) * 2 if len(x) else 1.0


def parts(x, width):
    """Each bucket as a slice."""
    starts = bucket_starts(x, width).tolist()
    return [slice(begin, end) for begin, end in zip(starts, [*starts[1:], len(x)], strict=True)]


@given(lines(), st.integers(2, 50))
def test_buckets_are_few_and_each_point_is_in_one(line, points):
    x, _ = line
    width = width_of(x, points)
    slices = parts(x, width)
    assert [at for part in slices for at in range(part.start, part.stop)] == list(range(len(x)))
    assert len(slices) <= points + 1
    assert all(x[part][-1] - x[part][0] <= width for part in slices)


@given(st.floats(1e-200, 1e300), st.integers(10, 5000))
def test_a_bucket_is_as_narrow_as_the_number_of_points_lets_it_be(span, points):
    width = bucket_width(span, points)
    assert math.frexp(width)[0] == 0.5
    assert points / 2 * (1 - 1e-9) <= span / width <= points * (1 + 1e-9)


@given(lines(), st.integers(2, 50))
def test_each_bucket_keeps_its_least_and_its_greatest_value(line, points):
    x, y = line
    width = width_of(x, points)
    kept = extremes(x, y, width)
    assert sorted(set(kept.tolist())) == kept.tolist()
    assert {0, len(x) - 1} <= set(kept.tolist())
    assert len(kept) <= 2 * (points + 1) + 2
    for part in parts(x, width):
        finite = [value for value in y[part].tolist() if math.isfinite(value)]
        mine = y[[at for at in kept if part.start <= at < part.stop]]
        of_kept = [value for value in mine.tolist() if math.isfinite(value)]
        if finite:
            assert (min(of_kept), max(of_kept)) == (min(finite), max(finite))
        else:
            assert len(mine) >= 1
            assert of_kept == []


@given(lines())
def test_a_band_has_each_x_once_with_mean_least_and_greatest_of_what_is_finite(line):
    x, y = line
    found = band(x, y)
    assert found.x.tolist() == sorted(set(x.tolist()))
    for index, at in enumerate(found.x):
        values = y[x == at]
        finite = [value for value in values.tolist() if math.isfinite(value)]
        assert found.lost[index] == len(values) - len(finite)
        if not finite:
            assert all(math.isnan(column[index]) for column in (found.mean, found.low, found.high))
            continue
        assert (found.low[index], found.high[index]) == (min(finite), max(finite))
        assert found.low[index] <= found.mean[index] <= found.high[index]
        if max(map(abs, finite)) < 1e100:
            assert math.isclose(found.mean[index], math.fsum(finite) / len(finite), rel_tol=1e-9, abs_tol=1e-6)


@given(lines(), st.integers(2, 50))
def test_a_thin_band_is_as_high_and_as_low_as_the_whole_one(line, points):
    x, y = line
    whole = band(x, y)
    width = width_of(x, points)
    thin = thin_band(whole, width)
    assert thin.lost.sum() == np.count_nonzero(~np.isfinite(y))
    assert len(thin.x) == len(parts(whole.x, width)) <= points + 1
    assert set(thin.x.tolist()) <= set(x.tolist())
    for index, part in enumerate(parts(whole.x, width)):
        low, high = whole.low[part], whole.high[part]
        if np.isnan(low).all():
            assert np.isnan([thin.low[index], thin.mean[index], thin.high[index]]).all()
        else:
            assert (thin.low[index], thin.high[index]) == (np.nanmin(low), np.nanmax(high))
            assert thin.low[index] <= thin.mean[index] <= thin.high[index]


@given(st.lists(Y, max_size=200), st.integers(1, 50))
def test_a_spark_is_short_finite_and_within_its_values(values, points):
    finite = [value for value in values if math.isfinite(value)]
    found = means(np.array(values, float), points)
    assert len(found) == min(points, len(finite))
    assert all(min(finite) <= value <= max(finite) for value in found)
    if len(finite) <= points:
        assert found == finite


def test_nothing_gives_nothing():
    empty = np.empty(0)
    assert len(bucket_starts(empty, 1.0)) == len(band(empty, empty).x) == len(thin_band(band(empty, empty), 1.0).x) == 0


def test_a_pan_keeps_the_buckets():
    """Two windows of one width share their inner buckets, so that a line does not flicker when it is panned."""
    x = np.arange(0.0, 1000.0)
    y = np.sin(x * 12.9898) * 43758.5453 % 1
    width = bucket_width(500, 50)
    one, two = (x[part][extremes(x[part], y[part], width)] for part in (slice(0, 500), slice(96, 596)))
    assert [at for at in one if 112 <= at < 480] == [at for at in two if 112 <= at < 480]

"""Sequence numbers as ranges, against a plain set."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddphub.seqs import SeqSet

fuzzed = settings(deadline=None, database=None, max_examples=300)
spans = st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def filled(added):
    """The ranges as a SeqSet and as a set."""
    seqs, plain = SeqSet(), set()
    for first, last in added:
        seqs.add(first, last)
        plain |= set(range(first, last + 1))
    return seqs, plain


def test_an_empty_set_has_nothing():
    """No number, no range."""
    seqs = SeqSet()
    assert len(seqs) == 0
    assert seqs.contiguous() == -1
    assert not seqs.covers(0, 0)
    assert seqs.ranges() == []


@fuzzed
@given(st.lists(spans, max_size=20))
def test_adding_counts_what_is_new(added):
    """As a set would, in any order, with any overlap."""
    seqs, plain = SeqSet(), set()
    for first, last in added:
        before = len(plain)
        plain |= set(range(first, last + 1))
        assert seqs.add(first, last) == len(plain) - before
        assert len(seqs) == len(plain)


@fuzzed
@given(st.lists(spans, max_size=20))
def test_ranges_are_sorted_disjoint_and_as_few_as_can_be(added):
    """Neighbours are one range; together they hold what was added."""
    seqs, plain = filled(added)
    ranges = seqs.ranges()
    assert {number for first, last in ranges for number in range(first, last + 1)} == plain
    assert all(last + 1 < first for (_, last), (first, _) in pairwise(ranges))
    assert all(first <= last for first, last in ranges)


@fuzzed
@given(st.lists(spans, max_size=12), spans)
def test_covers_asks_for_every_number(added, asked):
    """One that is missing is enough for no."""
    seqs, plain = filled(added)
    first, last = asked
    assert seqs.covers(first, last) == (set(range(first, last + 1)) <= plain)


@fuzzed
@given(st.lists(spans, max_size=20))
def test_contiguous_ends_before_the_first_gap(added):
    """What rank 0 acknowledges: nothing behind a gap."""
    seqs, plain = filled(added)
    expected = -1
    while expected + 1 in plain:
        expected += 1
    assert seqs.contiguous() == expected


def test_a_stream_in_order_stays_one_range():
    """Memory does not grow with the number of events."""
    seqs = SeqSet()
    for number in range(0, 10_000, 10):
        assert seqs.add(number, number + 9) == 10
    assert seqs.ranges() == [(0, 9_999)]
    assert seqs.add(0, 9_999) == 0


@pytest.mark.parametrize("huge", [2**63, 10**30])
def test_numbers_may_be_as_large_as_they_like(huge):
    """Another process names them."""
    seqs = SeqSet()
    assert seqs.add(0, 0) == 1
    assert seqs.add(huge, huge) == 1
    assert seqs.add(1, huge - 1) == huge - 1
    assert seqs.contiguous() == huge

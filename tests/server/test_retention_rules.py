"""Which checkpoints the rules of a project let go, whatever the run and the rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddphub.server.problems import Problem
from ddphub.server.retention import DAY_S, Candidate, Rules, superfluous

NOW = 1_800_000_000.0
COUNTS = st.none() | st.integers(1, 5)
RULES = st.builds(Rules, last=COUNTS, best=COUNTS, final=st.booleans(), days=st.none() | st.floats(0.1, 30))


@st.composite
def runs(draw):
    """Some checkpoints of one run, in any order; late ones may be of an early epoch."""
    made = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["epoch", "best", "final"]),
                st.none() | st.integers(-1, 8),
                st.none() | st.integers(0, 80),
                st.floats(0, 40 * DAY_S),
            ),
            max_size=14,
        )
    )
    checkpoints = [
        Candidate(id=f"c{number}", number=number, kind=kind, epoch=epoch, step=step, committed_at=NOW - age)
        for number, (kind, epoch, step, age) in enumerate(made)
    ]
    return draw(st.permutations(checkpoints))


def checkpoint(number, kind="epoch", *, epoch=0, days=100.0):
    committed_at = NOW - days * DAY_S
    return Candidate(id=f"c{number}", number=number, kind=kind, epoch=epoch, step=None, committed_at=committed_at)


def gone(run, rules, *, may_go_on=False):
    return [one.number for one in superfluous(run, rules, NOW, may_go_on=may_go_on)]


@given(runs(), st.booleans())
def test_without_rules_all_is_kept(run, may_go_on):
    assert superfluous(run, Rules(), NOW, may_go_on=may_go_on) == []


@given(runs(), RULES, st.booleans())
def test_what_goes_is_what_no_rule_keeps(run, rules, may_go_on):
    lost = superfluous(run, rules, NOW, may_go_on=may_go_on)
    ids = {one.id for one in lost}
    assert len(ids) == len(lost)
    newest_first = sorted(run, key=lambda one: one.number, reverse=True)
    assert lost == [one for one in reversed(newest_first) if one.id in ids]
    if run:
        assert newest_first[0].id not in ids
    best = [one for one in newest_first if one.kind == "best"]
    must = [*newest_first[: rules.last or 0], *best[: rules.best or 0]]
    must += [one for one in run if rules.final and one.kind == "final"]
    must += [one for one in run if rules.days is not None and one.committed_at >= NOW - rules.days * DAY_S]
    if may_go_on:
        for kind in {one.kind for one in run}:
            of_kind = [one for one in newest_first if one.kind == kind]
            must.append(of_kind[0])
            furthest = max(-(10**9) if one.epoch is None else one.epoch for one in of_kind)
            with_it = [one for one in of_kind if (-(10**9) if one.epoch is None else one.epoch) == furthest]
            assert any(one.id not in ids for one in with_it)
    assert not ids & {one.id for one in must}
    if rules and not may_go_on:
        assert len(run) - len(lost) <= len({one.id for one in must} | {one.id for one in newest_first[:1]})


@given(runs(), RULES, st.booleans())
def test_applying_the_rules_again_changes_nothing(run, rules, may_go_on):
    ids = {one.id for one in superfluous(run, rules, NOW, may_go_on=may_go_on)}
    left = [one for one in run if one.id not in ids]
    assert superfluous(left, rules, NOW, may_go_on=may_go_on) == []


@given(runs(), RULES, st.integers(1, 5))
def test_a_rule_more_never_loses_more(run, rules, best):
    more = Rules(last=rules.last, best=max(best, rules.best or 0), final=True, days=rules.days)
    if rules:
        lost = {one.id for one in superfluous(run, rules, NOW, may_go_on=False)}
        assert {one.id for one in superfluous(run, more, NOW, may_go_on=False)} <= lost


def test_a_training_in_a_table():
    """Ten epochs, three of them the best so far, and the final one."""
    run = [checkpoint(number, epoch=number) for number in range(10)]
    run += [checkpoint(10 + number, "best", epoch=number) for number in range(3)]
    run.append(checkpoint(13, "final", epoch=9))
    assert gone(run, Rules(last=3)) == list(range(11))
    assert gone(run, Rules(last=1, best=1)) == [*range(10), 10, 11]
    assert gone(run, Rules(last=1), may_go_on=True) == [*range(9), 10, 11]
    assert gone(run, Rules(days=101)) == []
    assert gone(run, Rules(days=99)) == list(range(13))
    assert gone([*run, checkpoint(14, days=1)], Rules(final=True)) == list(range(13))


def test_a_late_delivery_of_an_older_attempt_does_not_cost_the_furthest():
    run = [checkpoint(0, epoch=40), checkpoint(1, epoch=2), checkpoint(2, epoch=3)]
    assert gone(run, Rules(last=1), may_go_on=True) == [1]
    assert gone(run, Rules(last=1)) == [0, 1]


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ([], "an object"),
        ("all", "an object"),
        ({"last": 0}, "last"),
        ({"last": True}, "last"),
        ({"best": 1.5}, "best"),
        ({"best": 10**7}, "best"),
        ({"final": 1}, "final"),
        ({"final": "yes"}, "final"),
        ({"days": 0}, "days"),
        ({"days": -1}, "days"),
        ({"days": "7"}, "days"),
        ({"days": 1e300}, "days"),
        ({"newest": 3}, "newest"),
    ],
)
def test_wrong_rules_are_named(value, named):
    with pytest.raises(Problem) as caught:
        Rules.parse(value)
    assert caught.value.status == 422
    assert named in caught.value.detail


@given(RULES)
def test_rules_are_read_as_they_were_written(rules):
    assert Rules.parse(rules.to_dict()) == rules
    assert bool(rules) == (rules.in_words() != "keeps all")


def test_no_rules_are_none():
    assert Rules.parse(None) == Rules.parse({}) == Rules.parse({"last": None, "final": False}) == Rules()

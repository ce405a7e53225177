"""Reading what ranks send by the thousand is quick, and says the same as the checks that look at everything."""

import json
import math

import pytest
from hub_talk import metrics_event, new_id
from hypothesis import given, settings
from hypothesis import strategies as st

from ddphub import events
from ddphub.server.body import parse
from ddphub.server.incoming_events import _incoming, _Plain, _wrong_event, check_batch
from ddphub.server.problems import Problem

ATTEMPT = new_id()

numbers = (
    st.integers() | st.floats(allow_nan=False) | st.sampled_from([2**63, -(2**63), 2**63 - 1, 1e300, 1e308, -1e308])
)
scalars = numbers | st.booleans() | st.none() | st.text(max_size=3) | st.sampled_from(["NaN", "Infinity", "-Infinity"])
others = scalars | st.just([]) | st.just({})
strange_events = st.fixed_dictionaries(
    {},
    optional={
        "attempt_id": st.sampled_from([ATTEMPT, ATTEMPT.upper(), ""]) | others,
        "rank": others,
        "seq": others,
        "time": others,
        "kind": st.sampled_from(["metrics", "log", "attempt", "other"]) | others,
        "step": others,
        "epoch": others,
        "values": st.dictionaries(st.text(max_size=3), others, max_size=4) | others,
        "more": others,
    },
)


@settings(max_examples=1000, deadline=None)
@given(st.lists(strange_events, max_size=4), st.dictionaries(st.text(max_size=3), scalars, max_size=4))
def test_what_is_read_quickly_is_what_the_checks_take(changes, values):
    """Never one that they refuse, and with the same outcome; a batch remembers what it has seen."""
    plain = _Plain()
    good = metrics_event(ATTEMPT, 0, values={"loss": 1.5, "n": 3})
    for event in [good, good | {"values": values}, *(good | change for change in changes), *changes]:
        found = plain.read(event)
        if found is not None:
            assert _wrong_event(event) is None
            checked = _incoming(event)
            assert (found.key, found.time, found.kind) == (checked.key, checked.time, checked.kind)
            assert found.fingerprint == checked.fingerprint
            assert events.fingerprint(json.loads(found.body)) == found.fingerprint.hex()


def test_what_a_rank_sends_is_read_quickly():
    for values in ({"loss": 0.5}, {"loss": 0.5, "n": 3}, {"n": -(2**63) + 1}, {"ä": 1e308}):
        for epoch in (None, 0, 7):
            assert _Plain().read(metrics_event(ATTEMPT, 0, rank=3, epoch=epoch, values=values)) is not None


@given(
    st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner), max_leaves=20)
)
@settings(max_examples=500, deadline=None)
def test_a_body_means_what_the_standard_library_says(value):
    text = json.dumps(value)
    if "Infinity" in text.replace('"Infinity"', "").replace('"-Infinity"', ""):
        with pytest.raises(Problem):
            parse(text.encode())
    else:
        assert repr(parse(text.encode())) == repr(json.loads(text))


@pytest.mark.parametrize(
    "text", ["1e999", "-0", "-0.0", '{"a":1,"a":2}', '"\\ud800"', '"\\ud83d\\ude00"', "0.1e-400", " [1]\n"]
)
def test_corners_of_json_are_the_standard_librarys(text):
    assert repr(parse(text.encode())) == repr(json.loads(text))


def test_a_large_event_is_measured_as_its_client_measures_it():
    """In ASCII: `ä` is six bytes."""
    room = events.MAX_EVENT_BYTES - len(events.to_json({"time": 1.0, "kind": "log", "message": ""}))
    log = {"attempt_id": ATTEMPT, "rank": 0, "seq": 0, "time": 1.0, "kind": "log"}
    for message in ("x" * room, "ä" * (room // 6), "\N{GRINNING FACE}" * (room // 12)):
        assert len(check_batch([log | {"message": message}])) == 1
        with pytest.raises(Problem, match="more than 65536 bytes"):
            check_batch([log | {"message": message + "\N{GRINNING FACE}"}])


def test_a_sum_that_overflows_is_no_reason_to_refuse_what_is_finite():
    (event,) = check_batch([metrics_event(ATTEMPT, 0, values={"a": 1.7e308, "b": 1.7e308})])
    assert all(map(math.isfinite, json.loads(event.body)["values"].values()))

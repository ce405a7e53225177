"""Events as JSON: what may travel, and what makes two events the same."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddphub.events import MAX_EVENT_BYTES, decode_scalar, encode_scalar, expand, fingerprint, plain_text, to_json

fuzzed = settings(deadline=None, database=None)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@fuzzed
@given(st.floats() | st.integers() | st.booleans())
def test_a_number_comes_back_as_it_was(value):
    """Through JSON, also when it is not finite; its type too."""
    wire = json.loads(to_json(encode_scalar(value)))
    back = decode_scalar(wire)
    assert type(back) is type(value)
    assert back == value or (math.isnan(back) and math.isnan(value))


@pytest.mark.parametrize(
    ("value", "wire"), [(math.nan, "NaN"), (-math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")]
)
def test_what_is_not_finite_travels_by_name(value, wire):
    """JSON has no such numbers."""
    assert encode_scalar(value) == wire


@pytest.mark.parametrize("text", ["nan", "inf", "", "1.0", "+Infinity", "x" * 1000])
def test_no_other_text_is_a_number(text):
    """The message shows at most 40 characters of it."""
    with pytest.raises(ValueError, match="expected a number") as raised:
        decode_scalar(text)
    assert len(str(raised.value)) < 150


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": [-math.inf]}])
def test_json_of_ddphub_has_no_nan(value):
    """A parser that knows only JSON must be able to read it."""
    with pytest.raises(ValueError, match="JSON compliant"):
        to_json(value)


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", 1j])
def test_what_json_does_not_know_is_refused(value):
    """By TypeError."""
    with pytest.raises(TypeError):
        to_json(value)


@fuzzed
@given(json_values)
def test_json_is_one_line_of_ascii(value):
    """So that a text file of lines can hold it; any text survives, also lone surrogates."""
    text = to_json(value)
    assert text.isascii()
    assert text.splitlines() in ([text], [])
    assert json.loads(text) == value


@fuzzed
@given(st.dictionaries(st.text(), json_values))
def test_a_fingerprint_does_not_depend_on_the_order_of_fields(event):
    """A repeat of an event is the same event, whoever has encoded it in between."""
    backwards = dict(reversed(list(event.items())))
    assert fingerprint(event) == fingerprint(backwards) == fingerprint(json.loads(to_json(event)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"a": 1.0}),
        ({"a": 1}, {"a": True}),
        ({"a": None}, {}),
        ({"a": "1"}, {"a": 1}),
        ({"a": 0.0}, {"a": -0.0}),
    ],
)
def test_other_content_has_another_fingerprint(one, other):
    """Also where Python finds both equal."""
    assert fingerprint(one) != fingerprint(other)


def test_a_batch_is_expanded_to_events_with_their_keys():
    """The event at index i has seq first + i."""
    batch = {
        "attempt_id": "0" * 32,
        "rank": 3,
        "first": 40,
        "events": [{"kind": "log"}, {"kind": "rank", "of_rank": 1}],
    }
    assert expand(batch) == [
        {"attempt_id": "0" * 32, "rank": 3, "seq": 40, "kind": "log"},
        {"attempt_id": "0" * 32, "rank": 3, "seq": 41, "kind": "rank", "of_rank": 1},
    ]


def test_an_event_cannot_name_another_key_than_its_batch():
    """Acknowledgements and journal lines count by the batch's key, so a field of an event must not change it."""
    batch = {"attempt_id": "0" * 32, "rank": 3, "first": 40, "events": [{"attempt_id": "f" * 32, "rank": 0, "seq": 7}]}
    (event,) = expand(batch)
    assert (event["attempt_id"], event["rank"], event["seq"]) == ("0" * 32, 3, 40)


@fuzzed
@given(st.text(), st.integers(1, 50))
def test_plain_text_is_what_every_hub_can_store(text, limit):
    """UTF-8 without NUL; a text that was so already keeps its end."""
    plain = plain_text(text, limit)
    plain.encode()
    assert "\0" not in plain
    assert plain_text(plain, len(plain) + 1) == plain
    if "\0" not in text and text.isascii():
        assert plain == text[-limit:]


def test_the_limit_of_an_event_is_below_that_of_a_request():
    """A hub takes at least one event in a request."""
    from ddphub.hubs import wire

    assert MAX_EVENT_BYTES < wire.MAX_JSON_BODY

"""Printed lines on the hub: which it takes, and how they are read."""

import pytest
from hub_talk import attempt_event, problem

from ddphub.events import MAX_CONSOLE_LINE, MAX_CONSOLE_LINES


def console_event(attempt_id, seq, *lines, rank=0, stream="stdout", **fields):
    key = {"attempt_id": attempt_id, "rank": rank, "seq": seq}
    return {**key, "time": 1.0 + seq, "kind": "console", "stream": stream, "lines": lines, "left_out": 0, **fields}


def test_lines_are_read_back_as_they_came(talk):
    lines = ["", "\ttabs", "äöü 日本 🎉", "<script>alert(1)</script>", "\u202eright to left", "x" * MAX_CONSOLE_LINE]
    talk.accepted(console_event(talk.attempt_id, 0, *lines, stream="stderr", left_out=7))
    (event,) = talk.get("/events?kind=console")
    assert (event["lines"], event["stream"], event["left_out"], event["rank"]) == (lines, "stderr", 7, 0)


def test_they_are_paged_from_either_end_and_by_rank(talk):
    """A page that follows a run reads the newest, then what comes after them."""
    events = [console_event(talk.attempt_id, seq, str(seq), rank=rank) for seq in range(30) for rank in range(2)]
    talk.accepted(*events, attempt_event(talk.attempt_id, 30, "started"))
    assert [event["kind"] for event in talk.get("/events")] == ["attempt"], "what happened to the run, no printed line"
    tail = talk.get("/events?kind=console&newest=true&limit=4&rank=1")
    assert [event["lines"] for event in tail] == [["26"], ["27"], ["28"], ["29"]]
    talk.accepted(console_event(talk.attempt_id, 31, "new"), console_event(talk.attempt_id, 31, "new", rank=1))
    after = tail[-1]["id"]
    assert [event["rank"] for event in talk.get(f"/events?kind=console&newest=true&after={after}")] == [0, 1]
    assert [event["lines"] for event in talk.get("/events?kind=console&limit=2")] == [["0"], ["0"]]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"stream": "stdin"}, "stream"),
        ({"stream": None}, "stream"),
        ({"left_out": -1}, "left_out"),
        ({"left_out": None}, "left_out"),
        ({"left_out": True}, "left_out"),
        ({"lines": None}, "lines"),
        ({"lines": "text"}, "lines"),
        ({"lines": [1]}, "lines"),
        ({"lines": ["x"] * (MAX_CONSOLE_LINES + 1)}, "lines"),
        ({"lines": ["x" * (MAX_CONSOLE_LINE + 1)]}, "lines"),
        ({"lines": ["\x00"]}, "NUL"),
        ({"lines": ["\ud800"]}, "surrogate"),
    ],
)
def test_what_is_no_console_event_is_refused_by_name(talk, fields, why):
    assert why in problem(talk.events(console_event(talk.attempt_id, 0, "x") | fields), 422)["message"]
    assert talk.accepted(console_event(talk.attempt_id, 0))["accepted"] == 1, "no lines, where all are left out"

"""Events: stored once, all of a batch or nothing, and never refused with a 5xx."""

import json
import threading

import pytest
import requests
from hub_talk import Talk, attempt_event, metrics_event, new_id, problem, rank_event

from ddphub.hubs.wire import MAX_BATCH_EVENTS, MAX_JSON_BODY


def test_a_batch_is_stored_and_read_back_oldest_first(talk):
    first = metrics_event(talk.attempt_id, 0, values={"loss": 0.5, "done": True, "n": 3, "worst": "NaN"}, epoch=1)
    second = metrics_event(talk.attempt_id, 1, rank=1)
    assert talk.accepted(first, second) == {"accepted": 2, "duplicates": 0, "stop": False}
    one, two = talk.get("/metrics")
    assert one["values"] == {"loss": 0.5, "done": True, "n": 3, "worst": "NaN"}
    assert (one["attempt"], one["attempt_id"], one["rank"], one["epoch"], one["step"], one["time"]) == (
        1,
        talk.attempt_id,
        0,
        1,
        0,
        first["time"],
    )
    assert two["id"] > one["id"]


def test_a_repeat_is_counted_and_stored_once(talk):
    events = [metrics_event(talk.attempt_id, seq) for seq in range(5)]
    assert talk.accepted(*events)["accepted"] == 5
    again = talk.accepted(*events, metrics_event(talk.attempt_id, 5))
    assert again == {"accepted": 1, "duplicates": 5, "stop": False}
    assert [record["seq"] for record in talk.get("/metrics")] == list(range(6))
    assert talk.get()["events"] == 6


def test_a_repeat_inside_one_batch_is_a_duplicate(talk):
    event = metrics_event(talk.attempt_id, 0)
    assert talk.accepted(event, event, event) == {"accepted": 1, "duplicates": 2, "stop": False}


def test_the_same_event_with_its_fields_in_another_order_is_a_duplicate(talk):
    event = metrics_event(talk.attempt_id, 0, values={"a": 1, "b": 2.5})
    talk.accepted(event)
    turned = dict(reversed(event.items())) | {"values": {"b": 2.5, "a": 1}}
    assert talk.accepted(turned)["duplicates"] == 1


def test_a_known_key_with_other_content_is_refused_and_nothing_of_the_batch_is_stored(talk):
    talk.accepted(metrics_event(talk.attempt_id, 1))
    new_attempt = new_id()
    answer = talk.events(
        metrics_event(new_attempt, 0),
        metrics_event(talk.attempt_id, 0),
        metrics_event(talk.attempt_id, 1, values={"loss": 99.0}),
        metrics_event(talk.attempt_id, 2),
    )
    assert problem(answer, 422)["key"] == {"attempt_id": talk.attempt_id, "rank": 0, "seq": 1}
    assert [record["seq"] for record in talk.get("/metrics")] == [1]
    assert len(talk.get()["attempts"]) == 1
    assert talk.get()["events"] == 1


def test_a_contradiction_inside_one_batch_is_refused_whole(talk):
    answer = talk.events(metrics_event(talk.attempt_id, 0), metrics_event(talk.attempt_id, 0, step=7))
    assert problem(answer, 422)["key"]["seq"] == 0
    assert talk.get()["state"] == "new"


def test_the_same_batch_from_eight_threads_is_stored_once(talk):
    """The answers together account for every event exactly once."""
    batch = [metrics_event(talk.attempt_id, seq, rank=seq % 4) for seq in range(200)]
    barrier = threading.Barrier(8)
    answers = []

    def send():
        client = talk.hub.client()
        barrier.wait()
        answers.append(client.post(talk.url("/events"), json=batch).json()["data"])

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer["accepted"] for answer in answers) == [0] * 7 + [200]
    assert len(talk.get("/metrics")) == 200
    assert talk.get()["events"] == 200


def test_the_same_key_in_two_models_is_two_events(hub):
    one, two = Talk(hub), Talk(hub)
    event = metrics_event(one.attempt_id, 0)
    assert one.accepted(event)["accepted"] == 1
    assert two.accepted(event)["accepted"] == 1


def test_metrics_are_filtered_by_rank_and_name_and_paged(talk):
    hostile = "a\"b.c[0]'--"
    talk.accepted(
        *[metrics_event(talk.attempt_id, seq, rank=rank) for seq in range(10) for rank in range(2)],
        metrics_event(talk.attempt_id, 10, values={hostile: 1.5, "loss": 2}),
    )
    assert [record["seq"] for record in talk.get("/metrics?rank=1")] == list(range(10))
    only = talk.get("/metrics", params={"name": hostile})
    assert [record["values"] for record in only] == [{hostile: 1.5}]
    seen, after = [], 0
    while page := talk.get("/metrics", params={"after": after, "limit": 4, "rank": 0}):
        seen += [record["seq"] for record in page]
        after = page[-1]["id"]
    assert seen == list(range(11))


def test_kinds_that_the_hub_does_not_know_are_kept_as_they_are(talk):
    event = {
        "attempt_id": talk.attempt_id,
        "rank": 3,
        "seq": 0,
        "time": 5,
        "kind": "weather",
        "deep": [{"a": [1, None]}],
    }
    assert talk.accepted(event)["accepted"] == 1
    assert talk.accepted(event)["duplicates"] == 1
    (stored,) = talk.get("/events?kind=weather")
    assert {name: stored[name] for name in event} == event


def test_events_other_than_metrics_are_read_by_kind(talk):
    log = {"attempt_id": talk.attempt_id, "rank": 0, "seq": 1, "time": 2.0, "kind": "log", "message": "hi\n\u202e<b>"}
    talk.accepted(metrics_event(talk.attempt_id, 0), log, attempt_event(talk.attempt_id, 2, "started"))
    assert [event["kind"] for event in talk.get("/events")] == ["log", "attempt"]
    assert [event["message"] for event in talk.get("/events?kind=log")] == [log["message"]]
    assert talk.get("/events?kind=log&limit=1&after=999999999") == []


GOOD = metrics_event("0" * 32, 0)

WRONG = {
    "not an object": 3,
    "attempt_id in capitals": GOOD | {"attempt_id": "A" * 32},
    "attempt_id missing": {name: value for name, value in GOOD.items() if name != "attempt_id"},
    "rank a bool": GOOD | {"rank": True},
    "rank negative": GOOD | {"rank": -1},
    "rank a float": GOOD | {"rank": 1.0},
    "seq text": GOOD | {"seq": "0"},
    "seq beyond 64 bits": GOOD | {"seq": 2**63},
    "time text": GOOD | {"time": "now"},
    "time a bool": GOOD | {"time": True},
    "time beyond any date": GOOD | {"time": 1e300},
    "time beyond any float": GOOD | {"time": 10**400},
    "time negative": GOOD | {"time": -1.0},
    "kind too long": GOOD | {"kind": "x" * 33},
    "kind empty": GOOD | {"kind": ""},
    "kind a list": GOOD | {"kind": ["metrics"]},
    "kind with NUL": GOOD | {"kind": "a\x00"},
    "step missing": {name: value for name, value in GOOD.items() if name != "step"},
    "step beyond 64 bits": GOOD | {"step": 2**63},
    "epoch a float": GOOD | {"epoch": 1.5},
    "values a list": GOOD | {"values": [1]},
    "values too many": GOOD | {"values": {f"m{index}": 1 for index in range(1001)}},
    "metric name too long": GOOD | {"values": {"x" * 257: 1}},
    "metric name empty": GOOD | {"values": {"": 1}},
    "metric name with a control character": GOOD | {"values": {"a\nb": 1}},
    "metric name half a surrogate pair": GOOD | {"values": {"\ud800": 1}},
    "value null": GOOD | {"values": {"a": None}},
    "value other text": GOOD | {"values": {"a": "nan"}},
    "value a list": GOOD | {"values": {"a": [1]}},
    "value beyond 64 bits": GOOD | {"values": {"a": 2**64}},
    "attempt state unknown": GOOD | {"kind": "attempt", "state": "resting"},
    "attempt state a list": GOOD | {"kind": "attempt", "state": ["started"]},
    "attempt host a number": GOOD | {"kind": "attempt", "state": "started", "host": 3},
    "rank state unknown": GOOD | {"kind": "rank", "of_rank": 0, "state": "asleep"},
    "rank without of_rank": GOOD | {"kind": "rank", "state": "joined"},
    "log without message": GOOD | {"kind": "log"},
    "text with NUL": GOOD | {"kind": "log", "message": "a\x00b"},
    "text with half a surrogate pair": GOOD | {"kind": "log", "message": "\udc00"},
    "field name with NUL": GOOD | {"a\x00": 1},
    "unknown kind with a huge integer": GOOD | {"kind": "other", "n": 2**70},
    "too large": GOOD | {"kind": "other", "text": "x" * 70_000},
}


@pytest.mark.parametrize("name", WRONG)
def test_an_event_that_cannot_be_taken_is_a_problem(hub, talk, name):
    """It says which event it is; the good one beside it is not stored."""
    answer = talk.events(metrics_event(talk.attempt_id, 0), WRONG[name])
    assert "event 1" in problem(answer, 422)["detail"]
    assert talk.get("/metrics") == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"{}", 422),
        (b'"text"', 422),
        (b"null", 422),
        (b"[NaN]", 400),
        (b"[-Infinity]", 400),
        (b"[" * 100_000 + b"]" * 100_000, 400),
        (b"[" + b"9" * 5000 + b"]", 400),
        (b'[{"a": 1e999}]', 422),
        (json.dumps([GOOD | {"kind": "deep", "x": json.loads("[" * 40 + "]" * 40)}]).encode(), 422),
        (json.dumps([GOOD | {"kind": "inf", "x": 1}]).replace('"x": 1', '"x": 1e999').encode(), 422),
        (json.dumps([GOOD | {"values": {"a": 7}}]).replace(": 7", ": 1e999").encode(), 422),
    ],
)
def test_a_body_that_is_no_batch_is_a_problem(talk, body, status):
    problem(talk.http.post(talk.url("/events"), data=body), status)


def test_an_empty_batch_is_taken(talk):
    assert talk.accepted() == {"accepted": 0, "duplicates": 0, "stop": False}


def test_too_many_events_are_a_413(talk):
    batch = [metrics_event(talk.attempt_id, seq) for seq in range(MAX_BATCH_EVENTS + 1)]
    problem(talk.events(*batch), 413)
    assert talk.accepted(*batch[:-1])["accepted"] == MAX_BATCH_EVENTS


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_a_413_with_and_without_content_length(talk, chunked):
    content = b"[" + b" " * MAX_JSON_BODY + b"]"
    body = (content[start : start + 65536] for start in range(0, len(content), 65536)) if chunked else content
    problem(talk.http.post(talk.url("/events"), data=body), 413)


def test_a_model_that_is_not_there_is_a_404(hub, talk):
    problem(hub.client().post(f"{hub.url}/v1/models/{'x' * 20}/events", json=[]), 404)


def test_query_parameters_that_make_no_sense_are_problems(talk):
    for query in ("rank=-1", "rank=x", f"after={2**63}", "limit=0", "limit=10001", "name=" + "x" * 300):
        problem(talk.http.get(talk.url(f"/metrics?{query}")), 422)


def test_acknowledged_events_survive_a_kill(start_hub):
    """What was answered 200 is there after kill -9, and sending all again completes the rest."""
    hub = start_hub()
    talk = Talk(hub)
    acknowledged = []

    def send():
        with requests.Session() as client:
            client.headers["x-api-key"] = hub.key
            for seq in range(100_000):
                try:
                    answer = client.post(talk.url("/events"), json=[metrics_event(talk.attempt_id, seq)])
                except requests.RequestException:
                    return
                assert answer.status_code == 200
                acknowledged.append(seq)

    thread = threading.Thread(target=send)
    thread.start()
    talk.wait_until(lambda: len(acknowledged) >= 20)
    hub.kill()
    thread.join()
    hub.restart()
    stored = {record["seq"] for record in talk.get("/metrics?limit=10000")}
    assert stored >= set(acknowledged)
    everything = [metrics_event(talk.attempt_id, seq) for seq in range(len(acknowledged) + 1)]
    for start in range(0, len(everything), 1000):
        talk.accepted(*everything[start : start + 1000])
    assert len(talk.get("/metrics?limit=10000")) == len(everything)


def test_the_latest_value_is_the_newest_in_time_however_late_the_others_come(talk):
    """What is shown as latest does not go back when old events arrive."""
    other = new_id()
    talk.accepted(metrics_event(talk.attempt_id, 5, values={"loss": 0.25}))
    talk.accepted(metrics_event(talk.attempt_id, 3, values={"loss": 0.75}))
    talk.accepted(metrics_event(other, 900, values={"loss": 0.125}, time=1_600_000_000.0))
    assert [(one["name"], one["latest"]) for one in talk.get("/series")["results"]] == [("loss", 0.25)]


def sign_in(hub):
    browser = requests.Session()
    browser.trust_env = False
    browser.post(f"{hub.url}/sign-in", data={"key": hub.key})
    return browser


def test_rank_events_say_what_ranks_do(talk):
    talk.accepted(
        attempt_event(talk.attempt_id, 0, "started"),
        rank_event(talk.attempt_id, 1, 0, "joined"),
        rank_event(talk.attempt_id, 2, 1, "joined"),
        rank_event(talk.attempt_id, 3, 1, "lost"),
        metrics_event(talk.attempt_id, 4, rank=1, step=77),
    )
    zero, one = talk.get()["ranks"]
    assert (zero["rank"], zero["state"], zero["host"], zero["pid"]) == (0, "joined", "n0", 100)
    assert (one["rank"], one["state"], one["last_step"]) == (1, "lost", 77)
    assert one["last_seen"] == 1_700_000_004.0

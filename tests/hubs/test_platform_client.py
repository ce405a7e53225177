"""The Platform client against the recorded service: the recorded webhooks, in order, each once, and none is lost."""

import hashlib
import re
import threading
import time

import pytest
from platform_server import UPLOADS, WEBHOOKS, PlatformServer, capture
from run_events import BEGAN, Attempt, entry, registration

from ddphub.errors import HubModelGone, HubRejected, HubUnauthorized, HubUnavailable
from ddphub.events import ENDED, OF_ITSELF
from ddphub.hubs.platform_events import slug
from ddphub.hubs.ultralytics_platform import PlatformClient

STORIES = capture("platform")


@pytest.fixture
def server():
    with PlatformServer() as playing:
        yield playing


@pytest.fixture
def connect(server):
    """Makes clients; a second one stands for a later process."""
    made = []

    def connect(key=None):
        made.append(PlatformClient(server.url, key or server.key))
        return made[-1]

    yield connect
    for client in made:
        client.close()


@pytest.fixture
def first():
    return Attempt()


@pytest.fixture
def started(connect, first):
    """A client, its model, and the start of the first attempt already told."""
    client = connect()
    model_id = client.register(registration(first))
    client.send_events(model_id, [first.state("started")])
    return client, model_id


def later(connect, client, *attempts, recall=()):
    """The client of a later process, from what the journal kept."""
    fresh = connect()
    model_id = fresh.register(registration(*attempts, known=client.memory["model_id"], memory=dict(client.memory)))
    fresh.recall(list(recall))
    return fresh, model_id


def recorded(story, event):
    """`data` of a story's webhooks of one event."""
    calls = [call["json"] for call in STORIES[story] if call["path"] == WEBHOOKS]
    return [call["data"] for call in calls if call["event"] == event]


# What was recorded.


def as_logged(data):
    """What a trainer logs for a recorded epoch_end."""
    values = {name: value for name, value in data["metrics"].items() if name != "lr"}
    values |= {"lr/pg0": data["metrics"]["lr"], "lr/pg1": 0.5, "lr/pg2": 0.7}
    values |= {"fitness": data["fitness"], "best_fitness": data["best_fitness"]}
    names = {"parameters": "model/parameters", "gflops": "model/GFLOPs", "speedMs": "model/speed_PyTorch(ms)"}
    return values | {names[field]: value for field, value in data.get("modelInfo", {}).items()}


@pytest.mark.parametrize("story", STORIES)
def test_a_run_sends_what_was_recorded(server, connect, first, tmp_path, story):
    """The whole story, field by field; only what a machine measures of itself is not sent."""
    calls = STORIES[story]
    config = {**recorded(story, "training_started")[0]["trainArgs"], "epochs": 3, "device": "cpu"}
    config["names"] = {"0": "red", "1": "green"}
    name = config["name"]
    environment = {"host": "node0", "os": "Linux-6.1-x86_64-with-glibc2.36", "python": "3.11.7", "cpus": 2}
    client = connect()
    model_id = client.register(registration(first, name=name, config=config, environment=environment))
    client.send_events(model_id, [first.state("started")])
    for call, after in zip(calls[1:], [*calls[2:], {}], strict=True):
        body = call.get("json")
        if call["path"] == UPLOADS:
            client.upload(model_id, *entry(tmp_path, "best", body["filename"], b"0" * after["body_size"]))
        elif call["path"] == WEBHOOKS and body["event"] == "console_output":
            client.send_events(model_id, [first.log("first line\nsecond line", time=BEGAN)])
        elif call["path"] == WEBHOOKS and body["event"] == "epoch_end":
            values = as_logged(body["data"])
            is_final = not any(name.startswith("val/") for name in values)
            values = {f"final/{name}": value for name, value in values.items()} if is_final else values
            client.send_events(model_id, [first.metrics(body["data"]["epoch"], values)])
        elif call["path"] == WEBHOOKS and body["event"] == "training_complete":
            client.send_events(model_id, [first.state("finished")])
    sent = [(request.method, request.path) for request in server.requests]
    put = ("PUT", "/signed/upload/")
    assert [put if method == "PUT" else (method, path) for method, path in sent] == [
        put if call["method"] == "PUT" else (call["method"], call["path"]) for call in calls
    ]
    assert server.names() == [call["json"]["event"] for call in calls if call["path"] == WEBHOOKS]
    (begun,) = server.data("training_started")
    expected = recorded(story, "training_started")[0]
    assert begun["trainArgs"] == expected["trainArgs"]
    assert {"epochs": begun["epochs"], "device": begun["device"]} == {"epochs": 3, "device": "cpu"}
    assert begun["environment"].items() <= expected["environment"].items()
    assert server.events("training_started")[0]["name"] == calls[0]["json"]["name"]
    assert server.events("training_started")[0]["project"] == calls[0]["json"]["project"].partition("/")[2]
    epochs = [
        {name: value for name, value in data.items() if name != "system"} for data in recorded(story, "epoch_end")
    ]
    assert server.data("epoch_end") == epochs
    assert server.data("console_output")[0] == {
        **recorded("ok", "console_output")[0],
        "chunkId": int(BEGAN * 1000),
    }
    assert [(one.filename, one.size) for one in server.uploads] == [
        ("best.pt", call["body_size"]) for call in calls if call["method"] == "PUT"
    ]
    (complete,) = server.data("training_complete")
    (expected,) = recorded(story, "training_complete")
    del expected["results"]["validation"]
    expected["results"]["modelPath"] = f"gs://bucket/{server.uploads[-1].path}"
    assert complete == expected
    assert list(complete) == list(expected)
    assert server.requests[-1].headers["authorization"] == f"Bearer {server.key}"
    sizes = {request.size for request in server.requests if request.path == UPLOADS}
    assert sizes == {call["body_size"] for call in calls if call["path"] == UPLOADS}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("My Project", "my-project"),
        ("exp ok", "exp-ok"),
        ("a_b.c", "abc"),
        ("a - b", "a-b"),
        ("Ünï", "n"),
        ("?", "run"),
    ],
)
def test_slugs(name, expected):
    assert slug(name) == expected
    assert len(slug(name * 200)) <= 128


# Registering.


def test_what_is_said_of_a_run_names_no_path_and_no_command(server, connect, first):
    environment = {"host": "n", "executable": "/usr/bin/python", "command": "train.py", "cwd": "/home", "cpus": 2}
    connect().register(registration(first, config={"lr0": 0.1, "names": ["a"]}, environment=environment))
    (begun,) = server.data("training_started")
    assert begun["environment"] == {"hostname": "n", "cpuCount": 2}
    assert begun["trainArgs"] == {"lr0": "0.1"}
    assert begun["system"] == {}


def test_a_known_run_is_not_announced_again(server, connect, first, started):
    client, model_id = started
    assert client.register(registration(first)) == model_id
    fresh, again = later(connect, client, first)
    assert again == model_id
    assert fresh.url(again) == client.url(model_id) == f"{server.url}/u/p/t"
    fresh.send_events(again, [first.state("started")])
    assert server.names() == ["training_started"]


def test_a_wanted_model_is_announced_by_its_id_and_never_replaced(server, connect, first, started):
    wanted = started[1]
    client = connect()
    assert client.register(registration(first, wanted=wanted)) == wanted
    assert server.events("training_started")[1]["modelId"] == wanted
    server.gone.add(wanted)
    with pytest.raises(HubModelGone):
        client.send_events(wanted, [first.state("started"), Attempt().state("started")])
    with pytest.raises(HubModelGone):
        connect().register(registration(first, wanted=wanted))


def test_a_later_attempt_resumes_the_model(server, connect, first, started):
    client, model_id = started
    second = Attempt()
    fresh, _ = later(connect, client, first, second)
    fresh.send_events(model_id, [second.state("started"), second.metrics(0, {"fitness": 1.0})])
    assert [body.get("modelId") for body in server.events()] == [None, model_id, model_id]
    assert fresh.memory["announced"] == second.id
    assert fresh.memory["run_id"] == "run_0002"


def test_a_resumed_model_that_is_gone_is_made_anew(server, connect, first, started, tmp_path):
    client, model_id = started
    client.upload(model_id, *entry(tmp_path, "final"))
    second = Attempt()
    fresh, _ = later(connect, client, first, second)
    server.gone.add(model_id)
    fresh.send_events(model_id, [second.state("started"), second.metrics(0, {"fitness": 1.0})])
    new_id = fresh.memory["model_id"]
    assert new_id != model_id
    assert server.events()[-1]["modelId"] == new_id
    assert "model_path" not in fresh.memory, "it went with the model"
    fresh.upload(model_id, *entry(tmp_path))
    assert server.events()[-1]["modelId"] == new_id


def test_a_model_that_is_gone_in_between_is_said(server, started, first, tmp_path):
    client, model_id = started
    server.gone.add(model_id)
    with pytest.raises(HubModelGone):
        client.send_events(model_id, [first.metrics(0, {"fitness": 1.0})])
    with pytest.raises(HubModelGone):
        client.upload(model_id, *entry(tmp_path))


def test_a_wrong_key_is_said_each_time_and_forgotten_when_it_is_right(server, started, first):
    client, model_id = started
    server.fail(401, times=2)
    event = first.metrics(0, {"fitness": 1.0})
    for _ in range(2):
        with pytest.raises(HubUnauthorized):
            client.send_events(model_id, [event])
    assert client.send_events(model_id, [event]).accepted == 1
    assert len(server.data("epoch_end")) == 1


# Epochs.


def test_an_epoch_that_is_logged_in_one_piece_is_sent_at_once_and_once(server, started, first):
    client, model_id = started
    client.send_events(model_id, [first.metrics(0, {"train/loss": 1.0, "val/loss": 2.0})])
    assert server.data("epoch_end") == [{"epoch": 0, "metrics": {"train/loss": 1.0, "val/loss": 2.0}}]
    client.send_events(model_id, [first.metrics(1, {"metrics/map": 0.5}), first.state("finished")])
    assert [data["epoch"] for data in server.data("epoch_end")] == [0, 1]


def test_an_epoch_that_is_logged_step_by_step_is_sent_once_when_it_is_over(server, started, first):
    client, model_id = started
    for step in range(3):
        client.send_events(model_id, [first.metrics(0, {"loss": 3.0 - step})])
    assert not server.data("epoch_end")
    client.send_events(model_id, [first.metrics(1, {"loss": 0.5})])
    assert server.data("epoch_end") == [{"epoch": 0, "metrics": {"loss": 1.0}}]
    client.send_events(model_id, [first.state("failed", "boom")])
    assert [data["epoch"] for data in server.data("epoch_end")] == [0, 1]
    assert server.names()[-1] == "training_failed"


def test_results_that_come_together_make_one_request(server, started, first):
    client, model_id = started
    client.send_events(model_id, [first.metrics(0, {"val/a": float(step)}) for step in range(50)])
    assert server.data("epoch_end") == [{"epoch": 0, "metrics": {"val/a": 49.0}}]


def test_values_that_come_after_their_epoch_was_sent_are_not_lost(server, started, first):
    client, model_id = started
    client.send_events(model_id, [first.metrics(0, {"val/loss": 1.0})])
    client.send_events(model_id, [first.metrics(0, {"late": 2.0})])
    client.send_events(model_id, [first.metrics(1, {"val/loss": 1.0})])
    assert server.data("epoch_end")[1] == {"epoch": 0, "metrics": {"val/loss": 1.0, "late": 2.0}}
    assert [data["epoch"] for data in server.data("epoch_end")] == [0, 0, 1]


def test_other_ranks_and_metrics_without_an_epoch_are_not_sent(server, started, first):
    client, model_id = started
    events = [first.metrics(0, {"val/a": 1.0}, rank=1), first.metrics(None, {"val/a": 1.0}), first.event("rank")]
    assert client.send_events(model_id, events).accepted == 3
    assert server.names() == ["training_started"]


def test_numbers_that_json_has_not_are_null(server, started, first):
    client, model_id = started
    values = {"val/a": "NaN", "b": "-Infinity", "fitness": "NaN", "best_fitness": "Infinity", "c": 1.0}
    client.send_events(model_id, [first.metrics(0, values), first.state("finished")])
    (data,) = server.data("epoch_end")
    assert data == {
        "epoch": 0,
        "metrics": {"val/a": None, "b": None, "c": 1.0},
        "fitness": None,
        "best_fitness": None,
    }
    (complete,) = server.data("training_complete")
    assert complete["results"]["bestFitness"] is None


def test_final_values_are_an_epoch_behind_the_last(server, started, first):
    client, model_id = started
    client.send_events(model_id, [first.metrics(4, {"val/a": 1.0}), first.metrics(4, {"final/val/a": 0.5})])
    assert [data["epoch"] for data in server.data("epoch_end")] == [4, 5]
    assert server.data("epoch_end")[1]["metrics"] == {"val/a": 0.5}


def test_final_values_beside_others_do_not_hide_them(server, started, first):
    client, model_id = started
    client.send_events(model_id, [first.metrics(0, {"loss": 1.0})])
    client.send_events(model_id, [first.metrics(0, {"loss": 0.5, "final/val/a": 0.5}), first.state("finished")])
    assert server.data("epoch_end") == [
        {"epoch": 0, "metrics": {"loss": 0.5}},
        {"epoch": 1, "metrics": {"val/a": 0.5}},
    ]


# The end.


def test_a_complete_training_names_its_best_epoch_its_results_and_its_model(server, connect, first, tmp_path):
    client = connect()
    model_id = client.register(registration(first, config={"names": ["a", "b"]}))
    fitness = [0.1, 0.3, 0.3, 0.2]
    client.send_events(model_id, [first.metrics(n, {"metrics/m": n, "fitness": f}) for n, f in enumerate(fitness)])
    for kind, content in (("epoch", b"1"), ("best", b"22"), ("final", b"333"), ("best", b"4444"), ("epoch", b"5")):
        client.upload(model_id, *entry(tmp_path, kind, f"{kind}.pt", content))
    client.send_events(model_id, [first.state("finished")])
    (complete,) = server.data("training_complete")
    assert complete["results"] == {
        "metrics": {"metrics/m": 3, "fitness": 0.2},
        "bestEpoch": 1,
        "bestFitness": 0.3,
        "modelPath": f"gs://bucket/{server.uploads[2].path}",
        "modelSize": 3,
    }
    assert complete["classNames"] == ["a", "b"]
    assert complete["plots"] == []
    assert complete["runId"] == "run_0001"


def test_a_later_process_completes_with_what_an_earlier_one_uploaded(server, connect, first, started, tmp_path):
    client, model_id = started
    delivered = [first.state("started"), first.metrics(0, {"metrics/m": 1.0, "fitness": 0.7})]
    client.send_events(model_id, delivered)
    client.upload(model_id, *entry(tmp_path, "best", content=b"22"))
    fresh, _ = later(connect, client, first, recall=delivered)
    fresh.send_events(model_id, [first.state("finished")])
    (complete,) = server.data("training_complete")
    assert complete["results"]["bestFitness"] == 0.7
    assert complete["results"]["modelSize"] == 2
    assert len(server.data("epoch_end")) == 1


@pytest.mark.parametrize("state", [state for state in ENDED if state not in OF_ITSELF])
def test_another_end_is_a_failure_with_its_reason(server, started, first, state):
    client, model_id = started
    client.send_events(model_id, [first.state(state, "x" * 5000 + "end")])
    assert server.data("training_failed") == [
        {"error": "x" * 3997 + "end", "code": state, "runId": "run_0001"},
    ]
    client.send_events(model_id, [first.state(state)])
    assert server.data("training_failed")[1]["error"] == state


@pytest.mark.parametrize("state", OF_ITSELF)
def test_a_run_without_results_completes_too(server, started, first, state):
    """One that the hub stopped, too: the hub's own client ends so."""
    client, model_id = started
    client.send_events(model_id, [first.metrics(3, {"loss": 1.0}), first.state(state)])
    (complete,) = server.data("training_complete")
    assert complete["results"] == {"metrics": {"loss": 1.0}, "bestEpoch": 3, "bestFitness": None}
    assert complete["classNames"] == []


# Console.


def test_log_lines_have_times_and_numbers_of_their_own(server, started, first):
    client, model_id = started
    same = {"time": BEGAN}
    client.send_events(model_id, [first.log("one\ntwo", **same), first.log("", **same), first.log("three", 2, **same)])
    chunks = server.data("console_output")
    assert [chunk["chunkId"] for chunk in chunks] == [int(BEGAN * 1000) + n for n in range(3)]
    assert [chunk["lineCount"] for chunk in chunks] == [2, 1, 1]
    assert chunks[0]["content"] == "[2026-11-22 10:53:05] one\n[2026-11-22 10:53:05] two"
    assert chunks[2]["content"] == "[2026-11-22 10:53:05] [rank 2] three"


# Cancelling.


def test_cancelled_in_any_answer_stops_the_run(server, started, first, tmp_path):
    client, model_id = started
    assert client.heartbeat(model_id, first.id) is False
    assert client.send_events(model_id, [first.metrics(0, {"fitness": 0.0})]).stop is False
    server.cancelled = True
    assert client.send_events(model_id, [first.metrics(None, {"loss": 0.0})]).stop is False, "nothing was asked"
    client.upload(model_id, *entry(tmp_path))
    assert client.send_events(model_id, [first.metrics(None, {"loss": 0.0})]).stop is True
    assert client.heartbeat(model_id, first.id) is True


@pytest.mark.parametrize("what", ["training_started", "epoch_end", "training_progress"])
def test_cancelled_at_the_start_in_an_epoch_or_by_a_sign_of_life(server, connect, first, what):
    client = connect()
    server.cancelled = what == "training_started"
    model_id = client.register(registration(first))
    server.cancelled = True
    events = [first.metrics(0, {"fitness": 0.0})] if what == "epoch_end" else [first.event("rank")]
    if what == "training_progress":
        assert client.heartbeat(model_id, first.id)
        assert server.data("training_progress") == [{"runId": "run_0001"}]
    assert client.send_events(model_id, events).stop is True


# What goes wrong on the way.


def test_what_was_sent_is_not_sent_again_when_a_later_event_fails(server, started, first):
    client, model_id = started
    events = [
        first.metrics(0, {"fitness": 0.1}),
        first.log("between"),
        first.metrics(1, {"loss": 0.2}),
        first.state("finished"),
    ]
    server.fail(503, "training_complete")
    with pytest.raises(HubUnavailable):
        client.send_events(model_id, events)
    answer = client.send_events(model_id, events)
    assert (answer.accepted, answer.duplicates) == (1, 3)
    assert server.names() == ["training_started", "epoch_end", "console_output", "epoch_end", "training_complete"]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_every_webhook_is_sent_until_it_is_taken(server, started, first, status):
    client, model_id = started
    events = [first.metrics(0, {"fitness": 0.1}), first.log("x"), first.state("finished")]
    for event in ("epoch_end", "console_output", "training_complete"):
        server.fail(status, event)
        with pytest.raises(HubUnavailable):
            client.send_events(model_id, events)
    client.send_events(model_id, events)
    assert server.names() == ["training_started", "epoch_end", "console_output", "training_complete"]


def test_a_lost_answer_is_the_one_case_that_doubles(server, started, first):
    client, model_id = started
    event = first.metrics(0, {"fitness": 0.1})
    server.drop("epoch_end")
    with pytest.raises(HubUnavailable):
        client.send_events(model_id, [event])
    client.send_events(model_id, [event])
    assert len(server.data("epoch_end")) == 2


def halve(client, model_id, events, aside):
    """As Delivery finds the events that a hub refuses."""
    try:
        client.send_events(model_id, events)
    except HubRejected:
        if len(events) == 1:
            aside += events
            return
        halve(client, model_id, events[: len(events) // 2], aside)
        halve(client, model_id, events[len(events) // 2 :], aside)


def test_a_refused_event_is_found_by_halving_and_holds_up_nothing(server, started, first):
    client, model_id = started
    events = [
        first.metrics(0, {"fitness": 0.1}),
        first.log("a"),
        first.log("refused"),
        first.metrics(1, {"val/a": 1.0}),
    ]
    take = server.answer

    def answer(request, body):
        is_bad = "refused" in str(request.json)
        return (422, {"error": "no"}) if is_bad else take(request, body)

    server.answer = answer
    aside = []
    halve(client, model_id, events, aside)
    assert aside == [events[2]]
    assert server.names() == ["training_started", "epoch_end", "console_output", "epoch_end"]


def test_values_of_one_epoch_that_are_refused_are_found_too(server, started, first):
    """Neighbours go in one request: the good ones of them must still arrive."""
    client, model_id = started
    events = [
        first.metrics(0, {"val/a": 1.0}),
        first.metrics(0, {"val/refused": 1.0}),
        first.metrics(0, {"val/b": 1.0}),
    ]
    take = server.answer
    server.answer = lambda request, body: (422, {}) if "refused" in str(request.json) else take(request, body)
    aside = []
    halve(client, model_id, events, aside)
    assert aside == [events[1]]
    assert server.data("epoch_end")[-1]["metrics"] == {"val/a": 1.0, "val/b": 1.0}


def test_an_epoch_that_waited_and_is_refused_costs_no_later_event(server, started, first, caplog):
    client, model_id = started
    take = server.answer
    server.answer = lambda request, body: (422, {}) if "refused" in str(request.json) else take(request, body)
    events = [first.metrics(0, {"refused": 1.0}), first.metrics(1, {"val/a": 1.0}), first.state("finished")]
    aside = []
    halve(client, model_id, events, aside)
    for event in aside:
        client.send_events(model_id, [event])
    assert server.names() == ["training_started", "epoch_end", "training_complete"]
    assert server.data("epoch_end") == [{"epoch": 1, "metrics": {"val/a": 1.0}}]
    assert "epoch 0 is not on the hub" in caplog.text


def test_no_events_ask_whether_the_hub_is_in_its_senses(server, started):
    client, model_id = started
    client.send_events(model_id, [])
    server.fail(400)
    with pytest.raises(HubRejected):
        client.send_events(model_id, [])


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_process_that_ends_between_two_deliveries_loses_no_epoch_and_sends_none_twice(
    server, connect, first, started, cut
):
    """The journal's offset stands behind `cut` events; a later process recalls those and goes on with the rest."""
    client, model_id = started
    second = Attempt()
    events = [
        first.metrics(0, {"loss": 2.0}),
        first.metrics(0, {"loss": 1.0}),
        first.log("x"),
        first.metrics(1, {"loss": 0.5}),
        first.metrics(1, {"val/loss": 0.6}),
        second.state("started"),
        second.metrics(2, {"loss": 0.4}),
        second.metrics(2, {"final/val/loss": 0.3}),
        second.state("finished"),
    ]
    client.send_events(model_id, events[:cut])
    fresh, _ = later(connect, client, first, second, recall=events[:cut])
    fresh.send_events(model_id, events[cut:])
    assert server.names() == [
        "training_started",
        "console_output",
        "epoch_end",
        "epoch_end",
        "training_started",
        "epoch_end",
        "epoch_end",
        "training_complete",
    ]
    assert [(data["epoch"], data["metrics"]) for data in server.data("epoch_end")] == [
        (0, {"loss": 1.0}),
        (1, {"loss": 0.5, "val/loss": 0.6}),
        (2, {"loss": 0.4}),
        (3, {"val/loss": 0.3}),
    ]


def test_webhooks_of_several_threads_go_one_at_a_time(server, started, first, tmp_path):
    client, model_id = started
    inside, most = set(), []
    read = server.read

    def slow_read(request, handler):
        if request.path == WEBHOOKS:
            inside.add(handler)
            most.append(len(inside))
            time.sleep(0.01)
            inside.discard(handler)
        return read(request, handler)

    server.read = slow_read
    threads = [
        threading.Thread(target=client.send_events, args=(model_id, [first.log(str(n)) for n in range(10)])),
        threading.Thread(target=client.upload, args=(model_id, *entry(tmp_path))),
        threading.Thread(target=lambda: [client.heartbeat(model_id, "") for _ in range(5)]),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(most) == 10 + 1 + 5
    lines = [int(re.search(r"\] (\d+)", data["content"])[1]) for data in server.data("console_output")]
    assert lines == list(range(10))


# Checkpoints.


def test_a_checkpoint_arrives_byte_for_byte_without_the_key(server, started, tmp_path):
    client, model_id = started
    content = bytes(range(256)) * 20_000
    made = entry(tmp_path, "best", "best.pt", content)
    assert client.upload(model_id, *made).entry_id == made[0]
    (upload,) = server.uploads
    assert (upload.filename, upload.size, upload.sha256) == (
        "best.pt",
        len(content),
        hashlib.sha256(content).hexdigest(),
    )
    assert server.data("checkpoint_saved") == [
        {"modelPath": f"gs://bucket/{upload.path}", "runId": "run_0001", "uploadPath": upload.path}
    ]


def test_an_empty_file_is_a_checkpoint(server, started, tmp_path):
    client, model_id = started
    client.upload(model_id, *entry(tmp_path, content=b""))
    assert server.uploads[0].size == 0


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 500])
def test_a_place_that_has_expired_is_asked_for_again(server, started, tmp_path, status):
    client, model_id = started
    made = entry(tmp_path)
    server.fail(status, "put")
    with pytest.raises(HubUnavailable):
        client.upload(model_id, *made)
    client.upload(model_id, *made)
    assert [upload.size for upload in server.uploads] == [None, 7]
    assert len(server.data("checkpoint_saved")) == 1


def test_bytes_that_are_there_are_not_sent_again_when_only_the_webhook_failed(server, started, tmp_path):
    client, model_id = started
    made = entry(tmp_path)
    for status in (503, 401):
        server.fail(status, "checkpoint_saved")
        with pytest.raises((HubUnavailable, HubUnauthorized)):
            client.upload(model_id, *made)
    client.upload(model_id, *made)
    assert len(server.uploads) == 1
    server.fail(422, "checkpoint_saved")
    with pytest.raises(HubRejected):
        client.upload(model_id, *entry(tmp_path))


def test_a_folder_is_refused(server, started, tmp_path):
    client, model_id = started
    entry_id, request, files = entry(tmp_path)
    with pytest.raises(HubRejected, match="one file"):
        client.upload(model_id, entry_id, {**request, "files": request["files"] * 2}, files)
    assert not server.uploads


def test_what_the_service_cannot_tell(started):
    client, model_id = started
    assert client.newest_checkpoint(model_id, ("epoch",)) is None
    assert client.find_model("p", "run") is None
    assert client.find_checkpoint(model_id, "e") is None
    assert (client.is_idempotent, client.ends_last, client.heartbeat_s) == (False, True, None)

"""The HUB v1 client against the recorded service: it sends what was recorded, and no epoch is lost or halved."""

import hashlib
import json
import math
import re

import pytest
from hub_v1_server import KEY, HubV1Server
from platform_server import capture
from run_events import Attempt, entry, registration

from ddphub.errors import HubModelGone, HubRejected, HubUnauthorized, HubUnavailable
from ddphub.hubs.ultralytics_hub import HubV1Client

TRAIN = capture("hub-v1")["train"]
POSTS = [call for call in TRAIN if call.get("json", {}).get("type") == "metrics"]
FORMS = [call for call in TRAIN if "multipart" in call]


@pytest.fixture
def server():
    with HubV1Server() as playing:
        yield playing


@pytest.fixture
def connect(server):
    """Makes clients; a second one stands for a later process."""
    made = []

    def connect(key=KEY):
        made.append(HubV1Client(server.url, key))
        return made[-1]

    yield connect
    for client in made:
        client.close()


@pytest.fixture
def first():
    return Attempt()


def shown(server, model_id, epoch):
    """What the hub has of an epoch."""
    return json.loads(server.metrics[model_id][str(epoch)])


# What was recorded.


def test_metrics_are_the_recorded_bytes(server, connect, first):
    """The last recorded post is whole, so its length counts; the others are cut off in the recording."""
    for call in POSTS:
        client = connect()
        ((epoch, text),) = call["json"]["metrics"].items()
        values = {name: float(value) for name, value in re.findall(r'"([^"]+)": ([-+.e0-9]+)[,}]', text)}
        client.send_events(client.register(registration(first)), [first.metrics(int(epoch), values)])
        assert server.posts[-1]["metrics"][epoch].startswith(text.rpartition(",")[0])
    assert server.posts[-1] == POSTS[-1]["json"]
    assert server.requests[-1].size == POSTS[-1]["body_size"]


def test_uploads_are_the_recorded_forms(server, connect, first, tmp_path):
    client = connect()
    model_id = client.register(registration(first))
    for call in FORMS:
        fields = {part["name"]: part.get("value") for part in call["multipart"]}
        kind = "final" if fields["type"] == "final" else "best"
        metrics = {"metrics/mAP50-95(B)": float(fields["map"])} if kind == "final" else {}
        made = entry(tmp_path, kind, "any.pt", b"x" * 100, epoch=int(fields["epoch"]), metrics=metrics)
        assert client.upload(model_id, *made).entry_id == made[0]
        form = server.forms[-1]
        assert form.fields == [(part["name"], part["value"]) for part in call["multipart"][:-1]]
        assert form.file == (call["multipart"][-1]["name"], call["multipart"][-1]["filename"])
        assert form.overhead == call["body_size"] - call["multipart"][-1]["size"]
        assert form.sha256 == hashlib.sha256(b"x" * 100).hexdigest()


def test_heartbeats_are_the_recorded_ones_and_send_the_agents_id_back(server, connect, first):
    recorded = TRAIN[1]
    client = connect()
    model_id = client.register(registration(first))
    assert client.heartbeat(model_id, first.id) is False
    agent = server.heartbeats[0]["agent"]
    assert server.heartbeats[0] == {**recorded["json"], "agent": agent}
    assert server.requests[-1].size - len(agent) == recorded["body_size"] - len(recorded["json"]["agent"])
    assert client.memory == {"agent_id": recorded["response"]["json"]["data"]["agentId"]}
    later = connect()
    later.register(registration(first, known=model_id, memory=client.memory))
    later.heartbeat(model_id, first.id)
    assert server.heartbeats[1]["agentId"] == "agent-mmmmmm"


# Models.


def test_a_model_is_made_with_what_the_configuration_says_and_without_local_paths(server, connect, first):
    config = {
        "batch": 4,
        "epochs": 2,
        "imgsz": 32,
        "patience": 100,
        "device": "cpu",
        "cache": False,
        "data": "/home/someone/data/coco8.yaml",
        "model": "/home/someone/yolov8n.pt",
        "save_dir": "/home/someone/runs",
        "lr0": 0.01,
    }
    connect().register(registration(first, config=config))
    assert server.created == [
        {
            "meta": {"name": "exp ok"},
            "config": {
                "batchSize": 4,
                "epochs": 2,
                "imageSize": 32,
                "patience": 100,
                "device": "cpu",
                "cache": "False",
            },
            "dataset": {"name": "coco8.yaml"},
            "lineage": {"architecture": {"name": "yolov8n"}, "parent": {"name": "yolov8n.pt"}},
        }
    ]


def test_a_run_that_is_no_ultralytics_run_makes_a_model_with_its_name(server, connect, first):
    connect().register(registration(first, config={"batch": 0.7, "model": {"layers": 3}, "imgsz": [32, 64]}))
    assert server.created == [{"meta": {"name": "exp ok"}}]


def test_a_known_model_is_not_asked_for(server, connect, first):
    client = connect()
    model_id = client.register(registration(first))
    assert client.register(registration(first)) == model_id
    assert connect().register(registration(first, known=model_id)) == model_id
    assert len(server.requests) == 1


def test_a_wanted_model_is_taken_unless_it_is_trained_or_gone(server, connect, first):
    wanted = server.add_model(status="training")
    assert connect().register(registration(first, wanted=wanted)) == wanted
    with pytest.raises(HubRejected, match="already trained") as refused:
        connect().register(registration(first, wanted=server.add_model(status="trained")))
    assert refused.value.status == 409
    with pytest.raises(HubModelGone):
        connect().register(registration(first, wanted="nosuchmodel"))
    assert not server.created


def test_where_a_person_looks(monkeypatch):
    monkeypatch.delenv("ULTRALYTICS_HUB_WEB", raising=False)
    assert HubV1Client("https://api.ultralytics.com", None).url("m") == "https://hub.ultralytics.com/models/m"
    assert HubV1Client("https://hub.example.org", None).url("m") == "https://hub.example.org/models/m"
    monkeypatch.setenv("ULTRALYTICS_HUB_WEB", "https://web.example.org/")
    assert HubV1Client("https://hub.example.org", None).url("m") == "https://web.example.org/models/m"


def test_a_wrong_key_is_said_each_time(server, connect, first):
    client = connect("wrong")
    for _ in range(2):
        with pytest.raises(HubUnauthorized):
            client.register(registration(first))
    with pytest.raises(HubUnauthorized):
        client.check_key()
    connect().check_key()


# Events.


def test_only_rank_0s_metrics_of_an_epoch_are_sent_and_all_events_count(server, connect, first):
    client = connect()
    model_id = client.register(registration(first))
    events = [
        first.state("started"),
        first.metrics(None, {"loss": 1.0}),
        first.metrics(0, {"loss": 2.0}, rank=1),
        first.log("hello"),
        first.metrics(0, {"loss": 0.5, "inf": "-Infinity", "nan": "NaN", "flag": True}),
        first.state("finished"),
    ]
    assert client.send_events(model_id, events).accepted == 6
    assert len(server.posts) == 1
    sent = server.posts[0]["metrics"]
    assert sent == {"0": '{"loss": 0.5, "inf": -Infinity, "nan": NaN, "flag": true}'}


def test_an_epoch_is_always_sent_whole(server, connect, first):
    """The hub replaces it: values that came in an earlier call must come again."""
    client = connect()
    model_id = client.register(registration(first))
    client.send_events(model_id, [first.metrics(0, {"loss": 2.0}), first.metrics(1, {"loss": 1.0})])
    client.send_events(model_id, [first.metrics(1, {"accuracy": 0.9})])
    assert server.posts[1]["metrics"] == {"1": '{"loss": 1.0, "accuracy": 0.9}'}
    assert shown(server, model_id, 0) == {"loss": 2.0}


def test_final_values_stand_behind_those_of_their_epoch(server, connect, first):
    client = connect()
    model_id = client.register(registration(first))
    events = [first.metrics(1, {"val/loss": 0.4, "map": 0.5}), first.metrics(1, {"final/map": 0.6, "final/x": 1.0})]
    client.send_events(model_id, events)
    assert shown(server, model_id, 1) == {"val/loss": 0.4, "map": 0.5, "x": 1.0}
    client.send_events(model_id, [first.metrics(2, {"final/map": 0.6})])
    assert shown(server, model_id, 2) == {"map": 0.6}


def test_the_newer_attempt_wins_even_when_the_older_ones_events_come_last(server, connect, first):
    second = Attempt()
    client = connect()
    model_id = client.register(registration(first, second))
    client.send_events(model_id, [second.metrics(0, {"loss": 2.0})])
    client.send_events(model_id, [first.metrics(0, {"loss": 1.0, "only": 1.0})])
    assert shown(server, model_id, 0) == {"loss": 2.0, "only": 1.0}


def test_a_later_process_knows_the_epochs_again(server, connect, first):
    client = connect()
    model_id = client.register(registration(first))
    delivered = [first.metrics(0, {"loss": 2.0}), first.metrics(0, {"val/loss": 1.0})]
    client.send_events(model_id, delivered)
    second = Attempt()
    later = connect()
    later.register(registration(first, second, known=model_id, memory=client.memory))
    before = len(server.requests)
    later.recall(delivered)
    assert len(server.requests) == before
    assert later.send_events(model_id, [*delivered, second.metrics(0, {"loss": 3.0})]).duplicates == 2
    assert shown(server, model_id, 0) == {"loss": 3.0, "val/loss": 1.0}


@pytest.mark.parametrize("status", [500, 502, 503, 429, 302])
def test_what_was_not_answered_is_sent_again_and_arrives(server, connect, first, status):
    client = connect()
    model_id = client.register(registration(first))
    events = [first.metrics(0, {"loss": 1.0})]
    server.fail(status, "metrics", Retry_After="7")
    with pytest.raises(HubUnavailable) as refused:
        client.send_events(model_id, events)
    assert refused.value.retry_after == 7
    assert client.send_events(model_id, events).accepted == 1
    server.drop("metrics")
    more = [first.metrics(1, {"loss": 1.0})]
    with pytest.raises(HubUnavailable):
        client.send_events(model_id, more)
    client.send_events(model_id, more)
    assert set(server.metrics[model_id]) == {"0", "1"}


def test_a_refused_event_leaves_no_trace_in_its_epoch(server, connect, first):
    """Delivery halves a refused batch until it has found the event; what the others say is sent without it."""
    client = connect()
    model_id = client.register(registration(first))
    good, bad = first.metrics(0, {"loss": 1.0}), first.metrics(0, {"bad": 1.0})
    server.fail(422, "metrics", 2)
    for events in ([good, bad], [bad]):
        with pytest.raises(HubRejected):
            client.send_events(model_id, events)
    client.send_events(model_id, [good])
    assert shown(server, model_id, 0) == {"loss": 1.0}


def test_no_events_ask_whether_the_hub_is_in_its_senses(server, connect, first):
    client = connect()
    model_id = client.register(registration(first))
    assert client.send_events(model_id, []).accepted == 0
    server.fail(400)
    with pytest.raises(HubRejected):
        client.send_events(model_id, [])


# Checkpoints.


@pytest.mark.parametrize(
    ("kind", "metrics", "fields"),
    [
        ("epoch", {}, [("epoch", "3"), ("type", "epoch"), ("isBest", "False")]),
        ("epoch", {"is_best": True}, [("epoch", "3"), ("type", "epoch"), ("isBest", "True")]),
        ("best", {}, [("epoch", "3"), ("type", "epoch"), ("isBest", "True")]),
        ("final", {}, [("epoch", "3"), ("type", "final"), ("map", "0.0")]),
        ("final", {"map": 0.25}, [("epoch", "3"), ("type", "final"), ("map", "0.25")]),
        ("final", {"map": 0.25, "metrics/mAP50-95(B)": 0.5}, [("epoch", "3"), ("type", "final"), ("map", "0.5")]),
        ("final", {"map": "NaN"}, [("epoch", "3"), ("type", "final"), ("map", "0.0")]),
    ],
)
def test_what_a_form_says_of_a_checkpoint(server, connect, first, tmp_path, kind, metrics, fields):
    client = connect()
    model_id = client.register(registration(first))
    client.upload(model_id, *entry(tmp_path, kind, epoch=3, metrics=metrics))
    assert server.forms[-1].fields == fields


def test_a_checkpoint_without_an_epoch_gets_the_newest_that_metrics_named(server, connect, first, tmp_path):
    client = connect()
    model_id = client.register(registration(first))
    client.upload(model_id, *entry(tmp_path, epoch=None))
    client.send_events(model_id, [first.metrics(7, {"loss": 1.0})])
    client.upload(model_id, *entry(tmp_path, epoch=None))
    assert [form.fields[0] for form in server.forms] == [("epoch", "0"), ("epoch", "7")]


def test_a_folder_is_refused_and_a_missing_file_is_said(server, connect, first, tmp_path):
    client = connect()
    model_id = client.register(registration(first))
    entry_id, request, files = entry(tmp_path)
    several = {**request, "files": [*request["files"], {**request["files"][0], "name": "b"}]}
    for wrong in (several, {**request, "files": [{**request["files"][0], "name": "folder/a"}]}):
        with pytest.raises(HubRejected, match="one file") as refused:
            client.upload(model_id, entry_id, wrong, files)
        assert refused.value.status == 422
    files["last.pt"].unlink()
    with pytest.raises(FileNotFoundError):
        client.upload(model_id, entry_id, request, files)
    assert not server.forms


def test_an_upload_that_fails_is_repeated_whole(server, connect, first, tmp_path):
    client = connect()
    model_id = client.register(registration(first))
    made = entry(tmp_path, content=b"y" * 3_000_000)
    server.fail(502, "upload")
    with pytest.raises(HubUnavailable):
        client.upload(model_id, *made)
    client.upload(model_id, *made)
    assert [form.sha256 for form in server.forms] == [hashlib.sha256(b"y" * 3_000_000).hexdigest()]


def test_the_newest_checkpoint_is_the_one_to_resume_from_or_the_weights(server, connect, tmp_path):
    server.files = {"/signed/last": b"last bytes", "/own/best": b"best bytes"}
    model_id = server.add_model(
        resume=f"{server.url}/signed/last?Signature=zz", weights=f"{server.url}/own/best", has_best_weights=True
    )
    client = connect()
    for kinds, kind, name, content, has_key in (
        (("epoch", "best", "final"), "epoch", "last.pt", b"last bytes", False),
        (("final",), "final", "best.pt", b"best bytes", True),
    ):
        newest = client.newest_checkpoint(model_id, kinds)
        assert (newest.kind, newest.name) == (kind, name)
        client.download(newest.files[0], tmp_path / name)
        assert (tmp_path / name).read_bytes() == content
        assert ("x-api-key" in server.requests[-1].headers) is has_key


def test_no_checkpoint_where_the_hub_has_none_of_its_own(server, connect):
    fresh = server.add_model(weights="https://example.org/pretrained.pt", is_pretrained=True)
    assert connect().newest_checkpoint(fresh, ("epoch", "best", "final")) is None
    local = server.add_model(resume="file:///etc/passwd")
    assert connect().newest_checkpoint(local, ("epoch",)) is None


def test_what_the_protocol_cannot_tell(connect):
    client = connect()
    assert client.find_model("p", "run") is None
    assert client.find_checkpoint("m", "e") is None
    assert (client.is_idempotent, client.ends_last, client.heartbeat_s) == (False, False, None)
    assert math.isfinite(client.part_size)

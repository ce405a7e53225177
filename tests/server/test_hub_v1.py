"""HUB v1: what its clients report is kept once, and what they read lets them start, resume or refuse."""

import json
import re
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from hub_talk import Talk, attempt_event, metrics_event, problem
from hub_v1_talk import V1, at_once, fetch

# Models --------------------------------------------------------------------------------------------------------------


def test_a_new_model_tells_the_client_how_to_begin(v1):
    data = v1.get()
    arguments = {"batch": 4, "epochs": 2, "imgsz": 32, "patience": 50, "cache": False, "data": "coco8.yaml"}
    assert len(data["id"]) == 20
    assert data["train_args"] == arguments
    assert {name: data[name] for name in ("epochs", "imgsz", "patience", "cache", "data")}.items() <= arguments.items()
    assert (data["batch_size"], data["device"]) == (4, None)
    assert (data["status"], data["state"], data["name"], data["meta"]) == (
        "new",
        "new",
        "yolov8n.yaml",
        {"name": "yolov8n.yaml"},
    )
    assert (data["cfg"], data["weights"], data["resume"]) == ("/data/nets/yolov8n.yaml", None, None)
    for name in ("has_last_weights", "has_best_weights", "is_pretrained", "is_custom"):
        assert data[name] is False
    assert (data["project"], data["run_id"]) == ("default", None)


def test_a_model_with_a_parent_begins_with_its_weights(hub):
    lineage = {"architecture": {"name": "yolov8n"}, "parent": {"name": "yolov8n.pt"}}
    data = V1(hub, meta={"name": "yolov8n.pt"}, lineage=lineage).get()
    assert (data["cfg"], data["weights"], data["is_pretrained"]) == (None, "yolov8n.pt", True)
    assert (data["status"], data["has_best_weights"]) == ("new", False)


@pytest.mark.parametrize(
    ("name", "cfg", "weights"), [("net.yaml", "net.yaml", None), ("net.pt", None, "net.pt"), ("net", None, None)]
)
def test_without_a_lineage_the_name_says_what_to_begin_with(hub, name, cfg, weights):
    data = V1(hub, meta={"name": name}, lineage=None).get()
    assert (data["cfg"], data["weights"]) == (cfg, weights)


def test_a_model_without_a_config_has_one_that_a_trainer_can_use(hub):
    answer = hub.client().post(f"{hub.url}/v1/models", json={})
    data = answer.json()["data"]
    assert (data["batch_size"], data["epochs"], data["imgsz"], data["patience"]) == (16, 100, 640, 100)
    assert data["train_args"] == {"batch": 16, "epochs": 100, "imgsz": 640, "patience": 100}
    assert data["data"] is None  # with no dataset both clients refuse


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("a/b/net.pt", "net.pt"), ("C:\\nets\\net.pt", "net.pt"), ("net.pt", "net.pt"), ("/net", "net")],
)
def test_a_name_that_is_a_path_is_shortened(hub, sent, kept):
    assert V1(hub, meta={"name": sent}).get()["name"] == kept


@pytest.mark.parametrize("name", ["", "a/", "..", "a/..", "a\nb", "x" * 129, 3, None, "\x00"])
def test_a_name_that_cannot_be_one_is_refused(hub, name):
    problem(hub.client().post(f"{hub.url}/v1/models", json={"meta": {"name": name}}), 422)


@pytest.mark.parametrize("field", ["meta", "config", "dataset", "lineage"])
@pytest.mark.parametrize("value", [[], 3, "text", False])
def test_a_field_of_another_type_is_refused(hub, field, value):
    problem(hub.client().post(f"{hub.url}/v1/models", json={field: value}), 422)


def test_a_project_is_named_by_its_id_or_its_name(hub):
    talk = Talk(hub)
    project_id = talk.get()["project_id"]
    assert V1(hub, projectId=project_id).get()["project"] == talk.project
    url, http = f"{hub.url}/v1/models", hub.client()
    assert "no such project" in problem(http.post(url, json={"projectId": "x" * 20}), 404)["detail"]
    problem(http.post(url, json={"projectId": project_id, "project": talk.project}), 422)


def test_a_change_is_seen_in_every_field_that_comes_of_it(v1):
    change = {"meta": {"name": "dir/better.yaml", "tag": 1}, "config": {"epochs": 7}, "dataset": {"name": "d.yaml"}}
    answer = v1.http.patch(v1.url(), json=change)
    assert answer.status_code == 200, answer.text
    data = v1.get()
    assert answer.json()["data"]["name"] == data["name"] == "better.yaml"
    assert data["meta"] == {"name": "better.yaml", "tag": 1}
    assert data["train_args"]["epochs"] == 7
    assert data["train_args"]["batch"] == 4
    assert data["data"] == "d.yaml"


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ([], 422),
        ({"meta": {"name": ".."}}, 422),
        ({"meta": 3}, 422),
        ({"config": []}, 422),
        ({"project": "other"}, 422),
        ({"projectId": "x"}, 422),
        ({"config": {"a": float("inf")}}, 400),
    ],
)
def test_a_change_that_cannot_be_changes_nothing(v1, change, status):
    before = v1.get()
    sent = json.dumps(change)
    problem(v1.http.patch(v1.url(), data=sent, headers={"content-type": "application/json"}), status)
    assert v1.get() == before


def test_changes_do_not_let_a_model_grow_without_end(v1):
    for number in range(2):
        answer = v1.http.patch(v1.url(), json={f"field {number}": "x" * 3_000_000})
    problem(answer, 413)
    assert v1.get()["name"] == "yolov8n.yaml"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/projects"),
        ("PATCH", "/v1/projects/x"),
        ("DELETE", "/v1/projects/x"),
        ("POST", "/v1/projects/x/upload"),
        ("POST", "/v1/datasets"),
        ("GET", "/v1/datasets"),
        ("POST", "/v1/datasets/x/upload"),
        ("POST", "/v1/models/x/export"),
        ("POST", "/v1/predict/x"),
    ],
)
def test_what_this_hub_does_not_do_it_says(hub, method, path):
    assert "this hub" in problem(hub.client().request(method, hub.url + path), 501)["detail"]
    problem(requests.request(method, hub.url + path), 401)


@pytest.mark.parametrize(("method", "path"), [("POST", ""), ("POST", "/upload"), ("PATCH", ""), ("DELETE", "")])
def test_a_key_is_needed_before_anything_is_read(v1, method, path):
    answer = requests.request(method, v1.url(path), data=b"x" * 100)
    assert problem(answer, 401)
    problem(hub_client(v1).request(method, v1.url(path).replace(v1.model_id, "n" * 20), json={"metrics": {}}), 404)


def hub_client(v1):
    return v1.hub.client()


# Heartbeats and states -----------------------------------------------------------------------------------------------


def test_a_heartbeat_starts_the_only_attempt(v1):
    agent = v1.beat()["agentId"]
    assert agent
    assert v1.beat(agent) == {"agentId": agent, "stop": False}
    data = v1.get()
    assert (data["state"], data["status"]) == ("running", "new")
    (attempt,) = data["attempts"]
    assert (attempt["number"], attempt["state"], attempt["ended_at"]) == (1, "started", None)
    assert data["events"] == 1


def test_a_v1_run_is_given_three_of_its_own_heartbeats(start_hub):
    """It beats every 300 s, whatever the hub asks of others."""
    hub = start_hub(arguments=("--heartbeat-s", "0.2"))
    v1, talk = V1(hub), Talk(hub)
    v1.beat()
    talk.accepted(attempt_event(talk.attempt_id, 0, "started"))
    talk.wait_until(lambda: talk.get()["state"] == "lost")
    assert v1.get()["state"] == "running"


def test_a_model_is_new_then_training_then_trained(v1):
    v1.beat()
    v1.metrics({"0": {"a": 1}})
    assert v1.get()["status"] == "new"  # there is nothing to resume from
    v1.epoch(0)
    assert (v1.get()["status"], v1.get()["state"]) == ("training", "running")
    v1.final(1)
    data = v1.get()
    assert (data["status"], data["state"]) == ("trained", "finished")
    (attempt,) = data["attempts"]
    assert attempt["ended_at"] >= attempt["started_at"]
    v1.beat()  # the client's thread goes on after the end
    v1.epoch(1, content=b"late")
    assert v1.get()["status"] == "trained"
    assert [one["status"] for one in listed(v1) if one["id"] == v1.model_id] == ["trained"]


def listed(v1):
    return v1.http.get(f"{v1.hub.url}/v1/models", params={"limit": 1000}).json()["data"]["results"]


def test_the_status_of_other_runs_stays_what_it_was(talk):
    talk.accepted(attempt_event(talk.attempt_id, 0, "started"))
    assert talk.get()["status"] == "training"


def test_the_wire_that_was_captured_is_answered(hub):
    """What ultralytics 8.0.217 sent, request by request."""
    v1 = V1(hub)
    v1.beat()
    v1.metrics({"0": {"train/box_loss": 1e-05, "metrics/mAP50-95(B)": 0.0, "model/GFLOPs": 8.7}})
    v1.epoch(0, best=True)
    v1.metrics({"1": {"train/box_loss": 1e-05, "metrics/mAP50-95(B)": 0.0, "val/box_loss": float("nan")}})
    v1.epoch(1, best=True, content=b"second")
    v1.metrics({"1": {"train/box_loss": 1e-05, "metrics/mAP50-95(B)": 0.0}})
    v1.final(1, content=b"stripped", map=0.0)
    assert [epoch for epoch, _ in v1.stored()] == [0, 1, 1]
    assert [one["kind"] for one in v1.get("/checkpoints")] == ["best", "best", "final"]
    assert v1.get()["status"] == "trained"
    assert fetch(v1.get()["weights"]).content == b"stripped"
    assert re.fullmatch("[0-9a-f]{32}", v1.get()["attempts"][0]["attempt_id"])
    assert Path(urlsplit(v1.get()["resume"]).path).suffix == ".pt"


# Metrics -------------------------------------------------------------------------------------------------------------


def test_metrics_become_events_of_rank_zero(v1):
    answer = v1.metrics({"0": {"loss": 1.5, "map(B)": 0}, "1": '{"loss": NaN, "up": Infinity, "down": -Infinity}'})
    assert answer.json()["data"] == {"accepted": 2, "duplicates": 0, "stop": False}
    first, second = v1.get("/metrics")
    assert (first["rank"], first["attempt"], first["step"], first["epoch"]) == (0, 1, 0, 0)
    assert first["values"] == {"loss": 1.5, "map(B)": 0}
    assert (second["step"], second["epoch"]) == (1, 1)
    assert second["values"] == {"loss": "NaN", "up": "Infinity", "down": "-Infinity"}
    assert v1.get("/metrics?name=loss")[0]["values"] == {"loss": 1.5}


def test_the_same_metrics_again_are_nothing_new_and_others_are_kept_beside_them(v1):
    first, final = {"train/loss": 1.0, "val/loss": 2.0}, {"train/loss": 1.0, "map": 0.5}
    v1.metrics({"0": {"a": 1}, "1": first})
    assert v1.metrics({"1": first}).json()["data"] == {"accepted": 0, "duplicates": 1, "stop": False}
    v1.metrics({"1": final})
    assert v1.metrics({"1": first, "0": {"a": 1}}).json()["data"]["duplicates"] == 2
    assert v1.stored() == [(0, {"a": 1}), (1, first), (1, final)]
    assert v1.get()["events"] == 4  # and the start


@pytest.mark.parametrize("ahead", [-60, 3600])
def test_the_newest_of_two_values_is_the_latest(v1, ahead):
    """Whatever the hub's clock said when the first one came."""
    v1.beat()
    (attempt,) = v1.get()["attempts"]
    v1.accepted(metrics_event(attempt["attempt_id"], 7, time=time.time() + ahead, epoch=3, values={"x": 1.5}))
    v1.metrics({"3": {"x": 2.5}})
    assert {one["name"]: one["latest"] for one in v1.get("/series")["results"]} == {"x": 2.5}


WRONG_METRICS = {
    "no JSON": "{",
    "a list": "[]",
    "a number": "3",
    "text in it": '{"a": "text"}',
    "null in it": '{"a": null}',
    "an object in it": '{"a": {}}',
    "an empty name": '{"": 1}',
    "a name with NUL": '{"\\u0000": 1}',
    "a long name": json.dumps({"x" * 257: 1}),
    "70 bits": json.dumps({"a": 2**70}),
    "nested without end": "[" * 100_000,
    "too many names": json.dumps({str(number): 1 for number in range(1001)}),
    "too many bytes": json.dumps({"x" * 200 + str(number): 1 for number in range(400)}),
}


@pytest.mark.parametrize("text", WRONG_METRICS.values(), ids=WRONG_METRICS.keys())
def test_metrics_that_cannot_be_are_refused_with_all_that_came_with_them(v1, text):
    problem(v1.metrics({"0": {"a": 1}, "1": text, "2": {"a": 1}}), 422)
    assert v1.stored() == []
    assert v1.get()["attempts"] == []


@pytest.mark.parametrize("key", ["", "-1", "x", "1.0", "01", " 1", "1" * 19, "\u0661"])
def test_an_epoch_is_a_number_from_zero(v1, key):
    problem(v1.metrics({key: {"a": 1}}), 422)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ([], 422),
        ({}, 422),
        ({"metrics": []}, 422),
        ({"metrics": {"0": {"a": 1}}}, 422),
        ({"metrics": {}, "type": "other"}, 422),
        ({"metrics": {str(epoch): "{}" for epoch in range(1000)}}, 413),
    ],
)
def test_a_body_of_another_shape_is_refused(v1, body, status):
    problem(v1.http.post(v1.url(), json=body), status)
    assert v1.stored() == []


def test_metrics_sent_twice_at_once_are_kept_once(v1):
    epochs = {str(epoch): {"a": epoch / 3} for epoch in range(50)}
    answers = at_once(4, lambda: v1.metrics(epochs))
    assert {answer.status_code for answer in answers} == {200}
    assert len(v1.stored()) == 50

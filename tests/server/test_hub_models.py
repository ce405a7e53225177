"""Models, attempts and ranks: what the hub says of a run is what the events say."""

import itertools
import threading
import time

import pytest
import requests
from hub_talk import Talk, attempt_event, manifest, metrics_event, new_id, problem, rank_event


def create(hub, body, run_id=None):
    headers = {} if run_id is None else {"Idempotency-Key": run_id}
    return hub.client().post(f"{hub.url}/v1/models", json=body, headers=headers)


def test_capabilities_say_what_the_hub_can_do(hub):
    data = hub.client().get(f"{hub.url}/v1/capabilities").json()["data"]
    assert data["hub"] == "ddphub"
    assert data["features"] == ["events", "checkpoints", "stop", "search"]
    assert data["part_size"] == 65536
    assert data["heartbeat_s"] == 10.0


def test_healthz_needs_no_key(hub):
    assert requests.get(f"{hub.url}/healthz").json()["success"] is True


@pytest.mark.parametrize("header", ["x-api-key", "authorization"])
def test_both_headers_carry_the_key(hub, header):
    value = hub.key if header == "x-api-key" else f"Bearer {hub.key}"
    answer = requests.post(f"{hub.url}/v1/auth", headers={header: value})
    assert answer.json() == {"success": True, "message": "", "data": {}}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-api-key": "wrong"},
        {"x-api-key": "\xe9" * 42},
        {"authorization": "Bearer "},
        {"authorization": "Basic x"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/auth"),
        ("GET", "/v1/capabilities"),
        ("GET", "/v1/models"),
        ("POST", "/v1/models"),
        ("GET", "/v1/models/x"),
        ("POST", "/v1/models/x/events"),
        ("GET", "/v1/models/x/events"),
        ("GET", "/v1/models/x/metrics"),
        ("POST", "/v1/models/x/stop"),
        ("POST", "/v1/agent/heartbeat/models/x"),
        ("GET", "/v1/models/x/checkpoints"),
        ("POST", "/v1/models/x/checkpoints"),
        ("GET", "/v1/models/x/checkpoints/y"),
        ("GET", "/v1/models/x/checkpoints/y/parts"),
        ("POST", "/v1/models/x/checkpoints/y/complete"),
        ("GET", "/v1/models/x/checkpoints/y/files/z"),
    ],
)
def test_without_a_good_key_every_route_is_a_401(hub, method, path, headers):
    sent = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = requests.request(method, hub.url + path, headers=sent)
    assert problem(answer, 401)
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_unknown_paths_and_methods_are_problems(hub):
    problem(requests.get(f"{hub.url}/v1/nothing"), 404)
    problem(requests.delete(f"{hub.url}/v1/models"), 405)


def test_a_run_id_makes_one_model_however_often_it_is_sent(hub):
    body = {"project": "once", "meta": {"name": "net"}}
    barrier = threading.Barrier(8)
    ids = []

    def send():
        barrier.wait()
        ids.append(create(hub, body, "run-1").json()["data"]["id"])

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8
    assert len(set(ids)) == 1
    assert len(ids[0]) == 20
    data = create(hub, {"project": "once", "meta": {"name": "another"}}, "run-1").json()["data"]
    assert (data["id"], data["name"], data["run_id"]) == (ids[0], "net", "run-1")
    assert data["url"] == f"/models/{ids[0]}"
    other = create(hub, {"project": "twice", "meta": {"name": "net"}}, "run-1").json()["data"]
    assert other["id"] != ids[0]


def test_a_later_attempt_says_what_it_is_made_with(hub):
    body = {"project": "again", "meta": {"name": "net"}}
    made = [create(hub, {**body, **config}, "run-1").json()["data"] for config in ({}, {"config": {"epochs": 100}})]
    again = create(hub, {**body, "config": {"epochs": 8}}, "run-1").json()["data"]
    silent = create(hub, body, "run-1").json()["data"]
    assert [one["config"] for one in (*made, again, silent)] == [{}, {"epochs": 100}, {"epochs": 8}, {"epochs": 8}]
    assert silent["id"] == made[0]["id"]


def test_without_a_run_id_every_request_makes_a_model(hub):
    body = {"project": "many", "meta": {"name": "net"}}
    assert create(hub, body).json()["data"]["id"] != create(hub, body).json()["data"]["id"]


@pytest.mark.parametrize("run_id", ["", "-x", "a b", "a/b", "..", "x" * 129, "a..b", "\xe9"])
def test_a_run_id_that_cannot_be_one_is_a_problem(hub, run_id):
    problem(create(hub, {"project": "p", "meta": {"name": "n"}}, run_id.encode("latin-1")), 422)


@pytest.mark.parametrize("name", ["", " ", " a", "a/b", "a\\b", "..", "a\nb", "x" * 129, 3, None, "\x00", "\ud800"])
def test_hostile_names_of_projects_and_models_are_problems(hub, name):
    problem(create(hub, {"project": name, "meta": {"name": "n"}}), 422)
    problem(create(hub, {"project": "p", "meta": {"name": name}}), 422)


@pytest.mark.parametrize(
    "body", [[], 3, {"project": "p", "meta": []}, {"config": 3}, {"config": {"n": 2**70}}, {"config": {"a": "\x00"}}]
)
def test_a_model_request_of_another_shape_is_a_problem(hub, body):
    problem(create(hub, body), 422)


def test_hub_v1_fields_come_from_the_config(talk):
    data = talk.get()
    assert (data["id"], data["status"], data["state"]) == (talk.model_id, "new", "new")
    assert (data["epochs"], data["batch_size"], data["imgsz"]) == (5, 16, None)
    assert data["meta"] == {"name": "net"}
    assert data["train_args"] == {"epochs": 5, "batch": 16}
    fields = {"data", "cfg", "weights", "resume", "patience", "device", "cache", "is_pretrained", "is_custom"}
    assert fields <= data.keys()
    assert data["has_last_weights"] is data["has_best_weights"] is False


def test_models_are_listed_newest_first_page_by_page(hub):
    project = new_id()
    ids = [Talk(hub, project).model_id for _ in range(5)]
    client = hub.client()
    seen, last = [], None
    while True:
        parameters = {"project": project, "limit": 2, "last_doc_id": last}
        data = client.get(f"{hub.url}/v1/models", params=parameters).json()["data"]
        assert data["total"] == 5
        if not data["results"]:
            assert data["lastRecordId"] is None
            break
        seen += [model["id"] for model in data["results"]]
        last = data["lastRecordId"]
    assert seen == ids[::-1]
    problem(client.get(f"{hub.url}/v1/models", params={"last_doc_id": "nobody"}), 404)


def test_attempts_get_their_numbers_in_the_order_of_first_sight(talk):
    ids = [new_id() for _ in range(4)]
    talk.accepted(metrics_event(ids[0], 0), metrics_event(ids[1], 0))
    assert talk.create(manifest({"last.pt": b"x"}, ids[2]), new_id()).status_code == 200
    talk.accepted(metrics_event(ids[3], 0), metrics_event(ids[0], 1))
    assert [(one["number"], one["attempt_id"]) for one in talk.get()["attempts"]] == list(enumerate(ids, start=1))


def test_every_order_of_delivery_gives_the_same_state(hub):
    """Late, repeated and turned around: the last event in time decides."""
    attempt_id = new_id()
    story = [
        attempt_event(attempt_id, 0, "started"),
        rank_event(attempt_id, 1, 1, "joined"),
        rank_event(attempt_id, 2, 1, "lost"),
        rank_event(attempt_id, 3, 1, "left"),
        attempt_event(attempt_id, 4, "failed", reason="out of memory", world_size=None, host=None),
    ]
    told = []
    for order in itertools.islice(itertools.permutations(story), 0, 120, 7):
        talk = Talk(hub)
        for event in order:
            talk.accepted(event)
        talk.accepted(*order[:2])
        data = talk.get()
        attempts = [attempt | {"heard_at": None} for attempt in data["attempts"]]  # by the hub's clock
        told.append((data["state"], attempts, [rank | {"last_seen": None} for rank in data["ranks"]]))
    assert all(one == told[0] for one in told)
    state, (attempt,), ranks = told[0]
    assert state == "failed"
    assert (attempt["state"], attempt["reason"], attempt["world_size"], attempt["host"]) == (
        "failed",
        "out of memory",
        2,
        "n1",
    )
    assert (attempt["started_at"], attempt["ended_at"]) == (1_700_000_000.0, 1_700_000_004.0)
    assert [rank["state"] for rank in ranks] == ["joined", "left"]


def test_only_rank_zero_says_what_an_attempt_is(talk):
    talk.accepted(attempt_event(talk.attempt_id, 0, "started"), attempt_event(talk.attempt_id, 9, "finished", rank=1))
    assert talk.get()["state"] == "running"


@pytest.mark.parametrize(
    ("state", "status"), [("finished", "trained"), ("failed", "training"), ("preempted", "training")]
)
def test_an_ended_attempt_gives_the_model_its_state_until_another_starts(talk, state, status):
    talk.accepted(attempt_event(talk.attempt_id, 0, "started"), attempt_event(talk.attempt_id, 1, state))
    data = talk.get()
    assert (data["state"], data["status"]) == (state, status)
    talk.accepted(attempt_event(new_id(), 0, "started", time=1_800_000_000.0))
    assert talk.get()["state"] == "running"


def test_an_older_attempt_that_is_seen_late_does_not_change_the_state(talk):
    """Numbers are the order of sight; the state is the one of the attempt that started last."""
    talk.accepted(attempt_event(talk.attempt_id, 0, "started"), attempt_event(talk.attempt_id, 1, "finished"))
    offline, leftover = new_id(), new_id()
    talk.accepted(attempt_event(offline, 0, "started", time=1_600_000_000.0))
    talk.accepted(metrics_event(leftover, 0, rank=3, time=1_800_000_000.0))
    data = talk.get()
    assert [attempt["number"] for attempt in data["attempts"]] == [1, 2, 3]
    assert data["state"] == "finished"


def test_a_silent_run_is_lost_until_it_beats_again(start_hub):
    """Three heartbeats without a sign of life, and no sooner than that."""
    talk = Talk(start_hub(arguments=("--heartbeat-s", "0.5")))
    talk.accepted(attempt_event(talk.attempt_id, 0, "started"))
    assert talk.get()["state"] == "running"
    talk.wait_until(lambda: talk.get()["state"] == "lost")
    answer = talk.http.post(
        f"{talk.hub.url}/v1/agent/heartbeat/models/{talk.model_id}",
        json={"agent": "ddphub-0", "agentId": None, "attempt_id": talk.attempt_id},
    )
    assert answer.status_code == 200
    assert talk.get()["state"] == "running"
    talk.accepted(attempt_event(talk.attempt_id, 1, "finished"))
    assert talk.get()["state"] == "finished"


def test_a_stop_is_told_with_events_and_heartbeats(talk):
    def beat():
        body = {"agent": "a", "agentId": "mine"}
        return talk.http.post(f"{talk.hub.url}/v1/agent/heartbeat/models/{talk.model_id}", json=body).json()["data"]

    assert beat() == {"agentId": "mine", "stop": False}
    assert talk.get()["stop_requested"] is False
    first = talk.http.post(talk.url("/stop")).json()["data"]
    assert talk.http.post(talk.url("/stop")).json()["data"] == first
    assert beat() == {"agentId": "mine", "stop": True}
    assert talk.accepted(metrics_event(talk.attempt_id, 0))["stop"] is True
    assert talk.get()["stop_requested"] is True


def test_a_heartbeat_without_agent_id_is_given_one(talk):
    url = f"{talk.hub.url}/v1/agent/heartbeat/models/{talk.model_id}"
    assert len(talk.http.post(url, json={"agent": "a", "agentId": None}).json()["data"]["agentId"]) == 32
    problem(talk.http.post(url, json={"agent": "a", "agentId": 3}), 422)
    problem(talk.http.post(url, json={"agent": "a", "agentId": None, "attempt_id": "x"}), 422)
    problem(talk.http.post(f"{talk.hub.url}/v1/agent/heartbeat/models/nobody", json={}), 404)


def test_a_run_is_found_by_its_run_id(hub):
    project = new_id()
    http, url = hub.client(), f"{hub.url}/v1/models"
    ids = {}
    for run_id in ("one", "two"):
        body = {"project": project, "meta": {"name": "n"}}
        ids[run_id] = http.post(url, json=body, headers={"Idempotency-Key": run_id}).json()["data"]["id"]
    found = http.get(url, params={"project": project, "run_id": "two"}).json()["data"]
    assert [one["id"] for one in found["results"]] == [ids["two"]]
    assert found["total"] == 1
    none = http.get(url, params={"project": project, "run_id": "three"}).json()["data"]
    assert none == {"results": [], "total": 0, "lastRecordId": None}
    assert http.get(url, params={"limit": 1, "public": True, "page": 0, "query": "x"}).status_code == 200


def test_another_attempt_is_not_asked_to_stop(talk):
    """Whoever asked meant the attempt that ran then."""

    def beat(attempt_id):
        body = {"agent": "a", "agentId": None, "attempt_id": attempt_id}
        return talk.http.post(f"{talk.hub.url}/v1/agent/heartbeat/models/{talk.model_id}", json=body).json()["data"]

    first, second = talk.attempt_id, new_id()
    talk.accepted(attempt_event(first, 0, "started", time=time.time() - 60))
    asked = talk.http.post(talk.url("/stop")).json()["data"]["requested_at"]
    assert beat(first)["stop"] is True
    assert beat(second)["stop"] is False  # it has not said when it started
    assert talk.accepted(metrics_event(second, 1))["stop"] is True
    assert talk.accepted(attempt_event(second, 0, "started", time=asked + 1))["stop"] is False
    assert beat(second)["stop"] is beat(first)["stop"] is False
    assert talk.get()["stop_requested"] is False
    talk.http.post(talk.url("/stop"))
    assert talk.accepted(attempt_event(second, 0, "started", time=asked + 1))["stop"] is True
    assert beat(second)["stop"] is True


def test_a_stop_reaches_an_attempt_whose_start_was_told_late(talk):
    asked = talk.http.post(talk.url("/stop")).json()["data"]["requested_at"]
    assert talk.accepted(attempt_event(talk.attempt_id, 0, "started", time=asked - 1))["stop"] is True

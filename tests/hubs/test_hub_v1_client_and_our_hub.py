"""The HUB v1 client against our own hub's HUB v1, over real HTTP: both sides' reading of the protocol is one."""

import math
import os

import pytest
from jobs import HubView
from run_events import Attempt, entry, registration

from ddphub.errors import HubRejected, HubUnauthorized
from ddphub.hubs.ultralytics_hub import HubV1Client


@pytest.fixture
def client(own_hub):
    made = HubV1Client(own_hub.url, own_hub.key)
    yield made
    made.close()


def test_a_training_arrives_and_can_be_resumed_from(own_hub, client, tmp_path):
    attempt, view = Attempt(), HubView(own_hub)
    client.check_key()
    with pytest.raises(HubUnauthorized):
        HubV1Client(own_hub.url, "wrong" * 8).check_key()
    config = {"batch": 4, "epochs": 2, "imgsz": 32, "model": "yolov8n.yaml", "data": "/data/coco8.yaml"}
    model_id = client.register(registration(attempt, config=config))
    assert view.model()["id"] == model_id
    assert client.heartbeat(model_id, attempt.id) is False
    assert client.memory["agent_id"]
    client.send_events(model_id, [attempt.metrics(0, {"loss": 1.0, "odd": "NaN"}), attempt.metrics(1, {"loss": 0.5})])
    client.send_events(model_id, [attempt.metrics(1, {"final/map": 0.25})])
    values = {}
    for record in view.metrics():
        values.setdefault(record["epoch"], {}).update(record["values"])
    assert values[1] == {"loss": 0.5, "map": 0.25}
    assert values[0]["loss"] == 1.0
    assert values[0]["odd"] == "NaN" or math.isnan(values[0]["odd"])
    contents = {kind: os.urandom(300_000) for kind in ("epoch", "best", "final")}
    for kind, content in contents.items():
        if kind == "final":
            newest = client.newest_checkpoint(model_id, ("epoch", "best"))
            client.download(newest.files[0], tmp_path / "last")
            assert (tmp_path / "last").read_bytes() == contents["best"], "the last that was uploaded"
        client.upload(model_id, *entry(tmp_path, kind, f"{kind}.pt", content, epoch=1))
    weights = client.newest_checkpoint(model_id, ("final",))
    client.download(weights.files[0], tmp_path / "best")
    assert (tmp_path / "best").read_bytes() == contents["final"]
    assert len(view.checkpoints()) == 3
    fresh = HubV1Client(own_hub.url, own_hub.key)
    with pytest.raises(HubRejected, match="already trained"):
        fresh.register(registration(wanted=model_id))
    fresh.close()


def test_a_stop_that_was_asked_for_is_heard(own_hub, client):
    attempt, view = Attempt(), HubView(own_hub)
    model_id = client.register(registration(attempt))
    assert client.send_events(model_id, [attempt.metrics(0, {"loss": 1.0})]).stop is False
    view.post(f"/v1/models/{model_id}/stop")
    assert client.heartbeat(model_id, attempt.id) is True
    assert client.send_events(model_id, [attempt.metrics(1, {"loss": 1.0})]).stop is True

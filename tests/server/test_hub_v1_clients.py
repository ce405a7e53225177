"""The public HUB v1 clients themselves, unchanged, against this hub."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trainers
from hub_talk import Talk, problem
from hub_v1_talk import V1, fetch

PROGRAM = Path(__file__).with_name("hub_v1_training.py")
NET = Path(__file__).parents[1] / "programs" / "yolo_tiny.yaml"


@pytest.fixture
def dataset(tmp_path):
    return trainers.dataset(tmp_path / "data")


@pytest.fixture
def train(hub, tmp_path):
    """Trains with a client, and returns what the client told."""
    started = []

    def run(version, model, expected=0, **arguments):
        trainers.needs(version)
        environment = {"ULTRALYTICS_HUB_API": hub.url, "ULTRALYTICS_HUB_WEB": hub.url, "HUB_API_KEY": hub.key}
        environment |= {"no_proxy": "*"}
        arguments |= {"program": str(PROGRAM), "model": model, "environment": environment}
        job = trainers.Training(tmp_path / "job", version, mode="single", **arguments)
        started.append(job)
        code = job.process.wait(150)
        output = job.output.read_text()
        assert code == expected, output
        told = {}
        for line in re.findall("TOLD (.*)", output):
            told |= json.loads(line)
        return told

    (tmp_path / "job").mkdir()
    yield run
    for job in started:
        job.end()


def url_of(v1, version):
    """How each client is told its model and key."""
    if version.startswith("8.0."):
        return f"{v1.hub.key}_{v1.model_id}"
    return f"{v1.hub.url}/models/{v1.model_id}?api_key={v1.hub.key}"


@pytest.mark.parametrize("version", ["8.4.114", "8.0.217"])
def test_a_client_starts_resumes_and_refuses(hub, dataset, train, version):
    """Killed in the middle of its training; the second process goes on where the hub's weights end."""
    config = {"batchSize": 4, "epochs": 3, "imageSize": 64, "patience": 50, "device": "cpu", "cache": "False"}
    lineage = {"architecture": {"name": str(NET)}, "parent": {}}
    v1 = V1(hub, config=config, dataset={"name": str(dataset)}, lineage=lineage, meta={"name": NET.name})
    url = url_of(v1, version)

    told = train(version, url, expected=9, die_at_epoch=2)
    assert (told["start_epoch"], told["epochs"], told["batch"], told["imgsz"]) == (0, 3, 4, 64)
    assert "late" not in told
    data = v1.get()
    assert (data["status"], data["state"], data["has_last_weights"]) == ("training", "running", True)
    assert [one["epoch"] for one in v1.get("/checkpoints")] == [0, 1]

    told = train(version, url)
    assert (told["start_epoch"], told["epochs"]) == (2, 3)
    assert told["loaded"].endswith(data["resume"].rsplit("/", 1)[1])
    data = v1.get()
    assert (data["status"], data["state"]) == ("trained", "finished")
    kept = v1.get("/checkpoints")
    assert (kept[-1]["kind"], kept[-1]["name"], kept[-1]["epoch"]) == ("final", "best.pt", 2)
    assert "map" in kept[-1]["metrics"]
    assert fetch(data["weights"]).content == Path(told["best"]).read_bytes()
    stored = v1.stored()
    # The final evaluation comes as one more epoch, or as the last one again with other values.
    assert [epoch for epoch, _ in stored] == [0, 1, 2, 2 if version.startswith("8.0.") else 3]
    assert {"model/parameters", "metrics/mAP50-95(B)", "val/box_loss"} <= stored[0][1].keys()
    assert "val/box_loss" in stored[2][1]

    told = train(version, url)
    if version.startswith("8.0."):
        assert "already trained" in told["refused"]
    else:
        assert told["session"] is False
        assert told["loaded"].endswith(data["weights"].rsplit("/", 1)[1])
    assert len(v1.get("/checkpoints")) == len(kept)
    assert len(v1.get()["attempts"]) == 1


def test_a_client_makes_the_model_that_it_trains(hub, dataset, train):
    """Logged in, and given a file: it registers the run, and the hub names it by the file."""
    told = train("8.4.114", str(NET), data=dataset, login=hub.key)
    v1 = V1.known(hub, told["model"])
    data = v1.get()
    assert (data["name"], data["status"], data["data"]) == (NET.name, "trained", str(dataset))
    assert (data["epochs"], data["batch_size"], data["imgsz"], data["device"]) == (1, 4, 64, "cpu")
    assert [(one["kind"], one["epoch"]) for one in v1.get("/checkpoints")][-1] == ("final", 0)


SDK = """
import json, sys
from hub_sdk import HUBClient

weights, project_id = sys.argv[1:]
client = HUBClient()
told = {"authenticated": client.authenticated}
model = client.model()
model.create_model({"meta": {"name": "dir/net.yaml"}, "config": {"epochs": 3}, "dataset": {"name": "coco8.yaml"},
                    "projectId": project_id})
told["id"] = model.id
told["new"] = [model.is_resumable(), model.has_best_weights(), model.is_pretrained(), model.is_trained()]
told["begin"] = [model.get_architecture(), model.get_dataset_url(), model.data["config"]["epochs"]]
told["metrics sent"] = model.upload_metrics({0: '{"loss": NaN}', 1: '{"loss": 0.5}'}).status_code
told["uploads"] = [model.upload_model(1, weights, is_best=True).status_code,
                   model.upload_model(1, weights, map=0.25, final=True).status_code]
model.get_data()
told["done"] = [model.is_resumable(), model.has_best_weights(), model.is_trained()]
told["urls"] = [model.get_weights_url("last"), model.get_weights_url("best")]
told["metrics"] = model.get_metrics()
told["update"] = model.update({"meta": {"name": "better"}}).json()["success"]
models = client.model_list(page_size=2, public=True)
told["list"] = [one["meta"]["name"] for one in models.results], models.total_pages > 0
told["delete"] = [model.delete(hard=False).status_code, model.delete(hard=True).status_code]
told["export"] = model.export("onnx") is None
told["project"] = client.project("x").data
print(json.dumps(told))
"""


def test_every_call_of_hub_sdk_on_a_model_is_answered(hub, tmp_path):
    trainers.needs("8.4.114")
    weights = tmp_path / "last.pt"
    weights.write_bytes(b"weights" * 1000)
    project_id = Talk(hub).get()["project_id"]
    environment = {
        **os.environ,
        **trainers.environment("8.4.114", tmp_path),
        "ULTRALYTICS_HUB_API": hub.url,
        "HUB_API_KEY": hub.key,
    }
    done = subprocess.run(
        [sys.executable, "-c", SDK, str(weights), project_id],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["authenticated"] is True
    assert len(told["id"]) == 20
    assert told["new"] == [False] * 4
    assert told["begin"] == ["dir/net.yaml", "coco8.yaml", 3]
    assert told["metrics sent"] == 200
    assert told["uploads"] == [200, 200]
    assert told["done"] == [True] * 3
    assert [one["values"] for one in told["metrics"]] == [{"loss": "NaN"}, {"loss": 0.5}]
    assert told["update"] is True
    assert told["list"][0][0] == "better"
    assert told["delete"] == [200, 200]
    assert told["export"] is True  # refused: 501
    for url in told["urls"]:
        problem(fetch(url), 404)  # deleted with the model

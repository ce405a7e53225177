"""What tests say to a hub as HUB v1 clients would say it."""

import json
import os
import threading

import requests
from hub_talk import PART_SIZE, Talk, new_id

# What ultralytics 8.4.114 sends for `YOLO("/data/nets/yolov8n.yaml").train(...)`.
REQUEST = {
    "config": {"batchSize": 4, "epochs": 2, "imageSize": 32, "patience": 50, "device": "None", "cache": "False"},
    "dataset": {"name": "coco8.yaml"},
    "lineage": {"architecture": {"name": "/data/nets/yolov8n"}, "parent": {}},
    "meta": {"name": "/data/nets/yolov8n.yaml"},
}
BYTES = os.urandom(3 * PART_SIZE + 17)


class V1(Talk):
    """One model of one HUB v1 client."""

    def __init__(self, hub, **request):
        self.hub = hub
        self.http = hub.client()
        self.attempt_id = new_id()
        answer = self.http.post(f"{hub.url}/v1/models", json=REQUEST | request)
        assert answer.status_code == 200, answer.text
        self.model_id = answer.json()["data"]["id"]

    @classmethod
    def known(cls, hub, model_id):
        """A model that a client made."""
        model = cls.__new__(cls)
        model.hub, model.http, model.model_id = hub, hub.client(), model_id
        return model

    def metrics(self, epochs, **body):
        """Send metrics; a value that is no text is made JSON, NaN included."""
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in epochs.items()}
        return self.http.post(self.url(), json={"metrics": texts, "type": "metrics"} | body)

    def beat(self, agent_id=None):
        body = {"agent": "python-8.0.217-local", "agentId": agent_id}
        answer = self.http.post(f"{self.hub.url}/v1/agent/heartbeat/models/{self.model_id}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def send(self, fields, *files, content=BYTES):
        """Upload a form with these fields and the files of these names, as the clients do."""
        parts = [(name, (name, content)) for name in files]
        return self.http.post(self.url("/upload"), data=fields, files=parts or {"": ""})

    def epoch(self, epoch, best=False, content=BYTES):
        answer = self.send({"epoch": epoch, "type": "epoch", "isBest": best}, "last.pt", content=content)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]["id"]

    def final(self, epoch, content=BYTES, **fields):
        answer = self.send({"epoch": epoch, "type": "final", "map": 0.5} | fields, "best.pt", content=content)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]["id"]

    def stored(self):
        """The metrics that the hub has: (epoch, values), oldest first."""
        return [(one["epoch"], one["values"]) for one in self.get("/metrics")]


def blobs(hub):
    return {path.name for path in (hub.data_dir / "blobs").rglob("*") if path.is_file()}


def leftovers(hub):
    return list((hub.data_dir / "incoming").iterdir())


def fetch(url, **headers):
    """Download as the clients do: without a key."""
    return requests.get(url, headers={name.replace("_", "-"): value for name, value in headers.items()})


def at_once(count, action):
    """What `count` threads that begin together get."""
    barrier, results = threading.Barrier(count), []

    def act():
        barrier.wait()
        results.append(action())

    threads = [threading.Thread(target=act) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == count
    return results


def delete(model, hard):
    return model.http.delete(model.url(), params={"hard": hard})

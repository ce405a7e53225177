"""What tests say to a hub, as a client would say it."""

import hashlib
import secrets
import time

import requests

PART_SIZE = 64 * 1024


def new_id():
    """An attempt id or an entry id."""
    return secrets.token_hex(16)


def metrics_event(attempt_id, seq, rank=0, **fields):
    """A metrics event; `fields` replace or add."""
    event = {
        "attempt_id": attempt_id,
        "rank": rank,
        "seq": seq,
        "time": 1_700_000_000.0 + seq,
        "kind": "metrics",
        "step": seq,
        "epoch": None,
        "values": {"loss": 1.0 / (seq + 1)},
    }
    return event | fields


def attempt_event(attempt_id, seq, state, **fields):
    """An attempt event of rank 0."""
    event = {"attempt_id": attempt_id, "rank": 0, "seq": seq, "time": 1_700_000_000.0 + seq, "kind": "attempt"}
    return event | {"state": state, "world_size": 2, "host": "n1", "reason": None} | fields


def rank_event(attempt_id, seq, of_rank, state, **fields):
    """What rank 0 says of another rank."""
    event = {"attempt_id": attempt_id, "rank": 0, "seq": seq, "time": 1_700_000_000.0 + seq, "kind": "rank"}
    return event | {"of_rank": of_rank, "state": state, "host": f"n{of_rank}", "pid": 100 + of_rank} | fields


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def cut(content, part_size=PART_SIZE):
    """The parts of a file."""
    return [content[start : start + part_size] for start in range(0, len(content), part_size)]


def file_manifest(name, content, part_size=PART_SIZE):
    parts = [sha256(part) for part in cut(content, part_size)]
    return {"name": name, "size": len(content), "sha256": sha256(content), "parts": parts}


def manifest(files, attempt_id, part_size=PART_SIZE, **fields):
    """A checkpoint request for {name: bytes}."""
    listed = [file_manifest(name, content, part_size) for name, content in files.items()]
    request = {"attempt_id": attempt_id, "epoch": 3, "step": 30, "kind": "epoch", "name": "last.pt", "metrics": {}}
    return request | {"files": listed} | fields


class Talk:
    """One model on one hub.

    Args:
        hub: a HubProcess.
        project: the model's project; None for one that no other test uses.
    """

    def __init__(self, hub, project=None):
        self.hub = hub
        self.http = hub.client()
        self.project = project or f"project-{secrets.token_hex(4)}"
        self.attempt_id = new_id()
        body = {"project": self.project, "meta": {"name": "net"}, "config": {"epochs": 5, "batchSize": 16}}
        answer = self.http.post(f"{hub.url}/v1/models", json=body, headers={"Idempotency-Key": new_id()})
        assert answer.status_code == 200, answer.text
        self.model_id = answer.json()["data"]["id"]

    def url(self, path=""):
        return f"{self.hub.url}/v1/models/{self.model_id}{path}"

    def get(self, path="", **options):
        answer = self.http.get(self.url(path), **options)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def events(self, *events):
        """Send events; the answer as it came."""
        return self.http.post(self.url("/events"), json=list(events))

    def accepted(self, *events):
        """Send events that the hub takes."""
        answer = self.events(*events)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def create(self, request, entry_id):
        return self.http.post(self.url("/checkpoints"), json=request, headers={"Idempotency-Key": entry_id})

    def begin(self, files, entry_id=None, part_size=PART_SIZE, **fields):
        """Announce a checkpoint; the answer's data."""
        answer = self.create(manifest(files, self.attempt_id, part_size, **fields), entry_id or new_id())
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def put(self, url, content):
        """Send bytes to a signed URL: a client without a key."""
        with requests.Session() as http:
            http.trust_env = False
            return http.put(self.hub.url + url, data=content)

    def send_missing(self, data, files, part_size=PART_SIZE):
        """Send every part that the hub asks for; returns how many that were."""
        count = 0
        for file in data["missing"]:
            parts = cut(files[file["name"]], part_size)
            for part in file["parts"]:
                answer = self.put(part["url"], parts[part["number"]])
                assert answer.status_code == 200, answer.text
                count += 1
        return count

    def complete(self, checkpoint_id):
        return self.http.post(self.url(f"/checkpoints/{checkpoint_id}/complete"))

    def upload(self, files, entry_id=None, part_size=PART_SIZE, **fields):
        """A whole checkpoint; returns its id once it is committed."""
        data = self.begin(files, entry_id, part_size, **fields)
        self.send_missing(data, files, part_size)
        answer = self.complete(data["id"])
        assert answer.status_code in {200, 202}, answer.text
        self.wait_until(lambda: self.get(f"/checkpoints/{data['id']}")["state"] == "committed")
        return data["id"]

    def download(self, checkpoint_id, name, **headers):
        sent = {key.replace("_", "-"): value for key, value in headers.items()}
        return self.http.get(self.url(f"/checkpoints/{checkpoint_id}/files/{name}"), headers=sent)

    @staticmethod
    def wait_until(condition):
        """Ask again until it is so; pytest's time-out is the bound."""
        while not condition():
            time.sleep(0.02)


def problem(answer, status):
    """Check that an answer is a problem of this status; returns it."""
    assert answer.status_code == status, (answer.status_code, answer.text[:500])
    assert answer.headers["content-type"] == "application/problem+json"
    content = answer.json()
    assert content["status"] == status
    assert content["success"] is False
    assert content["type"]
    assert content["title"]
    assert content["message"] == content["detail"] != ""
    return content

"""What a hub has of simulated runs, against what it acknowledged: lost, doubled, other than it was sent."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import quote

import requests

from load import simulated_run

_PAGE = 10_000


@dataclass
class Account:
    """What came of it; `wrong` has a sentence for each thing that must not be."""

    events: int = 0
    lost: int = 0
    doubled: int = 0
    checkpoints: int = 0
    wrong: list[str] = field(default_factory=list)


class Reader:
    """Reads a hub over HTTP.

    Args:
        url: the hub's.
        key: a key that may read.
    """

    def __init__(self, url, key):
        self._url = url
        self._http = requests.Session()
        self._http.trust_env = False
        self._http.headers["x-api-key"] = key

    def get(self, path, **params):
        """The answer's data."""
        answer = self._http.get(f"{self._url}/v1{path}", params=params, timeout=120)
        answer.raise_for_status()
        return answer.json()["data"]

    def events(self, model_id, after=0):
        """Every event of a model with an id above `after`, a page at a time."""
        for kind in ("metrics", "console", None):
            last = after
            while page := self.get(
                f"/models/{model_id}/events", after=last, limit=_PAGE, **({"kind": kind} if kind else {})
            ):
                yield from page
                last = page[-1]["id"]

    def bytes_of(self, model_id, checkpoint_id, name):
        """A checkpoint's file."""
        place = f"/v1/models/{model_id}/checkpoints/{checkpoint_id}/files/{quote(name)}"
        answer = self._http.get(self._url + place, timeout=120)
        answer.raise_for_status()
        return answer.content


def account(reader, runs):
    """Compares what runs sent (`Sent`) with what the hub has.

    Args:
        reader: of the hub.
        runs: those that ended, with everything acknowledged.
    """
    found = Account()
    for sent in runs:
        _events(found, reader, sent)
        _derived(found, reader, sent)
        _checkpoints(found, reader, sent)
    return found


def acknowledged(reader, runs):
    """Checks that a hub has what it acknowledged to runs that go on, and nothing twice.

    Args:
        reader: of the hub.
        runs: (`Sent`, events acknowledged for each rank, checkpoints acknowledged) as they were at some moment.

    Returns:
        Sentences about what must not be.
    """
    wrong = []
    for sent, counts, checkpoints in runs:
        keys = Counter((event["rank"], event["seq"]) for event in reader.events(sent.model_id))
        lost = {(rank, seq) for rank, count in enumerate(counts) for seq in range(count)} - keys.keys()
        if lost:
            wrong.append(f"{sent.run_id}: {len(lost)} acknowledged events are missing, (rank, seq) {sorted(lost)[:5]}")
        if keys.total() != len(keys):
            wrong.append(f"{sent.run_id}: {keys.total() - len(keys)} events are there more than once")
        listed = Counter(one["id"] for one in reader.get(f"/models/{sent.model_id}/checkpoints", limit=_PAGE))
        if missing := {checkpoint_id for checkpoint_id, _ in checkpoints} - listed.keys():
            wrong.append(f"{sent.run_id}: {len(missing)} acknowledged checkpoints are missing")
    return wrong


def _events(found, reader, sent):
    keys = Counter()
    for event in reader.events(sent.model_id):
        keys[event["rank"], event["seq"]] += 1
        if event["attempt_id"] != sent.attempt_id:
            found.wrong.append(f"{sent.run_id}: an event of the attempt {event['attempt_id']}")
        if event["kind"] == "metrics" and simulated_run.METRICS[0] in event["values"]:
            expected = simulated_run.values(event["rank"], event["step"])
            if event["values"] != expected:
                found.wrong.append(f"{sent.run_id}: rank {event['rank']} has {event['values']}, sent was {expected}")
    expected = {(rank, seq) for rank, count in enumerate(sent.events) for seq in range(count)}
    lost = expected - keys.keys()
    extra = keys.keys() - expected
    doubled = sum(count - 1 for count in keys.values())
    found.events += len(keys)
    found.lost += len(lost)
    found.doubled += doubled
    for what, some in (("lost", lost), ("never sent", extra)):
        if some:
            found.wrong.append(f"{sent.run_id}: {len(some)} events {what}, (rank, seq) {sorted(some)[:5]}")
    if doubled:
        found.wrong.append(f"{sent.run_id}: {doubled} events are there more than once")


def _derived(found, reader, sent):
    """What the hub has made of the events: the charts' points, the ranks, the state."""
    has = {one["name"]: one["count"] for one in reader.get(f"/models/{sent.model_id}/series")["results"]}
    if has != sent.points:
        found.wrong.append(f"{sent.run_id}: charts have {has} points, sent were {sent.points}")
    model = reader.get(f"/models/{sent.model_id}")
    if model["events"] != sum(sent.events):
        found.wrong.append(f"{sent.run_id}: the hub counts {model['events']} events of {sum(sent.events)}")
    if (model["state"], len(model["attempts"])) != ("finished", 1):
        found.wrong.append(f"{sent.run_id}: it is {model['state']}, with {len(model['attempts'])} attempts")
    ranks = reader.get(f"/models/{sent.model_id}/ranks", limit=_PAGE)["results"]
    if [one["rank"] for one in ranks] != list(range(len(sent.events))):
        found.wrong.append(f"{sent.run_id}: {len(ranks)} of {len(sent.events)} ranks are there")


def _checkpoints(found, reader, sent):
    listed = reader.get(f"/models/{sent.model_id}/checkpoints", limit=_PAGE)
    found.checkpoints += len(listed)
    has = Counter((one["id"], one["files"][0]["sha256"]) for one in listed)
    if has != Counter(sent.checkpoints):
        found.wrong.append(f"{sent.run_id}: {len(listed)} checkpoints are there, sent were {len(sent.checkpoints)}")
    for checkpoint_id, sha256 in sent.checkpoints[-3:]:
        if hashlib.sha256(reader.bytes_of(sent.model_id, checkpoint_id, "last.pt")).hexdigest() != sha256:
            found.wrong.append(f"{sent.run_id}: the checkpoint {checkpoint_id} has other bytes")

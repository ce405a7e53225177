"""A real hub against a model of dicts: requests repeated, overlapping, out of order, altered, and the hub killed."""

import secrets

import pytest
import requests
from hub_process import HubProcess
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from server.hub_talk import attempt_event, cut, manifest, metrics_event, problem, rank_event, sha256

from chaos.strategies import budget

PART = 1024
ATTEMPTS = ["a" * 32, "b" * 32]
NAMES = ["loss", "é", "a.b", 'quo"te', "😀"]
CONTENTS = [b"", b"x", b"y" * PART, b"z" * (2 * PART + 7), bytes(range(256)) * 8]


def event_of(attempt, rank, seq, variant):
    """The event that has this key; another variant is another content under the same key."""
    made = {
        0: metrics_event(attempt, seq, rank, values={NAMES[seq % len(NAMES)]: seq / 3 + variant}),
        1: attempt_event(
            attempt, seq, ["started", "finished", "failed", "preempted"][seq % 4], world_size=seq + variant
        ),
        2: rank_event(attempt, seq, seq % 3, ["joined", "lost", "back", "left"][seq % 4], pid=100 + variant),
    }[seq % 3]
    if rank and seq % 3 == 1:
        made = {"kind": "anything", "what": ["is", {"kept": variant}]}
    # Times do not follow the sequence numbers: clocks are set back.
    return {**made, "attempt_id": attempt, "rank": rank, "seq": seq, "time": 1000.0 + (seq * 3) % 5}


keys = st.tuples(st.sampled_from([ATTEMPTS[0], *ATTEMPTS]), st.integers(0, 1), st.integers(0, 8))
batches = st.lists(st.tuples(keys, st.sampled_from([0] * 30 + [1])), min_size=1, max_size=12)


class Manifest:
    """What a client announces; the same one again is a repeat."""

    def __init__(self, contents, kind, lies, names):
        self.files = {names[index]: content for index, content in enumerate(contents)}
        self.lies = lies and any(len(content) > PART for content in contents)
        self.request = manifest(self.files, ATTEMPTS[0], PART, kind=kind)
        if self.lies:
            for file in self.request["files"]:
                if len(file["parts"]) > 1:
                    file["sha256"] = sha256(file["sha256"].encode())


MANIFESTS = [
    Manifest([CONTENTS[1]], "epoch", False, ["last.pt"]),
    Manifest([CONTENTS[1]], "best", False, ["last.pt"]),
    Manifest([CONTENTS[0], CONTENTS[3], CONTENTS[3]], "final", False, ["a", "dir/b", "dir/ü"]),
    Manifest([CONTENTS[2], CONTENTS[4]], "epoch", False, ["one", "two"]),
    Manifest([CONTENTS[3]], "epoch", True, ["last.pt"]),
]
entries = st.sampled_from([number * 32 for number in "1234"])


class Hub(RuleBasedStateMachine):
    """`events`, `begun` and `committed` are the model of one run of a project of its own."""

    hub = None  # a HubProcess
    count = None  # how often the hub was killed

    def __init__(self):
        super().__init__()
        self.clients = [self.hub.client(), self.hub.client()]
        self.project = f"p-{secrets.token_hex(8)}"
        self.models = {}  # run id -> model id
        self.events = {}  # key -> event
        self.attempts = []  # in order of first sight
        self.begun = {}  # entry_id -> [manifest, checkpoint id]
        self.committed = []
        self.parts = {}  # entry_id -> {(file name, number)}
        self.failed = set()  # entries found to contradict themselves
        self.blobs = set()  # contents that the project holds
        self.urls = {}  # (entry_id, file name, number) -> signed URL, ever given
        self.unseen = False

    @initialize()
    def begin(self):
        self.register("run", "net", 0)
        self.model = self.models["run"]

    def teardown(self):
        if self.models:
            self.check_everything()
        for client in self.clients:
            client.close()

    def ask(self, method, path, which=0, **options):
        return self.clients[which].request(method, f"{self.hub.url}{path}", timeout=20, **options)

    def get(self, path, **parameters):
        answer = self.ask("GET", f"/v1/models/{self.model}{path}", params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    which = st.integers(0, 1)

    @rule(run_id=st.sampled_from(["run", "other"]), name=st.sampled_from(["net", "another name"]), which=which)
    def register(self, run_id, name, which):
        """The first answer stays the answer."""
        body = {"project": self.project, "meta": {"name": name}, "config": {}}
        answer = self.ask("POST", "/v1/models", which, json=body, headers={"Idempotency-Key": run_id})
        model_id = answer.json()["data"]["id"]
        assert self.models.setdefault(run_id, model_id) == model_id

    @rule(batch=batches, which=which)
    def send(self, batch, which):
        """All of a batch, or nothing."""
        events = [event_of(*key, variant) for key, variant in batch]
        new = {}
        contradicts = False
        for (key, _), event in zip(batch, events, strict=True):
            contradicts |= self.events.get(key, new.setdefault(key, event)) != event or new[key] != event
        answer = self.ask("POST", f"/v1/models/{self.model}/events", which, json=events)
        if contradicts:
            assert problem(answer, 422)["key"]
            return
        accepted = len(new.keys() - self.events.keys())
        assert answer.json()["data"] == {"accepted": accepted, "duplicates": len(events) - accepted, "stop": False}
        self.events.update(new)
        for attempt, _, _ in new:
            self.see(attempt)
        self.unseen = True

    def see(self, attempt):
        if attempt not in self.attempts:
            self.attempts.append(attempt)

    @rule(entry_id=entries, made=st.sampled_from(MANIFESTS), which=which)
    def create(self, entry_id, made, which):
        answer = self.ask(
            "POST",
            f"/v1/models/{self.model}/checkpoints",
            which,
            json=made.request,
            headers={"Idempotency-Key": entry_id},
        )
        if entry_id in self.begun and self.begun[entry_id][0] is not made:
            problem(answer, 422)
            return
        if entry_id in self.failed:
            problem(answer, 422)
            return
        assert answer.status_code == 200, answer.text
        data = answer.json()["data"]
        assert self.begun.setdefault(entry_id, [made, data["id"]])[1] == data["id"]
        self.parts.setdefault(entry_id, set())
        self.see(ATTEMPTS[0])
        self.check_state(entry_id, data)

    def missing(self, entry_id):
        """(file name, part number) of what the hub still needs; each content once."""
        made = self.begun[entry_id][0]
        wanted, seen = [], set()
        for file in made.request["files"]:
            if file["sha256"] not in self.blobs | seen:
                seen.add(file["sha256"])
                wanted += [(file["name"], number) for number in range(len(file["parts"]))]
        return [part for part in wanted if part not in self.parts[entry_id]]

    def check_state(self, entry_id, data):
        done = entry_id in self.committed
        assert data["state"] == ("committed" if done else "receiving")
        listed = [(file["name"], part["number"]) for file in data["missing"] for part in file["parts"]]
        assert listed == ([] if done or entry_id in self.failed else self.missing(entry_id))
        for file in data["missing"]:
            for part in file["parts"]:
                self.urls[entry_id, file["name"], part["number"]] = part["url"]

    @precondition(lambda self: self.urls)
    @rule(data=st.data(), damage=st.sampled_from([None] * 6 + ["flip", "short", "long", "empty", "other url"]))
    def put(self, data, damage):
        """A part, once or again, whole or not, before the commit or long after."""
        entry_id, name, number = data.draw(st.sampled_from(sorted(self.urls)))
        url = self.urls[entry_id, name, number]
        content = cut(self.begun[entry_id][0].files[name], PART)[number]
        sent = {
            "flip": bytes([content[0] ^ 1]) + content[1:],
            "short": content[:-1],
            "long": content + b"!",
            "empty": b"",
        }.get(damage, content)
        if damage == "other url":
            url = url.replace(f"size={len(content)}", f"size={len(content) + 1}")
            sent = content + b"!"
        answer = requests.put(self.hub.url + url, data=sent, timeout=20, proxies={"http": ""})
        if damage is not None:
            assert 400 <= answer.status_code < 500
            problem(answer, answer.status_code)
            return
        assert answer.status_code == 200, answer.text
        if entry_id not in self.committed:
            self.parts[entry_id].add((name, number))

    @precondition(lambda self: self.begun)
    @rule(data=st.data(), which=which)
    def look(self, data, which):
        entry_id = data.draw(st.sampled_from(sorted(self.begun)))
        answer = self.ask("GET", f"/v1/models/{self.model}/checkpoints/{self.begun[entry_id][1]}", which)
        self.check_state(entry_id, answer.json()["data"])

    @precondition(lambda self: self.urls)
    @rule(data=st.data(), which=which)
    def send_missing(self, data, which):
        """One client sends all there is to send, and completes."""
        entry_id = data.draw(st.sampled_from(sorted(self.begun)))
        self.look_at(entry_id)
        if entry_id not in self.committed:
            for name, number in self.missing(entry_id):
                content = cut(self.begun[entry_id][0].files[name], PART)[number]
                url = self.hub.url + self.urls[entry_id, name, number]
                assert requests.put(url, data=content, timeout=20, proxies={"http": ""}).status_code == 200
                self.parts[entry_id].add((name, number))
        self.complete_one(entry_id, which)

    def look_at(self, entry_id):
        answer = self.ask("GET", f"/v1/models/{self.model}/checkpoints/{self.begun[entry_id][1]}")
        self.check_state(entry_id, answer.json()["data"])

    @precondition(lambda self: self.begun)
    @rule(data=st.data(), which=which)
    def complete(self, data, which):
        self.complete_one(data.draw(st.sampled_from(sorted(self.begun))), which)

    def complete_one(self, entry_id, which):
        made, checkpoint_id = self.begun[entry_id]
        path = f"/v1/models/{self.model}/checkpoints/{checkpoint_id}"
        answer = self.ask("POST", f"{path}/complete", which)
        if entry_id in self.failed:
            problem(answer, 422)
            return
        if entry_id not in self.committed and self.missing(entry_id):
            assert problem(answer, 409)["missing"]
            return
        if entry_id not in self.committed and made.lies:
            problem(answer, 422)
            self.failed.add(entry_id)
            return
        assert answer.json()["data"] == {"id": checkpoint_id, "state": "committed", "missing": []}
        if entry_id not in self.committed:
            self.committed.append(entry_id)
            self.blobs |= {file["sha256"] for file in made.request["files"]}

    @precondition(lambda self: self.count is not None and self.count[0] < 6)
    @rule()
    def kill_hub(self):
        """SIGKILL between two requests: what was answered stays."""
        self.hub.kill()
        self.hub.start()
        self.count[0] += 1

    @precondition(lambda self: self.unseen)
    @invariant()
    def the_hub_has_what_it_took(self):
        self.unseen = False
        stored = self.get("/events", limit=1000) + [
            {**one, "kind": "metrics"} for one in self.get("/metrics", limit=1000)
        ]
        found = {(one["attempt_id"], one["rank"], one["seq"]): one for one in stored}
        assert len(stored) == len(found)
        assert {
            key: {name: one.get(name) for name in self.events.get(key, ())} for key, one in found.items()
        } == self.events

    def check_everything(self):
        told = self.get("")
        assert told["events"] == len(self.events)
        assert [one["attempt_id"] for one in told["attempts"]] == self.attempts
        for attempt in told["attempts"]:
            said = [
                event
                for (attempt_id, rank, _), event in self.events.items()
                if attempt_id == attempt["attempt_id"] and rank == 0 and event["kind"] == "attempt"
            ]
            last = max(said, key=lambda event: (event["time"], event["seq"]), default={"state": None})
            assert attempt["state"] == last["state"]
        for name in NAMES:
            expected = {key for key, event in self.events.items() if name in event.get("values", {})}
            found = self.get("/metrics", name=name, limit=1000)
            assert {(one["attempt_id"], one["rank"], one["seq"]) for one in found} == expected
        listed = self.get("/checkpoints")
        assert sorted(one["entry_id"] for one in listed) == sorted(self.committed)
        for one in listed:
            made, checkpoint_id = self.begun[one["entry_id"]]
            assert one["id"] == checkpoint_id
            assert [file["name"] for file in one["files"]] == list(made.files)
            for name, content in made.files.items():
                path = f"/v1/models/{self.model}/checkpoints/{checkpoint_id}/files/{requests.utils.quote(name)}"
                assert self.ask("GET", path).content == content
        uploads = {path.name for path in (self.hub.data_dir / "uploads").iterdir()}
        assert not uploads & {self.begun[entry_id][1] for entry_id in self.committed}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    data = tmp_path_factory.mktemp("hub") / "data"
    with HubProcess(data, api_key="k" * 42, arguments=("--part-size", str(PART))) as process:
        yield process
        assert "Traceback" not in process.log.read_text()


def test_requests_in_any_order_leave_what_the_model_says(hub):
    """Two clients take turns."""
    Hub.hub, Hub.count = hub, None
    run_state_machine_as_test(Hub, settings=budget(20, steps=40))


def test_a_hub_that_is_killed_forgets_nothing_that_it_took(hub):
    """The same, with SIGKILL between requests."""
    Hub.hub, Hub.count = hub, [0]
    run_state_machine_as_test(Hub, settings=budget(4, steps=30))
    assert Hub.count[0] > 2

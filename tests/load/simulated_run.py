"""What rank 0 of one run sends a hub, without the training: through the real client, as Delivery does.

What each rank has logged follows from its rank and the event's number, so that what the hub has can be checked
afterwards whatever happened in between.
"""

import contextlib
import hashlib
import math
import secrets
import threading
import time
from dataclasses import dataclass, field

from ddphub.errors import HubUnavailable
from ddphub.hubs import wire
from ddphub.hubs.client import Registration
from ddphub.hubs.ddphub import DdphubClient
from ddphub.session.loop import Backoff

METRICS = ("train/loss", "train/images_per_s")
SYSTEM = ("system/cpu", "system/memory", "system/gpu", "system/gpu_memory")
STEPS_AN_EPOCH = 20


@dataclass(frozen=True, kw_only=True)
class Load:
    """What every run does.

    Attributes:
        ranks: of a run.
        every: seconds between two steps; each rank logs each of them. 0: as many as the hub takes.
        pace: seconds between two batches, as `rate_limits["metrics"]`.
        heartbeat: seconds between heartbeats.
        system: seconds between two looks of each rank at its machine; 0 for none.
        checkpoint: seconds between checkpoints; 0 for none.
        checkpoint_bytes: of each.
        project: name of the runs' project.
        longest_pause: seconds at most between two tries of a hub that does not answer.
    """

    ranks: int = 64
    every: float = 5.0
    pace: float = 3.0
    heartbeat: float = wire.HEARTBEAT_S
    system: float = 15.0
    checkpoint: float = 30.0
    checkpoint_bytes: int = 256 * 1024
    project: str = "load"
    longest_pause: float = 10.0


@dataclass
class Sent:
    """What a run has sent, and how that went; once it has finished, all of it is acknowledged.

    Attributes:
        run_id: which run.
        attempt_id: its one attempt.
        model_id: the hub's.
        events: for each rank how many; their seqs are 0, 1, ...
        acknowledged: for each rank how many of them the hub has acknowledged.
        points: values of each metric, all ranks together.
        batches: for each batch (seconds, events in it).
        delays: for each batch the seconds between its oldest event and its acknowledgement.
        beats: for each heartbeat its seconds.
        checkpoints: (checkpoint id, sha256) of each.
        uploads: for each checkpoint its seconds.
        again: requests that had to be sent again, by what was said.
        doubled: events that the hub said it had already.
    """

    run_id: str
    attempt_id: str
    model_id: str = ""
    events: list[int] = field(default_factory=list)
    acknowledged: list[int] = field(default_factory=list)
    points: dict[str, int] = field(default_factory=dict)
    batches: list[tuple[float, int]] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    beats: list[float] = field(default_factory=list)
    checkpoints: list[tuple[str, str]] = field(default_factory=list)
    uploads: list[float] = field(default_factory=list)
    again: dict[str, int] = field(default_factory=dict)
    doubled: int = 0


def values(rank, step):
    """What a rank logs at a step."""
    loss = 2.0 / (1.0 + step / 50.0) + rank / 1000.0 + 0.01 * math.sin(step * 0.7 + rank)
    return {METRICS[0]: round(loss, 6), METRICS[1]: 900.0 + (rank * 7 + step) % 50}


def system_values(rank, look):
    """What a rank measures."""
    return dict(zip(SYSTEM, (20.0 + rank % 7, 4e9 + look, 95.0 - look % 9, 3e10), strict=True))


class _Left(Exception):
    """The run was told to give up."""


class SimulatedRun:
    """One run. `run` sends in the caller's thread, heartbeats and checkpoints in another, until told to end.

    Args:
        url: the hub's.
        key: an API key.
        load: what it does.
        number: tells it from the others; it also shifts its steps, so that not all runs send at once.
        folder: for its checkpoints.
    """

    def __init__(self, url, key, load, number, folder):
        self.load = load
        self.sent = Sent(f"load-{number}-{secrets.token_hex(4)}", secrets.token_hex(16))
        self.sent.events = [0] * load.ranks
        self.sent.acknowledged = [0] * load.ranks
        self._number = number
        self._file = folder / f"{number}.pt"
        self._client = DdphubClient(url, key)
        self.joined = threading.Event()
        self._over = threading.Event()
        self._gone = threading.Event()
        self._lock = threading.Lock()
        self._shift = (number * 0.61803) % 1.0
        self._last = math.inf

    # The thread of events.

    def run(self):
        """Registers, sends until `end`, sends what is left, and says that it has finished; or gives up, see `leave`."""
        with contextlib.suppress(_Left):
            self._run()
        self._client.close()

    def _run(self):
        registration = Registration(self.sent.run_id, self.load.project, f"net-{self._number}", {"epochs": 100})
        self.sent.model_id = self._insist(lambda: self._client.register(registration))
        others = threading.Thread(target=self._beside, name=f"others-{self._number}")
        begun = time.time()
        joined = [{"kind": "attempt", "state": "started", "world_size": self.load.ranks, "host": "node-0"}]
        for rank in range(self.load.ranks):
            place = {"host": f"node-{rank // 8}", "pid": 1000 + rank, "local_rank": rank % 8}
            joined.append({"kind": "rank", "of_rank": rank, "state": "joined", **place})
        self._send([self._event(0, begun, fields) for fields in joined])
        self.joined.set()
        others.start()
        self._over.wait(self._shift * self.load.pace)
        source = self._due(time.time())
        while not self._over.is_set():
            self._send_all(source)
            if self.load.every:
                self._over.wait(self.load.pace)
        self._send_all(source)
        others.join()
        self._send([self._event(0, time.time(), {"kind": "attempt", "state": "finished"})])

    def end(self):
        """Asks the run to finish; what it has logged until now is still sent."""
        self._last = time.time()
        self._over.set()

    def leave(self):
        """Asks the run to give up: nothing more is sent."""
        self._gone.set()
        self._over.set()

    def _due(self, begun):
        """A function that gives the events logged since it was last called, in the order of their time."""
        load, state = self.load, {"step": 0, "look": 0}

        def due(most):
            now, events = min(time.time(), self._last), []
            if not load.every and self._over.is_set():
                return events
            while len(events) < most:
                at = begun + load.every * (state["step"] + self._shift) if load.every else now
                look_at = begun + load.system * (state["look"] + self._shift)
                if load.system and look_at <= min(now, at):
                    for rank in range(load.ranks):
                        measured = {"step": state["step"], "epoch": None, "values": system_values(rank, state["look"])}
                        events.append(self._event(rank, look_at, {"kind": "metrics", **measured}))
                    state["look"] += 1
                elif at <= now:
                    step = state["step"]
                    for rank in range(load.ranks):
                        logged = {"step": step, "epoch": step // STEPS_AN_EPOCH, "values": values(rank, step)}
                        events.append(self._event(rank, at, {"kind": "metrics", **logged}))
                    line = {"stream": "stdout", "lines": [f"step {step}"], "left_out": 0}
                    events.append(self._event(0, at, {"kind": "console", **line}))
                    state["step"] += 1
                else:
                    break
            return events

        return due

    def _send_all(self, due):
        """Sends what was logged; a hub that is behind gets it in batches as large as it takes."""
        while events := due(wire.MAX_BATCH_EVENTS - 2 * self.load.ranks):
            self._send(events)

    def _event(self, rank, at, fields):
        with self._lock:
            seq = self.sent.events[rank]
            self.sent.events[rank] += 1
        if fields["kind"] == "metrics":
            for name in fields["values"]:
                self.sent.points[name] = self.sent.points.get(name, 0) + 1
        return {"attempt_id": self.sent.attempt_id, "rank": rank, "seq": seq, "time": at, **fields}

    def _send(self, events):
        began = time.perf_counter()
        accepted = self._insist(lambda: self._client.send_events(self.sent.model_id, events))
        self.sent.batches.append((time.perf_counter() - began, len(events)))
        self.sent.delays.append(time.time() - events[0]["time"])
        self.sent.doubled += accepted.duplicates
        for event in events:
            self.sent.acknowledged[event["rank"]] = event["seq"] + 1
        if accepted.accepted + accepted.duplicates != len(events):
            raise AssertionError(f"the hub counts {accepted} of {len(events)} events")

    # The thread of heartbeats and checkpoints.

    def _beside(self):
        with contextlib.suppress(_Left):
            self._beat_and_save()

    def _beat_and_save(self):
        beat = time.monotonic() + self._shift * self.load.heartbeat
        save = time.monotonic() + self._shift * self.load.checkpoint if self.load.checkpoint else math.inf
        epoch = 0
        while not self._over.wait(max(0.0, min(beat, save) - time.monotonic())):
            if beat <= save:
                beat = time.monotonic() + self.load.heartbeat
                began = time.perf_counter()
                self._insist(lambda: self._client.heartbeat(self.sent.model_id, self.sent.attempt_id))
                self.sent.beats.append(time.perf_counter() - began)
            else:
                save = time.monotonic() + self.load.checkpoint
                self._upload(epoch)
                epoch += 1

    def _upload(self, epoch):
        content = secrets.token_bytes(self.load.checkpoint_bytes)
        self._file.write_bytes(content)
        digest, size = hashlib.sha256(content).hexdigest(), self._client.part_size
        parts = [hashlib.sha256(content[at : at + size]).hexdigest() for at in range(0, len(content), size)]
        listed = {"name": "last.pt", "size": len(content), "sha256": digest, "parts": parts}
        slot = {"attempt_id": self.sent.attempt_id, "epoch": epoch, "step": epoch, "kind": "epoch", "name": "last.pt"}
        request, entry_id = {**slot, "metrics": {}, "files": [listed]}, secrets.token_hex(16)
        began = time.perf_counter()
        receipt = self._insist(
            lambda: self._client.upload(self.sent.model_id, entry_id, request, {"last.pt": self._file})
        )
        self.sent.uploads.append(time.perf_counter() - began)
        self.sent.checkpoints.append((receipt.checkpoint_id, digest))

    def _insist(self, call):
        """Calls until the hub has answered, with the pauses of Delivery's loop."""
        backoff = Backoff(lambda: self.load.longest_pause)
        while True:
            try:
                return call()
            except HubUnavailable as error:
                if self._gone.is_set():
                    raise _Left from error
                said = str(error).rpartition(": ")[2][:60]
                with self._lock:
                    self.sent.again[said] = self.sent.again.get(said, 0) + 1
                self._gone.wait(backoff.next(error.retry_after))

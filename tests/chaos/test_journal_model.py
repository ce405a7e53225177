"""Spool, staging area, journal and delivery against a hub that is a dict: any order of events, faults and crashes."""

import json
import os
import shutil
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from chaos.strategies import budget
from ddphub.checkpoints.staging import Slot, StagingArea
from ddphub.distributed import relay
from ddphub.errors import DdphubError, HubModelGone, HubRejected, HubUnauthorized, HubUnavailable
from ddphub.events import expand, to_json
from ddphub.hubs.client import Accepted, Receipt
from ddphub.session import sync
from ddphub.session.delivery import Delivery
from ddphub.session.folder import RunFolder, RunInfo
from ddphub.session.journal import read_journal
from ddphub.session.lines import LineWriter
from ddphub.session.report import report
from ddphub.session.sync import sync_run

HUB = "http://hub.test"
FAULTS = ("refuse", "take and fall silent", "unauthorized", "gone", "proxy", "crash", "take and crash", "meanwhile")
ERRORS = {
    "refuse": HubUnavailable("503"),
    "unauthorized": HubUnauthorized("401"),
    "gone": HubModelGone("404"),
    "proxy": HubRejected(418, "what a proxy says"),
}


class Crash(BaseException):
    """The process is gone: nothing that catches exceptions catches this, and nothing is written any more."""


class Life:
    """The file operations of a process that dies before one of them, or in the middle of a write."""

    NAMES = ("write", "pwrite", "fdatasync", "fsync", "rename", "replace", "unlink", "rmdir", "mkdir", "ftruncate")

    def __init__(self):
        self.left = None
        self.torn = 0
        self.deaths = 0

    @contextmanager
    def ends_after(self, operations, torn):
        """Dies at that many operations, having written `torn` bytes of the last one; None: lives on."""
        real = {name: getattr(os, name) for name in self.NAMES}
        self.left, self.torn = operations, torn

        def mortal(name):
            def call(*arguments, **options):
                if self.left is not None:
                    self.left -= 1
                    if self.left == 0 and name == "write":
                        real["write"](arguments[0], bytes(arguments[1])[: self.torn])
                    if self.left <= 0:
                        self.die()
                return real[name](*arguments, **options)

            return call

        for name in self.NAMES:
            setattr(os, name, mortal(name))
        try:
            yield
        finally:
            for name, function in real.items():
                setattr(os, name, function)
            self.left = None

    def die(self):
        self.deaths += self.left != -1
        self.left = -1  # and stays dead: clean-up code that runs on the way out does nothing
        raise Crash


class DictHub:
    """The hub as one thinks of it. It answers as the wire says, or as the next of its `faults` does."""

    part_size = 16
    is_idempotent, ends_last = True, False
    memory: ClassVar = {}
    heartbeat_s = None

    def __init__(self):
        self.events = {}
        self.checkpoints = {}
        self.faults = []
        self.is_choosy = True  # refuses what is marked bad
        self.meanwhile = lambda: None
        self.die = None

    @contextmanager
    def _fault(self):
        fault = self.faults.pop(0) if self.faults else None
        if fault in ERRORS:
            raise ERRORS[fault]
        if fault == "crash":
            self.die()
        if fault == "meanwhile":
            faults, self.faults = self.faults, []
            self.meanwhile()
            self.faults = faults
        yield
        if fault == "take and fall silent":
            raise HubUnavailable("the connection was reset")
        if fault == "take and crash":
            self.die()

    def register(self, registration):
        with self._fault():
            assert registration.run_id == "run"
        return "model"

    def url(self, model_id):
        return f"{HUB}/models/{model_id}"

    def send_events(self, model_id, events):
        assert model_id == "model"
        assert len(events) <= 1000
        with self._fault():
            new = {}
            for event in events:
                key = event["attempt_id"], event["rank"], event["seq"]
                if self.is_choosy and event.get("bad"):
                    raise HubRejected(422, "bad")
                assert self.events.get(key, event) == new.get(key, event) == event, "a key with other content"
                new[key] = event
            accepted = len(new.keys() - self.events.keys())
            self.events.update(new)
        return Accepted(accepted, len(events) - accepted, stop=False)

    def upload(self, model_id, entry_id, request, files):
        assert model_id == "model"
        with self._fault():
            if self.is_choosy and request["metrics"].get("bad"):
                raise HubRejected(422, "bad")
            content = {name: path.read_bytes() for name, path in files.items()}
            assert [(one["name"], one["size"]) for one in request["files"]] == [
                (name, len(data)) for name, data in content.items()
            ]
            assert self.checkpoints.setdefault(entry_id, content) == content
        return Receipt(entry_id, f"c-{entry_id}")

    def find_checkpoint(self, model_id, entry_id):
        assert model_id == "model"
        with self._fault():
            return Receipt(entry_id, f"c-{entry_id}") if entry_id in self.checkpoints else None

    def close(self):
        pass


class Granted:
    """A lock where locks do not exclude."""

    def acquire(self):
        return True

    def release(self):
        pass


class Run(RuleBasedStateMachine):
    """`reported` and `staged` are what the run generated; everything else is asked of the hub and the report."""

    life = Life()

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.folder = RunFolder(self.root / "run")
        self.folder.create()
        self.hub = DictHub()
        self.hub.meanwhile = self.deliver_elsewhere
        self.hub.die = self.life.die
        self.reported = {}  # (attempt, rank, seq) -> event
        self.staged = {}  # entry_id -> (slot, content, bad)
        self.attempts = []
        self.writers = {}
        self.delivery = None
        self.interval = 0.0
        self.has_dropped = set()  # kinds of which something may have been dropped unsent for room

    @initialize()
    def begin(self):
        self.staging = StagingArea(self.folder.staging)
        self.restart()

    def teardown(self):
        try:
            if self.attempts:
                self.check_the_end()
        finally:
            self.end_delivery()
            self.close_writers()
            shutil.rmtree(self.root)

    # What the run does.

    @precondition(lambda self: len(self.attempts) < 4)
    @rule()
    def restart(self):
        """Another attempt; the one before was killed or not."""
        self.end_delivery()
        self.close_writers()
        self.attempts.append(f"{len(self.attempts):x}" * 32)
        info = RunInfo.load(self.folder.run_json) if self.folder.run_json.exists() else RunInfo("run", "p", "n", HUB)
        info.attempts = list(self.attempts)
        info.save(self.folder.run_json)

    def next_seq(self, attempt, rank):
        return max((key[2] + 1 for key in self.reported if key[:2] == (attempt, rank)), default=0)

    def batch(self, rank, bads):
        attempt = self.attempts[-1]
        first = self.next_seq(attempt, rank)
        events = [{"time": 1.0, "kind": "log", "message": f"{first + i}", "bad": bad} for i, bad in enumerate(bads)]
        packed = relay.pack(attempt, rank, first, [to_json(event) for event in events])
        for event in expand(json.loads(packed.text)):
            self.reported[event["attempt_id"], event["rank"], event["seq"]] = event
        return packed

    def writer(self, path):
        return self.writers.setdefault(path, LineWriter(path))

    def close_writers(self):
        for writer in self.writers.values():
            writer.close()
        self.writers = {}

    bads = st.lists(st.sampled_from([False] * 9 + [True]), min_size=1, max_size=4)

    @rule(rank=st.integers(0, 2), bads=bads, relayed=st.booleans(), spilled=st.booleans(), torn=st.integers(0, 400))
    def log(self, rank, bads, relayed, spilled, torn):
        """Events reach the attempt's file, or their rank's own, or both; or a write of them is cut and repeated."""
        batch = self.batch(rank, bads)
        attempt = self.attempts[-1]
        relay_file, rank_file = self.folder.relay_file(attempt), self.folder.rank_file(attempt, rank)
        if relayed or not rank:
            self.writer(relay_file).append([batch.text])
        if rank and (spilled or not relayed):
            self.writer(rank_file).append([batch.text])
            if torn < 100:  # the batch was in two: each half once more
                every = expand(json.loads(batch.text))
                for event in every[len(every) // 2 :]:
                    plain = {name: event[name] for name in event.keys() - {"attempt_id", "rank", "seq"}}
                    self.writer(rank_file).append([relay.pack(attempt, rank, event["seq"], [to_json(plain)]).text])

    @rule(rank=st.integers(1, 2), bads=bads, cut=st.integers(0, 300), goes_on=st.booleans())
    def cut_line(self, rank, bads, cut, goes_on):
        """Rank 0 dies in a write; the rank writes the batch to its own file, and rank 0's successor goes on."""
        batch = self.batch(rank, bads)
        relay_file = self.folder.relay_file(self.attempts[-1])
        self.close_writers()
        whole = self.root / "whole"
        with suppress(FileNotFoundError):
            whole.unlink()
        writer = LineWriter(whole)
        writer.append([batch.text])
        writer.close()
        line = whole.read_bytes()
        relay_file.parent.mkdir(exist_ok=True)
        with relay_file.open("ab") as file:
            file.write(line[: min(cut, len(line) - 1)])
        self.writer(self.folder.rank_file(self.attempts[-1], rank)).append([batch.text])
        if goes_on:
            self.writer(relay_file).append([self.batch(0, [False]).text])

    @rule(
        kind=st.sampled_from(["epoch", "epoch", "best", "final"]),
        name=st.sampled_from(["a.pt", "b.pt"]),
        epoch=st.integers(0, 5),
        content=st.binary(max_size=40),
        bad=st.sampled_from([False] * 6 + [True]),
    )
    def save(self, kind, name, epoch, content, bad):
        source = self.root / name
        source.write_bytes(content)
        slot = Slot(self.attempts[-1], kind, epoch, None, name)
        staged = self.staging.stage(slot, source, {"bad": bad})
        known = [entry_id for entry_id, (other, *_) in self.staged.items() if other == slot]
        assert staged.new is not bool(known)
        if staged.new:
            self.staged[staged.entry_id] = (slot, {name: content}, bad)
        else:
            assert known == [staged.entry_id]

    # How it is delivered.

    def make_delivery(self, lock=None):
        info = RunInfo.load(self.folder.run_json)
        made = Delivery(
            folder=self.folder,
            info=info,
            staging=StagingArea(self.folder.staging),
            client=self.hub,
            hub=HUB,
            ckpt_interval=self.interval,
        )
        if lock is not None:
            made._lock = lock
        return made

    def end_delivery(self):
        """Its process ends: the system takes its locks."""
        if self.delivery is not None:
            self.delivery.release()
            self.delivery = None

    def drain(self, delivery, flush):
        if not delivery.acquire():
            return False
        if not delivery.registered:
            delivery.register()
        return delivery.send_events() and delivery.send_checkpoints(flush=flush)

    def deliver_elsewhere(self):
        """Another host, where the lock was granted too, delivers everything in the middle of a request."""
        other = self.make_delivery(Granted())
        try:
            with suppress(DdphubError):
                self.drain(other, True)
        finally:
            other.release()

    @rule(operations=st.integers(1, 60), torn=st.integers(0, 200), retry=st.sampled_from([False, False, True]))
    def deliver_and_die(self, operations, torn, retry):
        """The hub is well; the process ends before a file operation, or in a write."""
        self.deliver([], True, 0.0, False, retry, operations, torn)

    @rule(
        faults=st.lists(st.sampled_from((*[None] * 8, *FAULTS)), max_size=6),
        flush=st.booleans(),
        interval=st.sampled_from([0.0, 0.0, 900.0]),
        stays=st.booleans(),
        retry=st.sampled_from([False, False, True]),
    )
    def deliver(self, faults, flush, interval, stays, retry, operations=None, torn=0):
        """One try of a live run or of a sync, which ends well, by a fault of the hub, or by the end of its process."""
        if self.delivery is None:
            self.interval = interval
            self.delivery = self.make_delivery()
        self.hub.faults = list(faults)
        try:
            with self.life.ends_after(operations, torn):
                if retry and self.delivery.acquire():
                    self.delivery.retry_aside()
                self.drain(self.delivery, flush)
        except DdphubError:
            pass
        except Crash:
            self.end_delivery()
        self.hub.faults = []
        if not stays:
            self.end_delivery()

    @precondition(lambda self: len(self.attempts) < 6)
    @rule(operations=st.one_of(st.none(), st.integers(1, 30)), torn=st.integers(0, 200))
    def prune(self, operations, torn):
        """The run has ended for now; what is delivered whole is deleted, and another attempt begins."""
        self.end_delivery()
        self.close_writers()
        self.delivery = self.make_delivery()
        with suppress(DdphubError, Crash), self.life.ends_after(operations, torn):
            self.drain(self.delivery, False)
            self.delivery.prune(before=time.time() + 1e6)
        self.restart()

    @rule(needed=st.integers(1, 100), for_final=st.booleans(), operations=st.one_of(st.none(), st.integers(1, 8)))
    def make_room(self, needed, for_final, operations):
        """A save finds no room."""
        before = self.on_disk()
        delivery = self.delivery or self.make_delivery()
        try:
            with self.life.ends_after(operations, 5):
                delivery.make_room(needed, for_final=for_final)
        except Crash:
            self.end_delivery()
        if delivery is not self.delivery:
            delivery.release()
        gone = [self.staged[entry_id][0].kind for entry_id in before - self.on_disk()]
        assert "final" not in gone
        self.has_dropped |= set(gone) | set(self.superseded_kinds())

    @precondition(lambda self: self.hub.is_choosy)
    @rule(sure=st.sampled_from([False, False, True]))
    def mend_hub(self, sure):
        """The hub takes from now on what it refused."""
        self.hub.is_choosy = not sure

    @precondition(lambda self: self.delivery is not None)
    @rule()
    def second_deliverer_waits(self):
        """While one holds session.lock, another does nothing and says so."""
        if not self.delivery.acquire():
            return
        outcome = sync_run(self.folder, self.hub, hub=HUB)  # it waits for a while: see `impatient`
        assert not outcome.done
        assert "another process" in outcome.error

    # What must hold.

    def on_disk(self):
        return {entry.entry_id for entry in self.staging.entries()}

    def superseded(self):
        said = read_journal(self.folder.journal)
        return said.superseded - said.receipts.keys()

    def superseded_kinds(self):
        return [self.staged[entry_id][0].kind for entry_id in self.superseded()]

    @invariant()
    def nothing_is_lost_and_the_report_says_what_is(self):
        if not self.attempts:
            return
        told = report(self.folder)
        assert told.events["reported"] == len(self.reported)
        assert told.events["delivered"] <= len(self.hub.events)
        assert min(told.events.values()) >= 0
        assert told.events["pending"] == len(self.reported) - told.events["delivered"] - told.events["set_aside"]
        assert self.hub.events.items() <= self.reported.items()
        for entry_id, content in self.hub.checkpoints.items():
            assert self.staged[entry_id][1] == content
        left = self.staged.keys() - self.on_disk() - self.hub.checkpoints.keys()
        assert left <= self.superseded()
        assert "final" not in self.superseded_kinds()
        assert told.checkpoints["staged"] == len(self.staged)
        assert told.checkpoints["uploaded"] <= len(self.hub.checkpoints)

    def check_the_end(self):
        """After one clean sync everything is on the hub, or named as what it is; another one finds nothing to do."""
        self.end_delivery()
        self.close_writers()
        for retry, keep_days in ((False, 9), (False, 0), (False, 0), (True, 0)):
            outcome = sync_run(self.folder, self.hub, hub=HUB, retry_aside=retry, keep_days=keep_days)
            assert outcome.done, outcome
            self.check_delivered()
        refuses = self.hub.is_choosy
        assert refuses or len(self.hub.events) == len(self.reported)
        assert refuses or self.hub.checkpoints.keys() | self.superseded() == self.staged.keys()
        newest = {slot.kind: entry_id for entry_id, (slot, *_) in self.staged.items()}
        for kind, entry_id in newest.items():
            assert entry_id not in self.superseded() or kind in self.has_dropped

    def check_delivered(self):
        told = report(self.folder)
        refused_events = self.reported.keys() - self.hub.events.keys()
        assert all(self.reported[key]["bad"] for key in refused_events)
        assert told.events == {
            "reported": len(self.reported),
            "delivered": len(self.hub.events),
            "pending": 0,
            "set_aside": len(refused_events),
        }
        # An upload that was taken while its receipt was lost may be dropped afterwards as unsent.
        superseded = self.superseded()
        refused = self.staged.keys() - self.hub.checkpoints.keys() - superseded
        assert all(self.staged[entry_id][2] for entry_id in refused)
        assert self.on_disk() == refused
        assert told.checkpoints == {
            "staged": len(self.staged),
            "uploaded": len(self.hub.checkpoints.keys() - superseded),
            "pending": 0,
            "superseded": len(superseded),
            "refused": 0,
            "set_aside": len(refused),
        }
        assert told.is_delivered is not bool(refused_events or refused)


@pytest.fixture
def impatient(monkeypatch):
    """A sync that finds another one at work gives up at once."""
    monkeypatch.setattr(sync, "OTHER_SYNC_STUCK", 0.0)
    clock = SimpleNamespace(time=time.time, monotonic=time.monotonic, sleep=lambda _: None)
    monkeypatch.setattr(sync, "time", clock)


def test_whatever_happens_everything_arrives_once_or_is_named(impatient):
    """Events of several ranks and attempts, and checkpoints of every kind."""
    Run.life = Life()
    run_state_machine_as_test(Run, settings=budget(150, steps=25))
    assert Run.life.deaths > 50

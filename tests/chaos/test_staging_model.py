"""The staging area against a model of dicts: any order of saves, crashes, removals, repeats and clean-ups."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

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
from ddphub.checkpoints import staging
from ddphub.checkpoints.staging import Slot, StagingArea
from ddphub.errors import StagingError

PART = 64
SLOTS = [
    Slot(attempt * 32, kind, epoch, None, name)
    for attempt in "ab"
    for kind, epoch, name in (
        ("epoch", 1, "last.pt"),
        ("epoch", 2, "last.pt"),
        ("best", 2, "best.pt"),
        ("final", None, "d"),
    )
]
CONTENTS = [
    {"": b""},
    {"": b"x" * 10},
    {"": bytes(range(256)) * 8},
    {"0": b"0" * 700, "deep/er/1": b"1" * 65},
    {"": b"y" * 6000},
]
"""Files of a checkpoint by their name inside it; "": it is a file itself."""

slots = st.sampled_from(SLOTS)
contents = st.sampled_from(CONTENTS)
# A save is 35 to 39 file operations, the others are fewer.
operations = st.integers(1, 20)
operations_of_save = st.integers(1, 40)


def lay(path, content):
    """Writes a checkpoint as a trainer does."""
    for name, data in content.items():
        place = path / name if name else path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)


def size_of(content):
    return sum(map(len, content.values()))


def set_clock(offset):
    """What the staging area takes for the time, in this process."""
    staging.time = SimpleNamespace(time=lambda: time.time() + offset)


def carry_out(order):
    """One operation on a staging area; a refusal for lack of room is no failure."""
    set_clock(order["clock"])
    area = StagingArea(Path(order["folder"]), budget=order["budget"])
    slot, source = Slot(**order["slot"]), Path(order["source"])
    with suppress(StagingError):
        match order["do"]:
            case "stage":
                area.stage(slot, source, {})
            case "write":
                with area.write(slot, {}) as pending:
                    shutil.copytree(source, pending.path) if source.is_dir() else shutil.copyfile(source, pending.path)
            case "remove":
                area.remove(order["entry_id"])
            case "seal":
                for entry in area.entries():
                    if entry.entry_id == order["entry_id"]:
                        area.seal(entry, PART)
            case "recover":
                area.recover()


def serve_crashes():
    """Does what standard input says, each in a child that is killed at its n-th file operation."""
    from checkpoints import killed

    for line in sys.stdin:
        order = json.loads(line)
        print(killed.run_child(partial(carry_out, order), order["at"]), flush=True)


class Crashes:
    """A process without threads that forks the children to be killed: pytest's own has threads."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from chaos.test_staging_model import serve_crashes; serve_crashes()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])},
        )
        self.kills = 0

    def __call__(self, **order):
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        assert status in {0, -9}
        self.kills += status == -9

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(150) == 0


class Staging(RuleBasedStateMachine):
    """`present`, `removed` and `open` are the model; `littered` while a dead process's bytes may lie around."""

    crash = None  # a `Crashes`

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.present = {}  # slot -> (entry_id, content)
        self.removed = {}  # slot -> entry_id
        self.open = {}  # slot -> (context manager, what it gave, content, whether it is new)
        self.made = {}  # entry_id -> created
        self.digests = {}  # entry_id -> Digest
        self.littered = False
        self.clock = 0.0
        self.sources = 0

    @initialize(limit=st.sampled_from([None, 2500, 2500, 7000]), makes_room=st.booleans())
    def begin(self, limit, makes_room):
        self.limit = limit
        self.makes_room = makes_room
        folder = self.root / "run" / "staging"
        self.areas = [StagingArea(folder, budget=limit, make_room=self.make_room) for _ in range(2)]
        self.folder = folder

    def teardown(self):
        for manager, *_ in self.open.values():
            with suppress(StagingError):
                manager.__exit__(None, None, None)
        set_clock(0)
        shutil.rmtree(self.root)

    def make_room(self, slot, needed):
        """As Delivery does: the oldest go, but no final."""
        assert slot in SLOTS
        assert needed > 0
        if not self.makes_room:
            return
        for entry in self.areas[0].entries():
            if needed > 0 and entry.slot.kind != "final":
                needed -= self.areas[0].remove(entry.entry_id)
                self.forget(entry.slot)

    def forget(self, slot):
        self.removed[slot] = self.present.pop(slot)[0]

    def taken_by(self, slot):
        if slot in self.present:
            return self.present[slot][0]
        if slot in self.removed:
            return self.removed[slot]
        return self.open[slot][1].entry_id if slot in self.open else None

    def waiting_bytes(self):
        written = sum(size_of(content) for _, _, content, _ in self.open.values())
        return sum(size_of(content) for _, content in self.present.values()) + written

    def fits(self, size, beside=0):
        return self.limit is None or (size <= self.limit and self.waiting_bytes() - beside + size <= self.limit)

    def source(self, slot, content):
        self.sources += 1
        path = self.root / f"source-{self.sources}" / slot.name
        lay(path, content)
        return path

    def accept(self, slot, entry, content):
        """A save was accepted: it is the newest, and the whole fits the budget."""
        assert entry.created > max([self.made[entry_id] for entry_id, _ in self.present.values()], default=0)
        self.made[entry.entry_id] = entry.created
        self.present[slot] = (entry.entry_id, content)

    @rule(slot=slots, content=contents, which=st.integers(0, 1))
    def stage(self, slot, content, which):
        taken, source = self.taken_by(slot), self.source(slot, content)
        try:
            staged = self.areas[which].stage(slot, source, {"loss": 1.0})
        except StagingError as refusal:
            told = str(refusal)
            assert "budget" in told
            assert taken is None
            assert not self.fits(size_of(content))
            return
        assert staged.new is (taken is None)
        if staged.new:
            self.accept(slot, staged.entry, content)
            assert self.limit is None or self.waiting_bytes() <= self.limit
        else:
            assert staged.entry_id == taken
            assert (staged.entry is None) is (slot not in self.present)

    @rule(slot=slots, content=contents, which=st.integers(0, 1))
    def open_block(self, slot, content, which):
        if slot in self.open:
            return
        taken = self.taken_by(slot)
        manager = self.areas[which].write(slot, {})
        pending = manager.__enter__()
        assert pending.new is (taken is None)
        assert taken in {None, pending.entry_id}
        lay(pending.path, content)
        self.open[slot] = (manager, pending, content, pending.new)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), fails=st.booleans())
    def close_block(self, data, fails):
        slot = data.draw(st.sampled_from(sorted(self.open, key=repr)))
        manager, pending, content, new = self.open[slot]
        beside = size_of(content)
        if fails:
            with suppress(KeyError):
                manager.__exit__(KeyError, KeyError("the block failed"), None)
            del self.open[slot]
            return
        try:
            manager.__exit__(None, None, None)
        except StagingError as refusal:
            told = str(refusal)
            assert "budget" in told
            assert new
            assert not self.fits(size_of(content), beside)
            del self.open[slot]
            return
        del self.open[slot]
        assert pending.new is new
        if new:
            self.accept(slot, pending.entry, content)
        else:
            assert (pending.entry is None) is (slot not in self.present)

    @rule(slot=slots, content=contents, how=st.sampled_from(["stage", "write"]), at=operations_of_save)
    def crash_in_save(self, slot, content, how, at):
        free = self.taken_by(slot) is None
        self.die(how, slot, self.source(slot, content), at)
        found = {entry.slot: entry for entry in self.areas[0].entries()}
        if free and slot in found:
            self.accept(slot, found[slot], content)

    @precondition(lambda self: self.present)
    @rule(data=st.data(), at=operations)
    def crash_in_removal(self, data, at):
        slot = data.draw(st.sampled_from(sorted(self.present, key=repr)))
        self.die("remove", slot, self.root, at)
        if not any(entry.slot == slot for entry in self.areas[0].entries()):
            self.forget(slot)

    @rule(data=st.data(), at=operations)
    def crash_elsewhere(self, data, at):
        """In sealing or cleaning up."""
        if self.present and data.draw(st.booleans()):
            self.die("seal", data.draw(st.sampled_from(sorted(self.present, key=repr))), self.root, at)
        else:
            self.die("recover", SLOTS[0], self.root, at)

    def die(self, do, slot, source, at):
        self.crash(
            do=do,
            at=at,
            slot=slot.__dict__,
            source=str(source),
            folder=str(self.folder),
            budget=self.limit,
            clock=self.clock,
            entry_id=self.present.get(slot, ("",))[0],
        )
        self.littered = True

    @precondition(lambda self: self.present)
    @rule(data=st.data(), part=st.sampled_from([PART, 1000]))
    def seal(self, data, part):
        slot = data.draw(st.sampled_from(sorted(self.present, key=repr)))
        entry_id, content = self.present[slot]
        (entry,) = [entry for entry in self.areas[0].entries() if entry.entry_id == entry_id]
        digest = self.areas[1].seal(entry, part)
        assert digest == self.areas[0].digest(entry)
        for file, (name, data_) in zip(digest.files, sorted(content.items()), strict=True):
            assert file.name == (name or slot.name)
            assert file.sha256 == hashlib.sha256(data_).hexdigest()
            cut = [data_[start : start + part] for start in range(0, len(data_), part)]
            assert list(file.parts) == [hashlib.sha256(one).hexdigest() for one in cut]

    @precondition(lambda self: self.present)
    @rule(data=st.data())
    def remove(self, data):
        slot = data.draw(st.sampled_from(sorted(self.present, key=repr)))
        entry_id, content = self.present[slot]
        assert self.areas[0].remove(entry_id) == size_of(content)
        assert self.areas[1].remove(entry_id) == 0
        self.forget(slot)

    @precondition(lambda self: self.present)
    @rule(data=st.data(), text=st.sampled_from([b"", b"{", b"[]", b'{"entry_id": 1}', b"\xff"]))
    def lose_slot_record(self, data, text):
        """A power cut before the entry was sealed: its slot's record is empty, or half there."""
        slot = data.draw(st.sampled_from(sorted(self.present, key=repr)))
        (self.folder / "slots" / f"{slot.key}.json").write_bytes(text)
        # Removal comes after sealing, which brings the record to the disk: the save must be repeated before.
        self.stage(slot, CONTENTS[0], 0)

    @rule(which=st.integers(0, 1))
    def recover(self, which):
        done = self.areas[which].recover()
        assert self.littered or not done
        self.littered = False
        living = {one.entry_id for one in self.areas[0].pending_claims()}
        arrivals = self.folder / "incoming"
        assert {path.name for path in arrivals.glob("*")} == living
        assert len(living) == len(self.open)
        assert all(one.state == "alive" for one in self.areas[0].pending_claims())

    @rule(offset=st.sampled_from([-86400.0, -1.0, 0.0, 3600.0]))
    def turn_clock(self, offset):
        self.clock = offset
        set_clock(offset)

    @invariant()
    def what_was_accepted_is_there_whole(self):
        """One entry a slot, until it is removed; nothing is broken; the bytes are counted."""
        if not hasattr(self, "areas"):
            return
        area = self.areas[0]
        entries = area.entries()
        assert {entry.slot: entry.entry_id for entry in entries} == {
            slot: entry_id for slot, (entry_id, _) in self.present.items()
        }
        assert len(entries) == len(self.present)
        for entry in entries:
            content = self.present[entry.slot][1]
            there = {file.name: entry.file_path(file.name).read_bytes() for file in entry.files}
            assert there == {name or entry.slot.name: data for name, data in content.items()}
        assert area.broken() == []
        used = area.used()
        assert used >= self.waiting_bytes() if self.littered else used == self.waiting_bytes()


def test_no_order_of_events_loses_or_doubles_a_save():
    """Every step is followed by a look at all that was accepted."""
    Staging.crash = Crashes()
    try:
        run_state_machine_as_test(Staging, settings=budget(80, steps=30))
        assert Staging.crash.kills > 20
    finally:
        Staging.crash.close()

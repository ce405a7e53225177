"""The staging area as one process sees it."""

import json
import os
import shutil
import stat
import threading
from pathlib import Path

import pytest

from ddphub.checkpoints.staging import Entry, Slot, StagedFile, StagingArea
from ddphub.errors import StagingError


def content(entry: Entry) -> dict[str, bytes]:
    return {file.name: entry.file_path(file.name).read_bytes() for file in entry.files}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_nothing_is_made_before_the_first_save(area):
    """Looking at a run that never saved creates nothing."""
    assert area.entries() == area.broken() == area.recover() == area.pending_claims() == []
    assert area.used() == area.remove("0" * 32) == 0
    assert not area.folder.parent.exists()


def test_a_saved_file_waits_as_an_entry(area, slot, checkpoint):
    """What was staged is there with its slot, metrics, files and bytes, also for another process."""
    staged = area.stage(slot(3), checkpoint, {"loss": 0.5, "acc": float("nan"), "epoch": 3})
    entry = staged.entry
    assert staged.new
    assert entry.entry_id == staged.entry_id
    assert entry.slot == slot(3)
    assert entry.metrics == {"loss": 0.5, "acc": "NaN", "epoch": 3}
    assert entry.files == (StagedFile("last.pt", 256_000),)
    assert entry.size == area.used() == 256_000
    assert content(entry) == {"last.pt": checkpoint.read_bytes()}
    assert StagingArea(area.folder).entries() == [entry]
    assert area.pending_claims() == []


def test_a_folder_is_one_entry(area, slot, tmp_path):
    """A sharded checkpoint is one entry of many files."""
    shards = {f"shard{rank}/{rank}.distcp": os.urandom(1000 + rank) for rank in range(8)} | {".metadata": b"m"}
    for name, data in shards.items():
        path = tmp_path / "sharded" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    entry = area.stage(slot(), tmp_path / "sharded", {}).entry
    assert content(entry) == shards
    area.seal(entry, 512)
    assert [file.name for file in area.digest(entry).files] == sorted(shards)


def test_a_second_save_of_a_slot_finds_the_first(area, slot, checkpoint):
    """The second call for a slot copies nothing and gets the first one's entry, also when its source is gone."""
    first = area.stage(slot(), checkpoint, {"loss": 1})
    checkpoint.unlink()
    second = area.stage(slot(), checkpoint, {"loss": 2})
    assert (second.entry_id, second.entry, second.new) == (first.entry_id, first.entry, False)
    assert len(area.entries()) == 1


def test_other_slots_are_other_entries(area, checkpoint):
    """Attempt, kind, epoch, step and name each make another slot; entries come oldest first."""
    slots = [
        Slot("a" * 32, "epoch", 1, 10, "last.pt"),
        Slot("b" * 32, "epoch", 1, 10, "last.pt"),
        Slot("a" * 32, "best", 1, 10, "last.pt"),
        Slot("a" * 32, "epoch", None, 10, "last.pt"),
        Slot("a" * 32, "epoch", 1, None, "last.pt"),
        Slot("a" * 32, "epoch", 1, 10, "first.pt"),
    ]
    assert len({one.key for one in slots}) == len(slots)
    for one in slots:
        assert area.stage(one, checkpoint, {}).new
    assert [entry.slot for entry in area.entries()] == slots


def test_a_removed_entry_stays_known(area, slot, checkpoint):
    """After an entry was delivered and deleted, a repeat of its slot stages nothing, also after a restart."""
    staged = area.stage(slot(), checkpoint, {})
    area.seal(staged.entry, 1000)
    assert area.remove(staged.entry_id) == 256_000
    assert area.remove(staged.entry_id) == 0
    assert area.entries() == area.recover() == []
    assert area.used() == 0
    again = StagingArea(area.folder).stage(slot(), checkpoint, {})
    assert (again.entry_id, again.entry, again.new) == (staged.entry_id, None, False)


def test_an_entry_does_not_change_with_its_source(area, slot, checkpoint):
    """The trainer rewrites last.pt in place; what was staged stays what it was."""
    data = checkpoint.read_bytes()
    entry = area.stage(slot(), checkpoint, {}).entry
    digest = area.seal(entry, 1000)
    with checkpoint.open("r+b") as file:
        file.write(b"x" * len(data))
    assert content(entry) == {"last.pt": data}
    assert area.seal(entry, 999).files[0].sha256 == digest.files[0].sha256


def test_writing_straight_into_the_area(area, slot):
    """The path of a block is committed when it ends, under the slot's name."""
    with area.write(slot(name="model.pt"), {"loss": 1.5}) as pending:
        assert pending.new
        pending.path.write_bytes(b"straight")
        (claim,) = area.pending_claims()
        assert (claim.entry_id, claim.slot, claim.state) == (pending.entry_id, slot(name="model.pt"), "alive")
        assert area.entries() == []
    assert area.entries() == [pending.entry]
    assert content(pending.entry) == {"model.pt": b"straight"}
    assert pending.entry.metrics == {"loss": 1.5}
    assert names(pending.entry.folder) == {"checkpoint.json", "files", "owner.json"}


def test_writing_a_folder_straight_into_the_area(area, slot):
    """A folder made at the path becomes an entry of its files, as if it had been staged."""
    with area.write(slot(name="sharded"), {}) as pending:
        (pending.path / "deep").mkdir(parents=True)
        (pending.path / "deep" / "0").write_bytes(b"0")
        (pending.path / "1").write_bytes(b"1")
    assert content(pending.entry) == {"1": b"1", "deep/0": b"0"}


def test_writing_a_taken_slot_is_thrown_away(area, slot, checkpoint):
    """The block of a repeated slot runs as any other; what it writes is forgotten."""
    first = area.stage(slot(), checkpoint, {})
    with area.write(slot(), {}) as pending:
        assert not pending.new
        pending.path.write_bytes(b"again")
    assert (pending.new, pending.entry, pending.entry_id) == (False, first.entry, first.entry_id)
    assert area.entries() == [first.entry]
    assert names(area.folder / "incoming") == set()


@pytest.mark.parametrize("taken", [False, True])
def test_a_block_that_raises_leaves_nothing(area, slot, checkpoint, taken):
    """The exception passes through, the half file is gone, and the slot is as it was."""
    if taken:
        area.stage(slot(), checkpoint, {})
    with pytest.raises(ZeroDivisionError), area.write(slot(), {}) as pending:
        pending.path.write_bytes(b"half")
        raise ZeroDivisionError
    assert pending.entry is None
    assert names(area.folder / "incoming") == set()
    assert area.stage(slot(), checkpoint, {}).new is not taken


@pytest.mark.parametrize("folder", [False, True])
def test_a_block_that_writes_nothing_leaves_nothing(area, slot, checkpoint, folder):
    """No file at the path, or an empty folder there, is no checkpoint: the slot is free again."""
    with area.write(slot(), {}) as pending:
        if folder:
            (pending.path / "deep").mkdir(parents=True)
    assert (pending.new, pending.entry) == (False, None)
    assert names(area.folder / "incoming") == set()
    assert area.stage(slot(), checkpoint, {}).new


def test_a_block_that_leaves_its_file_open_is_refused(area, slot, checkpoint):
    """What somebody may still write to is not committed."""
    with (
        pytest.raises(StagingError, match=r"last\.pt is open for writing"),
        area.write(slot(), {}) as pending,
        pending.path.open("wb") as file,
    ):
        keep = os.dup(file.fileno())
    os.close(keep)
    assert area.stage(slot(), checkpoint, {}).new


@pytest.mark.parametrize("link", ["hard", "symbolic"])
def test_a_block_that_makes_a_link_gets_a_copy(area, slot, checkpoint, link):
    """Bytes that also have a name outside are copied: a later rewrite does not reach the entry."""
    data = checkpoint.read_bytes()
    with area.write(slot(), {}) as pending:
        if link == "hard":
            pending.path.hardlink_to(checkpoint)
        else:
            pending.path.symlink_to(checkpoint)
    with checkpoint.open("r+b") as file:
        file.write(b"x" * len(data))
    assert content(pending.entry) == {"last.pt": data}


def test_a_file_beside_the_path_is_not_staged(area, slot, caplog):
    """What a block writes elsewhere in its folder is dropped with a warning."""
    with area.write(slot(), {}) as pending:
        pending.path.write_bytes(b"1")
        pending.path.with_suffix(".json").write_bytes(b"2")
    assert content(pending.entry) == {"last.pt": b"1"}
    assert "last.json beside it is not" in caplog.text
    assert names(pending.entry.folder) == {"checkpoint.json", "files", "owner.json"}


def test_a_failed_copy_frees_the_slot(area, slot, tmp_path, checkpoint):
    """A save that could not be made can be made again; half copies are gone."""
    for source, problem in [
        (tmp_path / "missing.pt", "missing.pt does not exist"),
        (tmp_path / "empty", "is a folder without files"),
    ]:
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(StagingError, match=problem):
            area.stage(slot(), source, {})
        assert names(area.folder / "incoming") == names(area.folder / "slots") == set()
    assert area.stage(slot(), checkpoint, {}).new


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="needs /dev/full")
def test_a_full_disk_is_named(tmp_path, slot, run_python, checkpoint):
    """When no more bytes fit, the error says where and why, the half copy is gone and the slot is free."""
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    program = f"""
import ctypes, os, sys
from pathlib import Path
from ddphub.checkpoints.staging import Slot, StagingArea
from ddphub.errors import StagingError
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x00020000) or os.system("mount --make-rprivate / && mount -t tmpfs -o size=128k none " + sys.argv[1]):
    print("cannot")
    sys.exit()
area = StagingArea(Path(sys.argv[1]) / "staging")
slot = Slot("a" * 32, "epoch", 1, None, "last.pt")
try:
    area.stage(slot, Path({str(checkpoint)!r}), {{}})
except StagingError as problem:
    print(problem)
assert area.used() == 0 and area.pending_claims() == [], area.pending_claims()
(Path(sys.argv[1]) / "small").write_bytes(b"1")
assert area.stage(slot, Path(sys.argv[1]) / "small", {{}}).new
os.system("mount -o remount,ro " + sys.argv[1])
try:
    area.stage(Slot("a" * 32, "epoch", 2, None, "last.pt"), Path(sys.argv[1]) / "small", {{}})
except StagingError as problem:
    print(problem)
"""
    small = tmp_path / "small"
    small.mkdir()
    printed = run_python(program, small)
    if printed == "cannot\n":
        pytest.skip("needs a mount namespace")
    full, read_only = printed.splitlines()
    assert full.startswith(f"could not copy {checkpoint} to {small}/staging/incoming/")
    assert "the disk is full" in full
    assert "the file system is read-only" in read_only


def test_the_budget_is_kept(tmp_path, slot, checkpoint):
    """What fits is staged; what does not is refused with the figures, and the slot stays free."""
    area = StagingArea(tmp_path / "staging", budget=2 * 256_000)
    first = area.stage(slot(0), checkpoint, {})
    area.stage(slot(1), checkpoint, {})
    with pytest.raises(StagingError, match="256000 bytes does not fit: the byte budget is 512000, 256000 bytes too"):
        area.stage(slot(2), checkpoint, {})
    with (
        pytest.raises(StagingError, match="1 bytes does not fit: the byte budget is 512000, 1 bytes too much"),
        area.write(slot(2), {}) as pending,
    ):
        pending.path.write_bytes(b"1")
    assert area.used() == 512_000
    area.remove(first.entry_id)
    assert area.stage(slot(2), checkpoint, {}).new


def test_room_is_made(tmp_path, slot, checkpoint):
    """The session is asked for the bytes that must go, with no lock held, and only if that can help."""
    asked = []

    def make_room(slot: Slot, needed: int) -> None:
        asked.append(needed)
        area.remove(area.entries()[0].entry_id)
        # Another thread may stage meanwhile: no lock is held.
        other = threading.Thread(target=area.recover)
        other.start()
        other.join()

    area = StagingArea(tmp_path / "staging", budget=300_000, make_room=make_room)
    area.stage(slot(0), checkpoint, {})
    assert area.stage(slot(1), checkpoint, {}).new
    assert asked == [212_000]
    with area.write(slot(2), {}) as pending:
        pending.path.write_bytes(b"x" * 300_000)
    assert asked == [212_000, 256_000]
    assert area.entries() == [pending.entry]
    with checkpoint.open("ab") as file:
        file.write(b"x" * 100_000)
    with pytest.raises(StagingError, match="356000 bytes does not fit"):
        area.stage(slot(3), checkpoint, {})
    assert len(asked) == 2
    assert area.entries() == [pending.entry]


@pytest.mark.parametrize("umask", [0, 0o777])
def test_modes_do_not_depend_on_the_umask(area, slot, checkpoint, umask):
    """Folders are 0700 and files 0600, whatever the umask and whatever modes the writer gave."""
    checkpoint.chmod(0o644)
    before = os.umask(umask)
    try:
        area.seal(area.stage(slot(0), checkpoint, {}).entry, 1000)
        with area.write(slot(1), {}) as pending:
            (pending.path / "deep").mkdir(parents=True, mode=0o777)
            (pending.path / "deep" / "0").write_bytes(b"0")
            (pending.path / "deep").chmod(0o777)
            (pending.path / "deep" / "0").chmod(0o666)
    finally:
        os.umask(before)
    found = {area.folder.parent, area.folder, *area.folder.rglob("*")}
    assert len(found) > 15
    for path in found:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize(
    "bad",
    [
        Slot("a" * 31, "epoch", 1, None, "last.pt"),
        Slot("a" * 32, "", 1, None, "last.pt"),
        Slot("a" * 32, "epoch", True, None, "last.pt"),
        Slot("a" * 32, "epoch", 1, 1.5, "last.pt"),
        Slot("a" * 32, "epoch", 1, None, "../last.pt"),
        Slot("a" * 32, "epoch", 1, None, "a/b"),
        Slot("a" * 32, "epoch", 1, None, ".."),
        Slot("a" * 32, "epoch", 1, None, "a\nb"),
    ],
)
def test_slots_that_are_none_are_refused(area, checkpoint, bad):
    """A slot with a name that leaves its folder, or a field of another type, is named and refused."""
    with pytest.raises(StagingError, match="slot "):
        area.stage(bad, checkpoint, {})
    with pytest.raises(StagingError, match="slot "), area.write(bad, {}):
        pytest.fail("the block must not run")
    assert not area.folder.exists()


def test_metrics_that_json_cannot_carry_are_refused(area, slot, checkpoint):
    """A metric that is no number says so, before anything is staged."""
    with pytest.raises(StagingError, match="expected numbers by name"):
        area.stage(slot(), checkpoint, {"loss": object()})
    assert not area.folder.exists()


@pytest.mark.parametrize(
    "change",
    [
        "",
        "null",
        "[" * 100_000,
        {"entry_id": "0" * 32},
        {"created": "now"},
        {"created": 10**400},
        {"created": True},
        {"metrics": []},
        {"files": []},
        {"files": [{"name": "../../../../etc/passwd", "size": 1}]},
        {"files": [{"name": "/etc/passwd", "size": 1}]},
        {"files": [{"name": "last.pt", "size": -1}]},
        {"files": ["last.pt"]},
        {"slot": None},
        {"slot": {"attempt_id": "x", "kind": "epoch", "epoch": 1, "step": None, "name": "last.pt"}},
    ],
)
def test_an_unreadable_record_is_set_aside(area, slot, checkpoint, caplog, change):
    """A checkpoint.json that does not say what it should is reported once, counted, and never deleted."""
    good = area.stage(slot(0), checkpoint, {}).entry
    bad = area.stage(slot(1), checkpoint, {}).entry
    record = bad.folder / "checkpoint.json"
    if isinstance(change, dict):
        change = json.dumps(json.loads(record.read_text()) | change)
    record.write_text(change)
    assert area.entries() == area.entries() == [good]
    assert area.broken() == [bad.entry_id]
    assert area.recover() == []
    assert area.used() > 256_000 * 2
    assert caplog.text.count("is set aside") == 1
    assert content(bad) == content(good)
    again = area.stage(slot(1), checkpoint, {})
    assert (again.entry_id, again.entry, again.new) == (bad.entry_id, None, False)


def test_strange_names_are_not_entries(area, slot, checkpoint):
    """What is not called like an entry is none, and only an entry can be removed."""
    entry = area.stage(slot(), checkpoint, {}).entry
    (area.folder / "notes.txt").write_text("mine")
    (area.folder / "incoming" / "notes.txt").write_text("mine")
    (area.folder / "slots" / "notes.txt").write_text("mine")
    assert area.entries() == [entry]
    assert area.recover() == area.broken() == area.pending_claims() == []
    for name in ("../staging", "incoming", "", "..", entry.entry_id + "/files", entry.entry_id.upper()):
        with pytest.raises(StagingError, match="expected 32 hex digits"):
            area.remove(name)
    with pytest.raises(KeyError):
        entry.file_path("../checkpoint.json")
    assert names(area.folder) >= {"notes.txt", "incoming", "slots", "staging.lock"}


@pytest.mark.parametrize("bad", ["", "[]", '{"entry_id": 1}', '{"entry_id": "../.."}'])
def test_an_unreadable_slot_is_made_again(area, slot, checkpoint, bad):
    """After a power cut a slot's record may be empty: it is found again from the entry, else it is free."""
    first = area.stage(slot(0), checkpoint, {})
    second = area.stage(slot(1), checkpoint, {})
    area.remove(second.entry_id)
    for record in (area.folder / "slots").iterdir():
        record.write_text(bad)
    again = area.stage(slot(0), checkpoint, {})
    assert (again.entry_id, again.entry, again.new) == (first.entry_id, first.entry, False)
    assert area.stage(slot(0), checkpoint, {}).entry_id == first.entry_id
    assert area.stage(slot(1), checkpoint, {}).new


def test_a_relative_folder_survives_chdir(tmp_path, slot, checkpoint, monkeypatch):
    """The area stays where it is when the training script changes its working directory."""
    monkeypatch.chdir(tmp_path)
    area = StagingArea(Path("staging"))
    monkeypatch.chdir("/")
    assert area.stage(slot(), checkpoint, {}).entry.folder.parent == tmp_path / "staging"

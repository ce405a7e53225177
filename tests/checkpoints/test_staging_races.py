"""The staging area as many processes see it: at once, killed, on other hosts."""

import json
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from ddphub.checkpoints.claims import Claims
from ddphub.checkpoints.layout import Layout
from ddphub.checkpoints.owner import Owner
from ddphub.checkpoints.staging import StagingArea
from ddphub.errors import StagingError

ROUNDS = 100
RACER = """
import sys, json
from pathlib import Path
from ddphub.checkpoints.staging import Slot, StagingArea
area, source, rounds = StagingArea(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])
for number in range(rounds):
    print("ready", flush=True)
    sys.stdin.readline()
    slot = Slot("a" * 32, "epoch", number, None, "last.pt")
    if number % 3 == 0:
        with area.write(slot, {}) as done:
            done.path.write_bytes(b"1")
    else:
        done = area.stage(slot, source, {})
    if number % 7 == 0:
        area.recover()
    print(json.dumps([done.entry_id, done.new]), flush=True)
"""


@pytest.mark.parametrize(
    ("what", "at_least"),
    [
        ("stage", 60),
        ("write", 60),
        ("fail", 40),
        ("take over", 60),
        ("recover", 20),
        ("write when taken", 45),
        ("remove", 10),
        ("seal", 20),
    ],
)
def test_a_kill_at_any_point_leaves_nothing_or_the_whole(tmp_path, run_python, what, at_least):
    """SIGKILL before any file operation: nothing or one whole entry is there, and a new call makes it exactly one."""
    assert int(run_python(Path(__file__).with_name("killed.py"), tmp_path, what, "kill")) >= at_least


@pytest.mark.parametrize(
    ("what", "how"), [("stage", "full"), ("write", "full"), ("write", "interrupt"), ("take over", "interrupt")]
)
def test_a_failure_at_any_point_leaves_nothing_or_the_whole(tmp_path, run_python, what, how):
    """A full disk or Ctrl-C at any file operation: the living process finds the slot free, or one whole entry."""
    assert int(run_python(Path(__file__).with_name("killed.py"), tmp_path, what, how)) >= 40


def test_processes_that_race_for_a_slot_make_one_entry(tmp_path, checkpoint):
    """Whoever wins, all get the same entry id, one staged it, and one entry is there."""
    area = StagingArea(tmp_path / "staging")
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, area.folder, checkpoint, str(ROUNDS)], stdin=-1, stdout=-1, text=True
        )
        for _ in range(3)
    ]
    winners = Counter()
    try:
        for number in range(ROUNDS):
            for racer in racers:
                assert racer.stdout.readline() == "ready\n"
            for racer in racers:
                racer.stdin.write("go\n")
                racer.stdin.flush()
            answers = [json.loads(racer.stdout.readline()) for racer in racers]
            assert len({entry_id for entry_id, _ in answers}) == 1, number
            assert sum(new for _, new in answers) == 1, number
            winners[next(index for index, (_, new) in enumerate(answers) if new)] += 1
    finally:
        for racer in racers:
            racer.communicate()
    assert [entry.slot.epoch for entry in area.entries()] == list(range(ROUNDS))
    assert area.recover() == area.pending_claims() == []


def test_threads_that_race_for_a_slot_make_one_entry(area, slot, checkpoint):
    """In one process, too: while one thread copies, the others are told that the slot is taken."""
    answers = []
    for number in range(30):
        threads = [
            threading.Thread(target=lambda n=number: answers.append(area.stage(slot(n), checkpoint, {})))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answers) == 120
    assert sum(answer.new for answer in answers) == len(area.entries()) == 30
    assert len({answer.entry_id for answer in answers}) == 30


def test_the_slot_of_a_copy_in_progress_is_taken(area, slot, checkpoint):
    """A second call returns at once while another thread is still writing, and recover leaves that one alone."""
    with area.write(slot(), {}) as pending:
        pending.path.write_bytes(b"1")
        answers = []
        thread = threading.Thread(target=lambda: answers.append(area.stage(slot(), checkpoint, {})))
        thread.start()
        thread.join()
        assert (answers[0].entry_id, answers[0].entry, answers[0].new) == (pending.entry_id, None, False)
        assert area.recover() == []
    assert area.entries() == [pending.entry]


LINGER = """
import sys
from pathlib import Path
from ddphub.checkpoints.staging import Slot, StagingArea
with StagingArea(Path(sys.argv[1])).write(Slot("0123456789abcdef" * 2, "epoch", 0, None, "last.pt"), {}) as pending:
    pending.path.write_bytes(b"half")
    print(pending.entry_id, flush=True)
    sys.stdin.read()
"""


def test_the_claim_of_a_killed_process_is_taken_over(area, slot, checkpoint):
    """While the writer lives its claim stands; once it was killed the slot is staged anew and its half copy goes."""
    with subprocess.Popen([sys.executable, "-c", LINGER, area.folder], stdin=-1, stdout=-1, text=True) as process:
        entry_id = process.stdout.readline().strip()
        assert area.recover() == []
        assert [(claim.entry_id, claim.state, claim.size) for claim in area.pending_claims()] == [
            (entry_id, "alive", 4)
        ]
        taken = area.stage(slot(), checkpoint, {})
        assert (taken.entry_id, taken.entry, taken.new) == (entry_id, None, False)
        process.kill()
    assert [claim.state for claim in area.pending_claims()] == ["dead"]
    assert area.used() == 4
    staged = area.stage(slot(), checkpoint, {})
    assert staged.new
    assert staged.entry_id != entry_id
    assert area.entries() == [staged.entry]
    assert area.pending_claims() == area.recover() == []


def test_recover_says_what_it_did(area):
    """The half copy of a killed process is removed, and a sentence says so."""
    with subprocess.Popen([sys.executable, "-c", LINGER, area.folder], stdin=-1, stdout=-1, text=True) as process:
        entry_id = process.stdout.readline().strip()
        process.kill()
    assert area.recover() == [f"removed the unfinished copy {entry_id}, whose process is gone"]
    assert area.recover() == []
    assert area.used() == 0


@pytest.mark.parametrize("record", [None, "", '{"owner": {"host": "another/boot/pid:[1]", "pid": 1, "started": 1}}'])
def test_what_may_live_elsewhere_is_left_alone(area, slot, checkpoint, record):
    """A copy by another host, or by nobody that can be named, is neither cleaned up nor taken over, and is shown."""
    with subprocess.Popen([sys.executable, "-c", LINGER, area.folder], stdin=-1, stdout=-1, text=True) as process:
        entry_id = process.stdout.readline().strip()
        process.kill()
    owner = area.folder / "incoming" / entry_id / "owner.json"
    if record is None:
        original = json.loads(owner.read_text())
        record = json.dumps(original | {"owner": original["owner"] | {"host": "elsewhere"}})
    owner.write_text(record)
    assert area.recover() == []
    assert [(claim.entry_id, claim.state) for claim in area.pending_claims()] == [(entry_id, "unknown")]
    taken = area.stage(slot(), checkpoint, {})
    assert (taken.entry_id, taken.new) == (entry_id, False)
    assert area.used() == 4


def test_a_claim_that_was_taken_over_is_not_committed(area, slot):
    """A process that others took for dead does not make a second entry of the slot."""
    with pytest.raises(Exception, match="taken over"), area.write(slot(), {}) as pending:
        pending.path.write_bytes(b"1")
        record = area.folder / "slots" / f"{slot().key}.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"entry_id": "0" * 32}))
    assert area.entries() == area.pending_claims() == []
    assert json.loads(record.read_text())["entry_id"] == "0" * 32


def test_a_committed_entry_is_not_released(area, slot, checkpoint):
    """A failure after the commit undoes nothing: the entry stays and its slot stays taken."""
    staged = area.stage(slot(), checkpoint, {})
    Claims(Layout(area.folder)).release(staged.entry_id)
    assert area.entries() == [staged.entry]
    assert not area.stage(slot(), checkpoint, {}).new


def test_a_lock_that_is_held_too_long_is_an_error(area, slot, checkpoint, monkeypatch):
    """A save does not wait for ever for a process that hangs with the lock, and names the lock file."""
    monkeypatch.setattr("ddphub.checkpoints.claims.LOCK_TIMEOUT", 0.1)
    area.stage(slot(0), checkpoint, {})
    hold = (
        "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); input()"
    )
    lock = area.folder / "staging.lock"
    with subprocess.Popen([sys.executable, "-c", hold, lock], stdin=-1, stdout=-1, text=True) as process:
        process.stdout.readline()
        with pytest.raises(StagingError, match=str(lock)):
            area.stage(slot(1), checkpoint, {})
        assert len(area.entries()) == 1
        process.communicate("\n")
    assert area.stage(slot(1), checkpoint, {}).new


def test_a_file_system_without_flock_is_no_trouble(tmp_path, run_python, checkpoint):
    """Where flock fails (no such file system is at hand, so the call is replaced) saves go on without the lock."""
    program = """
import errno, fcntl, sys
from pathlib import Path
from ddphub.checkpoints.staging import Slot, StagingArea

def flock(fd, operation):
    raise OSError(getattr(errno, sys.argv[3]), "no locks")

fcntl.flock = flock
area = StagingArea(Path(sys.argv[1]))
slot = Slot("a" * 32, "epoch", 1, None, "last.pt")
assert area.stage(slot, Path(sys.argv[2]), {}).new
assert not area.stage(slot, Path(sys.argv[2]), {}).new
assert area.recover() == []
assert [path.name for path in Path("/proc/self/fd").iterdir() if "staging.lock" in str(path.resolve())] == []
"""
    for error in ("ENOSYS", "ENOLCK", "EOPNOTSUPP"):
        run_python(program, tmp_path / error, checkpoint, error)


def test_announced_bytes_count(tmp_path, slot, checkpoint):
    """What another process has claimed and not yet copied counts against the budget."""
    area = StagingArea(tmp_path / "staging")
    with area.write(slot(), {}) as pending:
        owner = area.folder / "incoming" / pending.entry_id / "owner.json"
        owner.write_text(json.dumps({"owner": Owner.current().to_json(), "slot": None, "reserved": 1000}))
        assert area.used() == 1000


def test_reading_while_others_remove(area, slot, checkpoint):
    """Entries that go away while they are listed are left out, and nothing is raised."""
    total = 100
    for number in range(total):
        area.stage(slot(number), checkpoint, {})
    program = """
import sys
from pathlib import Path
from ddphub.checkpoints.staging import StagingArea
area = StagingArea(Path(sys.argv[1]))
for entry in area.entries():
    area.remove(entry.entry_id)
"""
    with subprocess.Popen([sys.executable, "-c", program, area.folder]) as process:
        while process.poll() is None:
            epochs = [entry.slot.epoch for entry in area.entries()]
            assert epochs == sorted(set(epochs))
            assert area.broken() == []
            area.used()
            area.recover()
    assert process.returncode == 0
    assert area.entries() == []
    assert area.used() == 0

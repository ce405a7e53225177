"""What `ddphub sync` mends, deletes and leaves alone, and how `ddphub status` explains what is left."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jobs import ddphub as command_line
from jobs import wait_until

import ddphub
from ddphub.distributed.courier import Answer
from ddphub.session.folder import RunFolder, RunInfo
from ddphub.session.journal import read_journal
from ddphub.session.lines import LineWriter
from ddphub.session.presence import Presence
from ddphub.session.spool import StraySpool

LONG_AGO = 1_000_000_000


@pytest.fixture
def folder(tmp_path):
    """An offline run with 5 events of metrics and 2 checkpoints; its process has ended."""
    made = RunFolder(tmp_path / "runs" / "run")
    run = ddphub.init(project="tests", name="sync", dir=made.path.parent, mode="offline", run_id="run")
    for step in range(5):
        run.log({"loss": 1.0}, step=step)
    for epoch in range(2):
        (tmp_path / "last.pt").write_bytes(b"%d" % epoch * 1000)
        run.save_checkpoint(tmp_path / "last.pt", epoch=epoch)
    run.finish()
    return made


def status(folder):
    return json.loads(command_line("status", str(folder.path), "--json").stdout)


def age(folder):
    for path in folder.path.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))


def test_every_entry_that_is_not_delivered_is_explained(folder):
    """One by one, with what it is and why it waits."""
    one, two = status(folder)["waiting_checkpoints"]
    assert (one["kind"], one["epoch"], one["name"], one["bytes"]) == ("epoch", 0, "last.pt", 1000)
    assert two["epoch"] == 1
    assert "ddphub sync" in one["why"]
    assert sum(status(folder)["waiting_events"].values()) == status(folder)["events"]["pending"]
    (folder.staging / two["entry_id"] / "checkpoint.json").write_text("{")
    told = command_line("status", str(folder.path)).stdout
    assert f"{two['entry_id']}: checkpoint.json is damaged" in told
    assert "last.pt of epoch 0 (1000 bytes): nobody delivers it" in told


def test_a_live_run_is_said_to_be_live(tmp_path):
    run = ddphub.init(project="tests", name="live", dir=tmp_path, mode="offline", run_id="live")
    (tmp_path / "last.pt").write_bytes(b"1")
    run.save_checkpoint(tmp_path / "last.pt", epoch=0)
    during = status(RunFolder(tmp_path / "live"))
    run.finish()
    assert during["in_use"]
    assert "a process has the run in use" in during["waiting_checkpoints"][0]["why"]
    assert not status(RunFolder(tmp_path / "live"))["in_use"]


def test_the_half_copy_of_a_killed_process_is_explained_and_removed(folder, own_hub, view):
    """And the checkpoints beside it are delivered."""
    program = (
        "import os, signal, sys; from pathlib import Path; from ddphub.checkpoints.staging import Slot, StagingArea\n"
        "with StagingArea(Path(sys.argv[1])).write(Slot('a' * 32, 'epoch', 7, None, 'half.pt'), {}) as pending:\n"
        "    pending.path.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(folder.staging)], check=False)
    assert "half.pt) is not complete: the process that copied it was killed" in status(folder)["problems"][0]
    told = command_line("sync", str(folder.path), hub=own_hub).stdout
    assert "removed the unfinished copy" in told
    assert not list((folder.staging / "incoming").iterdir())
    assert len(view.checkpoints()) == 2
    assert status(folder)["problems"] == []


def test_a_partial_last_line_is_closed_once_its_writer_is_gone(folder, own_hub, view):
    """What was cut off stays in the file as a damaged line; what is whole is delivered; a fresh one is left alone."""
    (path,) = folder.spool_files()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    assert "its last line has 50 bytes" in status(folder)["problems"][0]
    command_line("sync", str(folder.path), hub=own_hub)
    assert path.read_bytes() == whole + whole[:50]
    age(folder)
    assert "closed a partial last line of 50 bytes" in command_line("sync", str(folder.path), hub=own_hub).stdout
    assert path.read_bytes() == whole + whole[:50] + b"\n"
    assert len(view.metrics()) == 5
    assert status(folder)["events"]["pending"] == 0


def test_delivered_spool_files_are_pruned_when_they_are_old(folder, own_hub, view):
    """Counted as before, and nothing is sent again; without a hub, because nothing is left to send."""
    command_line("sync", str(folder.path), hub=own_hub)
    before = status(folder)
    assert folder.spool_files()
    age(folder)
    told = command_line("sync", str(folder.path)).stdout
    assert "it is delivered" in told
    assert folder.spool_files() == []
    after = status(folder)
    assert {**after, "folder": ""} == {**before, "folder": ""}
    assert len(view.metrics()) == 5
    command_line("sync", str(folder.path))
    assert status(folder) == after


def test_a_pruned_run_can_be_continued(folder, own_hub, view):
    """The journal that was shortened still knows what is delivered."""
    command_line("sync", str(folder.path), "--keep", "0", hub=own_hub)
    assert folder.spool_files() == []
    run = ddphub.init(
        project="tests", name="sync", dir=folder.path.parent, run_id="run", hub=own_hub.url, api_key=own_hub.key
    )
    run.log({"loss": 2.0}, step=5)
    run.finish()
    assert sorted(one["step"] for one in view.metrics()) == list(range(6))
    assert status(folder)["events"]["pending"] == 0
    assert len(view.checkpoints()) == status(folder)["checkpoints"]["uploaded"] == 2


def test_what_is_not_delivered_damaged_or_in_use_is_not_pruned(folder, own_hub):
    """However old it is."""
    command_line("sync", str(folder.path), hub=own_hub)
    (path,) = folder.spool_files()
    other = folder.rank_file("b" * 32, 1)
    other.write_bytes(path.read_bytes() + b"00000000 {}\n")
    age(folder)
    command_line("sync", str(folder.path), hub=own_hub)
    assert folder.spool_files() == [other]
    sign = Presence(folder.alive)
    sign.start()
    shutil.copy(other, path)
    age(folder)
    command_line("sync", str(folder.path), hub=own_hub)
    assert len(folder.spool_files()) == 2
    sign.stop()


def test_a_kill_between_the_record_and_the_deletion_changes_no_count(folder, own_hub):
    """The file that is recorded as pruned and still there is deleted by the next sync."""
    command_line("sync", str(folder.path), hub=own_hub)
    before = status(folder)
    (path,) = folder.spool_files()
    content = path.read_bytes()
    command_line("sync", str(folder.path), "--keep", "0")
    path.write_bytes(content)
    assert status(folder)["events"] == before["events"]
    command_line("sync", str(folder.path), "--keep", "0")
    assert folder.spool_files() == []
    assert status(folder)["events"] == before["events"]


def test_what_is_written_after_the_deletion_is_delivered_and_not_deleted_unread(folder, own_hub, view):
    """A rank that outlives rank 0 may make a file of that name again."""
    command_line("sync", str(folder.path), hub=own_hub)
    (path,) = folder.spool_files()
    command_line("sync", str(folder.path), "--keep", "0")
    batch = {
        "attempt_id": path.name[:32],
        "rank": 0,
        "first": 900,
        "events": [{"kind": "log", "time": 1.0, "message": "late"}],
    }
    writer = LineWriter(path)
    writer.append([json.dumps(batch)])
    writer.close()
    command_line("sync", str(folder.path), "--keep", "0", hub=own_hub)
    assert [one["message"] for one in view.events("log")] == ["late"]


@pytest.fixture
def unanswered(tmp_path):
    """What a rank has written that rank 0 has not answered: its spool, and the directory of its own."""
    nonce = "c" * 32
    spool = StraySpool(1, tmp_path, lambda stream_id: RunInfo(f"unanswered-{stream_id}", "tests", "net"))
    batch = {"attempt_id": nonce, "rank": 1, "first": 0, "events": [{"kind": "log", "time": 1.0, "message": "hello"}]}
    spool.write(None, nonce, [json.dumps(batch)])
    return spool, RunFolder(tmp_path / f"unanswered-{nonce}"), nonce


def test_sync_leaves_what_a_living_rank_may_hand_over(unanswered, folder, own_hub, view, tmp_path):
    """And delivers it as a run of its own once the rank is gone without an answer."""
    spool, alone, _ = unanswered
    refused = command_line("sync", str(alone.path), hub=own_hub, check=False)
    assert refused.returncode == 1
    assert "waits to be told which run" in refused.stderr
    assert view.models() == []
    spool.close()
    command_line("sync", str(alone.path), hub=own_hub)
    assert len(view.models()) == 1


def test_a_hand_over_moves_the_events_and_leaves_nothing(unanswered, folder):
    """To the run that rank 0 named."""
    spool, alone, nonce = unanswered
    attempt_id = RunInfo.load(folder.run_json).attempts[0]
    spool.adopt(Answer("run", attempt_id, folder.path), nonce)
    assert folder.rank_file(nonce, 1).exists()
    assert not alone.path.exists()


def test_what_sync_has_begun_to_deliver_is_not_handed_over(unanswered, folder):
    """Or the hub would have it under two models."""
    spool, alone, nonce = unanswered
    alone.journal.touch()
    attempt_id = RunInfo.load(folder.run_json).attempts[0]
    spool.adopt(Answer("run", attempt_id, folder.path), nonce)
    assert alone.rank_file(nonce, 1).exists()
    assert not folder.rank_file(nonce, 1).exists()
    spool.close()


def test_watch_follows_a_live_run_to_its_end(tmp_path, own_hub, view):
    """Events are on the hub while it runs, and everything is when it has ended; then the watch ends."""
    run = ddphub.init(project="tests", name="watched", dir=tmp_path / "runs", mode="offline", run_id="watched")
    command = [sys.executable, "-c", "from ddphub.cli import main; main()", "sync", "--watch", str(tmp_path / "runs")]
    environment = {**os.environ, "DDPHUB_URL": own_hub.url, "DDPHUB_API_KEY": own_hub.key}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as watch:
        run.log({"loss": 1.0}, step=0)
        wait_until(lambda: view.models() and view.metrics(), what="the first metric")
        assert watch.poll() is None
        run.log({"loss": 1.0}, step=1)
        Path(tmp_path / "last.pt").write_bytes(b"weights")
        run.save_checkpoint(tmp_path / "last.pt", epoch=0)
        wait_until(view.checkpoints, what="the checkpoint")
        run.log({"loss": 1.0}, step=2)
        run.finish()
        said, complained = watch.communicate(timeout=150)
    assert watch.returncode == 0, complained
    assert "everything is delivered" in said
    assert sorted(one["step"] for one in view.metrics()) == [0, 1, 2]
    assert len(view.checkpoints()) == 1


def test_watch_takes_up_runs_that_begin_later_and_ends_with_the_last(tmp_path, own_hub, view):
    """Two runs, the second of which starts while the first is followed."""
    first = ddphub.init(project="tests", name="one", dir=tmp_path / "runs", mode="offline", run_id="one")
    command = [sys.executable, "-c", "from ddphub.cli import main; main()", "sync", "--watch", str(tmp_path / "runs")]
    environment = {**os.environ, "DDPHUB_URL": own_hub.url, "DDPHUB_API_KEY": own_hub.key}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment) as watch:
        wait_until(view.models, what="the first model")
        second = ddphub.init(project="tests", name="two", dir=tmp_path / "runs", mode="offline", run_id="two")
        first.finish()
        wait_until(lambda: len(view.models()) == 2, what="the second model")
        time.sleep(1.5)
        assert watch.poll() is None
        second.finish()
        assert watch.wait(150) == 0


def test_the_journal_of_a_run_says_which_model_it_is(folder, own_hub, view):
    """run.json has one writer, rank 0, and stays as it was."""
    before = folder.run_json.read_bytes()
    command_line("sync", str(folder.path), hub=own_hub)
    assert folder.run_json.read_bytes() == before
    assert read_journal(folder.journal).model == (own_hub.url, view.models()[0])
    assert status(folder)["url"] == f"{own_hub.url}/models/{view.models()[0]}"


def test_what_a_killed_process_did_not_finish_is_removed_once_it_is_old(folder, own_hub):
    """Files that were to replace others; what is in a checkpoint is the user's, whatever its name."""
    entry = RunFolder(folder.path).staging / status(folder)["waiting_checkpoints"][0]["entry_id"]
    left = [folder.path / ".run-abc", folder.path / ".alive.json.0123.tmp", entry / ".digest.json.0123.tmp"]
    users = entry / "files" / ".mine.tmp"
    for path in (*left, users):
        path.touch()
    (entry / "checkpoint.json").write_text("{")  # so that it stays
    command_line("sync", str(folder.path), hub=own_hub, check=False)
    assert all(path.exists() for path in left)
    age(folder)
    told = command_line("sync", str(folder.path), hub=own_hub, check=False).stdout
    assert "which a killed process did not finish" in told
    assert not [path for path in left if path.exists()]
    assert users.exists()


def test_a_folder_that_a_killed_rank_left_empty_is_removed(unanswered, own_hub, tmp_path):
    """One with events in it is not, nor one whose rank lives."""
    spool, alone, nonce = unanswered
    moved = tmp_path / "moved"
    alone.rank_file(nonce, 1).rename(moved)
    alone.run_json.unlink()
    age(alone)
    os.utime(alone.path, (LONG_AGO, LONG_AGO))
    command_line("sync", str(tmp_path), hub=own_hub, check=False)
    assert alone.path.exists()
    spool.close()
    os.utime(alone.path, (LONG_AGO, LONG_AGO))
    moved.rename(alone.rank_file(nonce, 1))
    command_line("sync", str(tmp_path), hub=own_hub, check=False)
    alone.rank_file(nonce, 1).unlink()
    command_line("sync", str(tmp_path), hub=own_hub, check=False)
    assert not alone.path.exists()

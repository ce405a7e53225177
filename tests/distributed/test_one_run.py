"""A job of several ranks is one run on the hub, whatever happens to the hub or to a rank."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from jobs import ddphub, wait_until


def test_every_event_and_checkpoint_of_three_ranks_arrives_once(job, view):
    """3 ranks, 1,000 steps each, 5 saves: 3,000 records and 5 checkpoints with the bytes that were written."""
    done = job(ranks=3, steps=1000, cold=True).succeed()

    records = view.metrics()
    assert len(records) == 3000
    assert len(set(view.logged())) == 3000
    assert {one["rank"] for one in records} == {0, 1, 2}
    assert view.saved() == done.saved()
    status = done.status()
    assert status["events"]["pending"] == status["checkpoints"]["pending"] == 0
    assert status["checkpoints"]["uploaded"] == 5
    assert (status["attempts"], status["world_size"]) == (1, 3)
    assert view.model()["state"] == "finished"


@pytest.mark.parametrize("group", ["after", "never"])
def test_the_process_group_may_come_later_or_never(job, view, group):
    """The relay needs no process group: under torchrun it uses the agent's store."""
    job(ranks=2, group=group).succeed()
    assert len(view.logged()) == len(set(view.logged())) == 400
    assert len(view.checkpoints()) == 5


@pytest.mark.parametrize(
    "launcher", [(), ("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0")], ids=["static", "c10d"]
)
def test_each_rendezvous_of_torchrun_serves(job, view, launcher, free_port):
    """Static and c10d rendezvous."""
    launcher = launcher or (f"--master-port={free_port}",)
    job(ranks=2, launcher=launcher).succeed()
    assert len(set(view.logged())) == 400


@pytest.mark.parametrize("group", ["before", "after", "never"])
def test_plain_environment_variables_serve(job, view, free_port, group):
    """RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT without torchrun: rank 0 opens the store."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port)}
    jobs = [job(ranks=0, environment={**place, "RANK": str(rank)}, group=group) for rank in range(2)]
    for one in jobs:
        one.succeed()
    assert len(view.logged()) == len(set(view.logged())) == 400
    assert len(view.checkpoints()) == 5


def test_a_hub_that_stops_in_the_middle_changes_nothing(job, view, own_hub):
    """The hub is gone for 20 s: what it misses waits on disk and is delivered when it is back."""
    running = job(ranks=3, steps=1000, pause=0.025)
    wait_until(lambda: view.models() and view.checkpoints(), what="the first checkpoint")
    own_hub.stop()
    time.sleep(20)
    assert running.process.poll() is None
    own_hub.start()
    running.succeed()
    assert len(view.logged()) == len(set(view.logged())) == 3000
    assert view.saved() == running.saved()


def test_a_hub_that_never_was_there_is_made_up_for_by_sync(job, view, own_hub):
    """The run stays on disk, the report names the command, and the command may run twice."""
    own_hub.stop()
    done = job(ranks=3, steps=1000).succeed()
    assert "ddphub sync" in done.text
    own_hub.start()
    assert view.models() == []
    (folder,) = done.run_folders()
    for _ in range(2):
        ddphub("sync", str(folder), hub=own_hub)
        assert len(view.logged()) == len(set(view.logged())) == 3000
        assert view.saved() == done.saved()


def test_a_killed_rank_is_lost_and_hurts_nobody(job, view):
    """SIGKILL to rank 2 without a process group: the others finish, what it pushed arrives, it is shown as lost."""
    running = job(ranks=3, steps=1000, pause=0.005, group="never", launcher=("--standalone", "--max-restarts=0"))
    wait_until(lambda: view.models() and any(key[1] == 2 for key in view.logged()), what="rank 2's first events")
    running.kill_rank(2)
    running.wait()
    keys = view.logged()
    assert len(keys) == len(set(keys))
    assert any(key[1] == 2 for key in keys)
    states = {rank["rank"]: rank["state"] for rank in view.model()["ranks"]}
    assert states[2] == "lost"


def test_a_job_killed_whole_and_started_again_is_one_model(job, view):
    """Rank 0 and its agent die by SIGKILL; the same run id goes on as a second attempt; nothing is there twice."""
    first = job(ranks=3, steps=1000, pause=0.005, run_id="again")
    wait_until(lambda: view.models() and view.checkpoints(), what="the first checkpoint")
    pids = [first.pid_of(rank) for rank in range(3)]
    os.kill(pids[0], signal.SIGKILL)
    os.kill(first.process.pid, signal.SIGKILL)
    first.wait()
    wait_until(lambda: not any(is_running(pid) for pid in pids), what="the orphans' end")
    saved_by_first = first.saved()
    second = job(ranks=3, steps=1000, run_id="again").succeed()
    assert second.status()["attempts"] == 2
    assert [attempt["number"] for attempt in view.model()["attempts"]] == [1, 2]
    keys = view.logged()
    assert len(keys) == len(set(keys))
    newest = view.model()["attempts"][-1]["attempt_id"]
    assert sum(key[0] == newest for key in keys) == 3000
    # The first attempt's checkpoints too: what was staged when it died is delivered by the second.
    assert set(view.saved()) <= set(second.saved())
    assert len(view.saved()) == len(set(view.saved())) >= 5 + len(saved_by_first) - 1
    assert second.status()["checkpoints"]["pending"] == 0


def test_a_restart_in_place_is_a_second_attempt_of_the_same_run(job, view):
    """--max-restarts=2 and a crash of rank 1: one model, two attempts, nothing twice."""
    done = job(ranks=3, steps=1000, crash="1:2", launcher=("--standalone", "--max-restarts=2")).succeed()
    assert len(done.run_folders()) == 1
    states = [attempt["state"] for attempt in view.model()["attempts"]]
    assert len(states) == 2
    assert states[1] == "finished"
    keys = view.logged()
    assert len(keys) == len(set(keys))
    newest = view.model()["attempts"][-1]["attempt_id"]
    assert sum(key[0] == newest for key in keys) == 3000
    assert view.saved() == done.saved()


def test_the_failure_of_a_rank_is_told_with_its_traceback(job, view):
    """An exception on rank 1 ends the attempt as failed, and the reason names it."""
    done = job(ranks=2, crash="1:1")
    assert done.wait() != 0
    (attempt,) = view.model()["attempts"]
    assert attempt["state"] == "failed"
    assert "this rank was told to crash" in attempt["reason"]


def test_a_run_that_nobody_finishes_is_finished_at_exit(job, view):
    """The interpreter's exit flushes what `finish` would have."""
    done = job(ranks=2, no_finish=1, cold=True).succeed()
    assert len(set(view.logged())) == 400
    assert view.saved() == done.saved()


def is_running(pid):
    try:
        return not re.search(r"\) [ZX] ", Path(f"/proc/{pid}/stat").read_text())
    except FileNotFoundError:
        return False

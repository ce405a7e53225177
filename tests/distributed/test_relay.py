"""The relay under faults: no rank is stalled by another, and what it cannot carry is on disk."""

import os
import signal
import time
from pathlib import Path

import pytest
from jobs import ddphub, wait_until


def saw(view, rank):
    return view.models() and any(key[1] == rank for key in view.logged())


def test_a_stopped_rank_0_stalls_nobody_and_loses_nothing(job, view, own_hub):
    """SIGSTOP to rank 0 for longer than acknowledgements may take; rank 1 ends meanwhile; nothing is missing."""
    running = job(ranks=2, steps=2000, pause=0.003, group="never", finish_timeout=600)
    wait_until(lambda: saw(view, 1), what="rank 1's first events")
    pid, other = running.pid_of(0), running.pid_of(1)
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: not Path(f"/proc/{other}").exists(), what="rank 1's end")
    os.kill(pid, signal.SIGCONT)
    running.succeed()
    ddphub("sync", str(running.runs), hub=own_hub)
    assert len(view.logged()) == len(set(view.logged())) == 4000


def test_without_a_store_every_rank_spools_and_sync_delivers(job, view, own_hub, tmp_path):
    """A process group over a FileStore has no queues: each rank keeps its own files, under one run id."""
    place = {"WORLD_SIZE": "2", "DDPHUB_RUN_ID": "filestore"}
    jobs = [
        job("filestore.py", ranks=0, environment={**place, "RANK": str(rank)}, store=tmp_path / "store")
        for rank in (0, 1)
    ]
    for one in jobs:
        one.succeed()
    ddphub("sync", str(jobs[0].runs), hub=own_hub)
    records = view.metrics()
    assert sorted((one["rank"], one["step"]) for one in records) == [
        (rank, step) for rank in (0, 1) for step in range(50)
    ]


def test_a_store_that_dies_sends_the_other_ranks_to_disk(job, view, own_hub, free_port):
    """Rank 0 serves the store and is killed; rank 1 goes on, ends well, and sync delivers what it had."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port), "DDPHUB_RUN_ID": "orphan"}
    first, second = (
        job(ranks=0, environment={**place, "RANK": str(rank)}, group="never", steps=1500, pause=0.004)
        for rank in (0, 1)
    )
    wait_until(lambda: saw(view, 1), what="rank 1's first events")
    os.kill(first.process.pid, signal.SIGKILL)
    second.succeed()
    ddphub("sync", str(second.runs), hub=own_hub)
    keys = [key for key in view.logged() if key[1] == 1]
    assert len(keys) == len(set(keys)) == 1500


def test_a_rank_that_ends_early_is_waited_for_by_nobody(job, view):
    """Rank 1 logs once and leaves; rank 0 goes on for a while; its finish has its goodbye already."""
    running = job("early.py", ranks=2)
    running.succeed()
    assert sorted({key[1] for key in view.logged()}) == [0, 1]
    states = {rank["rank"]: rank["state"] for rank in view.model()["ranks"]}
    assert states == {0: "left", 1: "left"}


@pytest.mark.parametrize("sender", ["agent", "rank 0"])
def test_sigterm_in_a_collective_marks_the_run_preempted(job, view, sender):
    """The main threads sit in a barrier; the run is flushed and marked, and the processes die of the signal."""
    running = job("stuck.py", ranks=2, cold=True)
    pid = running.pid_of(0)
    wait_until(lambda: saw(view, 0) and saw(view, 1), what="both ranks' events")
    time.sleep(1)
    os.kill(running.process.pid if sender == "agent" else pid, signal.SIGTERM)
    assert running.wait(150) != 0
    (attempt,) = view.model()["attempts"]
    assert (attempt["state"], attempt["reason"]) == ("preempted", "SIGTERM")
    assert len(view.logged()) == 2


def test_ranks_stop_in_step(job, view):
    """A stop asked for on the hub ends both ranks' loops at the same step."""
    running = job("stoppable.py", ranks=2)
    model_id = wait_until(view.models, what="the model")[0]
    wait_until(lambda: saw(view, 1), what="rank 1's events")
    view.post(f"/v1/models/{model_id}/stop")
    running.succeed()
    last = {rank: max(key[2] for key in view.logged() if key[1] == rank) for rank in (0, 1)}
    assert last[0] == last[1] < 10_000


def test_a_writer_other_than_rank_0_stages_where_rank_0_delivers(job, view):
    """`writer=1`: rank 1 wrote the file, rank 0 uploads it, once."""
    job("writer.py", ranks=2).succeed()
    (checkpoint,) = view.checkpoints()
    assert view.download(checkpoint) == b"written by rank 1"


def test_a_script_with_a_handler_of_its_own_goes_on_after_sigterm(job, view):
    """What it logs and saves afterwards is reported, and the attempt is marked preempted when it ends."""
    running = job("handler.py", ranks=0)
    pid = running.pid_of(0)
    wait_until(lambda: saw(view, 0), what="the first events")
    os.kill(pid, signal.SIGTERM)
    running.succeed()
    assert [key[2] for key in view.logged()] == list(range(10))
    assert len(view.checkpoints()) == 1
    (attempt,) = view.model()["attempts"]
    assert (attempt["state"], attempt["reason"]) == ("preempted", "SIGTERM")


def test_a_rank_whose_process_is_replaced_goes_on_with_numbers_of_its_own(job, view, own_hub, free_port):
    """Rank 1's process dies and another one takes its place while rank 0 lives: both processes' events arrive."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port), "DDPHUB_RUN_ID": "respawn"}
    owner = job(ranks=0, environment={**place, "RANK": "0"}, group="never", steps=1500, pause=0.01)
    for _ in range(2):
        job(ranks=0, environment={**place, "RANK": "1"}, group="never", steps=100).succeed()
    owner.succeed()
    ddphub("sync", str(owner.runs), hub=own_hub)
    steps = sorted(key[2] for key in view.logged() if key[1] == 1)
    assert steps == sorted([*range(100), *range(100)])


def test_a_handler_put_over_ours_is_not_cut_short(job, view):
    """The script's handler, installed after init, saves for a while and exits by itself."""
    running = job("handler.py", ranks=0, late=1)
    pid = running.pid_of(0)
    wait_until(lambda: saw(view, 0), what="the first events")
    os.kill(pid, signal.SIGTERM)
    running.succeed()
    assert len(view.logged()) == 10


def test_a_fast_rank_leaves_nothing_behind_on_a_healthy_hub(job, view):
    """More is logged in a moment than may be in flight: the goodbye waits for the last batch."""
    done = job(ranks=2, steps=6000, pause=0.0, group="never").succeed()
    assert len(view.logged()) == len(set(view.logged())) == 12_000
    assert done.status()["events"]["pending"] == 0

"""What ranks report beside what their scripts log, from real jobs to a real hub."""

import logging
import multiprocessing
import signal
import sys
import threading

import pytest
from jobs import ddphub as command_line
from jobs import wait_until

import ddphub
from ddphub.distributed.topology import Topology
from ddphub.observer import local_rank

PROGRAM = "observed.py"
ASKED = {"DDPHUB_CONSOLE": "all", "DDPHUB_SYSTEM_INTERVAL": "0.5"}
DEFAULTS = {"DDPHUB_CONSOLE": "", "DDPHUB_SYSTEM_INTERVAL": ""}


def printed(view, rank=None, stream=None):
    """Every line that the hub has."""
    events = [event for event in view.events("console") if rank in {None, event["rank"]}]
    return [line for event in events if stream in {None, event["stream"]} for line in event["lines"]]


def split(view):
    """(what the script logged, what the ranks measured)."""
    records = view.metrics()
    system = [one for one in records if all(name.startswith("system/") for name in one["values"])]
    return [one for one in records if one not in system], system


def test_every_rank_reports_what_it_prints_and_measures(job, view, own_hub):
    """And the script's own metrics are what they would be without."""
    ran = job(PROGRAM, ranks=2, environment=ASKED).succeed()
    logged, system = split(view)
    assert sorted((one["rank"], one["step"]) for one in logged) == [
        (rank, step) for rank in (0, 1) for step in range(30)
    ]
    assert all(set(one["values"]) == {"loss"} for one in logged)
    for rank in (0, 1):
        mine = [one for one in system if one["rank"] == rank]
        assert len(mine) >= 3
        assert all(one["epoch"] is None and 1e7 < one["values"]["system/memory"] < 1e12 for one in mine)
        steps = [one["step"] for one in mine]
        assert steps == sorted(steps)
        assert 0 < steps[-1] < 30
        assert max(one["values"]["system/cpu"] for one in mine) > 0
        assert printed(view, rank, "stdout") == [
            "[a line with an API key]",
            *(f"rank {rank} got [{index}]" for index in range(4)),
        ], "no line of a worker, none after the end"
        assert printed(view, rank, "stderr")[-2:] == ["step 30/30", "a library's warning"]
    assert own_hub.key not in str(view.events("console"))
    assert ran.text.count("loaded ") == 8, "it is printed all the same"
    assert ran.text.count("after the end") == 2
    status = ran.status()
    assert status["events"]["pending"] == 0
    assert status["events"]["delivered"] == len(logged) + len(system) + len(
        [event for kind in ("console", "attempt", "rank") for event in view.events(kind)]
    )


def test_by_default_rank_0s_last_words_are_there_and_no_other_ranks(job, view):
    """The traceback of what ended it is printed before anything of ours ends."""
    job(PROGRAM, ranks=2, end="raise", pause=0, environment=DEFAULTS).wait()
    lines = printed(view, 0)
    assert lines[-1] == "RuntimeError: rank 0 was told to raise"
    assert "Traceback (most recent call last):" in lines[-5:]
    assert "a library's warning" in lines
    assert printed(view, 1) == []


@pytest.mark.parametrize("end", ["exit", "wait"])
def test_what_was_printed_before_an_exit_or_a_signal_arrives(job, view, end):
    ran = job(PROGRAM, ranks=0, end=end, pause=0, environment={**DEFAULTS, "DDPHUB_SYSTEM_INTERVAL": "0"})
    if end == "wait":
        wait_until((ran.folder / "ready-0").exists, what="the wait")
        ran.process.send_signal(signal.SIGTERM)
        assert ran.wait() == -signal.SIGTERM
        assert printed(view)[-1] == "before the signal"
    else:
        ran.succeed()
        assert printed(view)[-1] == "a library's warning"
    assert "step 30/30" in printed(view)
    assert split(view)[1] == []


def test_an_offline_run_keeps_them_for_ddphub_sync(job, view, own_hub):
    ran = job(PROGRAM, ranks=0, pause=0.05, environment={**ASKED, "DDPHUB_MODE": "offline"}).succeed()
    assert view.models() == []
    command_line("sync", str(ran.runs), hub=own_hub)
    assert printed(view)[-1] == "a library's warning"
    assert len(split(view)[1]) >= 1


def our_threads():
    return {thread.name for thread in threading.enumerate() if thread.name in {"ddphub-console", "ddphub-system"}}


def test_a_disabled_run_touches_nothing(tmp_path, monkeypatch):
    for name, value in ASKED.items():
        monkeypatch.setenv(name, value)
    run = ddphub.init(project="tests", name="off", dir=tmp_path, mode="disabled")
    assert "write" not in vars(sys.stdout)
    wait_until(lambda: our_threads() == set(), what="no thread")
    run.finish()


def test_what_is_switched_off_is_not_there(tmp_path):
    run = ddphub.init(project="tests", name="off", dir=tmp_path, mode="offline", console="off", system_interval=0)
    assert "write" not in vars(sys.stdout)
    wait_until(lambda: our_threads() == set(), what="no thread")
    run.finish()


def test_a_run_gives_the_streams_and_its_threads_back(tmp_path):
    """Also when it ends in a forked child's parent."""
    run = ddphub.init(project="tests", name="on", dir=tmp_path, mode="offline", console="rank0", system_interval=60)
    assert "write" in vars(sys.stdout)
    assert our_threads() == {"ddphub-console", "ddphub-system"}
    child = multiprocessing.get_context("fork").Process(target=lambda: sys.exit("write" in vars(sys.stdout)))
    child.start()
    child.join()
    assert child.exitcode == 0, "the child's streams are as they were"
    run.finish()
    assert "write" not in vars(sys.stdout)
    wait_until(lambda: our_threads() == set(), what="the threads' end")


def test_a_stream_that_cannot_be_captured_does_not_keep_a_run_from_starting(tmp_path, monkeypatch, caplog):
    class Broken:
        def __getattr__(self, name):
            raise RuntimeError(name)

    monkeypatch.setattr(sys, "stdout", Broken())
    with caplog.at_level(logging.CRITICAL):
        run = ddphub.init(project="tests", name="broken", dir=tmp_path, mode="offline", console="rank0")
    run.log({"loss": 1.0})
    run.finish()
    assert '"loss":1.0' in next(tmp_path.glob("*/spool/*")).read_text()


@pytest.mark.parametrize(
    ("topology", "variables", "known"),
    [
        (Topology(), {}, 0),
        (Topology(5, 8, 1, 1, "torchrun"), {"LOCAL_RANK": "1"}, 1),
        (Topology(5, 8, 1, 1, "slurm"), {"SLURM_LOCALID": "1"}, 1),
        (Topology(5, 8, 1, 1, "process group"), {"LOCAL_RANK": "1"}, 1),
        (Topology(5, 8, 0, 0, "process group"), {}, None),
        (Topology(5, 8, 0, 0, "arguments"), {}, None),
        (Topology(5, 8, 0, 0, "arguments"), {"LOCAL_RANK": "0"}, None),
    ],
)
def test_a_place_on_the_node_is_known_where_a_launcher_tells_it(topology, variables, known):
    assert local_rank(topology, variables) == known

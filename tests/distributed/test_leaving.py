"""Told to leave: by SIGTERM, and by a signal that announces the end, to loops that ask and to those that do not."""

import os
import signal

import pytest
from jobs import wait_until


def send(job, number):
    for rank in range(2):
        os.kill(job.pid_of(rank), number)


def running(job, view, **options):
    started = job("leaving.py", ranks=2, **options)
    wait_until(lambda: view.models() and view.metrics(), what="the first metrics")
    return started


@pytest.mark.parametrize(
    ("number", "options"),
    [(signal.SIGTERM, {}), (signal.SIGUSR1, {"environment": {"DDPHUB_WARNING_SIGNAL": "USR1"}})],
)
def test_a_loop_that_asks_saves_and_leaves_at_one_step(number, options, job, view):
    started = running(job, view, **options)
    send(started, number)
    started.succeed()
    said = [line.split() for line in started.text.splitlines() if line.startswith("LEAVES")]
    assert len({step for _, _, step in said}) == 1
    assert len(said) == started.text.count("LEFT") == 2
    (attempt,) = view.model()["attempts"]
    assert (attempt["state"], attempt["reason"]) == ("preempted", number.name)
    (checkpoint,) = view.checkpoints()
    assert view.download(checkpoint) == b"the last one"
    assert started.text.count(f"rank 0 got {number.name}") == 1


def test_a_loop_that_never_asks_dies_by_the_announcing_signal(job, view):
    """What it had reported is on the hub all the same."""
    started = running(job, view, asks=0, environment={"DDPHUB_WARNING_SIGNAL": "USR1"})
    before = len(view.metrics())
    send(started, signal.SIGUSR1)
    assert started.wait() != 0
    assert "Signal 10 (SIGUSR1)" in started.text
    assert "LEFT" not in started.text
    assert view.model()["attempts"][0]["state"] == "preempted"
    assert len(view.metrics()) > before


def test_a_loop_that_takes_too_long_to_leave_is_ended_within_the_budget(job, view):
    """The rest of its budget went to what it had reported: nothing is left but what the loop would still have saved."""
    started = running(job, view, saving=600, environment={"DDPHUB_SIGNAL_BUDGET": "4"})
    send(started, signal.SIGTERM)
    assert started.wait() != 0
    assert "LEFT" not in started.text
    assert view.model()["attempts"][0]["state"] == "preempted"
    assert started.status()["events"]["pending"] == 0


def test_announced_first_and_terminated_later_is_left_once(job, view):
    started = running(job, view, saving=1.5, environment={"DDPHUB_WARNING_SIGNAL": "USR1"})
    send(started, signal.SIGUSR1)
    wait_until(lambda: started.text.count("LEAVES") == 2, what="the loops' end")
    send(started, signal.SIGTERM)
    send(started, signal.SIGTERM)
    started.succeed()
    assert started.text.count("LEFT") == 2
    assert len(view.checkpoints()) == 1
    assert started.text.count("rank 0 got SIGUSR1") == started.text.count("rank 0 got SIGTERM") == 1

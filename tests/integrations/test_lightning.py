"""A real Lightning training, which has a handler of its own for SIGTERM."""

import os
import signal

import pytest
import trainers
from jobs import wait_until


@pytest.mark.parametrize("first", ["ddphub", "lightning"])
def test_lightning_leaves_its_own_way_and_the_run_is_told_of(first, job, view, tmp_path):
    """Whoever took the signal first: Lightning's handler runs, it ends the training, and nothing is left on disk."""
    environment = trainers.paths("lightning")
    started = job("lightning_train.py", ranks=0, first=first, environment=environment)
    wait_until(lambda: view.models() and view.metrics(), what="the first metrics")
    os.kill(started.pid_of(0), signal.SIGTERM)
    started.wait()
    assert "Received SIGTERM: 15" in started.text
    assert "LIGHTNING LEAVES True" in started.text
    (attempt,) = view.model()["attempts"]
    assert (attempt["state"], attempt["reason"]) == ("preempted", "SIGTERM")
    assert started.status()["events"]["pending"] == 0

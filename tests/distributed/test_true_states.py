"""Each state, reached for real: processes that are killed, stopped, told to leave, that fail, hang, or are cut off.

What SLURM says (preempted, requeued, timed_out, cancelled, node_failed) is reached in tests/slurm/test_job_states.py.
"""

import os
import signal
import socket
import time

import pytest
from faulty_proxy import FaultyProxy, cut
from hub_process import KEY, HubProcess
from jobs import wait_until

from ddphub.owner import LAUNCHER_PACE

HOST = socket.gethostname()

WITHIN = 150
"""Seconds in which a state must be shown here: far more than it may take, for a machine with much to do."""


@pytest.fixture
def own_hub(tmp_path):
    """A hub that is less patient."""
    with HubProcess(tmp_path / "hub", api_key=KEY, arguments=("--heartbeat-s", "2", "--stall-s", "6")) as process:
        yield process


class Watched:
    """What the hub shows of one model."""

    def __init__(self, view, name):
        self._view, self._name = view, name

    def look(self):
        found = [one["id"] for one in self._view.get("/v1/models")["results"] if one["name"] == self._name]
        return self._view.get(f"/v1/models/{found[0]}") if found else {"state": None, "reason": None}

    def wait(self, state, *words):
        """Until the hub shows a state whose reason has these words in it."""

        def shown():
            look = self.look()
            return look if look["state"] == state and all(word in (look["reason"] or "") for word in words) else None

        try:
            return wait_until(shown, WITHIN, f"{self._name} {state} {words}")
        except AssertionError as error:
            look = self.look()
            raise AssertionError(f"{error}: {look['state']}, {look['reason']}, {look.get('ranks')}") from None

    def begin(self):
        """Until it has made some steps."""
        wait_until(lambda: ((self.look().get("progress") or {}).get("step") or 0) > 5, WITHIN, f"steps of {self._name}")
        return self.wait("running")

    def stop(self):
        self._view.post(f"/v1/models/{self.look()['id']}/stop")

    def healths(self):
        return [one["health"] for one in self.look()["ranks"]]

    def check_nothing_is_lost_or_doubled(self):
        """Each rank's steps from its first to its last, once."""
        logged = {}
        for one in self._view.metrics(self.look()["id"]):
            if "loss" in one["values"]:
                logged.setdefault(one["rank"], []).append(one["step"])
        assert logged
        for steps in logged.values():
            assert sorted(steps) == list(range(max(steps) + 1))


def test_one_process_in_every_state(job, view):
    """Six runs side by side, and what becomes of each."""
    options = {
        "killed": {},
        "told": {},
        "frozen": {},
        "hangs": {"hangs": 9},
        "fails": {"fails": 9},
        "ends": {"steps": 9},
    }
    jobs = {name: job("alone.py", ranks=0, name=name, **more) for name, more in options.items()}
    hub = {name: Watched(view, name) for name in options}
    for name in ("killed", "told", "frozen"):
        hub[name].begin()
    for name, number in (("killed", signal.SIGKILL), ("told", signal.SIGTERM), ("frozen", signal.SIGSTOP)):
        jobs[name].process.send_signal(number)

    assert hub["ends"].wait("finished")["reason"] is None
    look = hub["fails"].wait("failed")
    assert look["reason"] == "RuntimeError: told to fail"
    assert 'raise RuntimeError("told to fail")' in look["traceback"]
    assert look["attempts"][0]["reason"] == look["traceback"]
    hub["told"].wait("preempted", "told to leave by SIGTERM")
    look = hub["hangs"].wait("stalled", f"rank 0 on {HOST} stopped at step 9", "no step for")
    assert look["silent_s"] < 6
    for name in ("killed", "frozen"):
        hub[name].wait("lost", f"no heartbeat from rank 0 on {HOST}", "(one is due every 2 s)", "it was at step")
        assert hub[name].healths() == ["silent"]

    jobs["frozen"].process.send_signal(signal.SIGCONT)
    assert hub["frozen"].wait("running")["reason"] is None
    hub["frozen"].stop()
    jobs["frozen"].succeed()
    look = hub["frozen"].wait("stopped", "the hub asked it to stop")
    assert (look["status"], look["attempts"][0]["state"]) == ("training", "stopped")
    assert hub["frozen"].healths() == ["done"]
    hub["frozen"].check_nothing_is_lost_or_doubled()
    assert hub["killed"].look()["state"] == "lost"


def test_a_stopped_rank_stalls_the_others_and_is_named(job, view):
    """SIGSTOP in lock-step: rank 0 still beats. SIGCONT, and it goes on; then the hub stops it."""
    running = job("lockstep.py", ranks=3)
    hub = Watched(view, "lockstep")
    assert hub.begin()["reason"] is None
    os.kill(running.pid_of(2), signal.SIGSTOP)
    look = hub.wait("stalled", "no step for", f"rank 2 on {HOST} is silent since step ", "2 ranks wait at step ")
    assert [one["health"] for one in look["ranks"]] == ["stalled", "stalled", "silent"]
    assert look["silent_s"] < 6
    stopped_at = look["ranks"][2]["last_step"]
    assert f"since step {stopped_at}; " in look["reason"]
    # A rank's last half second is with it.
    assert all(0 <= one["last_step"] - stopped_at < 20 for one in look["ranks"])
    os.kill(running.pid_of(2), signal.SIGCONT)
    hub.wait("running")
    wait_until(lambda: hub.healths() == ["ok"] * 3, WITHIN, "three healthy ranks")
    assert hub.look()["ranks"][2]["last_step"] > stopped_at
    hub.stop()
    running.succeed()
    hub.wait("stopped")
    assert hub.healths() == ["done"] * 3
    hub.check_nothing_is_lost_or_doubled()


def test_a_killed_rank_under_torchrun_fails_the_run(job, view):
    """The launcher tells the others to leave, or their collective breaks first: neither is why it ended."""
    running = job("lockstep.py", ranks=3)
    hub = Watched(view, "lockstep")
    hub.begin()
    running.kill_rank(2)
    assert running.wait() != 0
    look = hub.wait("failed", "rank 2: its process is gone without a word")
    assert "rank 0: " in look["traceback"]
    assert look["ranks"][2]["health"] == "dead"


def test_a_killed_rank_that_nobody_waits_for_is_dead(job, view, free_port):
    """Plain processes: the others go on; that a signal ends them later is not its doing."""
    place = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port)}
    jobs = [job("alone.py", ranks=0, environment={**place, "RANK": str(rank)}) for rank in range(3)]
    hub = Watched(view, "alone")
    hub.begin()
    wait_until(lambda: [one["last_step"] is not None for one in hub.look()["ranks"]] == [True] * 3, WITHIN, "all ranks")
    jobs[2].process.kill()
    look = hub.wait("running", f"rank 2 on {HOST} is gone since step ")
    assert (look["ranks"][2]["state"], look["ranks"][2]["health"]) == ("lost", "dead")
    step, is_old_news = look["progress"]["step"], time.monotonic() + LAUNCHER_PACE
    wait_until(lambda: hub.look()["progress"]["step"] > step and time.monotonic() > is_old_news, WITHIN, "more steps")
    assert hub.look()["state"] == "running"
    assert hub.healths()[2] == "dead"
    assert set(hub.healths()[:2]) <= {"ok", "slow"}  # on a machine with much to do
    for one in jobs[:2]:
        one.process.send_signal(signal.SIGTERM)
    hub.wait("preempted")
    hub.check_nothing_is_lost_or_doubled()


def test_a_run_without_a_network_is_lost_until_it_is_back(job, view, own_hub):
    """It trains on meanwhile, and all of that arrives, once."""
    proxy = FaultyProxy(own_hub.url)
    try:
        running = job("alone.py", ranks=0, environment={"DDPHUB_URL": proxy.url})
        hub = Watched(view, "alone")
        hub.begin()
        proxy.fault = cut
        step = hub.wait("lost", "no heartbeat", "it was at step")["progress"]["step"]
        assert hub.healths() == ["silent"]
        proxy.fault = None
        hub.wait("running")
        wait_until(lambda: hub.look()["progress"]["step"] > step + 100, WITHIN, "what was made meanwhile")
        assert hub.healths() == ["ok"]
        hub.stop()
        running.succeed()
        hub.wait("stopped")
        hub.check_nothing_is_lost_or_doubled()
    finally:
        proxy.close()

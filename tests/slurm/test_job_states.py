"""A job that SLURM ends and starts again, on a real cluster: one run, and states as SLURM would say them."""

import os
import sys
import time

import pytest
from jobs import PROGRAMS, HubView, wait_until

ALONE = f'{sys.executable} -c \'import ddphub; ddphub.init(project="tests", name="alone").log(dict(loss=1.0))\''
WAITS = f"""{sys.executable} -c '
import os, pathlib, time, ddphub
run = ddphub.init(project="tests", name=os.environ["NAME"], rate_limits=dict(metrics=0.1))
pathlib.Path(os.environ["OUT"], os.environ["NAME"]).write_text(str(os.getpid()))
time.sleep(100 if not os.environ.get("SLURM_RESTART_COUNT") else 0)
'"""

BATCH = f"""#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=1 --requeue --open-mode=append
export MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -1) MASTER_PORT=29511
exec srun {sys.executable} {PROGRAMS}/slurm_states.py --out $OUT
"""

LONG = pytest.mark.skipif(os.environ.get("CI") != "true", reason="takes a minute: set CI=true")

FLUSH_S = 2.0
"""Seconds of records that a node without power may take with it: half a second, on a machine with much to do."""


class Training:
    """A job of two nodes with a rank each, which reports to a hub of its own."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder = cluster, folder
        self.hub = cluster.hub(folder / "hub", arguments=("--heartbeat-s", "3"))
        self.view = HubView(self.hub)
        self.variables = {
            "DDPHUB_URL": self.hub.url,
            "DDPHUB_API_KEY": self.hub.key,
            "DDPHUB_DIR": str(folder / "runs"),
            "DDPHUB_SIGNAL_BUDGET": "12",  # under the cluster's KillWait
            "OMP_NUM_THREADS": "1",
            "OUT": str(folder),
        }

    def submit(self, script=BATCH, *options):
        self.job = self.cluster.sbatch(script, f"--output={self.folder}/out", *options, environment=self.variables)
        return self

    @property
    def text(self):
        return (self.folder / "out").read_text(errors="replace")

    def reach(self, epoch, timeout=150):
        """Waits until the training has written its checkpoint of an epoch."""
        state = self.folder / "epoch"
        wait_until(lambda: state.exists() and int(state.read_text()) >= epoch, timeout, f"epoch {epoch}")
        return self

    def attempts(self):
        return self.view.model()["attempts"]

    def wait_state(self, *states, attempt=0, timeout=150):
        wait_until(lambda: self.attempts()[attempt]["state"] in states, timeout, f"{states} in {self.attempts()}")
        return self.attempts()[attempt]

    def complete(self):
        self.cluster.wait_job(self.job, "COMPLETED", timeout=120)
        return self

    def written(self, restart, rank):
        """(step, time) of all that a rank logged, by its own record."""
        lines = (self.folder / f"logged-{restart}-{rank}").read_text().splitlines()
        return [(int(step), float(moment)) for step, moment in map(str.split, lines)]

    def check(self, state, ended, lost_with=()):
        """One model with attempts 1 and 2; nothing is doubled, and nothing lost but what never left a dead node.

        Args:
            state: of attempt 1.
            ended: when it was told to leave: what a rank logs while it does is not promised to arrive.
            lost_with: (restart count, rank) of ranks that died without a signal.
        """
        assert len(self.view.models()) == 1
        first, second = self.attempts()
        assert (first["number"], first["state"], second["number"], second["state"]) == (1, state, 2, "finished")
        told = [{**attempt["slurm"]} for attempt in (first, second)]
        assert [one["restart_count"] for one in told] == [0, 1]
        assert {(one["job_id"], one["nodes"], one["node_count"], one["partition"]) for one in told} == {
            (self.job, "node[1-2]", 2, "main")
        }
        logged = self.view.logged()
        assert len(logged) == len(set(logged))
        for restart, attempt in enumerate((first, second)):
            for rank in (0, 1):
                arrived = {step for attempt_id, of, step in logged if (attempt_id, of) == (attempt["attempt_id"], rank)}
                written = self.written(restart, rank)
                safe = ended if restart == 0 else time.time()
                if (restart, rank) in lost_with:
                    safe = written[-1][1] - FLUSH_S
                assert {step for step, moment in written if moment <= safe} <= arrived
                assert arrived <= {step for step, _ in written}
        saved = [(one["attempt"], one["epoch"]) for one in self.view.checkpoints()]
        assert len(saved) == len(set(saved))
        begun_again = self.written(1, 0)[0][0] // 10
        assert begun_again > 1
        assert begun_again - self.written(0, 0)[-1][0] // 10 in {0, 1}
        assert {epoch for _, epoch in saved} == set(range(begun_again + 2))
        return first


@pytest.fixture
def training(cluster, tmp_path):
    """A training that runs, and has saved two checkpoints."""
    return Training(cluster, tmp_path)


def test_runs_of_one_allocation_are_runs_of_their_own(training):
    """Steps one after the other and at once; programs of one name in the batch shell, and under salloc."""
    training.submit(
        f"#!/bin/bash\nsrun {ALONE}; srun {ALONE} & srun {ALONE} & wait; {ALONE}; {ALONE} & {ALONE} & wait\n"
    )
    training.cluster.wait_job(training.job, "COMPLETED", timeout=120)
    training.cluster.run("salloc", "bash", "-c", f"{ALONE}; {ALONE}", environment=training.variables)
    runs = training.view.get("/v1/models")["results"]
    assert [len(run["attempts"]) for run in runs] == [1] * 8
    assert sorted(run["attempts"][0]["slurm"]["step"] for run in runs) == ["0", "1", "2", *["batch"] * 5]
    assert {run["run_id"].split("-")[1] for run in runs} == {training.job, str(int(training.job) + 1)}


def attempts_by_name(view):
    """The first attempt of each model; a model that was just made has none yet."""
    return {run["name"]: run["attempts"][0] for run in view.get("/v1/models")["results"] if run["attempts"]}


def test_an_attempt_ends_with_the_state_that_slurm_gives_it(training):
    """What ends a job shows; a signal that SLURM knows nothing of is a signal."""
    ends = {
        "cancelled": f"srun {WAITS}",
        "requeued": f"srun {WAITS}",
        "told": f"srun {WAITS}",
        "left": f"srun {WAITS} & until [ -e $OUT/$NAME ]; do sleep 0.1; done; exit 3",
    }
    jobs = {}
    for name, script in ends.items():
        training.variables["NAME"] = name
        jobs[name] = training.submit(f"#!/bin/bash\n{script}\n").job
    for name in ends:
        wait_until((training.folder / name).exists, 60, name)
    training.cluster.run("scancel", jobs["cancelled"])
    training.cluster.run("scontrol", "requeue", jobs["requeued"])
    training.cluster.run("scancel", "--signal=TERM", jobs["told"])

    def shown():
        found = attempts_by_name(training.view)
        return {name: (attempt["state"], attempt["reason"]) for name, attempt in found.items()}

    wait_until(lambda: len(shown()) == len(ends) and "started" not in {state for state, _ in shown().values()})
    assert shown() == {
        "cancelled": ("cancelled", "SIGTERM: SLURM ends the job (scancel, or its batch script ended)"),
        "requeued": ("requeued", "SIGTERM: the job was requeued"),
        "told": ("preempted", "SIGTERM (for SLURM the job is RUNNING)"),
        "left": ("failed", "SIGTERM: SLURM ends the job (NonZeroExitCode)"),
    }


@LONG
def test_a_job_at_its_time_limit_is_timed_out(training):
    """Told so by a signal of its choice before, or by SIGTERM then."""
    training.variables |= {"NAME": "warned", "DDPHUB_WARNING_SIGNAL": "USR1"}
    jobs = {"warned": training.submit(f"#!/bin/bash\nsrun {WAITS}\n", "--time=30", "--signal=USR1@60").job}
    training.variables["NAME"] = "ended"
    jobs["ended"] = training.submit(f"#!/bin/bash\nsrun {WAITS}\n", "--time=30").job
    for name, minutes in (("warned", 2), ("ended", 1)):
        wait_until((training.folder / name).exists, what=f"the start of {name}")
        training.cluster.run("scontrol", "update", f"JobId={jobs[name]}", f"TimeLimit={minutes}")
    training.cluster.wait_job(training.job, "TIMEOUT", timeout=120)

    def shown():
        return {name: attempt["state"] for name, attempt in attempts_by_name(training.view).items()}

    wait_until(lambda: shown() == {"warned": "timed_out", "ended": "timed_out"}, what="both ends")


@LONG
def test_a_requeued_job_goes_on_as_attempt_2(training):
    """By `scontrol requeue`."""
    training.submit().reach(1)
    ended = time.time()
    training.cluster.run("scontrol", "requeue", training.job)
    assert training.wait_state("requeued")["reason"].startswith("SIGTERM: ")
    first = training.complete().check("requeued", ended)
    assert first["reason"] == "SIGTERM: the job was requeued"


@LONG
def test_a_preempted_job_goes_on_as_attempt_2(training):
    """A job of a higher partition takes its nodes for a moment."""
    training.submit(BATCH, "--exclusive").reach(1)
    ended = time.time()
    training.cluster.sbatch(
        "#!/bin/bash\nsleep 1\n", "--partition=high", "--exclusive", "--nodes=2", "--output=/dev/null"
    )
    training.wait_state("preempted")
    first = training.complete().check("preempted", ended)
    assert first["reason"] == "SIGTERM: SLURM preempted the job"


@LONG
@pytest.mark.parametrize(("node", "lost_with"), [(1, [(0, 0)]), (2, [(0, 1)])])
def test_a_node_without_power_ends_attempt_1(training, node, lost_with):
    """Rank 0 runs on node 1: it cannot say a word, and the hub concludes what happened. On node 2 it is told."""
    training.submit().reach(1)
    ended = time.time()
    training.cluster.fail(node)
    if node == 1:
        assert training.attempts()[0]["state"] == "started"
        wait_until(lambda: training.view.model()["state"] == "lost")
    training.cluster.wait_job(training.job, "PENDING", Restarts="1", timeout=150)
    training.cluster.revive(node)
    first = training.complete().check("node_failed", ended, lost_with)
    assert first["reason"] == (
        "it ended without a word, and SLURM started the job again"
        if node == 1
        else "SIGTERM: a node of the job is down, SLURM requeued the job"
    )

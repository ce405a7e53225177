"""Nodes without a way to the hub, and `ddphub sync --watch` beside the controller, on a real cluster."""

import contextlib
import os
import subprocess
import sys

import pytest
from jobs import PROGRAMS, HubView, wait_until

BATCH = f"""#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=1 --requeue --open-mode=append
export MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -1) MASTER_PORT=29512
exec srun {sys.executable} {PROGRAMS}/cut_off.py --out $OUT
"""

LONG = pytest.mark.skipif(os.environ.get("CI") != "true", reason="takes a minute: set CI=true")


class CutOff:
    """A job whose nodes have no way to the hub, and watches on the login node."""

    def __init__(self, cluster, folder, mode):
        self.cluster, self.folder = cluster, folder
        self.hub = cluster.hub(folder / "hub")
        self.view = HubView(self.hub)
        self._key = {"DDPHUB_URL": self.hub.url, "DDPHUB_API_KEY": self.hub.key}
        self._watches = contextlib.ExitStack()
        variables = {
            **self._key,
            "DDPHUB_MODE": mode,
            "DDPHUB_DIR": str(folder / "runs"),
            "DDPHUB_SIGNAL_BUDGET": "12",  # under the cluster's KillWait
            "OMP_NUM_THREADS": "1",
            "OUT": str(folder),
        }
        (folder / "runs").mkdir()
        self.job = cluster.sbatch(BATCH, f"--output={folder}/out", environment=variables)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._watches.close()

    def watch(self, *arguments):
        main = "from ddphub.cli import main; main()"
        command = (sys.executable, "-c", main, "sync", "--watch", self.folder / "runs", *arguments)
        output = self._watches.enter_context((self.folder / "watch.log").open("a"))
        made = subprocess.Popen(
            self.cluster.command(*command), env={**os.environ, **self._key}, stdout=output, stderr=output
        )
        self._watches.callback(made.wait)
        self._watches.callback(made.kill)
        return made

    def steps(self, rank, attempt=0):
        """How many steps of a rank in a start of the job the hub has; counted by the first step of each start."""
        first = 10_000 * attempt
        logged = self.view.logged() if self.view.models() else []
        return sum(one_rank == rank and first <= step < first + 10_000 for _, one_rank, step in logged)

    def wait_steps(self, more, attempt=0):
        """Waits until the hub has that many more of each rank."""
        wanted = [self.steps(rank, attempt) + more for rank in (0, 1)]
        wait_until(
            lambda: all(self.steps(rank, attempt) >= wanted[rank] for rank in (0, 1)), 90, f"{more} steps of each rank"
        )

    def stop(self):
        """On the hub; the job ends by itself."""
        self.view.post(f"/v1/models/{self.view.models()[0]}/stop")
        self.cluster.wait_job(self.job, "COMPLETED", timeout=150)

    def check_all_is_there_once(self):
        def lines(pattern):
            return [line.split() for path in self.folder.glob(pattern) for line in path.read_text().splitlines()]

        logged = sorted((int(rank), int(step)) for rank, step in lines("logged-*"))
        assert sorted((rank, step) for _, rank, step in self.view.logged()) == logged
        assert self.view.saved() == sorted((int(epoch), sha256) for epoch, sha256 in lines("saved-*"))


@pytest.fixture
def cut(cluster, tmp_path):
    """Starts the job with both nodes cut off."""
    with contextlib.ExitStack() as stack:

        def start(mode, *, silently):
            for node in (1, 2):
                cluster.cut(node, silently=silently)
            return stack.enter_context(CutOff(cluster, tmp_path, mode))

        yield start


def test_a_job_that_believes_itself_online(cut):
    """Its session lets go of what it cannot deliver: a watch brings metrics, checkpoints, and the stop."""
    job = cut("online", silently=True)
    watch = job.watch("--linger", "60")
    job.wait_steps(10)
    job.wait_steps(10)
    assert len(job.view.checkpoints()) > 0
    job.stop()
    assert watch.wait(150) == 0
    job.check_all_is_there_once()
    assert job.view.model()["state"] == "stopped"


@LONG
def test_an_offline_job_that_is_requeued(cut):
    """A watch follows it over the gap, because SLURM has the job; it is killed and started again in between."""
    job = cut("offline", silently=False)
    first = job.watch("--linger", "60")
    job.wait_steps(10)
    first.kill()
    first.wait()
    second = job.watch("--linger", "0")
    job.wait_steps(10)
    third = job.watch("--linger", "0")
    job.cluster.run("scontrol", "requeue", job.job)
    job.wait_steps(10, attempt=1)
    second.kill()
    second.wait()
    job.wait_steps(10, attempt=1)
    assert third.poll() is None
    job.stop()
    assert third.wait(150) == 0
    job.check_all_is_there_once()
    assert len(job.view.models()) == 1
    first, second = job.view.model()["attempts"]
    assert (first["state"] != "stopped", second["state"]) == (True, "stopped")

"""The files of slurm/ and `ddphub submit`, on a real cluster of two nodes."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from cluster import Cluster
from jobs import PROGRAMS, HubView, wait_until

SLURM = Path(__file__).parents[2] / "slurm"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

long_test = pytest.mark.skipif(os.environ.get("CI") != "true", reason="takes long: CI=true runs it")


@pytest.fixture
def hub(cluster, tmp_path):
    """A hub that the nodes reach."""
    return cluster.hub(tmp_path / "hub")


def user_of(cluster, hub, folder):
    """Who runs commands in `folder`, and has logged in to the hub: returns what does it, and gives what they print."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_CONFIG_HOME": str(folder / "home"),
    }
    cluster.run("ddphub", "login", "--url", hub.url, text_in=hub.key, environment=environment)

    def run(*command, check=True, **more):
        done = cluster.run(*command, environment=environment | more, folder=folder, check=check)
        return done.stdout.strip() if check else done

    return run


@pytest.fixture
def login(cluster, hub, tmp_path):
    """Runs a command as a user does."""
    return user_of(cluster, hub, tmp_path)


def ends(cluster, job_id, folder, *states, timeout=120, **wanted):
    """Waits for a job's end; what it printed is in the failure message when that is another one."""
    job = cluster.wait_job(job_id, *ENDED, timeout=timeout)
    printed = "\n".join(path.read_text() for path in sorted(folder.glob(f"slurm-{job_id}*.out")))
    assert job["JobState"] in states, printed[-6000:]
    assert wanted.items() <= job.items(), printed[-6000:]
    return printed


def test_two_nodes_with_two_ranks_each_are_one_run_with_torchrun_and_without(cluster, hub, login, tmp_path):
    """One submitted as a file, as it is; one by `ddphub submit`, which knows the URL before the job starts."""
    outs = [tmp_path / "torchrun", tmp_path / "srun"]
    for out in outs:
        out.mkdir()
    program = ["--steps", 40, "--epochs", 2]
    sent = login(
        "sbatch", "--parsable", SLURM / "train-torchrun.sbatch", PROGRAMS / "train.py", "--out", outs[0], *program
    )
    options = ["--nodes", 2, "--ranks", 2, "--launcher", "srun", "--project", "tests"]
    said = login("ddphub", "submit", *options, PROGRAMS / "train.py", "--out", outs[1], *program)
    run_line, job_line = said.splitlines()
    url = re.fullmatch(rf"run \S+: ({re.escape(hub.url)}/models/\w+)", run_line)[1]
    submitted = re.fullmatch(r"job (\d+)", job_line)[1]
    view = HubView(hub)
    assert url.rpartition("/")[2] in view.models()
    assert hub.key not in login("scontrol", "write", "batch_script", submitted, "-")

    ends(cluster, sent, tmp_path, "COMPLETED")
    printed = ends(cluster, submitted, tmp_path, "COMPLETED")
    assert url in printed
    assert "everything is delivered" in printed
    models = view.models()
    assert len(models) == 2
    assert url.rpartition("/")[2] in models
    for model in models:
        assert sorted((one["rank"], one["step"]) for one in view.metrics(model)) == [
            (rank, step) for rank in range(4) for step in range(40)
        ]
        assert [one["epoch"] for one in view.checkpoints(model)] == [0, 1]
    nodes = {one["of_rank"]: one["node"] for one in view.events("rank", url.rpartition("/")[2])}
    assert nodes == {0: 0, 1: 0, 2: 1, 3: 1}


def test_an_array_of_four_is_four_runs(cluster, hub, login, tmp_path):
    """`ddphub submit` gives all one id, to which each adds its number; the site's sbatch passes no environment on."""
    said = login(
        "ddphub", "submit", "--array", "0-3", "--sbatch=--export=NONE", PROGRAMS / "slurm_steps.py", "--out", tmp_path
    )
    runs_line, job_line = said.splitlines()
    run_id = re.fullmatch(r"runs (\S+)_NUMBER: each on \S+ when it starts", runs_line)[1]
    array = job_line.removeprefix("job ")
    for number in range(4):
        ends(cluster, f"{array}_{number}", tmp_path, "COMPLETED")
    view = HubView(hub)
    models = {view.get(f"/v1/models/{model}")["run_id"]: model for model in view.models()}
    assert sorted(models) == [f"{run_id}_{number}" for number in range(4)]
    for number in range(4):
        model = models[f"{run_id}_{number}"]
        values = [one["values"]["task"] for one in view.metrics(model)]
        assert values == [number] * 20
        assert len(view.checkpoints(model)) == 1


def test_a_cancelled_job_has_flushed_everything_within_kill_wait(cluster, hub, login, tmp_path):
    """Also what waited for the metrics' rate limit, of ranks that sit in something long."""
    program = [PROGRAMS / "slurm_steps.py", "--out", tmp_path, "--wait", 1000]
    said = login(
        *("ddphub", "submit", "--nodes", 2, "--ranks", 2, "--launcher", "srun", *program), DDPHUB_SIGNAL_BUDGET="12"
    )
    job_id = said.rpartition("job ")[2]
    wait_until(lambda: len(list(tmp_path.glob("waits-*"))) == 4, 120, "all ranks")
    login("scancel", job_id)
    began = time.monotonic()
    wait_until(lambda: not login("squeue", "--noheader", "--jobs", job_id), what="the end of the job")
    took = time.monotonic() - began
    printed = ends(cluster, job_id, tmp_path, "CANCELLED")
    view = HubView(hub)
    assert sorted((one["rank"], one["step"]) for one in view.metrics()) == [
        (rank, step) for rank in range(4) for step in range(20)
    ], printed
    assert len(view.checkpoints()) == 1
    assert [one["state"] for one in view.events("attempt")] == ["started", "cancelled"], (took, printed)


def test_a_signal_to_the_batch_shell_reaches_the_ranks_and_their_exit_code_is_the_jobs(cluster, hub, login, tmp_path):
    """SLURM itself tells only the shell; srun alone would answer SIGTERM with SIGKILL, torchrun would die from USR1."""
    job_ids = {}
    for kind, number in (("srun", "TERM"), ("torchrun", "USR1")):
        out = tmp_path / kind
        out.mkdir()
        program = [SLURM / f"train-{kind}.sbatch", PROGRAMS / "slurm_steps.py", "--out", out, "--wait", 1000]
        options = ["--parsable", "--nodes=1", "--ntasks-per-node=1"]
        job_id = login("sbatch", *options, *program, DDPHUB_WARNING_SIGNAL="USR1", DDPHUB_DIR=str(out / "runs"))
        wait_until((out / "waits-0-0").exists, what=f"the training of {kind}")
        login("scancel", "--batch", f"--signal={number}", job_id)
        job_ids[kind] = job_id
    ends(cluster, job_ids["srun"], tmp_path, "FAILED", ExitCode=f"{128 + signal.SIGTERM}:0")
    ends(cluster, job_ids["torchrun"], tmp_path, "FAILED", ExitCode="1:0")
    view = HubView(hub)
    for model in view.models():
        assert len(view.metrics(model)) == 20
        (reason,) = [one["reason"] for one in view.events("attempt", model) if one["state"] != "started"]
        assert reason.startswith(("SIGTERM", "SIGUSR1"))
    assert len(view.models()) == 2


def test_a_sync_after_any_end_delivers_the_rest_of_a_killed_job(cluster, hub, login, tmp_path):
    """The training's node does not reach the hub; the one of the sync does."""
    cluster.cut(1)
    program = [PROGRAMS / "slurm_steps.py", "--out", tmp_path, "--settle", 1.5, "--wait", 1000]
    options = ["--nodes=1", "--ntasks-per-node=1"]
    training = login("sbatch", "--parsable", *options, "--nodelist=node1", SLURM / "train-srun.sbatch", *program)
    after = ["--nodelist=node2", f"--dependency=afterany:{training}"]
    sync = login("sbatch", "--parsable", *after, SLURM / "sync.sbatch")
    wait_until((tmp_path / "waits-0-0").exists, what="the training")
    assert HubView(hub).models() == []
    login("scancel", "--full", "--signal=KILL", training)
    ends(cluster, training, tmp_path, "FAILED", "CANCELLED")
    printed = ends(cluster, sync, tmp_path, "COMPLETED")
    view = HubView(hub)
    assert [one["step"] for one in view.metrics()] == list(range(20)), printed
    assert view.download(view.checkpoints()[0]) == bytes(1000)


def test_a_job_that_cannot_be_submitted_leaves_nothing_but_a_model_that_is_named(hub, login, tmp_path):
    """And a hub that the login node does not reach does not keep a job from being submitted."""
    submit = ["ddphub", "submit", "--project", "tests"]
    program = [PROGRAMS / "slurm_steps.py", "--out", tmp_path]
    refused = login(*submit, "--partition", "nowhere", *program, check=False)
    assert refused.returncode == 1
    (model,) = HubView(hub).models()
    assert "ddphub: sbatch refuses the job: " in refused.stderr
    assert "invalid partition" in refused.stderr
    assert f"the hub has a model without a job now: {hub.url}/models/{model}" in refused.stderr
    assert not list((tmp_path / ".ddphub").iterdir())

    wrong_key = login(*submit, *program, check=False, DDPHUB_URL=hub.url, DDPHUB_API_KEY="wrong")
    assert wrong_key.returncode == 1
    assert f"nothing is submitted, as {hub.url} refuses the run" in wrong_key.stderr
    assert login("squeue", "--noheader") == ""
    gone = "http://10.78.0.1:9"
    said = login(*submit, "--sbatch=--hold", *program, DDPHUB_URL=gone, DDPHUB_API_KEY="key")
    assert f": on {gone} when the job starts (" in said
    assert re.search(r"^job \d+$", said, re.MULTILINE)


@long_test
def test_run_directories_on_the_nodes_own_disks_come_to_the_shared_one(tmp_path):
    """As slurm/README.md says it: its lines are put where it says."""
    section = (SLURM / "README.md").read_text().partition("## Node-local scratch")[2].partition("\n## ")[0]
    before, after = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    script = (SLURM / "train-srun.sbatch").read_text()
    script = re.sub(r"(?m)^export DDPHUB_DIR=.*\n", lambda line: line[0] + before, script)
    script = script.replace("\ncode=$?\n", f"\ncode=$?\n{after}")
    assert before in script
    assert after in script
    local = tmp_path / "local"
    local.mkdir()
    (tmp_path / "train.sbatch").write_text(script)
    with Cluster(tmp_path / "state", "--local", local) as cluster:
        hub = cluster.hub(tmp_path / "hub")
        login = user_of(cluster, hub, tmp_path)
        program = [PROGRAMS / "slurm_steps.py", "--out", tmp_path]
        job_id = login("sbatch", "--parsable", "train.sbatch", *program, TMPDIR=str(local), DDPHUB_MODE="offline")
        ends(cluster, job_id, tmp_path, "COMPLETED")
        parts = sorted((tmp_path / ".ddphub" / f"job-{job_id}").iterdir())
        assert [part.name for part in parts][:1] == ["node1"]
        assert not [left for node in (1, 2) for left in (tmp_path / "state" / "local" / f"node{node}").iterdir()]
        login("ddphub", "sync", *parts)
        view = HubView(hub)
        assert sorted((one["rank"], one["step"]) for one in view.metrics()) == [
            (rank, step) for rank in range(4) for step in range(20)
        ]
        assert len(view.checkpoints()) == 1


@long_test
@pytest.mark.timeout(400)
def test_a_job_at_its_time_limit_saves_requeues_itself_and_goes_on(cluster, hub, login, tmp_path):
    """One job, one model, two attempts; no step is trained twice, and none is left out."""
    options = ["--requeue", "--time", "30", "--warning", 25, "--nodes", 2, "--ranks", 2, "--project", "tests"]
    said = login("ddphub", "submit", *options, PROGRAMS / "slurm_resume.py", "--out", tmp_path)
    job_id = said.rpartition("job ")[2]
    wait_until(lambda: all((tmp_path / f"starts-{rank}").exists() for rank in range(4)), 120, "all ranks")
    # Only now, as SLURM may warn half a minute early and a busy machine may take as long to start the ranks.
    hours, minutes, seconds = map(int, cluster.job(job_id)["RunTime"].split(":"))
    leave = -(-(hours * 3600 + minutes * 60 + seconds + 25) // 60)
    cluster.run("scontrol", "update", f"JobId={job_id}", f"TimeLimit={leave}")
    view = HubView(hub)
    wait_until(lambda: len(view.events("attempt")) > 1, 150, "the warning")
    cluster.run("scontrol", "update", f"JobId={job_id}", "TimeLimit=30")
    ends(cluster, job_id, tmp_path, "COMPLETED", timeout=150, Restarts="1")
    starts = [(tmp_path / f"starts-{rank}").read_text().split() for rank in range(4)]
    assert len(set(map(tuple, starts))) == 1
    begun = [int(first) for first in starts[0]]
    assert len(begun) == 2
    assert 0 < begun[1] < 600
    assert sorted((one["rank"], one["step"]) for one in view.metrics()) == [
        (rank, step) for rank in range(4) for step in range(600)
    ]
    assert f"{hub.url}/models/{view.model()['id']}" in said
    assert begun[1] - 1 in [one["step"] for one in view.checkpoints()]
    states = [one["state"] for one in view.events("attempt")]
    assert (states[0], states[2:]) == ("started", ["started", "finished"])

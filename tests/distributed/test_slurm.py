"""What SLURM says about a job: its variables, and why it has to leave."""

import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ddphub
from ddphub import names
from ddphub.config import Settings
from ddphub.distributed.relay import Keys
from ddphub.distributed.rendezvous import Rendezvous
from ddphub.distributed.slurm import Departure, Ending, JobStatus, SlurmJob, why
from ddphub.distributed.topology import Topology
from ddphub.errors import SettingsError
from ddphub.events import MAX_SLURM_NODES, MAX_SLURM_TEXT
from ddphub.owner import decide_run_id
from ddphub.session.folder import RunInfo

STEP = {
    "SLURM_CLUSTER_NAME": "Alpha_1",
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_PARTITION": "gpu",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NAME": "digits",
}
ARRAY = {"SLURM_ARRAY_JOB_ID": "4700", "SLURM_ARRAY_TASK_ID": "11"}


def test_outside_slurm_there_is_no_job(monkeypatch):
    """Also where only other variables of SLURM are set, or the id is empty."""
    assert SlurmJob.detect({}) is None
    assert SlurmJob.detect({"SLURM_CONF": "/etc/slurm.conf", "SLURM_JOB_ID": ""}) is None
    assert SlurmJob.detect() is None
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    assert SlurmJob.detect().job == "5"


def test_a_step_is_described_as_slurm_names_it():
    """Every field of the table."""
    assert SlurmJob.detect(STEP | ARRAY | {"SLURM_RESTART_COUNT": "2"}) == SlurmJob(
        job="4711",
        step="0",
        cluster="Alpha_1",
        array_job="4700",
        array_task="11",
        restart_count=2,
        partition="gpu",
        nodes="node[1-2]",
        node_count=2,
        name="digits",
    )


def test_the_hub_is_told_of_the_job_in_bounded_texts():
    """Whatever the variables hold."""
    assert SlurmJob.detect(STEP | ARRAY | {"SLURM_RESTART_COUNT": "2"}).about() == {
        "cluster": "Alpha_1",
        "job_id": "4711",
        "array_job_id": "4700",
        "array_task_id": "11",
        "step": "0",
        "partition": "gpu",
        "job_name": "digits",
        "nodes": "node[1-2]",
        "node_count": 2,
        "restart_count": 2,
    }
    odd = SlurmJob.detect({"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "n\udc80" * 500, "SLURM_JOB_NODELIST": "n" * 9999})
    told = odd.about()
    assert (len(told["job_name"]), len(told["nodes"])) == (MAX_SLURM_TEXT, MAX_SLURM_NODES)
    assert told["job_name"].startswith("n\\udc80n")
    assert (told["partition"], told["node_count"], told["restart_count"]) == (None, None, 0)


def test_the_batch_shell_has_no_step():
    """Its step is called batch, and what is not set has a default."""
    assert SlurmJob.detect({"SLURM_JOB_ID": "1"}) == SlurmJob(job="1", step="batch", cluster="slurm")


@pytest.mark.parametrize(("text", "count"), [("", 0), ("0", 0), ("3", 3), ("-1", 0), ("x", 0), ("1.5", 0), ("²", 0)])
def test_a_restart_count_that_is_no_number_is_0(text, count):
    """SLURM sets it at the first requeue only."""
    assert SlurmJob.detect({"SLURM_JOB_ID": "1", "SLURM_RESTART_COUNT": text}).restart_count == count


@pytest.mark.parametrize(
    ("environ", "run_id"),
    [
        (STEP, "alpha-1-4711-0-digits-my-net-0"),
        ({"SLURM_JOB_ID": "4711"}, "slurm-4711-batch-digits-my-net-0"),
        (STEP | ARRAY, "alpha-1-4700_11-0-digits-my-net-0"),
        (STEP | {"SLURM_ARRAY_TASK_ID": "0"}, "alpha-1-4711_0-0-digits-my-net-0"),
        (STEP | {"SLURM_STEP_ID": "4294967290"}, "alpha-1-4711-4294967290-digits-my-net-0"),
    ],
)
def test_the_run_id_names_cluster_job_task_step_and_model(environ, run_id):
    """An array's task is named by the array, so a listing keeps them together."""
    assert SlurmJob.detect(environ).run_id("Digits", "My Net!", 0) == run_id


def test_a_requeue_has_the_run_id_of_its_job():
    """So it continues the run."""
    first, again = (SlurmJob.detect(STEP | {"SLURM_RESTART_COUNT": count}) for count in ("", "1"))
    assert first.run_id("p", "n", 0) == again.run_id("p", "n", 0)


def test_other_jobs_tasks_steps_models_and_calls_have_other_run_ids():
    """Nothing of it may be left out."""
    job = SlurmJob.detect(STEP | ARRAY)
    others = [
        SlurmJob.detect(STEP | ARRAY | changed)
        for changed in (
            {"SLURM_ARRAY_JOB_ID": "4800"},
            {"SLURM_ARRAY_TASK_ID": "12"},
            {"SLURM_STEP_ID": "1"},
            {"SLURM_CLUSTER_NAME": "beta"},
        )
    ]
    run_ids = [job.run_id("p", "n", 0), job.run_id("p", "n", 1), job.run_id("p", "m", 0), job.run_id("q", "n", 0)]
    run_ids += [other.run_id("p", "n", 0) for other in others]
    assert len(set(run_ids)) == len(run_ids)


def decide(tmp_path, restarts="0", made=False):
    """Rank 0's choice of a run id in a process without a launcher, and its run.json."""
    place = Rendezvous(Topology(0, 1))
    wanted = Settings.resolve({"project": "p", "name": "n", "dir": tmp_path, "mode": "offline"}, {})
    job = SlurmJob.detect({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": restarts})
    run_id = decide_run_id(wanted, job, place, Keys(place.namespace, 0), 0)
    if made:
        RunInfo(run_id, "p", "n", restart_count=job.restart_count).save(tmp_path / run_id / "run.json")
    return run_id


def test_two_starts_of_one_job_at_once_have_two_run_ids(tmp_path):
    """The one that makes the folder has it, before it has written run.json."""
    first, second = decide(tmp_path), decide(tmp_path)
    assert first == "slurm-7-batch-p-n-0"
    assert second.startswith(f"{first}-")


def test_a_start_with_a_higher_restart_count_goes_on_with_the_run(tmp_path):
    """One with the same count is another run of the job."""
    first = decide(tmp_path, made=True)
    assert decide(tmp_path).startswith(f"{first}-")
    assert decide(tmp_path, restarts="1", made=True) == first
    assert decide(tmp_path, restarts="1").startswith(f"{first}-")
    (tmp_path / first / "run.json").unlink()
    assert decide(tmp_path, restarts="2") == first


def test_a_folder_that_cannot_be_made_is_a_wrong_setting(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="cannot be written"):
        ddphub.init(project="p", dir=tmp_path / "file" / "runs", mode="offline")


@settings(deadline=None, database=None)
@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1), st.text(), st.integers(0, 10**6))
def test_whatever_cluster_and_names_are_the_run_id_is_one(cluster, project, name, step, ordinal):
    """It becomes a folder's name."""
    environ = {"SLURM_JOB_ID": "123456789", "SLURM_CLUSTER_NAME": cluster, "SLURM_STEP_ID": step}
    assert names.wrong_run_id(SlurmJob.detect(environ).run_id(project, name, ordinal)) is None


def test_an_arrays_element_is_named_by_the_array():
    """Its last one has the id of the whole array, and would be asked for as that."""
    assert SlurmJob.detect(STEP | ARRAY | {"SLURM_JOB_ID": "4700"}).task == "4700_11"
    assert SlurmJob.detect(STEP).task == "4711"


def line(state="RUNNING", reason="None", restarts="0", preempted="N/A", left="UNLIMITED"):
    """As squeue prints it."""
    return f"{state:24}{reason:64}{restarts:12}{preempted:24}{left:20}\n"


UP, DOWN, SILENT = ["mixed", "mixed"], ["completing", "down*"], ["mixed", "mixed*"]
PREEMPTED = "2026-11-23T04:10:39"


@pytest.mark.parametrize(
    ("signal_name", "said", "nodes", "state"),
    [
        ("SIGTERM", line("COMPLETING", restarts="2", preempted=PREEMPTED), UP, "preempted"),
        ("SIGTERM", line("RUNNING", "None", "1", PREEMPTED), UP, "preempted"),  # GraceTime
        ("SIGTERM", line("COMPLETING", restarts="2"), UP, "requeued"),
        ("SIGTERM", line("COMPLETING", "job requeued in held state", "2"), UP, "requeued"),
        ("SIGTERM", line("COMPLETING", restarts="2"), DOWN, "node_failed"),
        ("SIGTERM", line("COMPLETING", "NodeDown", "1"), DOWN, "node_failed"),
        ("SIGTERM", line("COMPLETING", "TimeLimit", "1", left="0:00"), UP, "timed_out"),
        ("SIGTERM", line("TIMEOUT", "TimeLimit", "1", left="0:00"), UP, "timed_out"),
        ("SIGTERM", line("COMPLETING", "NonZeroExitCode", "1"), UP, "failed"),
        ("SIGTERM", line("COMPLETING", restarts="1"), UP, "cancelled"),
        ("SIGTERM", line("CANCELLED", restarts="1"), UP, "cancelled"),
        ("SIGTERM", line(restarts="1"), SILENT, "node_failed"),
        ("SIGUSR1", line(restarts="1", left="1:00"), UP, "timed_out"),
        ("SIGUSR1", line(restarts="1", left="1:00", preempted=PREEMPTED), UP, "preempted"),
        ("SIGUSR1", line("COMPLETING", restarts="2", left="1:00"), UP, "requeued"),
    ],
)
def test_an_ending_has_the_state_that_slurm_gives_it(signal_name, said, nodes, state):
    """Lines as a cluster of SLURM 22.05 said them; the job began with restart count 1."""
    job = SlurmJob("4711", "0", restart_count=1)
    ending = why(signal_name, job, JobStatus.parse(said), nodes)
    assert (ending.state, ending.said_by) == (state, "slurm")
    assert ending.reason.startswith(f"{signal_name}: ")


@pytest.mark.parametrize(
    ("signal_name", "left"),
    [("SIGTERM", "1:00"), ("SIGTERM", "UNLIMITED"), ("SIGUSR1", "UNLIMITED"), ("SIGUSR1", "10:01")],
)
def test_a_signal_of_a_job_that_goes_on_was_not_slurms(signal_name, left):
    """So nobody said why."""
    ending = why(signal_name, SlurmJob("1", "0"), JobStatus.parse(line(left=left)), UP)
    assert ending == Ending("preempted", f"{signal_name} (for SLURM the job is RUNNING)")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0:00", 0),
        ("1:40", 100),
        ("2:00:01", 7201),
        ("1-00:00:05", 86405),
        ("364-23:59:57", 31535997),
        ("UNLIMITED", None),
        ("INVALID", None),
        ("", None),
        ("7", None),
        ("1:2:3:4", None),
    ],
)
def test_the_time_left_is_read_in_seconds(text, seconds):
    assert JobStatus.parse(line(left=text)).seconds_left == seconds


@pytest.mark.parametrize("text", ["", "\n", "slurm_load_jobs error: Invalid job id specified", line(restarts="x")])
def test_what_is_no_line_of_squeue_is_refused(text):
    with pytest.raises(ValueError, match="expected a job"):
        JobStatus.parse(text)


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Makes programs that stand where SLURM's commands would be."""
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()

    def make(**scripts):
        for name, script in scripts.items():
            path = tmp_path / "bin" / name
            path.write_text(f"#!/bin/sh\ncd {tmp_path}\n{script}")
            path.chmod(0o755)

    return make


def ask(signal_name="SIGTERM", seconds=10.0):
    """The ending, and how long it took."""
    started = time.monotonic()
    ending = Departure(signal_name, SlurmJob("7", "0", nodes="n[1-2]")).ending(started + seconds)
    return ending, time.monotonic() - started


def test_slurms_commands_are_asked_without_the_users_defaults(commands, monkeypatch, tmp_path):
    """A format or a filter of theirs would change what is read."""
    for name in ("SQUEUE_STATES", "SQUEUE_FORMAT", "SINFO_FORMAT", "SLURM_TIME_FORMAT", "SLURM_CLUSTERS"):
        monkeypatch.setenv(name, "x")
    said = f"printf '%s' '{line('COMPLETING', restarts='1')}'"
    commands(squeue=f"env >squeue; {said}", sinfo="env >sinfo; echo 'down*'")
    assert ask()[0] == Ending("node_failed", "SIGTERM: a node of the job is down, SLURM requeued the job", "slurm")
    for name in ("squeue", "sinfo"):
        assert "PATH=" in (tmp_path / name).read_text()
        assert "=x\n" not in (tmp_path / name).read_text()


def test_a_command_that_dies_of_the_jobs_signal_is_asked_again(commands):
    """SLURM signals every process of a step, this child too."""
    said = f"printf '%s' '{line('COMPLETING')}'"
    commands(squeue=f"[ -e asked ] || {{ touch asked; kill -TERM $$; }}; {said}", sinfo="echo mixed")
    assert ask()[0].state == "cancelled"


@pytest.mark.parametrize("squeue", ["exit 1", "echo 'no such thing'", "kill -TERM $$", "exec sleep 100"])
def test_slurm_that_does_not_answer_costs_two_seconds_at_most(commands, squeue):
    """Then the attempt is preempted, and nobody said why."""
    commands(squeue=squeue, sinfo="echo mixed")
    ending, took = ask()
    assert ending == Ending("preempted", "SIGTERM")
    assert took < 8
    assert ask(seconds=0.0)[0] == Ending("preempted", "SIGTERM")


def test_without_sinfo_the_rest_is_known(commands):
    commands(squeue=f"printf '%s' '{line('COMPLETING', restarts='1')}'", sinfo="exit 1")
    assert ask()[0].state == "requeued"


def test_without_slurm_nobody_is_asked(monkeypatch):
    """Outside a job, and where its commands are not, as in a container."""
    assert Departure("SIGTERM", None).ending(time.monotonic() + 10) == Ending("preempted", "SIGTERM")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert ask()[0] == Ending("preempted", "SIGTERM")

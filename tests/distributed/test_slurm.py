"""What SLURM's variables say about a job."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddphub import names
from ddphub.distributed.slurm import SlurmJob

STEP = {
    "SLURM_CLUSTER_NAME": "Alpha_1",
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_PARTITION": "gpu",
    "SLURM_JOB_NODELIST": "node[1-2]",
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
    )


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


@settings(deadline=None, database=None)
@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1), st.text(), st.integers(0, 10**6))
def test_whatever_cluster_and_names_are_the_run_id_is_one(cluster, project, name, step, ordinal):
    """It becomes a folder's name."""
    environ = {"SLURM_JOB_ID": "123456789", "SLURM_CLUSTER_NAME": cluster, "SLURM_STEP_ID": step}
    assert names.wrong_run_id(SlurmJob.detect(environ).run_id(project, name, ordinal)) is None

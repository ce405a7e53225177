"""Which rank a process is: every launcher's environment, and what does not fit together."""

import subprocess
import sys

import pytest

from ddphub.distributed.topology import Topology
from ddphub.errors import SettingsError

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "GROUP_RANK": "2",
    "LOCAL_WORLD_SIZE": "2",
    "TORCHELASTIC_RUN_ID": "x",
}
STEP = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
BATCH_SHELL = {
    "SLURM_JOB_ID": "77",
    "SLURM_PROCID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
SINGLE = Topology(0, 1, 0, 0, "single")


def without(environment, *names):
    return {name: value for name, value in environment.items() if name not in names}


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        pytest.param({}, SINGLE, id="nothing"),
        pytest.param({"WORLD_SIZE": "1"}, SINGLE, id="a world of one by name"),
        pytest.param({"RANK": "", "WORLD_SIZE": "1"}, SINGLE, id="empty RANK"),
        pytest.param({"RANK": "", "WORLD_SIZE": ""}, SINGLE, id="both empty"),
        pytest.param({"WORLD_SIZE": ""}, SINGLE, id="empty WORLD_SIZE"),
        pytest.param({"LOCAL_RANK": "3"}, SINGLE, id="LOCAL_RANK alone"),
        pytest.param(TORCHRUN, Topology(5, 8, 1, 2, "torchrun"), id="torchrun"),
        pytest.param({"RANK": "1", "WORLD_SIZE": "2"}, Topology(1, 2, 0, 0, "torchrun"), id="the two names alone"),
        pytest.param(TORCHRUN | {"LOCAL_RANK": "", "GROUP_RANK": ""}, Topology(5, 8, 0, 0, "torchrun"), id="empty"),
        pytest.param({"RANK": "0", "WORLD_SIZE": "1"}, Topology(0, 1, 0, 0, "torchrun"), id="torchrun of one"),
        pytest.param(STEP, Topology(3, 4, 1, 1, "slurm"), id="srun"),
        pytest.param(without(STEP, "SLURM_STEP_NUM_TASKS"), Topology(3, 4, 1, 1, "slurm"), id="srun, job's tasks"),
        pytest.param(
            STEP | {"SLURM_NTASKS": "16", "SLURM_STEP_NUM_TASKS": "4"}, Topology(3, 4, 1, 1, "slurm"), id="a small step"
        ),
        pytest.param(
            STEP | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"},
            Topology(0, 1, 0, 0, "slurm"),
            id="srun --pty in a large job",
        ),
        pytest.param(BATCH_SHELL, SINGLE, id="batch shell"),
        pytest.param(BATCH_SHELL | {"SLURM_STEP_ID": ""}, SINGLE, id="batch shell, empty step"),
        pytest.param(STEP | TORCHRUN, Topology(5, 8, 1, 2, "torchrun"), id="torchrun inside srun"),
        pytest.param(BATCH_SHELL | TORCHRUN, Topology(5, 8, 1, 2, "torchrun"), id="torchrun in the batch shell"),
        pytest.param(
            STEP | {"WORLD_SIZE": "4", "MASTER_ADDR": "node1"}, Topology(3, 4, 1, 1, "slurm"), id="exports before srun"
        ),
    ],
)
def test_every_launcher_says_the_place(environ, place):
    """One table; the first launcher that is there counts."""
    assert Topology.detect(environ=environ) == place


@pytest.mark.parametrize(
    ("environ", "variable", "value", "says"),
    [
        pytest.param({"RANK": "0"}, "WORLD_SIZE", None, "not set", id="RANK alone"),
        pytest.param({"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE", "", "not set", id="empty WORLD_SIZE"),
        pytest.param({"WORLD_SIZE": "4"}, "RANK", None, "WORLD_SIZE is '4'", id="WORLD_SIZE alone"),
        pytest.param({"WORLD_SIZE": "4", "RANK": ""}, "RANK", None, "WORLD_SIZE is '4'", id="empty RANK"),
        pytest.param({"RANK": "4", "WORLD_SIZE": "4"}, "RANK", 4, "0 to 3, as WORLD_SIZE=4", id="too high"),
        pytest.param({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE", 0, "1 or more", id="nobody"),
        pytest.param({"RANK": "-1", "WORLD_SIZE": "4"}, "RANK", "-1", "0 or more", id="negative rank"),
        pytest.param({"RANK": "0", "WORLD_SIZE": "-4"}, "WORLD_SIZE", "-4", "0 or more", id="negative size"),
        pytest.param({"RANK": "one", "WORLD_SIZE": "4"}, "RANK", "one", "whole number", id="no number"),
        pytest.param({"RANK": "1.0", "WORLD_SIZE": "4"}, "RANK", "1.0", "whole number", id="no whole number"),
        pytest.param({"RANK": " ", "WORLD_SIZE": "4"}, "RANK", " ", "whole number", id="blank"),
        pytest.param({"RANK": "9" * 5000, "WORLD_SIZE": "4"}, "RANK", "9" * 5000, "whole number", id="endless"),
        pytest.param({"RANK": "0", "WORLD_SIZE": "$N"}, "WORLD_SIZE", "$N", "whole number", id="not expanded"),
        pytest.param(TORCHRUN | {"LOCAL_RANK": "x"}, "LOCAL_RANK", "x", "whole number", id="local rank"),
        pytest.param(TORCHRUN | {"GROUP_RANK": "-1"}, "GROUP_RANK", "-1", "whole number", id="node"),
        pytest.param(without(STEP, "SLURM_PROCID"), "SLURM_PROCID", None, "not set", id="step without rank"),
        pytest.param(
            without(STEP, "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"),
            "SLURM_NTASKS",
            None,
            "not set",
            id="step without size",
        ),
        pytest.param(STEP | {"SLURM_PROCID": "4"}, "SLURM_PROCID", 4, "SLURM_STEP_NUM_TASKS=4", id="beyond the step"),
    ],
)
def test_what_does_not_fit_together_is_refused(environ, variable, value, says):
    """Before training; the message names variable, value and expectation."""
    with pytest.raises(SettingsError) as raised:
        Topology.detect(environ=environ)
    error = raised.value
    assert (error.field, error.value, error.source) == (variable, value, "the environment")
    assert says in error.expected
    assert str(error).startswith(f"{variable}={value!r} (from the environment)")


def test_arguments_go_before_everything():
    """For launchers that name no rank."""
    assert Topology.detect(2, 3, STEP | TORCHRUN) == Topology(2, 3, 0, 0, "arguments")


@pytest.mark.parametrize(("rank", "world_size", "field"), [(0, None, "world_size"), (None, 2, "rank")])
def test_rank_and_world_size_go_together(rank, world_size, field):
    """One without the other says nothing."""
    with pytest.raises(SettingsError, match="go together") as raised:
        Topology.detect(rank, world_size, {})
    assert raised.value.field == field


@pytest.mark.parametrize(("rank", "world_size", "field"), [(2, 2, "rank"), (-1, 2, "rank"), (0, 0, "world_size")])
def test_arguments_that_do_not_fit_are_refused(rank, world_size, field):
    """As in the environment."""
    with pytest.raises(SettingsError) as raised:
        Topology.detect(rank, world_size, {})
    assert (raised.value.field, raised.value.source) == (field, "argument")


def test_the_environment_of_the_process_is_the_default(monkeypatch):
    """`os.environ`."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Topology.detect() == Topology(1, 2, 0, 0, "torchrun")


def test_rank_0_alone_owns_the_session():
    """Of any world."""
    assert SINGLE.is_owner
    assert Topology(0, 4).is_owner
    assert not Topology(1, 4).is_owner


@pytest.fixture
def gloo_group(tmp_path):
    """A process group of this process alone."""
    from torch import distributed

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_a_process_group_knows_better_than_the_environment(gloo_group):
    """It is what the script has made of the environment; local rank and node are the launcher's."""
    assert Topology.detect(environ={}) == Topology(0, 1, 0, 0, "process group")
    assert Topology.detect(environ=TORCHRUN) == Topology(0, 1, 1, 2, "process group")
    assert Topology.detect(environ=STEP) == Topology(0, 1, 1, 1, "process group")
    assert Topology.detect(environ={"WORLD_SIZE": "4"}) == Topology(0, 1, 0, 0, "process group")
    assert Topology.detect(1, 2, {}) == Topology(1, 2, 0, 0, "arguments")


def test_the_question_does_not_import_torch():
    """A process without torch has no process group."""
    program = "import sys; from ddphub import Topology; Topology.detect(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=150)

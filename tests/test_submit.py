"""`ddphub submit` without a cluster: the files that it makes, and what it refuses. With one: tests/slurm."""

import importlib.resources
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from jobs import ddphub

from ddphub.config import Credentials
from ddphub.errors import SettingsError
from ddphub.hubs.client import Registration
from ddphub.hubs.connect import connect
from ddphub.submit import Submission, prepare

SLURM = Path(__file__).parents[1] / "slurm"
FILES = ["sync.sbatch", *(f"train-{kind}.sbatch" for kind in ("array", "requeue", "srun", "torchrun"))]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A user's folder, with a program in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my train.py").write_text("")
    return tmp_path


def made(environ=None, **fields):
    """The file for sbatch."""
    home = {"XDG_CONFIG_HOME": os.environ["XDG_CONFIG_HOME"]}
    *_, script = prepare(Submission(**{"program": "my train.py", **fields}), home | (environ or {}))
    return script


def header(script):
    """The file's options of sbatch, in their order."""
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]


def value(script, variable):
    """What a variable is when the file's own part has run."""
    own = script[script.index("# From ddphub submit.") : script.index("\nset -- ")]
    return subprocess.check_output(["bash", "-c", f'{own}\nprintf %s "${variable}"'], text=True)


def test_the_package_has_the_files():
    """An installed one has no folder slurm beside it."""
    packed = importlib.resources.files("ddphub") / "slurm"
    assert sorted(file.name for file in packed.iterdir()) == ["README.md", *FILES]
    for name in FILES:
        assert (packed / name).read_text() == (SLURM / name).read_text()
        subprocess.run(["bash", "-n", SLURM / name], check=True)


@pytest.mark.parametrize(
    ("fields", "template"),
    [
        ({}, "torchrun"),
        ({"launcher": "torchrun"}, "torchrun"),
        ({"launcher": "srun"}, "srun"),
        ({"requeue": True}, "requeue"),
        ({"array": "0-15%4"}, "array"),
    ],
)
def test_the_template_goes_on_behind_the_programs_own_lines(fields, template):
    script = made(**fields)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    options, own, rest = script.partition("\n# From ddphub submit.\n")
    whole = (SLURM / f"train-{template}.sbatch").read_text()
    assert own
    assert "#SBATCH" not in rest
    assert rest.endswith(whole[whole.rindex("\n#SBATCH") + 1 :].partition("\n")[2])
    assert options.startswith(whole[: whole.index("#SBATCH")])
    names = [option.partition("=")[0] for option in header(script)]
    assert {option.partition("=")[0] for option in header(whole)} <= set(names)
    assert len(names) == len(set(names))


def test_options_take_the_place_of_the_templates():
    script = made(
        nodes=2,
        gpus=4,
        cpus=8,
        time="4:00:00",
        partition="a100",
        after="17:18",
        requeue=True,
        warning=300,
        name="My Net",
        options=["--account=me", "--mail-type=END"],
    )
    assert header(script) == [
        *("--job-name=my-net", "--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=8", "--time=4:00:00"),
        *("--signal=B:USR1@300", "--requeue", "--open-mode=append", "--gpus-per-node=4", "--partition=a100"),
        *("--dependency=afterok:17:18", "--kill-on-invalid-dep=yes", "--account=me", "--mail-type=END"),
    ]
    assert header(made(ranks=3))[:3] == ["--job-name=my-train", "--nodes=1", "--ntasks-per-node=3"]
    assert "--dependency=afterany:17" in header(made(after="afterany:17"))
    assert "--array=1,3-9:2%2" in header(made(array="1,3-9:2%2"))


def test_the_program_gets_its_arguments_as_they_are():
    """Those that look like our options, and those that a shell would take apart."""
    arguments = ["--nodes", "7", "a b", "$(touch x)", "'", "", "--", "*", "line\nbreak"]
    script = ddphub("submit", "--print", "--nodes", "2", "my train.py", *arguments).stdout
    command = script[script.index("\nset -- ") :].partition("\n# A task")[0]
    assert shlex.split(command) == ["set", "--", "my train.py", *arguments]
    assert "--nodes=2" in header(script)


def test_the_job_finds_the_run_and_the_hub_and_no_key_is_in_the_file(folder):
    """Whatever of the environment reaches it: some sites' sbatch passes none on."""
    key = "secret-key-secret-key-secret-key-secret-ke"
    said = {
        "DDPHUB_URL": "http://hub.example.org:8765/",
        "DDPHUB_API_KEY": key,
        "DDPHUB_DIR": "my runs",
        "DDPHUB_SIGNAL_BUDGET": "7",
        "DDPHUB_CONSOLE": "all",
        "DDPHUB_SYSTEM_INTERVAL": "60",
        "DDPHUB_USAGE_URL": f"http://usage.example.org/?api_secret={key}",
        "ULTRALYTICS_API_KEY": key,
        "XDG_CONFIG_HOME": str(folder / "config"),
    }
    script = made(said, project="digits")
    assert key not in script
    assert value(script, "DDPHUB_URL") == "http://hub.example.org:8765"
    assert value(script, "DDPHUB_DIR") == str(folder / "my runs")
    assert value(script, "DDPHUB_SIGNAL_BUDGET") == "7"
    assert (value(script, "DDPHUB_CONSOLE"), value(script, "DDPHUB_SYSTEM_INTERVAL")) == ("all", "60")
    assert value(script, "XDG_CONFIG_HOME") == str(folder / "config")
    assert value(script, "DDPHUB_RUN_ID") != value(made(said), "DDPHUB_RUN_ID")
    assert value(made({**said, "DDPHUB_RUN_ID": "old-7"}), "DDPHUB_RUN_ID") == "old-7"


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"program": "trian.py"}, "program='trian.py' (from the command line): no such file"),
        ({"gpus": 0}, "gpus=0 (from --gpus): expected 1 or more; without --gpus it trains on CPUs"),
        ({"nodes": 0}, "nodes=0"),
        ({"ranks": 2, "gpus": 2}, "with --gpus each GPU has a rank"),
        ({"time": "soon"}, "time='soon'"),
        ({"time": "1:2:3:4"}, "time='1:2:3:4'"),
        ({"time": "0"}, "time='0'"),
        ({"warning": 60}, "means something with --requeue only"),
        ({"array": "four"}, "array='four'"),
        ({"array": "0-3", "requeue": True}, "an array's elements cannot requeue themselves"),
        ({"array": "0-3", "launcher": "srun"}, "have one of their own"),
        ({"requeue": True, "launcher": "srun"}, "have one of their own"),
        ({"launcher": "mpirun"}, "expected torchrun or srun"),
        ({"after": "yesterday"}, "after='yesterday'"),
        ({"partition": "a\n#SBATCH --uid=0"}, "partition="),
        ({"options": ["account=me"]}, "sbatch='account=me' (from --sbatch)"),
        ({"options": ["--a=b\nrm -r x"]}, "expected one option of sbatch"),
        ({"project": "a/b"}, "project='a/b'"),
        ({"project": ""}, "must not be empty"),
        ({"name": ""}, "must not be empty"),
    ],
)
def test_what_does_not_fit_together_is_refused(fields, complaint):
    with pytest.raises(SettingsError) as refused:
        made(**fields)
    assert complaint in str(refused.value)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        *((text, True) for text in ("3", "2:01", "0:02:01", "0-1", "0-0:03", "0-0:2:01", "1-0", "infinite")),
        *((text, False) for text in ("2", "2:00", "0:02:00", "0:01:59", "0-0:02", "0-0:1:59")),
    ],
)
def test_time_limits_are_read_as_sbatch_reads_them(text, fits):
    """Here against the 120 s before the limit at which a job that requeues itself warns its ranks."""
    if fits:
        assert f"--time={text}" in header(made(requeue=True, time=text))
        return
    with pytest.raises(SettingsError, match="expected more than the 120 s of --warning"):
        made(requeue=True, time=text)


def test_a_refusal_ends_with_2_before_anything_is_done(own_hub, view, folder):
    """Also where there is no sbatch; and --print does nothing."""
    hub = {"DDPHUB_URL": own_hub.url, "DDPHUB_API_KEY": own_hub.key}
    for options, more, code, complaint in (
        (["--gpus", "0"], {}, 2, "gpus=0"),
        (["--nots"], {}, 2, "No such option"),
        ([], {"PATH": str(folder)}, 2, "sbatch=None (from PATH): not found; submit it where SLURM is"),
        (["--print"], {}, 0, ""),
    ):
        done = ddphub("submit", "--project", "digits", *options, "my train.py", environment=hub | more, check=False)
        assert done.returncode == code
        assert complaint in done.stderr
        assert "Traceback" not in done.stderr
    assert view.models() == []
    assert not list(folder.glob(".ddphub/*"))


def test_a_key_that_the_job_would_not_get_is_told_before(folder):
    """Where sbatch passes no environment on, and the hub has no key in the credentials file."""
    hub = {"DDPHUB_URL": "http://127.0.0.1:1", "DDPHUB_API_KEY": "key", "XDG_CONFIG_HOME": str(folder / "config")}
    nothing = ["--export=NONE"]
    for fields, more in (({"options": nothing}, {}), ({}, {"SBATCH_EXPORT": "NONE"})):
        with pytest.raises(SettingsError, match="sbatch passes on NONE only: run `ddphub login`"):
            made(hub | more, **fields)
    made(hub, options=["--export=NONE,DDPHUB_API_KEY"])
    made(hub | {"DDPHUB_MODE": "offline"}, options=nothing)
    Credentials.load(hub).save("http://127.0.0.1:1", "key")
    made(hub, options=nothing)


def test_a_run_that_was_registered_before_its_program_began_shows_what_that_is_made_with(own_hub, view):
    """Registering is idempotent, and what `ddphub submit` cannot know is filled in by the job, each time it starts."""
    client = connect(own_hub.url, own_hub.key)
    before = client.register(Registration("run-1", "digits", "cnn", {}))
    assert client.register(Registration("run-1", "digits", "cnn", {"epochs": 7})) == before
    assert client.register(Registration("run-1", "digits", "cnn", {"epochs": 9})) == before
    client.close()
    assert view.model()["epochs"] == 9

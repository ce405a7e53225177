"""The README tells the truth: each of its commands runs here, and its program is one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trainers
from jobs import PROGRAMS
from jobs import ddphub as command_line

import ddphub

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

ELSEWHERE = {
    "./scripts/test": "it is what runs this test",
    'pip install ".[server]"': "scripts/environment.sh installs so, with the extra dev, which holds server",
    "export ULTRALYTICS_HUB_API=http://127.0.0.1:8765 ULTRALYTICS_HUB_WEB=http://127.0.0.1:8765": "tests/integrations "
    "has HUB v1 clients train against the hub with these variables",
}
"""Commands that a test cannot run, and where they run."""


def commands():
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


REPLACED = {
    '"yolo11n.yaml"': f'"{PROGRAMS / "yolo_tiny.yaml"}"',
    "epochs=100": 'epochs=1, imgsz=64, pretrained=False, amp=False, plots=False, device="cpu"',
    ", device=[0, 1]": "",
}
"""What makes the README's trainings small enough for a machine without GPUs."""


def programs():
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


HUB_COMMANDS = [command for command in commands() if command.startswith("ddphub hub ")]


@pytest.mark.parametrize(
    "command", [one for one in commands() if one.startswith("ddphub ") and one not in HUB_COMMANDS]
)
def test_each_command_of_the_readme_runs(command, tmp_path, own_hub):
    """In a folder with a run that waits, with the hub's URL and key in the environment."""
    place = tmp_path / "place"
    run = ddphub.init(project="digits", name="readme", dir=place / ".ddphub", mode="offline")
    run.log({"loss": 1.0})
    run.finish()
    arguments = command.split()[1:]
    if arguments[0] != "serve":
        here = [str(place / part) if part.startswith("./") else part for part in arguments]
        if arguments[0] == "models":
            command_line("sync", str(place / ".ddphub"), hub=own_hub)
        assert (run.id if arguments[0] != "models" else "readme") in command_line(*here, hub=own_hub).stdout
        return
    program = [sys.executable, "-c", "from ddphub.cli import main; main()", *arguments]
    program[program.index("8765")] = "0"  # another hub may run here
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=place) as process:
        assert any(line.startswith("ddphub hub on http://127.0.0.1:") for line in process.stdout)
        process.terminate()


def test_the_readme_s_commands_for_a_team_run(tmp_path, own_hub):
    """In their order: the user and the projects that some make are there for the next."""
    places = {"./hub": str(own_hub.data_dir), "./backups": str(tmp_path / "backups")}
    where = {"DDPHUB_DATABASE_URL": own_hub.database} if isinstance(own_hub.database, str) else {}
    said = [
        command_line(*(places.get(part, part) for part in command.split()[1:]), hub=own_hub, environment=where).stdout
        for command in HUB_COMMANDS
    ]
    assert [len(said[number].strip()) for number in (1, 2)] == [42, 42]
    assert len(list((tmp_path / "backups").glob("*/manifest.json"))) == 1


def test_no_command_of_the_readme_is_forgotten():
    known = {"./scripts/demo", *ELSEWHERE}
    assert [command for command in commands() if not command.startswith("ddphub ") and command not in known] == []
    for script in ("demo", "test"):
        assert os.access(ROOT / "scripts" / script, os.X_OK)


@pytest.mark.skipif(
    not sys.prefix.startswith(str(ROOT)) and not os.environ.get("CI"),
    reason="the demo may install an environment: run scripts/test, or set CI=true",
)
def test_the_demo_delivers_everything():
    """The whole demo, in the environment that scripts/test made."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DDPHUB_")}
    done = subprocess.run(
        [ROOT / "scripts" / "demo"], capture_output=True, text=True, timeout=600, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "the hub has all" in done.stdout


def test_the_program_of_the_readme_runs(tmp_path, monkeypatch, own_hub, view):
    """As it stands there, with a model, a loader and a step that do next to nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDPHUB_URL", own_hub.url)
    monkeypatch.setenv("DDPHUB_API_KEY", own_hub.key)
    (program,) = [one for one in programs() if "import ddphub\n" in one]
    prelude = "import torch\nepochs, loader, accuracy, model = 2, range(3), 0.5, torch.nn.Linear(1, 1)\n"
    prelude += "def train_step(batch):\n    return torch.tensor(1.0)\n"
    exec(compile(prelude + program, "README.md", "exec"), {})
    assert len(view.metrics()) == 6
    assert view.model()["project"] == "digits"
    assert len(view.checkpoints()) >= 1


def test_what_the_readme_reads_from_a_hub(tmp_path, monkeypatch, capsys, own_hub, view):
    """The same lines, with the id of a model that is there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDPHUB_URL", own_hub.url)
    monkeypatch.setenv("DDPHUB_API_KEY", own_hub.key)
    (program,) = [one for one in programs() if "hub = Hub()" in one]
    with pytest.raises(ZeroDivisionError), ddphub.init(project="digits", name="cnn") as run:
        run.log({"train/loss": 0.5}, step=3)
        (tmp_path / "made.pt").write_bytes(b"weights")
        run.save_checkpoint("made.pt", kind="best")
        1 / 0  # noqa: B018  # it fails
    ddphub.Hub().model(view.models()[0]).set(tags=["paper"])
    found: dict = {}
    exec(program.replace("ID or the URL of its page", view.models()[0]), found)
    assert "cnn" in capsys.readouterr().out
    assert [(one["step"], one["value"]) for one in found["records"]] == [(3, 0.5)]
    assert (tmp_path / "best.pt").read_bytes() == b"weights"
    assert ddphub.Hub().model(view.models()[0]).notes == "lr too high"


@pytest.mark.parametrize("program", [one for one in programs() if "ultralytics import attach" in one])
def test_the_trainings_of_the_readme_run(program, tmp_path, own_hub, view):
    """As they stand there, but for a small model, one epoch, and a CPU."""
    trainers.needs("8.4.190")
    data = trainers.dataset(tmp_path / "data")
    for text, small in {**REPLACED, '"birds.yaml"': f'"{data}"'}.items():
        program = program.replace(text, small)
    environment = {**os.environ, **trainers.environment("8.4.190", tmp_path / "home")}
    environment |= {"DDPHUB_URL": own_hub.url, "DDPHUB_API_KEY": own_hub.key}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, timeout=120, check=True)
    assert (view.model()["project"], view.model()["status"]) == ("birds", "trained")
    assert {one["kind"] for one in view.checkpoints()} >= {"epoch", "final"}

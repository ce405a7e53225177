"""The README tells the truth: each of its commands runs here, and its program is one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import ddphub as command_line

import ddphub

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

ELSEWHERE = {
    "./scripts/test": "it is what runs this test",
    'pip install ".[server]"': "scripts/environment.sh installs so, with the extra dev, which holds server",
}
"""Commands that a test cannot run, and where they run."""


def commands():
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def programs():
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("command", [command for command in commands() if command.startswith("ddphub ")])
def test_each_command_of_the_readme_runs(command, tmp_path, own_hub):
    """In a folder with a run that waits, with the hub's URL and key in the environment."""
    place = tmp_path / "place"
    run = ddphub.init(project="tests", name="readme", dir=place / ".ddphub", mode="offline")
    run.log({"loss": 1.0})
    run.finish()
    arguments = command.split()[1:]
    if arguments[0] != "serve":
        here = [str(place / part) if part.startswith("./") else part for part in arguments]
        assert run.id in command_line(*here, hub=own_hub).stdout
        return
    program = [sys.executable, "-c", "from ddphub.cli import main; main()", *arguments]
    program[program.index("8765")] = "0"  # another hub may run here
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=place) as process:
        assert any(line.startswith("ddphub hub on http://127.0.0.1:") for line in process.stdout)
        process.terminate()


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
    (program,) = programs()
    prelude = "import torch\nepochs, loader, accuracy, model = 2, range(3), 0.5, torch.nn.Linear(1, 1)\n"
    prelude += "def train_step(batch):\n    return torch.tensor(1.0)\n"
    exec(compile(prelude + program, "README.md", "exec"), {})
    assert len(view.metrics()) == 6
    assert view.model()["project"] == "digits"
    assert len(view.checkpoints()) >= 1

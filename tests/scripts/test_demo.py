"""The scripts, as far as they can be tried without making an environment."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import Job, ddphub

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
SHELL_SCRIPTS = [
    SCRIPTS / "demo",
    SCRIPTS / "test",
    SCRIPTS / "check",
    SCRIPTS / "slurm-cluster",
    SCRIPTS / "environment.sh",
    ROOT / ".ci" / "run",
]


def run(*command, environment=None, text_in=None):
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        input=text_in,
        timeout=120,
        env={**os.environ, **(environment or {})},
        check=False,
    )


def train(out, *, environment, ranks=2, **options):
    """Runs the training program; returns the job that has ended."""
    out.mkdir(exist_ok=True)
    trained = Job(out, SCRIPTS / "train_digits.py", hub=None, ranks=ranks, environment=environment, **options)
    trained.wait()
    return trained


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_bash_can_parse_every_script(script):
    checked = run("bash", "-n", script)
    assert checked.returncode == 0, checked.stderr


def test_the_demo_explains_itself_without_installing_anything():
    shown = run(SCRIPTS / "demo", "--help", environment={"PYTHON": "/nonexistent"})
    assert shown.returncode == 0
    assert "--serve" in shown.stdout
    assert run(SCRIPTS / "demo", "--wrong").returncode == 2


def test_the_demo_says_that_python_is_missing():
    shown = run(SCRIPTS / "demo", environment={"PYTHON": "/nonexistent"})
    assert shown.returncode == 1
    assert "needs Python 3.11 or newer" in shown.stderr


def test_an_environment_that_is_a_link_is_not_emptied(tmp_path):
    """It may be another checkout's, and in use there."""
    root, other = tmp_path / "checkout", tmp_path / "other"
    (root / "scripts").mkdir(parents=True)
    for name in ("scripts/demo", "scripts/environment.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, root / name)
    other.mkdir()
    (other / "precious").touch()
    (root / f".venv-{sys.version_info[0]}.{sys.version_info[1]}").symlink_to(other)
    refused = run(root / "scripts" / "demo", environment={"PYTHON": sys.executable})
    assert (refused.returncode, "is a link" in refused.stderr) == (1, True), refused.stderr
    assert (other / "precious").exists()


def test_the_training_program_reports_both_ranks_without_a_hub(tmp_path):
    """One epoch offline: 23 steps of two ranks, and the three kinds of checkpoints, wait on disk."""
    offline = {"DDPHUB_MODE": "offline", "DDPHUB_DIR": str(tmp_path / "runs")}
    train(tmp_path / "out", epochs=1, environment=offline).succeed()
    status = json.loads(ddphub("status", str(tmp_path / "runs"), "--json").stdout)
    assert status["world_size"] == 2
    assert status["problems"] == []
    assert status["events"]["pending"] == status["events"]["reported"] >= 2 * 23
    assert status["checkpoints"]["staged"] == status["checkpoints"]["pending"] == 3


def test_the_training_program_fails_when_it_does_not_learn(tmp_path):
    environment = {"DDPHUB_MODE": "disabled"}
    trained = train(tmp_path / "out", epochs=1, lr=0, min_accuracy=0.9, environment=environment, ranks=1)
    assert trained.wait() != 0
    assert "training did not learn" in trained.text


def test_delivered_agrees_with_the_hub_only_when_everything_is_there(tmp_path, own_hub):
    """What status says is compared with what the hub says, so a run that hides a loss does not pass."""
    environment = {"DDPHUB_URL": own_hub.url, "DDPHUB_API_KEY": own_hub.key, "DDPHUB_DIR": str(tmp_path / "runs")}
    train(tmp_path / "out", epochs=1, environment=environment).succeed()
    status = ddphub("status", str(tmp_path / "runs"), "--json").stdout

    delivered = (sys.executable, SCRIPTS / "delivered.py", own_hub.url)
    complete = run(*delivered, environment=environment, text_in=status)
    assert complete.returncode == 0, complete.stdout + complete.stderr

    altered = json.loads(status)
    altered["events"]["reported"] += 1
    altered["checkpoints"]["pending"] = 1
    incomplete = run(*delivered, environment=environment, text_in=json.dumps(altered))
    assert incomplete.returncode == 1
    assert "events on the hub" in incomplete.stdout
    assert "checkpoints pending" in incomplete.stdout

"""A staging area in a folder of its own, and slots for it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ddphub.checkpoints.staging import Slot, StagingArea

ATTEMPT = "0123456789abcdef" * 2


@pytest.fixture
def area(tmp_path: Path) -> StagingArea:
    return StagingArea(tmp_path / "run" / "staging")


@pytest.fixture
def slot() -> Callable[..., Slot]:
    """Makes slots: by default that of epoch 0."""

    def make(epoch: int | None = 0, *, kind: str = "epoch", name: str = "last.pt") -> Slot:
        return Slot(ATTEMPT, kind, epoch, None, name)

    return make


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A file as a training script leaves it."""
    path = tmp_path / "weights" / "last.pt"
    path.parent.mkdir()
    path.write_bytes(bytes(range(256)) * 1000)
    return path


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., str]:
    """Runs a program in a process of its own to its end and gives what it printed; it must exit with 0."""

    def run(program: str | Path, *arguments: object) -> str:
        start = [str(program)] if isinstance(program, Path) else ["-c", program]
        done = subprocess.run(
            [sys.executable, *start, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run

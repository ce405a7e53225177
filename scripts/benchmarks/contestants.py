"""The environments of the contestants: one each beside ours, as no two of them need the same libraries.

An environment sees the packages of ours, so that a training differs by its reporter alone; what a contestant needs
beside them, or in another version, is its own.
"""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Final

from benchmarks.figures import DDPHUB, LeftOut

REQUIREMENTS: Final = {
    "wandb": "wandb==0.31.0",
    "mlflow": "mlflow==3.17.2",
    "tensorboard": "tensorboard==2.21.0",
    "trackio": "trackio==0.43.0",
    "hub-sdk": "hub-sdk==0.0.25",
    "tuspy": "tuspy==1.1.0 tuspyserver==4.4.3",
    "matplotlib": "matplotlib==3.11.2",
}
"""What is installed for each; matplotlib draws, it is no contestant, and tuspy has no server of its own."""

_FOLDER: Final = Path(sys.prefix) / "contestants"
_PATIENCE: Final = 900.0
"""Seconds for one installation."""


def python_of(contestant: str) -> Path:
    """The Python of a contestant's environment.

    Raises:
        LeftOut: there is none.
    """
    if contestant == DDPHUB:
        return Path(sys.executable)
    if not _is_installed(contestant):
        raise LeftOut(f"{REQUIREMENTS[contestant]} is not installed")
    return _FOLDER / contestant / "bin" / "python"


def install() -> None:
    """Makes the environments that are not there yet. One that fails is told, and its contestant will be left out."""
    for contestant in REQUIREMENTS:
        if not _is_installed(contestant):
            print(f"installing {REQUIREMENTS[contestant]}", file=sys.stderr, flush=True)
            _install(contestant)


def _is_installed(contestant: str) -> bool:
    stamp = _FOLDER / contestant / "installed"
    return stamp.exists() and stamp.read_text() == REQUIREMENTS[contestant]


def _install(contestant: str) -> None:
    folder = _FOLDER / contestant
    venv.create(folder, clear=True, symlinks=True)
    ours, theirs = sysconfig.get_path("purelib"), sysconfig.get_path("purelib", "venv", {"base": str(folder)})
    Path(theirs, "ours.pth").write_text(f"{ours}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    wanted = REQUIREMENTS[contestant].split()
    try:
        done = subprocess.run(
            [*pip, "--disable-pip-version-check", "--no-input", "--only-binary", ":all:", *wanted],
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        print(f"{contestant} was not installed within {_PATIENCE:g} s", file=sys.stderr)
        return
    if done.returncode == 0:
        (folder / "installed").write_text(REQUIREMENTS[contestant])

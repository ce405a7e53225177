"""One contestant of `stall`: saves the file, or the state, that it is asked to, and tells how long that held it.

    stall.py ENVIRONMENT CONTESTANT FOLDER

It stays, so that no save pays for imports. Each line of its input asks for a save, and gets a line of output, in JSON.
"""

import importlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

TENSOR: Final = 16 * 1024 * 1024
"""Bytes of one tensor of a state."""


class Contestant(Protocol):
    """Saves in one way."""

    def save(self, source: Path, turn: int) -> None:
        """What a training thread would wait for."""

    def tidy(self) -> None:
        """Afterwards, when nobody counts: ends what it does in the background, and deletes what it kept."""


class Copy:
    """A file beside it: what none that keeps the bytes can beat."""

    def __init__(self, folder: Path, copy: Callable[[Path, Path], object]) -> None:
        self._target = folder / "copy"
        self._copy = copy

    def save(self, source: Path, turn: int) -> None:
        """One copy."""
        del turn
        self._copy(source, self._target)

    def tidy(self) -> None:
        """Deletes it."""
        self._target.unlink()


def copy_in_kernel(source: Path, target: Path) -> None:
    """copy_file_range(2): it shares the blocks where the file system can."""
    with source.open("rb") as read, target.open("wb") as written:
        while os.copy_file_range(read.fileno(), written.fileno(), 1 << 30):
            pass


class Ddphub:
    """A run that is offline: it stages as an online one, and nothing is sent beside the others' turns."""

    def __init__(self, folder: Path) -> None:
        ddphub = importlib.import_module("ddphub")
        self._staging = folder / "runs"
        self.run = ddphub.init(
            project="bench", name="stall", dir=self._staging, mode="offline", rate_limits={"ckpt": 0}, console="off"
        )

    def save(self, source: Path, turn: int) -> None:
        """By copy."""
        if self.run.save_checkpoint(source, epoch=turn) is None:
            raise RuntimeError("the save was refused")

    def tidy(self) -> None:
        """Waits for the digest, which a thread computes after the save, and deletes the entry as a delivery does."""
        until = time.monotonic() + 300
        while not (digests := list(self._staging.glob("*/staging/*/digest.json"))):
            if time.monotonic() > until:
                raise RuntimeError("the checkpoint was not digested")
            time.sleep(0.02)
        for digest in digests:
            shutil.rmtree(digest.parent)


class HubSdk:
    """`upload_model` of the public HUB v1 client, to a hub that speaks it; it returns when the hub has the file."""

    def __init__(self) -> None:
        client = importlib.import_module("hub_sdk").HUBClient()
        self._model = client.model()
        self._model.create_model({"meta": {"name": "stall"}, "config": {"epochs": 1}})

    def save(self, source: Path, turn: int) -> None:
        """One upload."""
        answer = self._model.upload_model(turn, str(source), is_best=False)
        if answer is None or answer.status_code != 200:
            raise RuntimeError(f"the upload failed: {answer}")

    def tidy(self) -> None:
        """The hub keeps equal bytes once."""


class Mlflow:
    """`log_artifact` to a tracking server, which keeps the artifacts; it returns when the server has the file."""

    def __init__(self) -> None:
        self._mlflow = importlib.import_module("mlflow")
        self._mlflow.set_experiment("stall")
        self._mlflow.start_run()
        self._kept = Path(os.environ["KEPT_BY_SERVER"])

    def save(self, source: Path, turn: int) -> None:
        """One upload."""
        del turn
        self._mlflow.log_artifact(str(source), artifact_path="checkpoints")

    def tidy(self) -> None:
        """Deletes what the server got."""
        for path in self._kept.glob("*/*/artifacts/checkpoints"):
            shutil.rmtree(path)


class Wandb:
    """Offline: what it would send waits on the disk until `wandb sync`, as what ddphub stages does."""

    def __init__(self, folder: Path, *, as_artifact: bool) -> None:
        self._folder = folder
        self._wandb = importlib.import_module("wandb")
        self._run = self._wandb.init(project="stall", dir=str(folder))
        self._as_artifact = as_artifact

    def save(self, source: Path, turn: int) -> None:
        """A file of the run, or a version of an artifact."""
        del turn
        if not self._as_artifact:
            self._run.save(str(source), base_path=str(source.parent), policy="now")
            return
        artifact = self._wandb.Artifact("checkpoint", type="model")
        artifact.add_file(str(source))
        self._run.log_artifact(artifact)

    def tidy(self) -> None:
        """Deletes the copies."""
        for path in self._folder.glob("data/artifacts/staging/*"):
            path.unlink()


class TorchSave:
    """`torch.save` to a new file, or with `run.checkpoint()` around it; `source` only says how large the state is."""

    def __init__(self, folder: Path, ddphub: Ddphub | None) -> None:
        self._torch = importlib.import_module("torch")
        self._ddphub = ddphub
        self._target = folder / "last.pt"
        self._state: dict[str, Any] = {}

    def prepare(self, size: int) -> None:
        """A state of that many bytes, every page of it touched."""
        count = max(1, size // TENSOR)
        self._state = {
            f"layer{index}.weight": self._torch.full((size // count // 4,), 0.5 + index) for index in range(count)
        }

    def save(self, source: Path, turn: int) -> None:
        """One save."""
        del source
        if self._ddphub is None:
            self._torch.save(self._state, self._target)
            return
        with self._ddphub.run.checkpoint(epoch=turn) as path:
            self._torch.save(self._state, path)

    def tidy(self) -> None:
        """Deletes the file; memory is for the next contestant."""
        self._state = {}
        if self._ddphub is None:
            self._target.unlink()
        else:
            self._ddphub.tidy()


def contestant(name: str, folder: Path) -> Contestant:
    """The one of that name."""
    match name:
        case "kernel copy":
            return Copy(folder, copy_in_kernel)
        case "shutil.copyfile":
            return Copy(folder, shutil.copyfile)
        case "ddphub":
            return Ddphub(folder)
        case "hub-sdk upload":
            return HubSdk()
        case "mlflow log_artifact":
            return Mlflow()
        case "wandb log_artifact" | "wandb save":
            return Wandb(folder, as_artifact=name != "wandb save")
        case "torch.save":
            return TorchSave(folder, None)
        case "run.checkpoint()":
            return TorchSave(folder, Ddphub(folder))
    raise ValueError(name)


def main() -> None:
    """Entry point."""
    one = contestant(sys.argv[2], Path(sys.argv[3]))
    for line in sys.stdin:
        asked = json.loads(line)
        if isinstance(one, TorchSave):
            one.prepare(asked["size"])
        started = time.perf_counter()
        one.save(Path(asked["source"]), asked["turn"])
        held = time.perf_counter() - started
        one.tidy()
        print(json.dumps({"held": held}), flush=True)


if __name__ == "__main__":
    main()

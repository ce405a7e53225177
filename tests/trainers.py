"""The Ultralytics trainers that tests run ddphub in: where they are, what their processes need, something to train on.

`scripts/test` installs them beside the environment of the tests (tests/trainer_env), since no two of them can live in
one. Each runs in processes of its own; nothing here imports one.
"""

import json
import os
import shutil
import struct
import sys
import zlib
from pathlib import Path

import needs as machine
import numpy as np
import psutil
from jobs import AT_IMPORT, Job
from nursery import Nursery

VERSIONS = ("8.4.190", "8.4.114", "8.0.217")
"""Of Ultralytics: today's; the last with a HUB v1 client, through hub-sdk; one with a HUB v1 client of its own."""

_HERE = Path(__file__).parent / "trainer_env"
_INSTALLED = Path(sys.prefix) / "trainers"
_TRAINERS: dict[str, Nursery] = {}


def needs(version):
    """Skips the test unless that trainer is installed; fails it in CI."""
    missing = [name for name in ("shared", version) if not (_INSTALLED / name / "installed").exists()]
    if missing:
        machine.without(f"needs {version}, which scripts/test installs into {_INSTALLED}")


def paths(name):
    """The variables of a process that uses what is installed under that name, where it needs no settings."""
    needs(name)
    return {"PYTHONPATH": os.pathsep.join(map(str, (_HERE, _INSTALLED / name, _INSTALLED / "shared")))}


def environment(version, home):
    """The variables of a process that uses that trainer, with settings and caches in the folder `home`."""
    config = home / "ultralytics"
    if not config.exists():
        template = _INSTALLED / version / "config"
        shutil.copytree(template, config)
        for settings in (*config.rglob("settings.json"), *config.rglob("settings.yaml")):
            settings.write_text(settings.read_text().replace(str(template), str(config)))
    variables = {
        **paths(version),
        "YOLO_CONFIG_DIR": str(config),
        "YOLO_OFFLINE": "1",
        "YOLO_AUTOINSTALL": "false",
        "MPLCONFIGDIR": str(config),
        "OMP_NUM_THREADS": "1",
    }
    if version.startswith("8.0."):
        # It opens its own checkpoints with the torch.load of its day, which knew no weights_only.
        variables["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    return variables


class Training(Job):
    """tests/programs/yolo_train.py, or another program for one of the trainers, in one of three ways.

    Args:
        folder: the job's folder; callbacks-RANK.jsonl and train/weights are in it.
        version: the trainer's.
        mode: `single`, one process; `torchrun`; `launcher`, one process whose trainer launches the ranks itself.
        ranks: of the two latter.
        options: of `Job`.
    """

    def __init__(self, folder, version, *, mode, ranks=2, program="yolo_train.py", hub=None, **options):
        self._home = folder / "home"
        if version not in _TRAINERS:
            # Not the trainer itself: it reads its settings when it is imported.
            modules = ("torch.distributed.run", "torchvision", "cv2", "PIL.Image", "yaml", "requests", "filelock")
            _TRAINERS[version] = Nursery(*modules, environment={**AT_IMPORT, **paths(version)})
        self.nursery = _TRAINERS[version]
        self.weights = folder / "train" / "weights"
        options["environment"] = {**environment(version, self._home), **options.get("environment", {})}
        if mode == "launcher":
            options["workers"] = ranks
        super().__init__(folder, program, hub=hub, ranks=ranks if mode == "torchrun" else 0, mode=mode, **options)

    def callbacks(self, rank):
        """What that rank's callbacks saw, in order."""
        path = self.folder / f"callbacks-{rank}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def events(self, rank):
        """The names of the callbacks that rank ran, in order, without those of batches."""
        return [entry["event"] for entry in self.callbacks(rank) if "batch" not in entry["event"]]

    def written(self):
        """sha256 of every checkpoint that the trainer has written so far, those of the final evaluation included."""
        return {sha256 for entry in self.callbacks(0) for sha256 in (entry["files"] or {}).values()}

    def _orphans(self):
        yield from super()._orphans()
        # Workers that the trainer launched run a file that it wrote into its settings' folder.
        for process in psutil.process_iter(["cmdline"]):
            if any(str(self._home) in argument for argument in process.info["cmdline"] or []):
                yield process


def dataset(folder, images=12, val=4):
    """Writes images of 64 pixels with rectangles of two colours, and says where their data.yaml is."""
    random = np.random.default_rng(0)
    for split, count in (("train", images), ("val", val)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(count):
            image = random.integers(90, 140, (64, 64, 3), np.uint8)
            labels = []
            for colour in random.integers(0, 2, 2):
                width, height = random.integers(12, 30, 2)
                left, top = random.integers(0, 64 - width), random.integers(0, 64 - height)
                image[top : top + height, left : left + width] = ((220, 40, 40), (40, 60, 220))[colour]
                box = (left + width / 2, top + height / 2, width, height)
                labels.append(" ".join([str(colour), *(f"{side / 64:.6f}" for side in box)]))
            (folder / "images" / split / f"{index}.png").write_bytes(_png(image))
            (folder / "labels" / split / f"{index}.txt").write_text("\n".join(labels))
    names = "names: {0: red, 1: blue}"
    path = folder / "data.yaml"
    path.write_text(f"path: {json.dumps(str(folder))}\ntrain: images/train\nval: images/val\n{names}\n")
    return path


def _png(image):
    """An RGB image as PNG: the file format's three chunks, each row with filter 0."""
    height, width, _ = image.shape
    rows = np.hstack([np.zeros((height, 1), np.uint8), image.reshape(height, -1)]).tobytes()
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )

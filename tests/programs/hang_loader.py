"""A DataLoader forks two workers again and again; says how long the longest fork took in the parent."""

import argparse
import json
import os
import time
from pathlib import Path

from torch.utils.data import DataLoader, Dataset

import ddphub

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--seconds", type=float, default=7.0)
arguments = parser.parse_args()
durations = []
fork = os.fork


def timed_fork():
    """os.fork, timed."""
    began = time.monotonic()
    pid = fork()
    durations.append(time.monotonic() - began)
    return pid


class Data(Dataset):
    """Four numbers; what a worker logs goes nowhere."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        run.log({"from worker": index})
        return index


os.fork = timed_fork
run = ddphub.init(project="tests", name="loader", rate_limits={"metrics": 0.2, "ckpt": 0}, finish_timeout=1)
(arguments.out / "last.pt").write_bytes(b"weights")
run.save_checkpoint(arguments.out / "last.pt", epoch=0)
until = time.monotonic() + arguments.seconds
batches = 0
while time.monotonic() < until:
    for batch in DataLoader(Data(), num_workers=2, multiprocessing_context="fork"):
        run.log({"batch": int(batch)}, step=batches)
        batches += 1
print(json.dumps({"longest": round(max(durations), 3), "forks": len(durations), "batches": batches}), flush=True)
run.finish()

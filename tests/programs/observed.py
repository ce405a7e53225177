"""A training that prints in many ways, forks a worker, and ends as it is told."""

import argparse
import logging
import os
import signal
import sys
import time
from pathlib import Path

import torch

import ddphub

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--steps", type=int, default=30)
parser.add_argument("--pause", type=float, default=0.1, help="seconds a step takes")
parser.add_argument("--end", default="finish", choices=["finish", "raise", "exit", "wait"])
arguments = parser.parse_args()

logging.basicConfig(stream=sys.stderr, format="%(message)s")  # before `init`: it holds the stream
run = ddphub.init(project="tests", name="observed", rate_limits={"metrics": 0.5}, finish_timeout=60)
rank = run.topology.rank
(arguments.out / f"pid-{rank}").write_text(str(os.getpid()))
print(f"rank {rank} begins with {os.environ.get('DDPHUB_API_KEY')}")


class Images(torch.utils.data.Dataset):
    """Each item is printed by the forked worker that loads it."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        print(f"loaded {index} by {os.getpid()}", flush=True)
        return torch.tensor(index)


for batch in torch.utils.data.DataLoader(Images(), num_workers=1, multiprocessing_context="fork"):
    print(f"rank {rank} got {batch.tolist()}")
for step in range(arguments.steps):
    sys.stderr.write(f"\rstep {step + 1}/{arguments.steps}")
    run.log({"loss": 1.0 / (step + 1)}, step=step)
    time.sleep(arguments.pause)
sys.stderr.write("\n")
logging.getLogger("library").warning("a library's \x1b[33mwarning\x1b[0m")
if arguments.end == "raise":
    raise RuntimeError(f"rank {rank} was told to raise")
if arguments.end == "wait":
    print("before the signal", end="")
    (arguments.out / f"ready-{rank}").write_text("")
    while True:  # a handler lets it return once
        signal.pause()
if arguments.end == "finish":
    run.finish()
    print("after the end")

"""Trains in lock-step until the hub asks to stop: no rank makes a step without the others."""

import argparse
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist

import ddphub

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
arguments = parser.parse_args()

dist.init_process_group("gloo")
with ddphub.init(project="tests", name="lockstep", rate_limits={"metrics": 0.2}) as run:
    (arguments.out / f"pid-{run.topology.rank}").write_text(str(os.getpid()))
    gradient = torch.ones(1)
    for step in range(100_000):
        dist.all_reduce(gradient)
        run.log({"loss": 1.0 / (step + 1)}, step=step)
        time.sleep(0.05)
        if run.should_stop():
            break
dist.destroy_process_group()

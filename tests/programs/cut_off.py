"""Trains in a SLURM job, one rank a task, until it is asked to stop; a requeued job has steps of its own.

Each rank writes down what it reported, so that a test need not believe ddphub.
"""

import argparse
import hashlib
import os
import time
from pathlib import Path

import torch.distributed as dist

import ddphub

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
arguments = parser.parse_args()

rank, world_size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))

dist.init_process_group("gloo", rank=rank, world_size=world_size)
run = ddphub.init(project="tests", name="cut-off", rate_limits={"ckpt": 0.0, "metrics": 0.2}, finish_timeout=5)
with (arguments.out / f"logged-{restarts}-{rank}").open("w") as logged:
    for epoch in range(1000 * restarts, 1000 * restarts + 900):
        for step in range(10 * epoch, 10 * epoch + 10):
            run.log({"loss": 1.0 / (step + 1)}, step=step, epoch=epoch)
            logged.write(f"{rank} {step}\n")
            time.sleep(0.05)
        if rank == 0:
            path = arguments.out / "last.pt"
            path.write_bytes(os.urandom(50_000))
            with (arguments.out / f"saved-{restarts}").open("a") as saved:
                saved.write(f"{epoch} {hashlib.sha256(path.read_bytes()).hexdigest()}\n")
            run.save_checkpoint(path, epoch=epoch)
        if run.should_stop():
            break
run.finish()
dist.destroy_process_group()

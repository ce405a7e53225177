"""Trains in a SLURM job, and goes on from its own checkpoint where an earlier start of the job left off.

Each rank writes down what it logged, and when, so that a test need not believe ddphub.
"""

import argparse
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist

import ddphub

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--more", type=int, default=2, help="epochs of a start that goes on; the first one trains for long")
arguments = parser.parse_args()

rank, world_size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
own, done = arguments.out / "last.pt", arguments.out / "epoch"


def replace(path, write):
    """A node without power leaves the old file or the new one."""
    pending = path.with_suffix(".new")
    write(pending)
    pending.replace(path)


dist.init_process_group("gloo", rank=rank, world_size=world_size)
run = ddphub.init(project="tests", name="states", rate_limits={"ckpt": 0.0, "metrics": 0.2}, finish_timeout=60)
first = int(done.read_text()) + 1 if done.exists() else 0
dist.barrier()
with (arguments.out / f"logged-{restarts}-{rank}").open("w", buffering=1) as record:
    for epoch in range(first, first + arguments.more if restarts else 1000):
        for step in range(epoch * 10, epoch * 10 + 10):
            run.log({"loss": 1.0 / (step + 1)}, step=step, epoch=epoch)
            record.write(f"{step} {time.time()}\n")
            time.sleep(0.05)
        if rank == 0:
            replace(own, lambda path: torch.save({"epoch": epoch}, path))  # noqa: B023
        run.save_checkpoint(own, epoch=epoch)
        if rank == 0:
            replace(done, lambda path: path.write_text(str(epoch)))  # noqa: B023
        dist.barrier()
run.finish()
dist.destroy_process_group()

"""Every rank logs, rank 0 saves, all say that they have, and then wait: for the end of their job, in most tests.

In a world of one it needs no torch, so that many start quickly.
"""

import argparse
import os
import time
from pathlib import Path

import ddphub

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--settle", type=float, default=0.0, help="seconds before it says that it waits")
parser.add_argument("--wait", type=float, default=0.0, help="seconds")
arguments = parser.parse_args()

task = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
run = ddphub.init(project="tests", name="steps", rate_limits={"ckpt": 0.0})
rank = run.topology.rank
for step in range(arguments.steps):
    run.log({"task": task}, step=step)
if rank == 0:
    with run.checkpoint(epoch=0, name="task.bin") as path:
        path.write_bytes(bytes([task]) * 1000)
time.sleep(arguments.settle)
(arguments.out / f"waits-{task}-{rank}").touch()
time.sleep(arguments.wait)
run.finish()

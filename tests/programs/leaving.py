"""Trains until it is told to leave; then saves once more, and leaves by itself. `--asks 0` never asks."""

import argparse
import os
import time
from pathlib import Path

import torch.distributed as dist

import ddphub

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--asks", type=int, default=1)
parser.add_argument("--saving", type=float, default=0.5, help="seconds that the last save takes")
arguments = parser.parse_args()

dist.init_process_group("gloo")
run = ddphub.init(project="tests", name="leaving", rate_limits={"ckpt": 0, "metrics": 0.2})
rank = run.topology.rank
(arguments.out / f"pid-{rank}").write_text(str(os.getpid()))
for step in range(100_000):
    run.log({"loss": 1.0}, step=step)
    time.sleep(0.02)
    if arguments.asks and run.should_stop():
        os.write(1, f"LEAVES {rank} {step}\n".encode())  # whole, whichever rank says it
        break
time.sleep(arguments.saving)
if rank == 0:
    (arguments.out / "last.pt").write_bytes(b"the last one")
run.save_checkpoint(arguments.out / "last.pt", step=step)
run.finish()
dist.destroy_process_group()
os.write(1, f"LEFT {rank}\n".encode())

"""A training that goes on at its newest checkpoint; it is slow in its first start only, so that it is interrupted."""

import argparse
import json
import os
import time
from pathlib import Path

import torch.distributed as dist

import ddphub

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--steps", type=int, default=600)
arguments = parser.parse_args()

dist.init_process_group("gloo")
run = ddphub.init(project="tests", name="resume", rate_limits={"ckpt": 0.0})
rank = run.topology.rank
latest = run.latest_checkpoint()
first = 0 if latest is None else json.loads(latest.read_text())["step"] + 1
with (arguments.out / f"starts-{rank}").open("a") as record:
    record.write(f"{first}\n")

for step in range(first, arguments.steps):
    time.sleep(0.2 if "SLURM_RESTART_COUNT" not in os.environ else 0.0)
    run.log({"step": step}, step=step)
    must_leave = run.should_stop()
    if rank == 0 and (must_leave or step % 50 == 49):
        with run.checkpoint(step=step, name="state.json") as path:
            path.write_text(json.dumps({"step": step}))
    if must_leave:
        break
run.finish()
dist.destroy_process_group()

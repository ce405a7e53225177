"""A training for people to watch: its ranks go in step, it saves now and then, prints, and stops when the hub asks."""

import argparse
import hashlib
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist

import ddphub

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--pause", type=float, default=0.1, help="seconds a step takes")
parser.add_argument("--alone", type=int, default=0, help="ranks that wait for nobody, so that one may be killed")
arguments = parser.parse_args()

dist.init_process_group("gloo")
run = ddphub.init(
    project="tests",
    name="watched",
    config={"lr": 1e-3, "epochs": 1000},
    rate_limits={"ckpt": 0, "metrics": 0.5, "heartbeat": 1.0},
    finish_timeout=30,
)
rank = run.topology.rank
(arguments.out / f"pid-{rank}").write_text(str(os.getpid()))
for step in range(100_000):
    run.log({"train/loss": 1.0 / (step + 1), "accuracy": 1 - 1.0 / (step + 2)}, step=step, epoch=step // 50)
    time.sleep(arguments.pause)
    if arguments.alone:
        continue
    dist.all_reduce(torch.ones(1))
    if step % 50 == 10:
        path = arguments.out / "last.pt"
        if rank == 0:
            torch.save({"weight": torch.randn(5000), "step": step}, path)
            (arguments.out / "sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
            print(f"saved at step {step} <b>&</b>", flush=True)
        run.save_checkpoint(path, epoch=step // 50, step=step, metrics={"accuracy": 1 - 1.0 / (step + 2)})
    if run.should_stop():
        break
run.finish()
dist.destroy_process_group()

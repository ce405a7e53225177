"""Trains, and resumes from the newest checkpoint of its run."""

import argparse
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist

import ddphub

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--pause", type=float, default=0.0)
arguments = parser.parse_args()

dist.init_process_group("gloo")
run = ddphub.init(project="tests", name="resume", run_id="resumed", rate_limits={"ckpt": 0, "metrics": 0.2})
rank = run.topology.rank
(arguments.out / f"pid-{rank}").write_text(str(os.getpid()))
first = 0
if (path := run.latest_checkpoint()) is not None:
    epoch = torch.load(path)["epoch"]
    print("RESUMED", rank, epoch, path, flush=True)
    first = epoch + 1
for epoch in range(first, arguments.epochs):
    run.log({"loss": 1.0 / (epoch + 1)}, step=epoch, epoch=epoch)
    if rank == 0:
        torch.save({"epoch": epoch}, arguments.out / "last.pt")
    run.save_checkpoint(arguments.out / "last.pt", epoch=epoch)
    time.sleep(arguments.pause)
    if run.should_stop():
        break
run.finish()
dist.destroy_process_group()

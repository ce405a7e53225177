"""Rank 1 writes the checkpoint; all ranks save it."""

import argparse
from pathlib import Path

import torch.distributed as dist

import ddphub

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path)
arguments = parser.parse_args()

dist.init_process_group("gloo")
run = ddphub.init(project="tests", name="writer", rate_limits={"ckpt": 0})
path = arguments.out / "last.pt"
if run.topology.rank == 1:
    path.write_bytes(b"written by rank 1")
dist.barrier()
run.save_checkpoint(path, epoch=0, writer=1)
dist.barrier()
run.finish()
dist.destroy_process_group()

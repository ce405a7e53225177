"""A process group over a FileStore, which has no queues."""

import argparse
import os

import torch.distributed as dist

import ddphub

parser = argparse.ArgumentParser()
parser.add_argument("--out")
parser.add_argument("--store", required=True)
arguments = parser.parse_args()

rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
dist.init_process_group("gloo", store=dist.FileStore(arguments.store, world_size), rank=rank, world_size=world_size)
run = ddphub.init(project="tests", name="filestore", mode="offline")
for step in range(50):
    run.log({"loss": 1.0}, step=step)
run.finish()

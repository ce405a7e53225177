"""Trains until the hub asks to stop."""

import argparse
import time

import torch.distributed as dist

import ddphub

parser = argparse.ArgumentParser()
parser.add_argument("--out")
parser.parse_args()

dist.init_process_group("gloo")
run = ddphub.init(project="tests", name="stoppable", rate_limits={"metrics": 0.2, "heartbeat": 0.2})
for step in range(10_000):
    run.log({"loss": 1.0 / (step + 1)}, step=step)
    time.sleep(0.01)
    if run.should_stop():
        break
run.finish()
dist.destroy_process_group()

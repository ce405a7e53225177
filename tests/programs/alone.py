"""Ranks that do not wait for each other; they train until the hub asks to stop. Imports no torch."""

import argparse
import os
import time
from pathlib import Path

import ddphub

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--name", default="alone")
parser.add_argument("--steps", type=int, default=100_000)
parser.add_argument("--hangs", type=int, help="at this step")
parser.add_argument("--fails", type=int, help="at this step")
arguments = parser.parse_args()

with ddphub.init(project="tests", name=arguments.name, rate_limits={"metrics": 0.2}) as run:
    (arguments.out / f"pid-{run.topology.rank}").write_text(str(os.getpid()))
    for step in range(arguments.steps):
        if step == arguments.fails:
            raise RuntimeError("told to fail")
        run.log({"loss": 1.0 / (step + 1)}, step=step)
        time.sleep(600 if step == arguments.hangs else 0.05)
        if run.should_stop():
            break

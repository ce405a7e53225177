"""Both ranks log once and then sit in a barrier that rank 1 never joins."""

import argparse
import os
import threading
from pathlib import Path

import torch.distributed as dist

import ddphub

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path)
arguments = parser.parse_args()

dist.init_process_group("gloo")
run = ddphub.init(project="tests", name="stuck", rate_limits={"metrics": 0.2})
run.log({"loss": 1.0})
(arguments.out / f"pid-{run.topology.rank}").write_text(str(os.getpid()))
if run.topology.rank == 0:
    dist.barrier()
else:
    threading.Event().wait(120)

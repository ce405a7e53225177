"""SIGTERM sets a flag; the script logs five more steps, saves and ends by itself."""

import argparse
import os
import signal
import time
from pathlib import Path

import ddphub

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path)
parser.add_argument("--late", type=int, default=0, help="install the handler after init")
arguments = parser.parse_args()

told = []
if not arguments.late:
    signal.signal(signal.SIGTERM, lambda *_: told.append(True))
run = ddphub.init(project="tests", name="handler", rate_limits={"metrics": 0.2, "ckpt": 0})
if arguments.late:
    signal.signal(signal.SIGTERM, lambda *_: told.append(True))
for step in range(5):
    run.log({"loss": 1.0}, step=step)
(arguments.out / "pid-0").write_text(str(os.getpid()))
while not told:
    time.sleep(0.05)
for step in range(5, 10):
    run.log({"loss": 0.5}, step=step)
(arguments.out / "last.pt").write_bytes(b"after the signal")
run.save_checkpoint(arguments.out / "last.pt", epoch=0)
time.sleep(1)
run.finish()

"""Times each call of a run on one rank, and says so in one line of JSON: what a hang costs the training."""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import ddphub

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--saves", type=int, default=1)
parser.add_argument("--size", type=int, default=100_000, help="bytes of a checkpoint; it is a hole")
parser.add_argument("--finish-timeout", type=float, default=2.0)
parser.add_argument("--mode")
parser.add_argument("--hold", choices=["init", "training", "finish"], help="wait for the file `go` before this call")
parser.add_argument("--never-finish", type=int, help="the rank that does something else until it is killed")
parser.add_argument("--slow-end", type=int, default=0)
arguments = parser.parse_args()
rank = int(os.environ.get("RANK", "0"))
seconds = {"save": 0.0}
steps: list[float] = []


class SlowEnd:
    """Keeps the interpreter in its last phase, in which other threads are ended, for a second."""

    def __del__(self, sleep=time.sleep):
        sleep(1.0)


slow_end = SlowEnd() if arguments.slow_end else None


def timed(name, call):
    """Calls, and keeps the longest time."""
    began = time.monotonic()
    result = call()
    seconds[name] = round(max(seconds.get(name, 0.0), time.monotonic() - began), 3)
    return result


def hold(where):
    """Stands still before a call until the test says go."""
    if arguments.hold == where:
        (arguments.out / f"held-{rank}").write_text(str(os.getpid()))
        while not (arguments.out / "go").exists():
            time.sleep(0.02)


hold("init")
run = timed(
    "init",
    lambda: ddphub.init(
        project="tests",
        name="hang",
        mode=arguments.mode,
        rate_limits={"metrics": 0.2, "ckpt": 0, "heartbeat": 1},
        finish_timeout=arguments.finish_timeout,
    ),
)
path = arguments.out / f"last-{rank}.pt"
with path.open("wb") as file:
    file.truncate(arguments.size)
hold("training")
for step in range(arguments.steps):
    began = time.monotonic()
    run.log({"loss": 0.5}, step=step)
    steps.append(time.monotonic() - began)
    time.sleep(0.002)
# A machine with much to do may stand still in one or two of them.
seconds["log"], _, seconds["longest log"] = (round(one, 3) for one in sorted(steps)[-3:])
saved = [
    timed("save", lambda epoch=epoch: run.save_checkpoint(path, epoch=epoch))
    for epoch in range(arguments.saves if rank == 0 else 0)
]
while arguments.never_finish == rank:
    run.log({"loss": 0.5})
    (arguments.out / f"pid-{rank}").write_text(str(os.getpid()))
    time.sleep(0.2)
hold("finish")
timed("finish", run.finish)
print(json.dumps({"rank": rank, "saved": sum(map(bool, saved)), **seconds}), file=sys.stdout, flush=True)

"""One of the processes that own a run at the same time. It records what it generates, in files named by --who."""

import argparse
import hashlib
import os
import time
from pathlib import Path

import ddphub

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--who", type=int, default=1)
parser.add_argument("--saves", type=int, default=4)
parser.add_argument("--steps", type=int, default=50, help="between two saves")
parser.add_argument("--size", type=int, default=50_000, help="bytes of a checkpoint")
parser.add_argument("--pause", type=float, default=0.002, help="seconds a step takes")
parser.add_argument("--hold", type=int, help="after this save: wait for the file go-<who>")
parser.add_argument("--at", type=float, default=0.0, help="when to start, so that two start together")
parser.add_argument("--mode")
arguments = parser.parse_args()
who, out = arguments.who, arguments.out


def record(name, *what):
    with (out / f"{name}-{who}.txt").open("a") as file:
        file.write(" ".join(map(str, what)) + "\n")


time.sleep(max(0.0, arguments.at - time.time()))
run = ddphub.init(
    project="tests",
    name="owner",
    mode=arguments.mode,
    rate_limits={"metrics": 0.2, "ckpt": 0, "heartbeat": 1},
    finish_timeout=60,
)
(out / f"pid-{who}").write_text(str(os.getpid()))
path = out / f"last-{who}.pt"
for save in range(arguments.saves):
    for step in range(save * arguments.steps, (save + 1) * arguments.steps):
        record("logged", who, step)
        run.log({"who": who, "loss": 0.5}, step=step)
        time.sleep(arguments.pause)
    path.write_bytes(os.urandom(arguments.size))
    epoch = 1000 * who + save
    record("saved", epoch, hashlib.sha256(path.read_bytes()).hexdigest())
    assert run.save_checkpoint(path, epoch=epoch)
    if save == arguments.hold:
        (out / f"held-{who}").touch()
        while not (out / f"go-{who}").exists():
            time.sleep(0.02)
run.finish()

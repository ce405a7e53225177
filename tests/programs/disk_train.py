"""A training loop that a test can stop at a point, to break or mend the disk that ddphub writes to.

`--hold before,1,end` writes `held-<point>-<rank>` before ddphub.init, before epoch 1 and before finish, and waits for
`go-<point>`. What it did it records in --out, which is on another disk.
"""

import argparse
import hashlib
import os
import time
from pathlib import Path

import ddphub

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--steps", type=int, default=60, help="steps of an epoch")
parser.add_argument("--bytes", type=int, default=100_000, help="size of a checkpoint")
parser.add_argument("--hold", default="")
parser.add_argument("--ckpt", type=float, default=0.0)
parser.add_argument("--finish-timeout", type=float, default=20.0)
arguments = parser.parse_args()
rank = int(os.environ.get("RANK", "0"))
if "RANK" in os.environ:
    import torch.distributed  # noqa: F401  # as a training script that is started by torchrun


def hold(point):
    if str(point) not in arguments.hold.split(","):
        return
    (arguments.out / f"held-{point}-{rank}").touch()
    until = time.monotonic() + 90
    while not (arguments.out / f"go-{point}").exists():
        assert time.monotonic() < until, f"nobody let go of {point}"
        time.sleep(0.02)


def record(name, *what):
    with (arguments.out / name).open("a") as file:
        file.write(" ".join(map(str, what)) + "\n")


(arguments.out / f"pid-{rank}").write_text(str(os.getpid()))
hold("before")
run = ddphub.init(
    project="tests",
    name="disk",
    run_id="run",
    rate_limits={"ckpt": arguments.ckpt, "metrics": 0.25},
    finish_timeout=arguments.finish_timeout,
)
path = arguments.out / "last.pt"
for epoch in range(arguments.epochs):
    hold(epoch)
    for index in range(arguments.steps):
        step = epoch * arguments.steps + index
        run.log({"loss": 1.0 / (step + 1)}, step=step, epoch=epoch)
        record(f"logged-{rank}.txt", step)
        time.sleep(0.002)
    if rank == 0:
        path.write_bytes(os.urandom(arguments.bytes))
    entry_id = run.save_checkpoint(path, epoch=epoch)
    if rank == 0:
        record("saved.txt", epoch, hashlib.sha256(path.read_bytes()).hexdigest(), entry_id)
    run.should_stop()
hold("end")
run.finish()
record("finished.txt", rank)

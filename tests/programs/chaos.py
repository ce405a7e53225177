"""A training script for random faults: it records what it generates before ddphub hears of it.

The process group meets on the launcher's own port; ddphub's relay is led through a proxy.
"""

import argparse
import hashlib
import os
import random
import sys
import time
from datetime import timedelta
from pathlib import Path

from chaos.record import Recorder

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--launch", type=int, required=True)
parser.add_argument("--relay-port", required=True)
parser.add_argument("--run-id")
parser.add_argument("--steps", type=int, required=True, help="an epoch's")
parser.add_argument("--epochs", type=int, required=True)
parser.add_argument("--pause", type=float, required=True, help="seconds a step takes")
parser.add_argument("--style", choices=["file", "context", "folder", "context-folder"], required=True)
parser.add_argument("--writer", type=int, required=True)
parser.add_argument("--size", type=int, required=True, help="bytes of a checkpoint")
parser.add_argument("--ending", choices=["finish", "exit"], required=True)
parser.add_argument("--raises", default="", help="rank:epoch at which that rank raises, once a start")
parser.add_argument("--finish-timeout", type=float, required=True)
arguments = parser.parse_args()

rank, restart = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
recorder = Recorder(arguments.out / "records", arguments.launch, restart, rank)

import torch.distributed as dist  # noqa: E402  # the record begins before two seconds of imports

import ddphub  # noqa: E402

TIMEOUT = timedelta(seconds=20)
"""An orphan of a killed agent must not wait half an hour for its dead peers."""


def init_process_group():
    """Torch 2.13 leaves the old world's gloo addresses in the agent's store, so a restart in place needs a prefix."""
    if restart == 0:
        dist.init_process_group("gloo", timeout=TIMEOUT)
        return
    place = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    store = dist.PrefixStore(f"restart-{restart}", dist.TCPStore(*place, wait_for_workers=False, timeout=TIMEOUT))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=int(os.environ["WORLD_SIZE"]), timeout=TIMEOUT)


def write_bytes(path, content):
    """As trainers do: the file of the epoch before is written over in place."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(content)
        file.truncate()


def save(run, number, kind, epoch):
    """One save in the plan's style, recorded before and after."""
    contents = {f"model-{kind}.pt": random.randbytes(arguments.size)}
    if "folder" in arguments.style:
        contents |= {"optimizer.pt": random.randbytes(arguments.size // 2), "notes.txt": random.randbytes(20)}
    sums = ",".join(f"{name}={hashlib.sha256(content).hexdigest()}" for name, content in contents.items())
    recorder.write("save", number, kind, epoch, sums)
    if arguments.style.startswith("context"):
        name = next(iter(contents)) if len(contents) == 1 else "checkpoint"
        with run.checkpoint(kind=kind, epoch=epoch, name=name) as path:
            taken = os.environ["DDPHUB_DIR"] in str(path)
            if len(contents) == 1:
                write_bytes(path, contents[name])
            else:
                path.mkdir()
                for file_name, content in contents.items():
                    write_bytes(path / file_name, content)
    else:
        folder = arguments.out / f"saves-{arguments.launch}-{restart}" / kind
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_bytes(folder / name, content)
        path = folder if len(contents) > 1 else folder / next(iter(contents))
        taken = run.save_checkpoint(path, kind=kind, epoch=epoch, name=path.name, writer=arguments.writer)
        if number % 3 == 0:
            run.save_checkpoint(path, kind=kind, epoch=epoch, name=path.name, writer=arguments.writer)
    recorder.write("saved" if taken else "refused", number)


def train(run):
    """Logs every step, saves every epoch."""
    incarnation = arguments.launch * 10 + restart
    raises = arguments.raises if restart == 0 else ""
    number = 0
    for epoch in range(arguments.epochs):
        for index in range(arguments.steps):
            step = incarnation * 100_000 + epoch * arguments.steps + index
            recorder.write("log", step)
            run.log({"value": step * 0.5, "rank": rank}, step=step, epoch=epoch)
            time.sleep(arguments.pause)
            if raises == f"{rank}:{epoch}" and index == arguments.steps // 2:
                raise RuntimeError("this rank was told to raise")
        is_last = epoch == arguments.epochs - 1
        for kind in ("epoch", *(["best"] if epoch % 2 else []), *(["final"] if is_last else [])):
            if rank == arguments.writer:
                save(run, number, kind, epoch)
                number += 1
            elif not arguments.style.startswith("context"):
                run.save_checkpoint(arguments.out / "not-this-rank", kind=kind, epoch=epoch, writer=arguments.writer)
        dist.barrier()


init_process_group()
port = arguments.out / f"store-port-{arguments.launch}"
own = port.with_name(f"{port.name}-{rank}-{restart}")
own.write_text(os.environ["MASTER_PORT"])
own.replace(port)
os.environ["MASTER_PORT"] = arguments.relay_port

recorder.write("begin")
recorder.pulse()
run = ddphub.init(
    project="chaos",
    name="chaos",
    run_id=arguments.run_id,
    rate_limits={"ckpt": 0, "metrics": 0.3, "heartbeat": 1},
    finish_timeout=arguments.finish_timeout,
)
try:
    train(run)
except BaseException as error:
    recorder.write("end", type(error).__name__)
    raise
if arguments.ending == "finish":
    run.finish()
    recorder.write("end", "finish")
else:
    recorder.write("end", "exit")
    sys.exit(0)
dist.destroy_process_group()

"""A training script as users write it: every rank logs each step, all ranks save each epoch.

It records for itself what it generated, so that a test need not believe ddphub.
"""

import argparse
import hashlib
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist

import ddphub

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--pause", type=float, default=0.001, help="seconds a step takes")
parser.add_argument("--group", default="before", choices=["before", "after", "never"], help="init_process_group")
parser.add_argument("--run-id")
parser.add_argument("--mode")
parser.add_argument("--ckpt", type=float, default=0.0)
parser.add_argument("--finish-timeout", type=float, default=60.0)
parser.add_argument("--crash", help="rank:epoch at which that rank raises in the first attempt")
parser.add_argument("--no-finish", type=int, default=0)
arguments = parser.parse_args()


def init_process_group():
    """Torch 2.13 leaves the old world's gloo addresses in the agent's store, so a restart in place needs a prefix."""
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restarts == "0":
        dist.init_process_group("gloo")
        return
    place = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    store = dist.PrefixStore(f"restart-{restarts}", dist.TCPStore(*place, wait_for_workers=False))
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)


if arguments.group == "before":
    init_process_group()
run = ddphub.init(
    project="tests",
    name="train",
    run_id=arguments.run_id,
    mode=arguments.mode,
    rate_limits={"ckpt": arguments.ckpt, "metrics": 0.5},
    finish_timeout=arguments.finish_timeout,
)
if arguments.group == "after":
    init_process_group()
rank = run.topology.rank
is_first_attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
(arguments.out / f"pid-{rank}").write_text(str(os.getpid()))

started = time.perf_counter()
steps_an_epoch = arguments.steps // arguments.epochs
for epoch in range(arguments.epochs):
    if arguments.crash == f"{rank}:{epoch}" and is_first_attempt:
        raise RuntimeError("this rank was told to crash")
    for index in range(steps_an_epoch):
        run.log(
            {"loss": torch.tensor(1.0 / (index + 1)), "rank": rank}, step=epoch * steps_an_epoch + index, epoch=epoch
        )
        time.sleep(arguments.pause)
    path = arguments.out / "last.pt"
    if rank == 0:
        torch.save({"weight": torch.randn(5000), "epoch": epoch}, path)
        with (arguments.out / "saved.txt").open("a") as record:
            record.write(f"{epoch} {hashlib.sha256(path.read_bytes()).hexdigest()}\n")
    run.save_checkpoint(path, epoch=epoch, metrics={"accuracy": epoch / 10})
    if dist.is_initialized():
        dist.barrier()
print(f"rank {rank}: {steps_an_epoch * arguments.epochs / (time.perf_counter() - started):.1f} steps/s", flush=True)
if not arguments.no_finish:
    run.finish()
if dist.is_initialized():
    dist.destroy_process_group()

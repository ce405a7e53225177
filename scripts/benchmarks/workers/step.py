"""A small DDP training on 2 ranks: `torchrun step.py NAME JSON`, with blocks of steps that report and that do not.

The blocks take turns in one job, so that the machine's pace is the same for both: one without a reporter, and one of a
run of NAME from its start to its last step; starting and finishing are not counted. The last line of rank 0 is JSON:
steps a second of the blocks of both kinds, a pair each.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from reporters import REPORTERS
from torch.nn.parallel import DistributedDataParallel

EPOCH = 50
"""Steps; a checkpoint follows."""


@dataclass(frozen=True)
class Reports:
    """What a training reports to.

    Args:
        log: called in each step.
        save: called with the path of a checkpoint and the epoch; rank 0 has written it.
        finish: ends it.
    """

    log: Callable[..., Any] = lambda _values, *, step: step
    save: Callable[[str, int], Any] = lambda _path, epoch: epoch
    finish: Callable[[], Any] = lambda: None


def main() -> None:
    """Entry point."""
    name, what = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    training = Training(what["wait"])
    training.run(Reports(), what["steps"])  # warms up
    pairs: list[tuple[float, float]] = []
    for turn in range(what["pairs"]):
        rates = {}
        for reporting in (False, True) if turn % 2 else (True, False):
            reports = start(name) if reporting else Reports()
            dist.barrier()
            rates[reporting] = training.run(reports, what["steps"])
            reports.finish()
        pairs.append((rates[False], rates[True]))
    if dist.get_rank() == 0:
        print(json.dumps(pairs))
    dist.destroy_process_group()


def start(name: str) -> Reports:
    """A run of a contestant, on the ranks that its documentation has report."""
    if name == "ddphub":
        import ddphub  # noqa: PLC0415  # in its contestant's environment alone

        run = ddphub.init(project="bench", name="training", finish_timeout=5)
        return Reports(run.log, lambda path, epoch: run.save_checkpoint(path, epoch=epoch), run.finish)
    if name == "all_gather_object":
        return Reports(gather)
    if dist.get_rank() != 0:
        return Reports()
    reporter = REPORTERS[name]()
    if name == "wandb":
        import wandb  # noqa: PLC0415  # in its contestant's environment alone

        return Reports(reporter.log, lambda path, epoch: wandb.save(path, policy="now") and epoch, reporter.finish)
    import mlflow  # noqa: PLC0415  # in its contestant's environment alone

    return Reports(reporter.log, lambda path, epoch: mlflow.log_artifact(path, str(epoch)), reporter.finish)


def gather(values: dict[str, float], *, step: int) -> None:
    """What people write to have every rank's figures on rank 0."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, values)
    if dist.get_rank() == 0:
        KEPT.append((step, gathered))


KEPT: list[Any] = []


class Training:
    """A small convolutional network on random pictures.

    Args:
        wait: seconds in each step in which the processor has nothing to do, as beside an accelerator; then the
            network is smaller.
    """

    def __init__(self, wait: float) -> None:
        torch.manual_seed(0)
        self.wait = wait
        width = 8 if wait else 16
        self.model = DistributedDataParallel(
            torch.nn.Sequential(
                torch.nn.Conv2d(3, width, 3, padding=1),
                torch.nn.ReLU(),
                torch.nn.MaxPool2d(2),
                torch.nn.Conv2d(width, 2 * width, 3, padding=1),
                torch.nn.ReLU(),
                torch.nn.AdaptiveAvgPool2d(4),
                torch.nn.Flatten(),
                torch.nn.Linear(32 * width, 10),
            )
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        count = 8 if wait else 32
        self.pictures, self.labels = torch.randn(count, 3, 32, 32), torch.randint(0, 10, (count,))
        self.path = str(Path(f"last-{os.getpid()}.pt").absolute())

    def run(self, reports: Reports, steps: int) -> float:
        """Trains; steps a second."""
        began = time.perf_counter()
        for step in range(steps):
            self.optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(self.model(self.pictures), self.labels)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            if self.wait:
                time.sleep(self.wait)
            values = {"train/loss": loss.item(), "lr": 0.01, "epoch": step // EPOCH, "samples": step * 32}
            reports.log({**values, "throughput": step / (time.perf_counter() - began)}, step=step)
            if step % EPOCH == EPOCH - 1:
                if dist.get_rank() == 0:
                    torch.save(self.model.state_dict(), self.path)
                reports.save(self.path, step // EPOCH)
        return steps / (time.perf_counter() - began)


if __name__ == "__main__":
    main()

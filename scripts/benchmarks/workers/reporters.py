"""The contestants as a training script uses them, each as its documentation shows it: start, log, finish."""

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Log = Callable[..., Any]
"""Takes a dict of numbers and `step=`."""


@dataclass(frozen=True)
class Reporter:
    """A run that reports.

    Args:
        log: the contestant's own function, nothing around it, so that a clock sees nothing else.
        finish: ends the run.
    """

    log: Log
    finish: Callable[[], Any]


def ddphub() -> Reporter:
    """Settings in the environment."""
    run = importlib.import_module("ddphub").init(project="bench", name="training")
    return Reporter(run.log, run.finish)


def wandb() -> Reporter:
    """Offline, as WANDB_MODE says: what it has for nodes without internet."""
    run = importlib.import_module("wandb").init(project="bench", name="training", dir=".")
    return Reporter(run.log, run.finish)


def mlflow(*, synchronous: bool = True) -> Reporter:
    """To the server that MLFLOW_TRACKING_URI names."""
    module = importlib.import_module("mlflow")
    module.set_experiment("bench")
    module.start_run(run_name="training")
    log = module.log_metrics if synchronous else functools.partial(module.log_metrics, synchronous=False)
    return Reporter(log, module.end_run)


def mlflow_async() -> Reporter:
    """The same; a thread sends what was logged."""
    return mlflow(synchronous=False)


def tensorboard() -> Reporter:
    """PyTorch's own writer of event files: one call a scalar, as it has no quicker way for several."""
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(Path("tensorboard").absolute()))
    add = writer.add_scalar

    def log(values: Mapping[str, float], *, step: int) -> None:
        for name, value in values.items():
            add(name, value, step)

    return Reporter(log, writer.close)


def trackio() -> Reporter:
    """Into files on this machine, its default."""
    module = importlib.import_module("trackio")
    run = module.init(project="bench", name="training")
    return Reporter(run.log, run.finish)


def nothing() -> Reporter:
    """A training that reports nothing."""
    return Reporter(lambda _values, *, step: step, lambda: None)


REPORTERS: dict[str, Callable[[], Reporter]] = {
    "ddphub": ddphub,
    "wandb": wandb,
    "mlflow": mlflow,
    "mlflow async": mlflow_async,
    "tensorboard": tensorboard,
    "trackio": trackio,
    "no reporting": nothing,
}

"""What yolo_train.py hangs into a trainer; a module of its own, for the workers that the trainer launches itself.

Each rank appends a line to callbacks-RANK.jsonl for each callback that it sees, and its pid to pid-RANK.
"""

import hashlib
import json
import os
import time
import zlib
from functools import partial
from pathlib import Path

EVENTS = (
    "on_pretrain_routine_start",
    "on_pretrain_routine_end",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_val_start",
    "on_val_end",
    "on_fit_epoch_end",
    "on_model_save",
    "on_train_end",
    "teardown",
)


def record(folder, event, trainer):
    """Writes down what a callback sees; of a validator, in on_val_start and on_val_end, it is the name alone."""
    rank = int(os.environ.get("RANK", "0"))
    losses = getattr(trainer, "tloss", None)
    loss = getattr(trainer, "loss", None)
    entry = {
        "event": event,
        "pid": os.getpid(),
        "epoch": getattr(trainer, "epoch", None),
        "loss": float(loss.detach().sum()) if hasattr(loss, "detach") else None,
        "losses": None if losses is None else trainer.label_loss_items(losses, prefix="train"),
        "weights": digest(trainer) if event == "on_train_epoch_end" else None,
        "metrics": metric_names(trainer),
        "fitness": as_float(getattr(trainer, "fitness", None)),
        "is_best": trainer.best_fitness == trainer.fitness if event == "on_model_save" else None,
        "files": written(trainer) if event in {"on_model_save", "on_train_end"} else None,
    }
    with (Path(folder) / f"callbacks-{rank}.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")
    if event == "on_train_start":
        (Path(folder) / f"pid-{rank}").write_text(str(os.getpid()))


def digest(trainer):
    """Of the model as it trains in this rank: the same in all ranks as long as they average their gradients."""
    model = getattr(trainer.model, "module", trainer.model)
    return zlib.crc32(b"".join(weight.detach().numpy().tobytes() for weight in model.parameters()))


def metric_names(trainer):
    """The names in `metrics`; None where there is none."""
    metrics = getattr(trainer, "metrics", None)
    return sorted(metrics) if isinstance(metrics, dict) else None


def as_float(value):
    """A number that JSON knows."""
    return None if value is None else float(value)


def written(trainer):
    """Name -> sha256 of the checkpoints that exist."""
    paths = sorted(Path(trainer.wdir).glob("*.pt"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def fail(epoch, rank, trainer):
    """Raises at the end of one epoch, in one rank."""
    if trainer.epoch == epoch and int(os.environ.get("RANK", "0")) == rank:
        raise RuntimeError(f"planted failure in epoch {epoch} on rank {rank}")


def wait(seconds, trainer):
    """Makes a batch long enough for a test to do something in the middle of it."""
    time.sleep(seconds)


def expect(fitness, trainer):
    """Makes the trainer believe that it has been better than it will be: it runs out of patience."""
    trainer.stopper.best_fitness = fitness


def add(model, folder, fail_at=None, fail_on=0, slow=0.0):
    """Adds all of these to a model."""
    for event in EVENTS:
        model.add_callback(event, partial(record, str(folder), event))
    if fail_at is not None:
        model.add_callback("on_train_epoch_end", partial(fail, fail_at, fail_on))
    if slow:
        model.add_callback("on_train_batch_end", partial(wait, slow))

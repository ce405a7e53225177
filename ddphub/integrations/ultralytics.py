"""Ultralytics trainers as one run of a hub: on one GPU, on several, however the training was started.

```python
from ultralytics import YOLO
from ddphub.integrations.ultralytics import attach

model = YOLO("yolo11n.yaml")
attach(model, project="birds")
model.train(data="birds.yaml", epochs=100, device=[0, 1])
```

The callbacks are functions of this module without state, so that they travel by name to the workers that Ultralytics
launches itself. They read `trainer.hub_session`, a `Run`, and do nothing where there is none. None of them raises: an
exception in a callback would end the training. Those that Ultralytics calls on rank 0 alone contain no collective.

What the trainer does when, and on which ranks, was observed with ultralytics 8.0.217, 8.4.114 and 8.4.190. What it
asks `ultralytics` for, it asks the one that is training: ddphub does not depend on it.
"""

import contextlib
import functools
import importlib
import inspect
import logging
import os
import secrets
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ddphub import names
from ddphub.config import Settings
from ddphub.fetch import fetch_newest
from ddphub.metrics import used_memory
from ddphub.run import Run, init
from ddphub.usage import Usage, installed_how

logger = logging.getLogger(__name__)

FINISH_TIMEOUT: Final = 3600.0
"""Seconds that the last upload may take, as HUB clients allow it."""

THEIR_HUB: Final = "ultralytics.utils.callbacks.hub"
"""Callbacks that ultralytics up to 8.4.114 adds by itself; they take whatever is `hub_session` for their own class."""

_Callback = Callable[[Any], None]


def attach(model_or_trainer: Any, **settings: Any) -> None:  # noqa: ANN401  # Ultralytics has no types to name
    """Reports every training of a model, or one trainer's, as a run. Any rank, before `train()`.

    It works under torchrun, in one process, and where `train(device=[0, 1])` launches the workers itself (then the
    settings travel to them, and the launching process opens no session).

    Args:
        model_or_trainer: a `YOLO` (or another Ultralytics model), or a trainer.
        settings: as `ddphub.init` takes them. `project` and `name` are by default the trainer's, `config` its
            arguments, and `finish_timeout` is an hour.

    Raises:
        SettingsError: a setting is wrong.
    """
    opening = Opening({"finish_timeout": FINISH_TIMEOUT, **settings})
    opening.check()
    _warn_of_launcher()
    for event, found in model_or_trainer.callbacks.items():
        model_or_trainer.callbacks[event] = [one for one in found if not _is_ours(one)]  # of an earlier call
    model_or_trainer.add_callback("on_pretrain_routine_end", opening)
    for event, callback in callbacks.items():
        model_or_trainer.add_callback(event, callback)


def resume_from(local: str | os.PathLike[str], **settings: Any) -> Path | None:  # noqa: ANN401  # those of `init`
    """The checkpoint to resume from: the local one, else the newest that the hub has of this run.

    ```python
    last = resume_from("runs/detect/train/weights/last.pt", project="birds", run_id="birds-7")
    model = YOLO(last or "yolo11n.yaml")
    attach(model, project="birds", run_id="birds-7")
    model.train(data="birds.yaml", epochs=100, resume=last is not None)
    ```

    Any rank; one process that sees the file's folder fetches it, the others wait for that.

    Args:
        local: where the trainer keeps its `last.pt`; a file that a kill has cut short is replaced.
        settings: as `attach` takes them; `run_id` or `model` says which run is meant.

    Returns:
        `local`, or None where there is nothing to resume from: a new run, or a hub that cannot be reached.

    Raises:
        SettingsError: a setting is wrong.
    """
    path = Path(local)
    if zipfile.is_zipfile(path):  # what torch.save writes; its directory is at the end
        return path
    found = fetch_newest(Settings.resolve({"project": "ultralytics", **settings}), path, kinds=("epoch", "best"))
    return path if found else None


@dataclass
class Opening:
    """A callback that carries settings: opens the run when a trainer is ready, on every rank that trains.

    Attributes:
        settings: of `init`; without the key, which is neither pickled nor shown.
    """

    settings: dict[str, Any]
    _key_variable: str = field(default_factory=lambda: f"_DDPHUB_KEY_{secrets.token_hex(8)}")

    def __post_init__(self) -> None:
        key = self.settings.pop("api_key", None)
        if key is not None:
            # Workers that Ultralytics launches inherit the environment; the callbacks themselves go through a file.
            os.environ[self._key_variable] = key

    def check(self) -> None:
        """Fails as `init` would.

        Raises:
            SettingsError: a setting is wrong.
        """
        Settings.resolve({"project": "ultralytics", **self._given()})

    def _given(self) -> dict[str, Any]:
        return {**self.settings, "api_key": os.environ.get(self._key_variable)}

    def __call__(self, trainer: Any) -> None:  # noqa: ANN401
        """Opens the run; what is wrong only now must not end the training."""
        try:
            if getattr(trainer, "hub_session", None) is not None:
                logger.warning("the trainer has a hub session already: ddphub does not report this training")
                return
            _silence_their_hub(trainer)
            trainer.hub_session = init(**{**_defaults(trainer), **self._given()})
        except Exception:
            logger.exception("ddphub does not report this training")


def _warn_of_launcher() -> None:
    """Up to 8.4.114 the launcher of the trainers leaves callbacks behind: nobody would say so."""
    torch = sys.modules.get("torch")
    if "LOCAL_RANK" in os.environ or torch is None or torch.cuda.device_count() < 2:
        return
    with contextlib.suppress(Exception):
        launcher = importlib.import_module("ultralytics.utils.dist").generate_ddp_file
        if "callbacks" not in inspect.getsource(launcher):
            logger.warning(
                "this ultralytics does not take callbacks along to the workers that train(device=[0, 1]) launches: "
                "a training on several GPUs is reported only under torchrun"
            )


def _silence_their_hub(trainer: Any) -> None:  # noqa: ANN401
    """Takes out THEIR_HUB, which would raise on a run; from the module too, as each validator adds them anew."""
    with contextlib.suppress(ImportError):  # later versions have none
        importlib.import_module(THEIR_HUB).callbacks.clear()
    for event, found in trainer.callbacks.items():
        trainer.callbacks[event] = [one for one in found if getattr(one, "__module__", "") != THEIR_HUB]


@dataclass
class Progress:
    """Where a trainer is, as far as its callbacks tell.

    Attributes:
        epoch: the epoch that has been trained and waits for its `on_fit_epoch_end`; None between them.
        last_epoch: the newest that had it.
        is_first: whether none had it in this process.
        started: when the epoch's training began, by time.monotonic.
        seconds: what it took.
    """

    epoch: int | None = None
    last_epoch: int = -1
    is_first: bool = True
    started: float = 0.0
    seconds: float = 0.0


def _quietly(callback: Callable[..., None]) -> _Callback:
    """A callback that never raises, and tells of its first failure."""
    failed = False

    @functools.wraps(callback)
    def guarded(trainer: Any) -> None:  # noqa: ANN401
        nonlocal failed
        try:
            callback(trainer)
        except Exception as error:  # the promise: no exception reaches the training loop
            logger.log(
                logging.DEBUG if failed else logging.WARNING, "%s: %s", callback.__name__, error, exc_info=not failed
            )
            failed = True

    return guarded


def _with_run(callback: Callable[[Any, Run], None]) -> _Callback:
    """A callback that does nothing for a trainer without a run."""

    @functools.wraps(callback)
    def called(trainer: Any) -> None:  # noqa: ANN401
        run = getattr(trainer, "hub_session", None)
        if isinstance(run, Run):
            callback(trainer, run)

    return _quietly(called)


@_with_run
def on_pretrain_routine_end(trainer: Any, run: Run) -> None:  # noqa: ANN401
    """All ranks: starts the clocks of the rate limits. Where to look was said when the run was opened, by rank 0."""
    _progress(trainer)
    run.start_clocks()


@_with_run
def on_train_epoch_start(trainer: Any, _run: Run) -> None:  # noqa: ANN401
    """All ranks: an epoch begins."""
    _progress(trainer).started = time.monotonic()


@_with_run
def on_train_epoch_end(trainer: Any, _run: Run) -> None:  # noqa: ANN401
    """All ranks: an epoch is trained, and will be evaluated."""
    progress = _progress(trainer)
    progress.epoch = trainer.epoch
    progress.seconds = time.monotonic() - progress.started


@_with_run
def on_fit_epoch_end(trainer: Any, run: Run) -> None:  # noqa: ANN401
    """All ranks: records the epoch's losses, speed and memory, and on rank 0 its metrics.

    It comes once more after the final evaluation, where nothing was trained before it; depending on the version the
    trainer's epoch is then the last one again, or one more. Those metrics get the prefix `final/`.
    """
    progress = _progress(trainer)
    metrics = dict(trainer.metrics or {})
    if progress.epoch is None:
        if metrics and run.topology.is_owner:
            beyond = progress.last_epoch + 1
            run.log({f"final/{name}": value for name, value in metrics.items()}, step=beyond, epoch=beyond)
        return
    epoch = progress.last_epoch = progress.epoch
    progress.epoch = None
    values: dict[str, Any] = {**_losses(trainer), **metrics, **used_memory(), **_speed(trainer, progress)}
    if run.topology.is_owner:
        values |= dict(getattr(trainer, "lr", None) or {})
        for name in ("fitness", "best_fitness"):
            if getattr(trainer, name, None) is not None:
                values[name] = getattr(trainer, name)
        if progress.is_first:
            values |= _about_model(trainer)
    progress.is_first = False
    run.log(values, step=epoch, epoch=epoch)
    # The trainer tells the other ranks after this callback, and after no other one: set during an epoch it would leave
    # them waiting in a collective.
    if run.stop_requested:
        trainer.stop = True


@_with_run
def on_model_save(trainer: Any, run: Run) -> None:  # noqa: ANN401
    """Rank 0: stages last.pt, and best.pt where this epoch is the best. Both are complete now and rewritten later."""
    is_best = trainer.fitness is not None and trainer.fitness == trainer.best_fitness
    about = {"fitness": trainer.fitness, "is_best": is_best, **_map(trainer.metrics)}
    about = {name: value for name, value in about.items() if value is not None}
    run.save_checkpoint(trainer.last, epoch=trainer.epoch, kind="epoch", name="last.pt", metrics=about)
    if is_best:
        run.save_checkpoint(trainer.best, epoch=trainer.epoch, kind="best", name="best.pt", metrics=about)


@_with_run
def on_train_end(trainer: Any, run: Run) -> None:  # noqa: ANN401
    """Rank 0: stages the best model as the final one and delivers everything, within `finish_timeout`."""
    path = trainer.best if Path(trainer.best).exists() else trainer.last
    epoch = _progress(trainer).last_epoch
    run.save_checkpoint(path, epoch=epoch, kind="final", name=Path(path).name, metrics=_map(trainer.metrics))
    run.finish()


@_with_run
def teardown(_trainer: Any, run: Run) -> None:  # noqa: ANN401
    """All ranks: the end, also of a training that raised."""
    error = sys.exception()
    if error is not None:
        run.on_failure(type(error), error, error.__traceback__)
    run.finish()


@_quietly
def on_train_start(trainer: Any) -> None:  # noqa: ANN401
    """Rank 0: counts a training."""
    _count(trainer.args)


@_quietly
def on_val_start(validator: Any) -> None:  # noqa: ANN401
    """Rank 0: counts a validation that was asked for; one in the course of a training is part of it."""
    if not getattr(validator, "training", False):
        _count(validator.args)


@_quietly
def on_predict_start(predictor: Any) -> None:  # noqa: ANN401
    """Rank 0: counts a prediction."""
    _count(predictor.args)


@_quietly
def on_export_start(exporter: Any) -> None:  # noqa: ANN401
    """Rank 0: counts an export."""
    _count(exporter.args, format=str(exporter.args.format))


callbacks: Final[dict[str, _Callback]] = {
    "on_pretrain_routine_end": on_pretrain_routine_end,
    "on_train_start": on_train_start,
    "on_train_epoch_start": on_train_epoch_start,
    "on_train_epoch_end": on_train_epoch_end,
    "on_fit_epoch_end": on_fit_epoch_end,
    "on_model_save": on_model_save,
    "on_train_end": on_train_end,
    "teardown": teardown,
    "on_val_start": on_val_start,
    "on_predict_start": on_predict_start,
    "on_export_start": on_export_start,
}
"""The callbacks by Ultralytics's names of the events."""


def _is_ours(callback: object) -> bool:
    return isinstance(callback, Opening) or callback in callbacks.values()


def _progress(trainer: Any) -> Progress:  # noqa: ANN401
    found = trainer.__dict__.get("ddphub_progress")
    if found is None:
        found = trainer.ddphub_progress = Progress()
    return found  # type: ignore[no-any-return]  # an attribute of an object without types


def _defaults(trainer: Any) -> dict[str, Any]:  # noqa: ANN401
    """Settings as the trainer's arguments imply them."""
    args = dict(vars(trainer.args))
    data = trainer.data if isinstance(trainer.data, Mapping) else {}
    return {
        "project": _as_name(args.get("project"), "ultralytics"),
        "name": _as_name(args.get("name"), "train"),
        "config": {**args, "names": data.get("names")},
    }


def _as_name(value: object, otherwise: str) -> str:
    """The last component of what may be a path, where that can be a name."""
    name = Path(str(value or "")).name.strip()
    return otherwise if names.wrong_name(name) else name


def _losses(trainer: Any) -> dict[str, Any]:  # noqa: ANN401
    if trainer.tloss is None:
        return {}
    return dict(trainer.label_loss_items(trainer.tloss, prefix="train"))


def _speed(trainer: Any, progress: Progress) -> dict[str, float]:  # noqa: ANN401
    """Images that this rank trained a second; its sampler knows their number."""
    images = len(trainer.train_loader.sampler)
    return {"speed/images_per_s": images / progress.seconds} if progress.seconds > 0 else {}


def _about_model(trainer: Any) -> dict[str, Any]:  # noqa: ANN401
    """`model/parameters`, `model/GFLOPs` and `model/speed_PyTorch(ms)`, as the trainer's own package measures them."""
    module = sys.modules.get("ultralytics.utils.torch_utils")
    try:
        return dict(module.model_info_for_loggers(trainer)) if module is not None else {}
    except Exception as error:  # noqa: BLE001  # it runs a model; the epoch's metrics are worth more
        logger.info("the model could not be measured: %s", error)
        return {}


def _map(metrics: Mapping[str, Any] | None) -> dict[str, Any]:
    """The mAP50-95 of what was detected (B for box)."""
    name = "metrics/mAP50-95(B)"
    return {name: metrics[name]} if metrics and name in metrics else {}


_usage: Usage | None = None


def _count(args: Any, **params: str) -> None:  # noqa: ANN401
    global _usage
    if os.environ.get("RANK", "0") not in {"0", "-1"}:
        return
    if _usage is None:
        _usage = Usage.from_environment()
    downloads = sys.modules.get("ultralytics.utils.downloads")
    model = str(args.model)
    is_stock = model in getattr(downloads, "GITHUB_ASSETS_NAMES", ())
    _usage.put(
        str(args.mode),
        task=str(args.task),
        model=model if is_stock else "custom",
        version=str(getattr(sys.modules.get("ultralytics"), "__version__", "")),
        install=installed_how("ultralytics"),
        **params,
    )

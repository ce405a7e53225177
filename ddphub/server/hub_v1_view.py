"""A model in the words of HUB v1: what its clients read to start, resume or load a training."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from sqlalchemy import ColumnElement, case, select
from sqlalchemy.orm import Session

from ddphub.server.signing import Download
from ddphub.server.tables import Checkpoint, CheckpointFile, Model
from ddphub.server.uploads import is_last

_CONFIG: Final = {
    "batch": ("batchSize", "batch"),
    "epochs": ("epochs",),
    "imgsz": ("imageSize", "imgsz"),
    "patience": ("patience",),
    "device": ("device",),
    "cache": ("cache",),
}
"""What training arguments are called in a request's config: by HUB v1 clients, and by the trainer itself."""

_DEFAULTS: Final = {"batch": 16, "epochs": 100, "imgsz": 640, "patience": 100}
"""The trainer's own; a client that is given none of these cannot begin."""

_AS_TEXT: Final = {"None": None, "True": True, "False": False}
"""`device` and `cache` are sent as text, whatever they were."""


def fields(session: Session, model: Model, url_of: Callable[[Download], str]) -> dict[str, Any]:
    """HUB v1's fields of a model, beside those that `model_view.details` gives.

    Args:
        session: any session.
        model: the model.
        url_of: makes the URL that a client without a key downloads from.
    """
    request = json.loads(model.request)
    config = request.get("config") or {}
    arguments = {name: _first(config, names) for name, names in _CONFIG.items()}
    for name in ("device", "cache"):
        if isinstance(text := arguments[name], str):
            arguments[name] = _AS_TEXT.get(text, text)
    if model.run_id is None:
        arguments = {name: _DEFAULTS.get(name) if value is None else value for name, value in arguments.items()}
    dataset = _text(request.get("dataset"), "name") or _text(config, "data")
    last, best = _last(session, model), _best(session, model)
    architecture, parent = _lineage(request)
    return {
        "meta": {**(request.get("meta") or {}), "name": model.name},
        "data": dataset,
        "cfg": None if parent else architecture,
        "weights": url_of(best) if best else parent,
        "resume": url_of(last) if last else None,
        "batch_size": arguments["batch"],
        **{name: value for name, value in arguments.items() if name != "batch"},
        "train_args": {name: value for name, value in {**arguments, "data": dataset}.items() if value is not None},
        "has_last_weights": last is not None,
        "has_best_weights": best is not None,
        "is_pretrained": parent is not None,
        "is_custom": False,
    }


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> Any:  # noqa: ANN401  # any JSON value
    return next((config[name] for name in names if config.get(name) is not None), None)


def _text(value: object, name: str) -> str | None:
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, str) and found else None


def _lineage(request: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The architecture's file, and the file with the weights to begin with: names on the client's machine."""
    lineage, name = request.get("lineage"), _text(request.get("meta"), "name")
    lineage = lineage if isinstance(lineage, dict) else {}
    parent = _text(lineage.get("parent"), "name")
    if parent is None and name is not None and name.endswith(".pt"):
        parent = name
    architecture = _text(lineage.get("architecture"), "name")
    if architecture is not None and not architecture.endswith((".yaml", ".yml")):
        architecture += ".yaml"
    if architecture is None and name is not None and name.endswith((".yaml", ".yml")):
        architecture = name
    return architecture, parent


def _last(session: Session, model: Model) -> Download | None:
    """The file to resume from."""
    return _newest(session, model, is_last)


def _best(session: Session, model: Model) -> Download | None:
    """The file that came out best: the final one, else the best so far."""
    return _newest(
        session, model, Checkpoint.kind.in_(("best", "final")), case((Checkpoint.kind == "final", 0), else_=1)
    )


def _newest(session: Session, model: Model, wanted: ColumnElement[bool], *first: ColumnElement[int]) -> Download | None:
    found = session.execute(
        select(Checkpoint.public_id, CheckpointFile.number, CheckpointFile.name)
        .join(CheckpointFile, CheckpointFile.checkpoint_ref == Checkpoint.id)
        .where(
            Checkpoint.model_ref == model.id,
            Checkpoint.committed_at.is_not(None),
            # A folder of files is nothing that these clients can load.
            CheckpointFile.name == Checkpoint.name,
            wanted,
        )
        .order_by(*first, Checkpoint.id.desc())
        .limit(1)
    ).one_or_none()
    if found is None:
        return None
    checkpoint_id, number, name = found.tuple()
    # Clients look for a file of this name in a folder of theirs before they download: no two may have the same.
    return Download(checkpoint=checkpoint_id, file=number, name=f"{checkpoint_id}-{name.rsplit('/', 1)[-1]}")

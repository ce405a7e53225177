"""Which metric of a model is worth a place in a list, and whether more or less of it is better."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ddphub.events import SYSTEM

_MORE: Final = (
    *("map50-95", "map", "acc", "top-?[15]", "auc", "iou", "dice", "f1", "bleu", "rouge", "psnr", "ssim", "r2"),
    *("score", "reward", "fitness", "precision", "recall"),
)
"""Metrics of which more is better, the most telling first."""

_LESS: Final = ("loss", "err", "perplexity", "ppl", "mse", "mae", "rmse", "nll", "wer", "cer", "fid")

_HELD_OUT: Final = re.compile(r"val|test|eval", re.IGNORECASE)
_TRAINED_ON: Final = re.compile(r"train", re.IGNORECASE)


@dataclass(frozen=True)
class Best:
    """The best value of a model's most telling metric; `more` tells whether more is better."""

    name: str
    value: float
    more: bool


def better(name: str) -> bool | None:
    """Whether more of a metric is better, as its name tells; None when it does not."""
    last = name.rsplit("/", 1)[-1]
    return False if _place(_LESS, last) is not None else True if _place(_MORE, last) is not None else None


def best(series: Sequence[dict[str, Any]]) -> Best | None:
    """The best value of the most telling series; None when no name tells what better is.

    Accuracy and its like come before losses, what is measured on held-out data before what is trained on.

    Args:
        series: name, least and greatest of each.
    """
    found = []
    for one in series:
        name, more = one["name"], better(one["name"])
        if more is None or one["least"] is None or name.startswith(SYSTEM):
            continue
        if more:
            order = (2 if _TRAINED_ON.search(name) else 0, _place(_MORE, name) or 0, name)
        else:
            order = (1 if _HELD_OUT.search(name) else 3, 0, name)
        found.append((order, Best(name, one["greatest"] if more else one["least"], more)))
    return min(found, key=lambda pair: pair[0])[1] if found else None


def _place(words: Sequence[str], name: str) -> int | None:
    return next((place for place, word in enumerate(words) if re.search(word, name, re.IGNORECASE)), None)

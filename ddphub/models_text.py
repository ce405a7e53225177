"""Models as text: tables on a terminal, lines with tabs elsewhere, JSON for programs."""

import json
import math
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ddphub.events import ENDED, encode_scalar
from ddphub.reading.model import Model
from ddphub.reading.records import Attempt, Checkpoint, Rank, Series

LIST_HEAD: Final = ("ID", "STATE", "PROJECT", "NAME", "PROGRESS", "LAST SEEN", "TAGS")
METRICS_HEAD: Final = ("METRIC", "LATEST", "LEAST", "GREATEST", "COUNT")
RANKS_HEAD: Final = ("RANK", "HEALTH", "HOST", "PID", "LAST STEP", "BEHIND", "LAST SEEN")
CHECKPOINTS_HEAD: Final = (
    "CHECKPOINT",
    "KIND",
    "EPOCH",
    "STEP",
    "NAME",
    "SIZE",
    "SAVED BY ATTEMPT",
    "ARRIVED",
    "METRICS",
)

NARROWEST: Final = 8
"""Characters of a column below which a table is read more easily as one line a value."""

NOTHING: Final = "-"

_RANK: Final = re.compile(r"rank \d+: ")
_NEXT_RANK: Final = re.compile(r"\n\n(?=rank \d+: )")

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def echo(text: str) -> None:
    """Prints text that people wrote: nothing in it commands the terminal."""
    typer.echo(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.expandtabs()))


def echo_json(value: object) -> None:
    """Prints one line of JSON; non-finite numbers as the texts NaN, Infinity and -Infinity."""
    typer.echo(json.dumps(_plain(value), allow_nan=False))


def _plain(value: object) -> object:
    if isinstance(value, float):
        return encode_scalar(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def echo_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table. Nothing is cut: on a terminal what is too wide is folded, elsewhere a row is a line with tabs."""
    if not sys.stdout.isatty():
        for row in (head, *rows):
            typer.echo("\t".join(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", _one_line(cell)) for cell in row))
        return
    cells = [[_CONTROL.sub("\N{REPLACEMENT CHARACTER}", cell) for cell in row] for row in rows]
    console = Console(highlight=False)
    widths = [max(map(cell_len, column)) for column in zip(head, *cells, strict=True)]
    first, *others = widths
    if first + sum(2 + min(width, NARROWEST) for width in others) > console.width:
        for row in cells:
            _echo_block([(name, cell) for name, cell in zip(head, row, strict=True) if cell])
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, name in enumerate(head):
        table.add_column(Text(name, style="bold"), overflow="fold", no_wrap=number == 0)
    for row in cells:
        table.add_row(*map(Text, row))
    console.print(table)


def _echo_block(row: Sequence[tuple[str, str]]) -> None:
    """Prints a row as one line a value, below those that have no name: the terminal folds them."""
    unnamed = [cell for name, cell in row if not name]
    lines = [f"{name}: {cell}" for name, cell in row if name]
    typer.echo("\n".join([*filter(None, [" ".join(unnamed)]), *lines, ""]))


def _one_line(text: str) -> str:
    return " ".join(text.split()) if any(character in text for character in "\n\t") else text


def listed(model: Model) -> Sequence[str]:
    """A row of the list."""
    return (
        model.id,
        f"{model.state}, asked to stop" if is_asked_to_stop(model) else model.state,
        model.project,
        model.name,
        progress_of(model),
        ago(model.last_seen),
        ", ".join(model.tags),
    )


def is_asked_to_stop(model: Model) -> bool:
    """Whether it is asked to stop, and has not ended since."""
    return model.stop_requested and model.state not in ENDED


def progress_of(model: Model) -> str:
    """How far a model is, in words. Of 6 epochs 0 to 5 the last is shown as 6 of 6, as is the last of 1 to 6."""
    progress = model.progress
    if progress is None:
        return NOTHING
    parts = []
    if progress.epoch is not None:
        epoch, epochs = progress.epoch, progress.epochs
        is_known = epochs is not None and 0 <= epoch <= epochs
        parts.append(f"epoch {min(epoch + 1, epochs)} of {epochs}" if is_known and epochs else f"epoch {epoch}")
    if progress.step is not None:
        parts.append(f"step {progress.step}")
    if progress.rate:
        parts.append(f"{progress.rate:.3g} steps/s")
    return ", ".join(parts) or NOTHING


def attempt_lines(model: Model) -> Iterable[str]:
    """One line an attempt."""
    newest = max(model.attempts, key=_age, default=None)
    for attempt in model.attempts:
        # Of an attempt that goes on the hub knows only that it started; what that means now is the model's state.
        state = model.state if attempt is newest else attempt.state
        parts = [f"attempt {attempt.number}: {state or 'unknown'}"]
        if attempt.started_at is not None:
            parts.append(f"started {date(attempt.started_at)}")
        if attempt.ended_at is not None:
            parts.append(f"ended {date(attempt.ended_at)}")
        if attempt.world_size is not None:
            parts.append(f"{attempt.world_size} ranks" if attempt.world_size != 1 else "1 rank")
        if attempt.host is not None:
            parts.append(f"rank 0 on {attempt.host}")
        reason = model.reason if attempt is newest else _first_reason(attempt.reason)
        yield ": ".join([", ".join(parts), *([reason] if attempt.reason and reason else [])])


def _age(attempt: Attempt) -> tuple[bool, float, int]:
    """What sorts attempts by their start; their numbers tell when the hub first heard of them."""
    return attempt.state is not None, attempt.started_at or 0.0, attempt.number


def _first_reason(said: str | None) -> str | None:
    """The first of the reasons that an attempt gave of its end, in a line: of a traceback the exception."""
    if not said:
        return None
    first = _NEXT_RANK.split(said.strip(), maxsplit=1)[0]
    who = _RANK.match(first)
    lines = first[who.end() if who else 0 :].splitlines()
    # A traceback's frames are indented; what follows the last of them is the exception.
    heads = [line for before, line in pairwise(lines) if before.startswith("  ") and line[:1].strip()]
    return (who.group() if who else "") + (heads or lines or [""])[-1 if heads else 0].strip()


def rank_row(rank: Rank) -> Sequence[str]:
    """A row of the ranks."""
    return (
        str(rank.rank),
        rank.health,
        rank.host or NOTHING,
        number(rank.pid),
        number(rank.last_step),
        number(rank.lag),
        ago(rank.last_seen),
    )


def series_row(series: Series) -> Sequence[str]:
    """A row of the metrics."""
    return (series.name, number(series.latest), number(series.least), number(series.greatest), str(series.count))


def checkpoint_row(checkpoint: Checkpoint) -> Sequence[str]:
    """A row of the checkpoints."""
    return (
        checkpoint.id,
        checkpoint.kind,
        number(checkpoint.epoch),
        number(checkpoint.step),
        checkpoint.name,
        size(checkpoint.size),
        str(checkpoint.attempt),
        date(checkpoint.committed_at),
        ", ".join(f"{name} {number(value)}" for name, value in checkpoint.metrics.items()),
    )


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A configuration as one text a setting: `{"a": {"b": 1}}` gives `{"a.b": "1"}`."""
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return found


def number(value: float | None) -> str:
    """A number, with six digits where it has a fraction."""
    if value is None:
        return NOTHING
    return str(int(value)) if isinstance(value, int) or (value.is_integer() and abs(value) < 1e6) else f"{value:.6g}"


def size(count: int) -> str:
    """Bytes in the unit that people would use."""
    for unit, bound in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if count >= bound:
            return f"{count / bound:.1f} {unit}"
    return f"{count} B"


def date(seconds: float) -> str:
    """A time, UTC."""
    if not (math.isfinite(seconds) and 0 <= seconds < 1e11):
        return f"{seconds:.6g}"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def ago(seconds: float | None) -> str:
    """How long ago a time was."""
    if seconds is None:
        return NOTHING
    passed = max(0.0, time.time() - seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if passed >= 2 * length:
            return f"{passed / length:.0f} {unit} ago"
    return f"{passed:.0f} s ago"

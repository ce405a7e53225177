"""Events: the small JSON records that ranks report, and what makes two of them the same.

An event's key is (attempt_id, rank, seq). On its way (relay, spool) it travels in a batch that names the key
once:

```
{"attempt_id": "32 hex digits", "rank": 1, "first": 40, "events": [{"time": ..., "kind": ..., ...}, ...]}
```

The event at index i has seq `first + i`. Delivery expands a batch to the records that hubs take.

| kind | fields beside `time` (seconds since the epoch, UTC) |
| --- | --- |
| metrics | step: int, epoch: int or null, values: {name: number, bool, or "NaN", "Infinity", "-Infinity"} |
| log | level: "info" or "warning", message: str |
| attempt | state: one of ATTEMPT_STATES; world_size: int; host: str; reason: str or null; slurm; said_by |
| rank | of_rank: int; state: "joined", "lost", "back", "left"; host: str; pid, local_rank, node: int; reason |
| checkpoint | state: "staged" or "refused"; entry_id: str or null; name: str; reason: str or null |
| console | stream: "stdout" or "stderr"; lines: [str]; left_out: int, lines missing right before these |

Metrics whose names begin with `system/` are what a rank measures of its process, machine and GPU; their step is the
newest one that the rank has logged, their epoch null. A console's lines are what the script has printed since the
event before, in order: at most MAX_CONSOLE_LINES of MAX_CONSOLE_LINE characters, without line ends, colours and other
control characters but tabs. A line that holds an API key is replaced by a fixed text.

`slurm` is there when an attempt starts in a SLURM job. It is an object: texts cluster, job_id, array_job_id,
array_task_id, step, partition, job_name and nodes (a list expression, as node[1-4]), integers node_count and
restart_count; null where SLURM says nothing. `said_by` is "slurm" when SLURM gave the state that an attempt ends with.
"""

import hashlib
import json
import math
from typing import Any, Final

Event = dict[str, Any]
"""One event: JSON types only."""

Scalar = float | int | bool | str
"""A metric's value on the wire; a str is one of the three names of a non-finite number."""

ENDED: Final = ("finished", "stopped", "failed", "preempted", "requeued", "timed_out", "cancelled", "node_failed")
"""How an attempt ends. `preempted` is also said where a signal told it to leave and nobody said why."""

OF_ITSELF: Final = ("finished", "stopped")
"""Ends to which the program came by itself, all done or because the hub asked it to stop: nobody starts it again."""

GONE: Final = "its process is gone"
"""The reason of a lost rank whose process rank 0 has looked for."""

ATTEMPT_STATES: Final = ("started", *ENDED)

MODEL_STATES: Final = ("new", "running", "stalled", "lost", *ENDED)
"""What a hub shows a model to be: how its newest attempt ended, or how it is meanwhile."""

MAX_SLURM_TEXT: Final = 256
MAX_SLURM_NODES: Final = 4096
"""Characters of an attempt's SLURM texts, and of its node list."""

MAX_CONSOLE_LINES: Final = 200
MAX_CONSOLE_LINE: Final = 2000
"""Lines in one console event, and characters in one of them."""

SYSTEM: Final = "system/"
"""Before the names of metrics that a rank measures by itself."""

MAX_EVENT_BYTES: Final = 64 * 1024
"""Bytes of one event as JSON, without its key: larger ones are dropped by the rank that made them and counted."""

_NON_FINITE: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encode_scalar(value: float) -> Scalar:
    """A number as JSON can carry it: non-finite ones as the strings NaN, Infinity, -Infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def decode_scalar(value: Scalar) -> float | int | bool:
    """The number that `encode_scalar` was given.

    Raises:
        ValueError: for a string that names no non-finite number.
    """
    if isinstance(value, str):
        if value not in _NON_FINITE:
            raise ValueError(f"expected a number, 'NaN', 'Infinity' or '-Infinity', got {value[:40]!r}")
        return _NON_FINITE[value]
    return value


def to_json(value: object) -> str:
    """Compact JSON without NaN, as every file and request of ddphub holds it.

    Raises:
        ValueError: for a non-finite number.
        TypeError: for what JSON cannot carry.
    """
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def plain_text(text: str, limit: int) -> str:
    """The end of `text` as every hub can store it: at most `limit` characters, no NUL, no lone surrogate."""
    return text[-limit:].replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def fingerprint(event: Event) -> str:
    """What makes two events with one key the same: sha256 (hex) of their canonical JSON."""
    canonical = json.dumps(event, separators=(",", ":"), sort_keys=True, allow_nan=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def check_batch(batch: dict[str, Any]) -> None:
    """Tells a batch from other JSON, as a damaged file or another version's may hold.

    Raises:
        KeyError: a field is missing.
        TypeError: a field has another type.
    """
    if not isinstance(batch["attempt_id"], str) or type(batch["rank"]) is not int or type(batch["first"]) is not int:
        raise TypeError("expected attempt_id: text, rank: int, first: int")
    if not isinstance(batch["events"], list) or not all(isinstance(event, dict) for event in batch["events"]):
        raise TypeError("events: expected a list of objects")


def expand(batch: dict[str, Any]) -> list[Event]:
    """A batch's events with their keys, as hubs take them.

    Raises:
        KeyError, TypeError: it is no batch; see `check_batch`.
    """
    check_batch(batch)
    first = batch["first"]
    return [
        {**event, "attempt_id": batch["attempt_id"], "rank": batch["rank"], "seq": first + index}
        for index, event in enumerate(batch["events"])
    ]

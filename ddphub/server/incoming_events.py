"""Events as they arrive: which ones the hub takes."""

import math
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final

from pydantic_core import to_json

from ddphub import events, names
from ddphub.hubs.wire import MAX_BATCH_EVENTS
from ddphub.server.body import INT64_MAX, is_integer, wrong_text, wrong_value
from ddphub.server.problems import Problem

MAX_VALUES: Final = 1000
MAX_METRIC_NAME: Final = 256
MAX_KIND: Final = 32
MAX_TIME: Final = 253_402_300_800.0
"""Year 10000: later times have no date."""

SLURM_TEXTS: Final = {
    **dict.fromkeys(
        ("cluster", "job_id", "array_job_id", "array_task_id", "step", "partition", "job_name"), events.MAX_SLURM_TEXT
    ),
    "nodes": events.MAX_SLURM_NODES,
}
"""Texts of an attempt's `slurm`, and how many characters each may have."""

SLURM_NUMBERS: Final = ("node_count", "restart_count")

RANK_STATES: Final = ("joined", "lost", "back", "left")

CONSOLE_STREAMS: Final = ("stdout", "stderr")

_KEY: Final = ("attempt_id", "rank", "seq")


@dataclass(slots=True, eq=False)
class IncomingEvent:
    """A checked event. `fields` is the event without its key, `body` its JSON."""

    attempt_id: str
    rank: int
    seq: int
    time: float
    kind: str
    fields: dict[str, Any]
    body: str

    @property
    def key(self) -> tuple[str, int, int]:
        """What makes this event itself: (attempt_id, rank, seq)."""
        return self.attempt_id, self.rank, self.seq

    @property
    def fingerprint(self) -> bytes:
        """Tells a repeat from a contradiction: 32 bytes."""
        return bytes.fromhex(events.fingerprint(self.fields))


def check_batch(batch: object) -> list[IncomingEvent]:
    """The events of a request, each key once, in the order in which they came.

    Args:
        batch: the request's JSON value.

    Raises:
        Problem: 413 for too many events; 422 that names the first event that cannot be taken, and why.
    """
    if not isinstance(batch, list):
        raise Problem(422, "expected a JSON list of events")
    if len(batch) > MAX_BATCH_EVENTS:
        raise Problem(413, f"expected at most {MAX_BATCH_EVENTS} events in one request, got {len(batch)}")
    checked: dict[tuple[str, int, int], IncomingEvent] = {}
    plain = _Plain()
    for index, event in enumerate(batch):
        incoming = plain.read(event)
        if incoming is None:
            if wrong := _wrong_event(event):
                raise Problem(422, f"event {index}: {wrong}", members={"index": index})
            incoming = _incoming(event)
        # Clients count ASCII, in which a character is up to two escapes of 6.
        if len(incoming.body) * 12 > events.MAX_EVENT_BYTES < len(events.to_json(incoming.fields)):
            why = f"has more than {events.MAX_EVENT_BYTES} bytes"
            raise Problem(422, f"event {index}: {why}", members={"index": index})
        first = checked.setdefault((incoming.attempt_id, incoming.rank, incoming.seq), incoming)
        if first is not incoming and first.fingerprint != incoming.fingerprint:
            raise contradiction(incoming.key)
    return list(checked.values())


def contradiction(key: tuple[str, int, int]) -> Problem:
    """The answer to an event whose key the hub knows with other content."""
    attempt_id, rank, seq = key
    detail = f"the event (attempt_id={attempt_id}, rank={rank}, seq={seq}) is known with other content"
    return Problem(422, detail, members={"key": {"attempt_id": attempt_id, "rank": rank, "seq": seq}})


class _Plain:
    """Reads what ranks send by the thousand, metrics in which nothing is unusual, in a fraction of the time.

    What it does not take may be good all the same: that is for `_wrong_event` to say.
    """

    def __init__(self) -> None:
        # Found good before: names of values that came together, and attempt ids.
        self._shapes: set[tuple[str, ...]] = set()
        self._attempt_ids: set[str] = set()

    def read(self, event: object) -> IncomingEvent | None:
        if type(event) is not dict or len(event) != len(_PLAIN):
            return None
        try:
            attempt_id, rank, seq, time, kind, step, epoch, values = _plain_fields(event)
        except KeyError:
            return None
        if (
            kind != "metrics"
            or type(rank) is not int
            or type(seq) is not int
            or type(step) is not int
            or type(time) is not float
            or not 0 <= rank <= INT64_MAX
            or not 0 <= seq <= INT64_MAX
            or not -INT64_MAX <= step <= INT64_MAX
            or not 0 <= time < MAX_TIME
            or (epoch is not None and (type(epoch) is not int or not -INT64_MAX <= epoch <= INT64_MAX))
            or type(values) is not dict
            or not self._are_plain(values)
            or not self._is_attempt(attempt_id)
        ):
            return None
        fields = {"time": time, "kind": kind, "step": step, "epoch": epoch, "values": values}
        return IncomingEvent(attempt_id, rank, seq, time, kind, fields, to_json(fields).decode())

    def _are_plain(self, values: dict[str, Any]) -> bool:
        kinds = set(map(type, values.values()))
        if kinds != _FLOAT:
            if not kinds or not kinds <= _NUMBERS:
                return False
            if not -INT64_MAX <= min(values.values()) <= max(values.values()) <= INT64_MAX:
                return False
        # A sum may be infinite where no value is: then they are looked at one by one.
        elif not math.isfinite(sum(values.values())):
            return False
        shape = tuple(values)
        if shape not in self._shapes:
            if len(shape) > MAX_VALUES or any(map(_wrong_metric_name, shape)):
                return False
            self._shapes.add(shape)
        return True

    def _is_attempt(self, attempt_id: object) -> bool:
        if type(attempt_id) is str and attempt_id in self._attempt_ids:
            return True
        if not names.is_hex_id(attempt_id):
            return False
        self._attempt_ids.add(attempt_id)
        return True


_PLAIN: Final = ("attempt_id", "rank", "seq", "time", "kind", "step", "epoch", "values")
_FLOAT: Final = {float}
_NUMBERS: Final = {float, int}
_plain_fields: Final = itemgetter(*_PLAIN)


def _incoming(event: events.Event) -> IncomingEvent:
    fields = {name: value for name, value in event.items() if name not in _KEY}
    body = to_json(fields).decode()
    time = float(event["time"])
    return IncomingEvent(event["attempt_id"], event["rank"], event["seq"], time, event["kind"], fields, body)


def _wrong_event(event: object) -> str | None:
    if not isinstance(event, dict):
        return "expected a JSON object"
    if not names.is_hex_id(event.get("attempt_id")):
        return "attempt_id: expected 32 lower-case hex digits"
    for name in ("rank", "seq"):
        if not is_integer(event.get(name), low=0):
            return f"{name}: expected an integer from 0 to {INT64_MAX}"
    time, kind = event.get("time"), event.get("kind")
    if type(time) not in {int, float} or not 0 <= event["time"] < MAX_TIME:
        return "time: expected seconds since the epoch"
    if not isinstance(kind, str) or not 1 <= len(kind) <= MAX_KIND or wrong_text(kind):
        return f"kind: expected 1 to {MAX_KIND} characters"
    check = _CHECKS.get(kind)
    for name, value in event.items():
        if (name != "values" or kind != "metrics") and (wrong := wrong_text(name) or wrong_value(value)):
            return f"{name[:40]!a}: {wrong}"
    return check(event) if check else None


def _wrong_metrics(event: events.Event) -> str | None:
    if not is_integer(event.get("step")):
        return "step: expected an integer"
    if event.get("epoch") is not None and not is_integer(event["epoch"]):
        return "epoch: expected an integer or null"
    wrong = wrong_values(event.get("values"))
    return wrong and f"values: {wrong}"


def _wrong_attempt(event: events.Event) -> str | None:
    if event.get("state") not in events.ATTEMPT_STATES:
        return f"state: expected one of {', '.join(events.ATTEMPT_STATES)}"
    if wrong := _wrong_optional(event, integers=("world_size",), texts=("host", "reason")):
        return wrong
    if event.get("said_by") not in {None, "slurm"}:
        return "said_by: expected 'slurm' or null"
    wrong = _wrong_slurm(event.get("slurm"))
    return wrong and f"slurm: {wrong}"


def _wrong_slurm(slurm: object) -> str | None:
    if slurm is None:
        return None
    if not isinstance(slurm, dict):
        return "expected an object or null"
    if not slurm.get("cluster") or not slurm.get("job_id"):
        return "expected a cluster and a job_id"
    for name, limit in SLURM_TEXTS.items():
        text = slurm.get(name)
        if text is not None and (not isinstance(text, str) or len(text) > limit):
            return f"{name}: expected text of at most {limit} characters, or null"
    for name in SLURM_NUMBERS:
        if slurm.get(name) is not None and not is_integer(slurm[name], low=0):
            return f"{name}: expected an integer of 0 or more, or null"
    return None


def _wrong_rank(event: events.Event) -> str | None:
    if event.get("state") not in RANK_STATES:
        return f"state: expected one of {', '.join(RANK_STATES)}"
    if not is_integer(event.get("of_rank"), low=0):
        return "of_rank: expected an integer of 0 or more"
    return _wrong_optional(event, integers=("pid", "local_rank", "node"), texts=("host", "reason"))


def _wrong_log(event: events.Event) -> str | None:
    if not isinstance(event.get("message"), str):
        return "message: expected text"
    return _wrong_optional(event, integers=(), texts=("level",))


def _wrong_console(event: events.Event) -> str | None:
    if event.get("stream") not in CONSOLE_STREAMS:
        return f"stream: expected one of {', '.join(CONSOLE_STREAMS)}"
    if not is_integer(event.get("left_out"), low=0):
        return "left_out: expected an integer of 0 or more"
    lines = event.get("lines")
    if not isinstance(lines, list) or len(lines) > events.MAX_CONSOLE_LINES:
        return f"lines: expected a list of at most {events.MAX_CONSOLE_LINES} texts"
    if not all(isinstance(line, str) and len(line) <= events.MAX_CONSOLE_LINE for line in lines):
        return f"lines: expected texts of at most {events.MAX_CONSOLE_LINE} characters"
    return None


_CHECKS: Final = {
    "metrics": _wrong_metrics,
    "attempt": _wrong_attempt,
    "rank": _wrong_rank,
    "log": _wrong_log,
    "console": _wrong_console,
}
"""The kinds whose fields the hub reads; a kind that it does not know is kept as it is."""


def _wrong_optional(event: events.Event, *, integers: tuple[str, ...], texts: tuple[str, ...]) -> str | None:
    for name in integers:
        if event.get(name) is not None and not is_integer(event[name]):
            return f"{name}: expected an integer or null"
    for name in texts:
        if event.get(name) is not None and not isinstance(event[name], str):
            return f"{name}: expected text or null"
    return None


def wrong_values(values: object) -> str | None:
    """Why `values` are not metrics, {name: number, bool or the name of a non-finite number}; None when they are."""
    if not isinstance(values, dict):
        return "expected an object of names and numbers"
    if len(values) > MAX_VALUES:
        return f"expected at most {MAX_VALUES} names, got {len(values)}"
    for name, value in values.items():
        if wrong := _wrong_metric_name(name):
            return f"{name[:40]!a}: {wrong}"
        if type(value) is float:
            if not math.isfinite(value):
                return f"{name[:40]!a}: the number is out of range"
        elif type(value) is not bool and not is_integer(value):
            try:
                if not isinstance(value, str):
                    return f"{name[:40]!a}: expected a number of at most 64 bits"
                events.decode_scalar(value)
            except ValueError:
                return f"{name[:40]!a}: expected a number, 'NaN', 'Infinity' or '-Infinity'"
    return None


@lru_cache(maxsize=4096)
def _wrong_metric_name(name: str) -> str | None:
    if not 1 <= len(name) <= MAX_METRIC_NAME:
        return f"expected a name of 1 to {MAX_METRIC_NAME} characters"
    if any(unicodedata.category(character)[0] == "C" for character in name):
        return "the name must not contain control characters"
    return None

"""What a run's events mean to Ultralytics Platform: a fold from events to its webhooks, see epochs.py.

| event | webhook |
| --- | --- |
| the start of an attempt other than the announced one | training_started |
| metrics of rank 0 that have an epoch | epoch_end, when the epoch is complete |
| log | console_output |
| the end of an attempt | training_complete when it has finished or was stopped, else training_failed |

An epoch is complete when an event brings a result of its validation (`metrics/...`, `val/...` or `fitness`), when
metrics of a later epoch come, or when an attempt starts or ends. Values that come for it afterwards make it complete
again, and it is sent whole once more: nothing is left out, and an epoch that is logged in one piece is sent once.
`final/...` values are an epoch of their own behind the last one.
"""

import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

from ddphub.events import ENDED, OF_ITSELF, Event
from ddphub.hubs.client import Registration
from ddphub.hubs.epochs import FINAL, Epochs, Number, Told, belongs_to_epoch

MAX_ERROR: Final = 4000
"""Characters of a failure's reason that are sent: its end."""

_RESULTS: Final = ("metrics/", "val/")
_BESIDE: Final = ("fitness", "best_fitness")
_MODEL_INFO: Final = {
    "model/parameters": "parameters",
    "model/GFLOPs": "gflops",
    "model/speed_PyTorch(ms)": "speedMs",
}
_ENVIRONMENT: Final = {"host": "hostname", "os": "os", "python": "pythonVersion", "cpus": "cpuCount"}
"""What is said of the machine, and nothing else: no path, no command."""


@dataclass(frozen=True)
class Webhook:
    """One request.

    Attributes:
        event: the webhook's name.
        data: its content, without ids.
        is_own: whether its content is that of the event at hand; else it had waited, and that event is not to blame.
    """

    event: str
    data: dict[str, Any]
    is_own: bool = True


class PlatformEvents:
    """The fold. Not for two threads at once.

    Args:
        registration: the run.
        announced: the attempt that the hub was told of last.
    """

    def __init__(self, registration: Registration, announced: str | None) -> None:
        self._registration = registration
        self._announced = announced
        self._epochs = Epochs(registration.attempts)
        self._waiting: set[int] = set()
        self._last_chunk = 0
        self.told = Told()

    def groups(self, events: Iterable[Event]) -> Iterator[list[Event]]:
        """Events that `webhooks` takes together: neighbours that bring values of one epoch."""
        telling = [event for event in events if belongs_to_epoch(event) or event.get("kind") in {"log", "attempt"}]
        for _, group in groupby(enumerate(telling), lambda item: _key(*item)):
            yield [event for _, event in group]

    def webhooks(self, events: Sequence[Event]) -> Iterator[Webhook]:
        """What to send for one group; resumed after a webhook, it takes that one as answered."""
        first = events[0]
        if belongs_to_epoch(first):
            yield from self._metrics(events)
        elif first.get("kind") == "log":
            yield from self._console(first)
        elif first.get("kind") == "attempt":
            yield from self._attempt(first)
        self.told.add(events)

    def _metrics(self, events: Sequence[Event]) -> Iterator[Webhook]:
        number = events[0]["epoch"]
        yield from self._waiting_epochs(before=number)
        changed = self._epochs.with_events(events)
        epoch = changed[number]
        names = {name for event in events for name in event["values"]}
        finals = {name for name in names if name.startswith(FINAL)}
        is_complete = any(name.startswith(_RESULTS) or name == "fitness" for name in names) or bool(finals)
        if is_complete and names - finals:
            yield Webhook("epoch_end", _epoch_end(number, epoch.values))
            self._waiting.discard(number)
        if finals:
            yield from self._waiting_epochs()
            last = max([*self._epochs.numbers(), *([number] if epoch.values else [])], default=number - 1)
            yield Webhook("epoch_end", _epoch_end(last + 1, epoch.finals))
        self._epochs.keep(changed)
        if not is_complete:
            self._waiting.add(number)

    def _waiting_epochs(self, before: float = math.inf) -> Iterator[Webhook]:
        for number in sorted(self._waiting):
            if number < before:
                yield Webhook("epoch_end", _epoch_end(number, self._epochs[number].values), is_own=False)
                self._waiting.discard(number)

    def _console(self, event: Event) -> Iterator[Webhook]:
        # The hub tells chunks from each other by this number, which its own client takes from the clock.
        when = event["time"] if isinstance(event.get("time"), int | float) else 0
        chunk = max(int(when * 1000), self._last_chunk + 1)
        said = time.strftime("[%Y-%m-%d %H:%M:%S] ", time.gmtime(when))
        said += f"[rank {event['rank']}] " if event["rank"] else ""
        lines = [said + line for line in str(event.get("message")).splitlines() or [""]]
        content = {"chunkId": chunk, "content": "\n".join(lines), "lineCount": len(lines), "progress": {}}
        yield Webhook("console_output", content)
        self._last_chunk = chunk

    def _attempt(self, event: Event) -> Iterator[Webhook]:
        yield from self._waiting_epochs()
        state = event.get("state")
        if state == "started":
            if self._announced not in {None, event["attempt_id"]}:
                yield Webhook("training_started", training_started(self._registration))
            self._announced = event["attempt_id"]
        elif state in OF_ITSELF:
            yield Webhook("training_complete", self._training_complete())
        elif state in ENDED:
            reason = str(event.get("reason") or state)[-MAX_ERROR:]
            yield Webhook("training_failed", {"error": reason, "code": state})

    def _training_complete(self) -> dict[str, Any]:
        numbers = self._epochs.numbers()
        last = self._epochs[numbers[-1]].values if numbers else {}
        measured = self._epochs.finals() or last
        metrics = {name: value for name, value in measured.items() if name.startswith("metrics/")}
        if not metrics:  # no Ultralytics run
            metrics = {name: value for name, value in measured.items() if name not in _BESIDE and not _is_info(name)}
        if "fitness" in measured:
            metrics["fitness"] = measured["fitness"]
        best_epoch, best_fitness = self._best()
        best_fitness = last.get("best_fitness", best_fitness)
        results = {"metrics": _nullable(metrics), "bestEpoch": best_epoch, **_nullable({"bestFitness": best_fitness})}
        names = self._registration.config.get("names")
        names = list(names.values()) if isinstance(names, dict) else names
        class_names = [str(name) for name in names] if isinstance(names, list | tuple) else []
        return {"results": results, "classNames": class_names, "plots": []}

    def _best(self) -> tuple[int, Number | None]:
        """The epoch of the highest fitness, as Ultralytics' trainer sees it: the first, but the last of many zeros."""
        numbers = self._epochs.numbers()
        best_epoch, best = max(numbers, default=0), None
        for number in numbers:
            fitness = self._epochs[number].values.get("fitness")
            if fitness is not None and _is_finite(fitness) and (not best or fitness > best):
                best_epoch, best = number, fitness
        return best_epoch, best


def training_started(registration: Registration) -> dict[str, Any]:
    """What is said of a run when it begins or goes on."""
    config = registration.config
    data: dict[str, Any] = {"trainArgs": {str(name): str(value) for name, value in config.items() if name != "names"}}
    if type(config.get("epochs")) is int:
        data["epochs"] = config["epochs"]
    if config.get("device") is not None:
        data["device"] = str(config["device"])
    known = {field: registration.environment.get(name) for name, field in _ENVIRONMENT.items()}
    data["environment"] = {field: value for field, value in known.items() if value is not None}
    data["system"] = {}
    return data


def slug(text: str) -> str:
    """A project's or a model's name as the hub writes it in URLs: `My Project` is `my-project`, `a_b` is `ab`."""
    words = re.split(r"[\s-]+", text.lower())
    kept = [re.sub(r"[^a-z0-9]", "", word) for word in words]
    return "-".join(filter(None, kept))[:128].strip("-") or "run"


def _key(index: int, event: Event) -> tuple[object, ...]:
    if belongs_to_epoch(event):
        return event["epoch"], any(name.startswith(FINAL) for name in event["values"])
    return ("alone", index)


def _epoch_end(number: int, values: Mapping[str, Number]) -> dict[str, Any]:
    """One epoch: metrics, and what is not one beside them."""
    metrics: dict[str, Any] = {
        name: value
        for name, value in values.items()
        if name not in _BESIDE and not _is_info(name) and not name.startswith("lr/pg")
    }
    if "lr/pg0" in values:
        metrics.setdefault("lr", values["lr/pg0"])
    data: dict[str, Any] = {"epoch": number, "metrics": _nullable(metrics)}
    data |= _nullable({name: values[name] for name in _BESIDE if name in values})
    if info := {field: values[name] for name, field in _MODEL_INFO.items() if name in values}:
        data["modelInfo"] = _nullable(info)
    return data


def _is_info(name: str) -> bool:
    return name.startswith("model/")


def _is_finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _nullable(values: Mapping[str, Any]) -> dict[str, Any]:
    """With null for what JSON has no number for."""
    return {name: value if _is_finite(value) else None for name, value in values.items()}

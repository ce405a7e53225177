"""What rank 0's metrics come to, epoch by epoch, for hubs that take epochs and know no event keys.

Such a client is a fold: events in, requests out. It is written as a generator, and what follows a `yield` happens once
the yielded request was answered; so a request that fails leaves everything as it was. `recall` runs the same fold
over what was delivered before this process, without sending.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ddphub.events import Event, decode_scalar
from ddphub.seqs import SeqSet

FINAL: Final = "final/"
"""Before the names of what the last validation of a training measured, after its last epoch."""

Number = float | int | bool


class Told:
    """Which events are done: delivered before, or sent by this process. Small, for events come nearly in order."""

    def __init__(self) -> None:
        self._streams: dict[tuple[str, int], SeqSet] = {}

    def __contains__(self, event: Event) -> bool:
        seqs = self._streams.get((event["attempt_id"], event["rank"]))
        return seqs is not None and seqs.covers(event["seq"], event["seq"])

    def add(self, events: Iterable[Event]) -> None:
        """They are done."""
        for event in events:
            seqs = self._streams.setdefault((event["attempt_id"], event["rank"]), SeqSet())
            seqs.add(event["seq"], event["seq"])


@dataclass
class Epoch:
    """One epoch's values.

    Attributes:
        values: name -> number.
        finals: those whose names begin with FINAL, without it.
    """

    values: dict[str, Number] = field(default_factory=dict)
    finals: dict[str, Number] = field(default_factory=dict)
    _order: dict[str, int] = field(default_factory=dict)

    def copy(self) -> "Epoch":
        """One that can be changed."""
        return Epoch(dict(self.values), dict(self.finals), dict(self._order))

    def merge(self, values: dict[str, Any], order: int) -> None:
        """Takes in values; of two with one name the newer attempt's counts, then the later one."""
        for name, value in values.items():
            if order < self._order.get(name, order) or not isinstance(value, int | float | str):
                continue
            try:
                number = decode_scalar(value)
            except ValueError:
                continue
            self._order[name] = order
            if name.startswith(FINAL):
                self.finals[name.removeprefix(FINAL)] = number
            else:
                self.values[name] = number


class Epochs:
    """The merged values of every epoch of a run.

    Args:
        attempts: ids of the attempts that are known, in order of their start.
    """

    def __init__(self, attempts: Sequence[str] = ()) -> None:
        self._epochs: dict[int, Epoch] = {}
        self._order = {attempt_id: index for index, attempt_id in enumerate(attempts)}

    def __getitem__(self, number: int) -> Epoch:
        return self._epochs[number]

    def with_events(self, events: Iterable[Event]) -> dict[int, Epoch]:
        """The epochs that events change, as they are with them; nothing is kept until `keep`."""
        changed: dict[int, Epoch] = {}
        for event in filter(belongs_to_epoch, events):
            number = event["epoch"]
            if number not in changed:
                changed[number] = self._epochs.get(number, Epoch()).copy()
            order = self._order.setdefault(event["attempt_id"], len(self._order))
            changed[number].merge(event["values"], order)
        return dict(sorted(changed.items()))

    def keep(self, changed: dict[int, Epoch]) -> None:
        """From now on the epochs are these."""
        self._epochs.update(changed)

    def numbers(self) -> list[int]:
        """The epochs that have values other than final ones, sorted."""
        # A copy first: another thread may be adding one.
        return sorted(number for number, epoch in list(self._epochs.items()) if epoch.values)

    def finals(self) -> dict[str, Number]:
        """What the last validation measured; empty when the training went on after it, or had none."""
        number = max((number for number, epoch in self._epochs.items() if epoch.finals), default=None)
        if number is None or any(later > number for later in self.numbers()):
            return {}
        return self._epochs[number].finals


def belongs_to_epoch(event: Event) -> bool:
    """Whether an event is rank 0's metrics of an epoch: what an epoch is made of."""
    return (
        event.get("kind") == "metrics"
        and event.get("rank") == 0
        and type(event.get("epoch")) is int
        and isinstance(event.get("values"), dict)
    )

"""Reading what a user gives as metrics: what can be recorded is kept, the rest is counted and warned of once."""

import logging
import threading
from collections.abc import Mapping
from typing import Any, Final

from ddphub.distributed.memory import used_memory
from ddphub.distributed.scalars import PendingScalar, UnreadableError, read_scalar
from ddphub.events import Scalar, encode_scalar
from ddphub.hubs.wire import MAX_METRIC_NAME

__all__ = ["INT_LIMIT", "MetricReader", "used_memory"]  # the last for integrations, which import no distributed

logger = logging.getLogger(__name__)

PLAIN: Final = frozenset({float, int, bool})
"""Types whose values need no reading: `check` later, off the training thread, is enough."""

INT_BITS: Final = 63
INT_LIMIT: Final = 2**INT_BITS
"""Ints beyond it travel as floats: databases hold 64 bits."""

_MOST_WARNINGS: Final = 1000
_MOST_NAMES: Final = 100_000
"""Names remembered; a loop that makes up a name a step must not grow without bound."""


class MetricReader:
    """Turns values into numbers. Any rank; the training thread reads, the outbox's checks what needs no reading.

    Attributes:
        good_names: names seen before with a value that could be read: the fast path skips their check.
        dropped: values that were not recorded.
    """

    def __init__(self) -> None:
        self.good_names: set[str] = set()
        self.dropped = 0
        self._warned: set[str] = set()
        self._counting = threading.RLock()  # a signal handler of the script may log while it logs

    def read(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values that can be recorded, read now."""
        good_names = self.good_names
        kept: dict[str, Any] = {}
        for name, value in values.items():
            kind = type(value)
            if name in good_names and (
                kind is float or kind is bool or (kind is int and -INT_LIMIT < value < INT_LIMIT)
            ):
                kept[name] = value
            else:
                self._read_slowly(name, value, kept)
        return kept

    def check(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values that can be recorded, of a dict whose values are all PLAIN."""
        if self.good_names.issuperset(values) and all(
            -INT_LIMIT < value < INT_LIMIT for value in values.values() if type(value) is int
        ):
            return values
        return self.read(values)

    def read_for_wire(self, values: object) -> dict[str, Scalar]:
        """The same for a checkpoint's metrics: a CUDA value is waited for, non-finite ones become their names."""
        if values is None:
            return {}
        if not isinstance(values, Mapping):
            self.drop("metrics", f"expected a dict, got {type(values).__name__}")
            return {}
        kept: dict[str, Any] = {}
        for name, value in values.items():
            self._read_slowly(name, value, kept)
        return {
            name: encode_scalar(value.wait() if isinstance(value, PendingScalar) else value)
            for name, value in kept.items()
        }

    def whole(self, field: str, value: object) -> int | None:
        """A step or an epoch; None for what is no whole number, with one warning."""
        if value is None:
            return None
        try:
            number = int(value)  # type: ignore[call-overload]  # whatever it is, int() says
        except Exception:  # noqa: BLE001  # the user's object; a meta tensor
            number = INT_LIMIT
        if not -INT_LIMIT < number < INT_LIMIT:
            self.drop(field, f"expected a whole number of 64 bits, got {type(value).__name__}")
            return None
        return int(number)

    def drop(self, name: str, reason: str) -> None:
        """Counts a value that is not recorded; warns once a name."""
        with self._counting:
            self.dropped += 1
            if name in self._warned or len(self._warned) >= _MOST_WARNINGS:
                return
            self._warned.add(name)
        logger.warning("ddphub: metric %r is dropped: %s", name, reason)

    def _read_slowly(self, name: object, value: object, kept: dict[str, Any]) -> None:
        if not isinstance(name, str) or not 0 < len(name) <= MAX_METRIC_NAME or not name.isprintable():
            self.drop(str(name)[:80], f"a metric's name is text of 1 to {MAX_METRIC_NAME} printable characters")
            return
        try:
            kept[name] = read_scalar(value)
        except UnreadableError as error:
            self.drop(name, f"expected a number or a 0-d tensor, got {error}")
            return
        if len(self.good_names) < _MOST_NAMES:
            self.good_names.add(name)

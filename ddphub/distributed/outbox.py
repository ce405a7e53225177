"""The outbox: where every rank's events gather, and the thread that packs them.

`log` and `put` are all that a training thread ever runs: an append to a deque. Twice a second a thread of the outbox
makes JSON of what has gathered and hands it to the carrier: on rank 0 the spool, on other ranks the courier.
"""

import contextlib
import json
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from ddphub.distributed.scalars import PendingScalar
from ddphub.events import MAX_EVENT_BYTES, Event, encode_scalar

logger = logging.getLogger(__name__)

INTERVAL: Final = 0.5
"""Seconds between two packings: what a SIGKILL can take along."""

MANY: Final = 4096
"""Events that are packed at once: a thread that reports much must not fill the carrier's window in one go."""

CAPACITY: Final = 200_000
"""Events that may wait to be packed; past it new ones are dropped and counted, so memory stays bounded."""

GPU_PATIENCE: Final = 60.0
"""Seconds that an event waits for its CUDA scalars; then it goes without them."""

GPU_FLUSH: Final = 2.0
"""Seconds that a flush waits for them."""

CLOSING: Final = 0.5
"""Seconds that the last packing may wait for one under way, or for CUDA scalars."""

_FIELDS: Final = 4
"""Places of an event in the deque: time, step, epoch and values of logged metrics, or any other event and three None.
A tuple in one place would stay for the garbage collector to look at, which looks at all of a training's objects, for
0.1 s, once there are many of them."""

_now = time.time
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class Carrier(Protocol):
    """Takes packed events onwards. Only the outbox's thread calls it, or the thread that flushes."""

    def carry(self, events: Sequence[str]) -> None:
        """Takes events, each as JSON text; must not raise, must not wait for a network."""


class Outbox:
    """Gathers events. `log` and `put` from any thread; one outbox a run and rank.

    Args:
        carrier: where packed events go.
        check: of the values of `log`, those that can be recorded; called when they are packed.
    """

    def __init__(
        self, carrier: Carrier, check: Callable[[dict[str, Any]], dict[str, Any]] = lambda values: values
    ) -> None:
        self._carrier = carrier
        self._check = check
        self._gathered: deque[Any] = deque()
        self._packing = threading.Lock()
        # No Event: a signal handler that logs while the same thread is in `set` would wait for itself.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stopped = False
        self.packed = 0
        self.dropped = 0
        self._thread = threading.Thread(target=self._main, name="ddphub-outbox", daemon=True)
        self._thread.start()

    def log(self, values: dict[str, Any], step: int, epoch: int | None) -> None:
        """Takes metrics, as `put` an event: the path of every step. The dict is the outbox's from now on.

        Args:
            values: name -> float, int or bool.
            step: the step.
            epoch: the epoch, if any.
        """
        gathered = self._gathered
        if len(gathered) < _FIELDS * MANY:
            gathered.extend((_now(), step, epoch, values))  # in one step, whatever other threads do
        else:
            self._gather_in_a_rush((_now(), step, epoch, values))

    def put(self, event: Event) -> None:
        """Takes an event, to be packed within INTERVAL. Any thread; no I/O, no wait."""
        self._gather_in_a_rush((event, None, None, None))

    def _gather_in_a_rush(self, fields: tuple[Any, ...]) -> None:
        waiting = len(self._gathered) // _FIELDS
        if waiting >= CAPACITY:
            self.dropped += 1
            return
        self._gathered.extend(fields)
        if waiting >= MANY and self._wake.empty():
            self._wake.put(None)

    def flush(self, timeout: float) -> bool:
        """Packs everything that was put before; False when that took longer than `timeout` seconds."""
        if not self._packing.acquire(timeout=timeout):
            return False
        try:
            until = time.monotonic() + min(timeout, GPU_FLUSH)
            while time.monotonic() < until and not all(map(_gpu_is_done, list(self._gathered)[::_FIELDS])):
                time.sleep(0.005)
            self._pack(final=True)
        finally:
            self._packing.release()
        return True

    def close(self) -> None:
        """Stops the thread, after a last packing: a script that a signal ends goes on reporting meanwhile."""
        if not self._stopped:
            self.flush(CLOSING)
        self._stopped = True
        self._wake.put(None)

    def disable(self) -> None:
        """In a forked child: nothing gathers here any more; the parent owns what has gathered."""
        self._gathered = deque(maxlen=0)

    def _main(self) -> None:
        while not self._stopped:
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=INTERVAL)
            with self._packing:
                try:
                    self._pack()
                except Exception:  # nobody else would hear of it, and the events behind this one must flow
                    logger.exception("an event could not be packed")

    def _pack(self, *, final: bool = False) -> None:
        gathered = self._gathered
        texts: list[str] = []
        for _ in range(len(gathered) // _FIELDS):
            if not final and not _gpu_is_done(gathered[0]):
                break  # those behind it wait too: order is kept
            event, step, epoch, values = [gathered.popleft() for _ in range(_FIELDS)]
            try:
                if values is not None:
                    values = self._check(values)
                    if not values:
                        continue
                    event = {"time": event, "kind": "metrics", "step": step, "epoch": epoch, "values": values}
                text, lost = _to_text(event)
            except Exception:
                # The user's value, or a GPU that has failed: it must not take the events around it along.
                self.dropped += 1
                logger.warning("an event was dropped: it cannot be packed", exc_info=True)
                continue
            self.dropped += lost
            if len(text) > MAX_EVENT_BYTES:
                self.dropped += 1
                logger.warning("an event of %d bytes was dropped: the limit is %d", len(text), MAX_EVENT_BYTES)
                continue
            texts.append(text)
        self.packed += len(texts)
        # Also with nothing new: the carrier tends what it still holds.
        self._carrier.carry(texts)


def _gpu_is_done(event: Event | float) -> bool:
    """Whether an event, or metrics by their time, can be packed: what `log` takes was read on the host."""
    if not isinstance(event, dict):
        return True
    pending = [value for value in (event.get("values") or {}).values() if isinstance(value, PendingScalar)]
    return all(map(_is_over, pending)) or time.time() - event["time"] > GPU_PATIENCE


def _to_text(event: Event) -> tuple[str, int]:
    """JSON of an event, and how many of its values are lost; the slow path is for what JSON does not know."""
    try:
        return _encode(event), 0
    except (ValueError, TypeError):
        values = event.get("values") or {}
        plain = _plain(values)
        return _encode({**event, "values": plain}), len(values) - len(plain)


def _is_over(scalar: PendingScalar) -> bool:
    """Whether the copy has arrived, or never will: after a device-side error every question raises."""
    try:
        return scalar.ready()
    except RuntimeError:
        return True


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, value in values.items():
        if not isinstance(value, PendingScalar):
            plain[name] = encode_scalar(value)
        elif _is_over(value):
            with contextlib.suppress(RuntimeError):  # the GPU has failed: better the event without this value
                plain[name] = encode_scalar(value.take())
        # else the GPU hangs: likewise
    return plain

"""The relay: how events of every rank reach rank 0 through the job's store, without a collective.

No rank can stall another: a rank pushes to a queue and goes on; rank 0 pops when it can.

| where | what |
| --- | --- |
| queue `<namespace>/<ordinal>/hello` | hellos of new processes: nonce, rank, host, pid, local_rank, node |
| key `<namespace>/<ordinal>/answer/<nonce>` | rank 0's answer: run_id, attempt_id, queue, folder |
| queue `<namespace>/<ordinal>/queue/<attempt_id>` | messages to rank 0 of this attempt, see below |
| keys `<namespace>/<ordinal>/box/<attempt_id>/<n>` | the small ones of them, a line each, see post.py |
| key `<namespace>/<ordinal>/ack/<nonce>` | rank 0's word: held, model_id, url, closed, asked again and again |
| key `<namespace>/<ordinal>/run` | the run id that rank 0 chose; a restart in place continues it |
| key `<namespace>/<ordinal>/attempts` | attempt ids, comma-separated: a later rank 0 drains a dead world's queue |

`<ordinal>` counts the calls of `init` in a process: every rank calls it in the same order. Nothing in the environment
names a world reliably, so a process makes itself known by a random nonce, and only rank 0 of its own world answers.

A batch of events is the text `batch`, a checksum of what comes next up to its line's own, the number of its events, and
its line as spool files have it: rank 0 compares both checksums and appends the line as it is, without reading the
events. The other messages are JSON objects, never pickle; `type` is one of

| type | fields |
| --- | --- |
| `spilled` | attempt_id, rank, first, last: these are in the rank's own spool file; count them as held |
| `beat` | nonce, rank |
| `goodbye` | nonce, rank, reported, dropped, failure: text or null, left_in: folder with undelivered files or null |
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from ddphub import names
from ddphub.checksum import CHECKSUM, with_checksum, without_checksum

BEAT: Final = 5.0
"""Seconds between two signs of life of a rank."""

LOST: Final = 15.0
"""Seconds of silence after which a rank is shown as lost."""

WINDOW: Final = 256 * 1024
"""Bytes that a rank may hold in memory unacknowledged in any world; past them they go to its spool file."""

LARGEST_WINDOW: Final = 16 * 1024 * 1024
"""The same in a small world."""

IN_STORE: Final = 256 * 1024 * 1024
"""Bytes that all ranks together may leave in the store, as long as each has its WINDOW."""

UNANSWERED_WINDOW: Final = 4 * 1024 * 1024
"""The same while rank 0 has not answered: what is spilled then carries the nonce for an attempt id, so it is better
to wait for the answer. A rank that logs 5 scalars 1,000 times a second fills it in half a minute."""

BATCH_BYTES: Final = 64 * 1024
"""Bytes of events in one message, but for a single larger event."""

BATCH_EVENTS: Final = 500
"""Events in one message: half of what a hub takes in one request."""


@dataclass(frozen=True)
class Keys:
    """Names of the relay's keys and queues for one run of one process."""

    namespace: str
    ordinal: int

    def _name(self, *parts: str) -> str:
        return "/".join((self.namespace, str(self.ordinal), *parts))

    @property
    def hello(self) -> str:
        """Queue of hellos."""
        return self._name("hello")

    @property
    def run(self) -> str:
        """Key of the run id."""
        return self._name("run")

    @property
    def attempts(self) -> str:
        """Key of the attempts seen on this store."""
        return self._name("attempts")

    def answer(self, nonce: str) -> str:
        """Key of the answer to a hello."""
        return self._name("answer", nonce)

    def ack(self, nonce: str) -> str:
        """Key of the acknowledgement for one rank's process."""
        return self._name("ack", nonce)

    def queue(self, attempt_id: str) -> str:
        """Queue of an attempt's messages."""
        return self._name("queue", attempt_id)

    def box(self, attempt_id: str, number: int) -> str:
        """Key of one of an attempt's boxes, for small messages."""
        return self._name("box", attempt_id, str(number))


def window(world_size: int) -> int:
    """Bytes that a rank of this world may hold unacknowledged."""
    return max(WINDOW, min(LARGEST_WINDOW, IN_STORE // world_size))


@dataclass(frozen=True)
class Batch:
    """Consecutive events of one stream.

    Attributes:
        first: seq of the first event.
        last: seq of the last one.
        text: the batch as JSON (see events.py).
    """

    first: int
    last: int
    text: str

    @property
    def count(self) -> int:
        """Number of events."""
        return self.last - self.first + 1

    def to_message(self) -> bytes:
        """As it travels."""
        line = with_checksum(self.text.encode())
        # A wrong number would acknowledge events that are not there.
        return _BATCH + with_checksum(b"%d %b" % (self.count, line[:CHECKSUM])) + line[CHECKSUM:]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A batch as rank 0 got it.

    Attributes:
        attempt_id: of its stream, or the nonce.
        rank: of its stream.
        first: seq of the first event.
        last: seq of the last one.
        line: its line for the spool file.
    """

    attempt_id: str
    rank: int
    first: int
    last: int
    line: bytes

    @classmethod
    def read(cls, message: bytes) -> "Arrival | None":
        """The batch in a message, or None: the sender is another process and may say anything.

        That the events are JSON is not looked at: whoever reads the spool does, as with a rank's own file.
        """
        front = _FRONT.match(message)
        line = message[front.start(2) :] if front else b""
        text = without_checksum(line)
        head = _HEAD.match(text) if text is not None else None
        if front is None or without_checksum(front[0].removeprefix(_BATCH)) is None or head is None or b"\n" in line:
            return None
        attempt_id, rank, first = head[1].decode(), int(head[2]), int(head[3])
        last = first + int(front[1]) - 1
        return cls(attempt_id, rank, first, last, line + b"\n") if is_count(first, last) else None


_BATCH: Final = b"batch "
_FRONT: Final = re.compile(rb"batch [0-9a-f]{8} ([1-9][0-9]{0,8}) ([0-9a-f]{8})")
_HEAD: Final = re.compile(rb'\{"attempt_id":"([0-9a-f]{32})","rank":([0-9]{1,9}),"first":([0-9]{1,19}),"events":\[\{')
"""How `pack` begins."""


def is_batch(message: bytes) -> bool:
    """Whether a message says that it is a batch."""
    return message.startswith(_BATCH)


def pack(attempt_id: str, rank: int, first: int, events: list[str]) -> Batch:
    """One batch of events that are JSON already; they are not encoded twice."""
    head = f'{{"attempt_id":"{attempt_id}","rank":{rank},"first":{first},"events":['
    return Batch(first, first + len(events) - 1, f"{head}{','.join(events)}]}}")


def split(events: list[str]) -> list[list[str]]:
    """Events in groups of at most BATCH_EVENTS events and about BATCH_BYTES bytes."""
    groups: list[list[str]] = []
    size = BATCH_BYTES
    for event in events:
        if size + len(event) > BATCH_BYTES or len(groups[-1]) >= BATCH_EVENTS:
            groups.append([])
            size = 0
        groups[-1].append(event)
        size += len(event)
    return groups


def parse(data: bytes) -> dict[str, Any] | None:
    """A message as rank 0 may trust it, or None: the sender is another process and may say anything."""
    try:
        message = json.loads(data.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) and b"\n" not in data else None


def _refuse(constant: str) -> None:
    """NaN and its kin are no JSON; ddphub's ranks send their names as strings."""
    raise ValueError(constant)


def is_spilled(message: dict[str, Any]) -> bool:
    """Whether a `spilled` message holds what one must."""
    if not names.is_hex_id(message.get("attempt_id")):
        return False
    numbers = (message.get("rank"), message.get("first"), message.get("last"))
    return is_count(*numbers) and message["last"] >= message["first"]


def is_count(*values: object) -> bool:
    """Whether every value is a whole number from 0 up, of 64 bits."""
    return all(isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 for value in values)

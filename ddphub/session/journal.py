"""The delivery journal: what the hub has acknowledged, line by line.

| record | fields |
| --- | --- |
| `model` | hub, model_id, url: what the run is there; memory: of the hub's client; the last one counts |
| `offset` | spool: file name; offset: bytes of it that are delivered or set aside |
| `receipt` | entry_id, checkpoint_id, model_id, at |
| `superseded` | entry_id, reason: dropped before it was sent |
| `aside_event` | spool, attempt_id, rank, seq, reason: the hub will never take it; its bytes stay in the spool |
| `aside_entry` | entry_id, reason: likewise; its bytes stay in the staging area |
| `retry` | again: `ddphub sync --retry` gives what was set aside another try, by sending whole spool files if `again` |
| `retried_event` | spool, attempt_id, rank, seq: an event that was set aside was taken now |
| `pruned` | spool, streams: [[attempt_id, rank, [[first, last], ...]], ...], refused: delivered and deleted |

Written only by the holder of session.lock, who reads it after having the lock, never before.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddphub.events import to_json
from ddphub.session.lines import LineWriter, read_lines

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pruned:
    """What a spool file held that was delivered and deleted.

    Attributes:
        streams: (attempt_id, rank) -> ranges of numbers, first and last included.
        refused: why saves were refused -> how many.
    """

    streams: dict[tuple[str, int], list[tuple[int, int]]]
    refused: dict[str, int]

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Pruned":
        """Reads a journal's record.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is none.
        """
        streams = {
            (str(attempt_id), int(rank)): [(int(first), int(last)) for first, last in ranges]
            for attempt_id, rank, ranges in record["streams"]
        }
        return cls(streams, {str(reason): int(count) for reason, count in record["refused"].items()})

    def to_record(self, spool: str) -> dict[str, Any]:
        """As the journal keeps it."""
        streams = [[*stream, ranges] for stream, ranges in self.streams.items()]
        return {"record": "pruned", "spool": spool, "streams": streams, "refused": self.refused}


@dataclass
class Delivered:
    """What a journal says.

    Attributes:
        offsets: spool file name -> bytes done.
        model: (hub, model_id), once registered.
        url: where a person looks at it.
        memory: what the hub's client wants to know again.
        receipts: entry_id -> the hub's checkpoint id.
        superseded: entry ids dropped unsent.
        aside_events: (spool, attempt_id, rank, seq) -> reason.
        aside_entries: entry_id -> reason.
        pruned: spool file name -> what it held.
        damaged: lines that could not be read.
    """

    offsets: dict[str, int] = field(default_factory=dict)
    model: tuple[str, str] | None = None
    url: str | None = None
    memory: dict[str, str] = field(default_factory=dict)
    receipts: dict[str, str] = field(default_factory=dict)
    superseded: set[str] = field(default_factory=set)
    aside_events: dict[tuple[str, str, int, int], str] = field(default_factory=dict)
    aside_entries: dict[str, str] = field(default_factory=dict)
    pruned: dict[str, Pruned] = field(default_factory=dict)
    damaged: int = 0

    def is_done(self, entry_id: str) -> bool:
        """Whether nothing more has to be sent of this entry."""
        return entry_id in self.receipts or entry_id in self.superseded

    def records(self) -> Iterator[dict[str, Any]]:
        """Records that say the same as this."""
        if self.model is not None:
            where = {"hub": self.model[0], "model_id": self.model[1], "url": self.url}
            yield {"record": "model", **where, "memory": self.memory}
        for spool, pruned in self.pruned.items():
            yield pruned.to_record(spool)
        for spool, offset in self.offsets.items():
            yield {"record": "offset", "spool": spool, "offset": offset}
        for entry_id, checkpoint_id in self.receipts.items():
            yield {"record": "receipt", "entry_id": entry_id, "checkpoint_id": checkpoint_id}
        for entry_id in sorted(self.superseded):
            yield {"record": "superseded", "entry_id": entry_id}
        for (spool, attempt_id, rank, seq), reason in self.aside_events.items():
            event = {"attempt_id": attempt_id, "rank": rank, "seq": seq}
            yield {"record": "aside_event", "spool": spool, **event, "reason": reason}
        for entry_id, reason in self.aside_entries.items():
            yield {"record": "aside_entry", "entry_id": entry_id, "reason": reason}

    def apply(self, record: dict[str, Any]) -> None:  # noqa: PLR0912  # a case for each record
        """Takes one record in.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: when it is no record of a journal.
        """
        match record["record"]:
            case "model":
                self.model = str(record["hub"]), str(record["model_id"])
                self.url = str(record.get("url") or "/models/".join(self.model))
                self.memory = {str(key): str(value) for key, value in record.get("memory", {}).items()}
            case "offset":
                spool, offset = str(record["spool"]), int(record["offset"])
                if not 0 <= offset < 2**63:
                    raise ValueError(f"no file has {offset} bytes")
                self.offsets[spool] = max(offset, self.offsets.get(spool, 0))
            case "receipt":
                self.receipts[str(record["entry_id"])] = str(record["checkpoint_id"])
                self.aside_entries.pop(str(record["entry_id"]), None)
            case "superseded":
                self.superseded.add(str(record["entry_id"]))
            case "aside_event":
                key = (str(record["spool"]), str(record["attempt_id"]), int(record["rank"]), int(record["seq"]))
                self.aside_events[key] = str(record["reason"])
            case "aside_entry":
                self.aside_entries[str(record["entry_id"])] = str(record["reason"])
            case "pruned":
                self.pruned[str(record["spool"])] = Pruned.from_record(record)
                self.offsets.pop(str(record["spool"]), None)
            case "retry":
                self.aside_entries.clear()
                if record.get("again", True):
                    # Delivery of a spool file starts over: the hub knows what it has, so a repeat changes nothing.
                    for spool, *_ in self.aside_events:
                        self.offsets.pop(spool, None)
                    self.aside_events.clear()
            case "retried_event":
                key = (str(record["spool"]), str(record["attempt_id"]), int(record["rank"]), int(record["seq"]))
                self.aside_events.pop(key, None)
            case unknown:
                raise ValueError(f"unknown record {unknown!r}")


def read_journal(path: Path) -> Delivered:
    """What a journal says. A damaged line is skipped: what it acknowledged is sent again, which changes nothing."""
    delivered = Delivered()
    for line in read_lines(path):
        try:
            delivered.apply(line.record or {})
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
            delivered.damaged += 1
    if delivered.damaged:
        logger.warning("%s: %d damaged lines skipped", path, delivered.damaged)
    return delivered


class Journal:
    """The journal in the hands of session.lock's holder."""

    def __init__(self, path: Path) -> None:
        self.state = read_journal(path)
        self._writer = LineWriter(path)

    def append(self, *records: dict[str, Any], durable: bool = False) -> None:
        """Writes records and takes them into `state`.

        Args:
            records: as in the table above.
            durable: wait until they are on disk; before bytes are deleted on their word.

        Raises:
            OSError: when they cannot be written; `state` is then unchanged.
        """
        self._writer.append(to_json(record) for record in records)
        if durable:
            self._writer.sync()
        for record in records:
            self.state.apply(record)

    def compact(self) -> None:
        """Replaces the file by one that says the same in fewer lines; a damaged one stays as it is.

        Only for a run that has ended: a deliverer whom the lock did not keep out would go on writing to the old file,
        and send again what it acknowledged there.

        Raises:
            OSError: it cannot be written; the old file is then still there.
        """
        if self.state.damaged:
            return
        path = self._writer.path
        self._writer.close()
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        writer = LineWriter(fresh)
        try:
            writer.append(to_json(record) for record in self.state.records())
            writer.sync()
        finally:
            writer.close()
        fresh.replace(path)

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

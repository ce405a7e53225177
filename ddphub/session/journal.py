"""The delivery journal: what the hub has acknowledged, line by line.

| record | fields |
| --- | --- |
| `offset` | spool: file name; offset: bytes of it that are delivered or set aside |
| `receipt` | entry_id, checkpoint_id, model_id, at |
| `superseded` | entry_id, reason: dropped before it was sent |
| `aside_event` | spool, attempt_id, rank, seq, reason: the hub will never take it; its bytes stay in the spool |
| `aside_entry` | entry_id, reason: likewise; its bytes stay in the staging area |
| `retry` | - : `ddphub sync --retry` gives what was set aside another try |

Written only by the holder of session.lock, who reads it after having the lock, never before.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddphub.events import to_json
from ddphub.session.lines import LineWriter, read_lines

logger = logging.getLogger(__name__)


@dataclass
class Delivered:
    """What a journal says.

    Attributes:
        offsets: spool file name -> bytes done.
        receipts: entry_id -> the hub's checkpoint id.
        superseded: entry ids dropped unsent.
        aside_events: (spool, attempt_id, rank, seq) -> reason.
        aside_entries: entry_id -> reason.
        damaged: lines that could not be read.
    """

    offsets: dict[str, int] = field(default_factory=dict)
    receipts: dict[str, str] = field(default_factory=dict)
    superseded: set[str] = field(default_factory=set)
    aside_events: dict[tuple[str, str, int, int], str] = field(default_factory=dict)
    aside_entries: dict[str, str] = field(default_factory=dict)
    damaged: int = 0

    def is_done(self, entry_id: str) -> bool:
        """Whether nothing more has to be sent of this entry."""
        return entry_id in self.receipts or entry_id in self.superseded

    def apply(self, record: dict[str, Any]) -> None:
        """Takes one record in.

        Raises:
            KeyError, TypeError, ValueError: when it is no record of a journal.
        """
        match record["record"]:
            case "offset":
                spool, offset = str(record["spool"]), int(record["offset"])
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
            case "retry":
                # Delivery of a spool file starts over: the hub knows what it has, so a repeat changes nothing.
                for spool, *_ in self.aside_events:
                    self.offsets.pop(spool, None)
                self.aside_events.clear()
                self.aside_entries.clear()
            case unknown:
                raise ValueError(f"unknown record {unknown!r}")


def read_journal(path: Path) -> Delivered:
    """What a journal says. A damaged line is skipped: what it acknowledged is sent again, which changes nothing."""
    delivered = Delivered()
    for line in read_lines(path):
        try:
            delivered.apply(line.record or {})
        except (KeyError, TypeError, ValueError, OverflowError):
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

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

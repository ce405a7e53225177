"""What spool files hold, counted by number: an event that two files hold is one event."""

from dataclasses import dataclass, field
from pathlib import Path

from ddphub.events import check_batch
from ddphub.seqs import SeqSet
from ddphub.session.journal import Pruned
from ddphub.session.lines import partial_last_line, read_lines

Stream = tuple[str, int]
"""Attempt id (or nonce) and rank."""


@dataclass
class Tally:
    """Events by stream.

    Attributes:
        reported: every event.
        done: those before their file's offset in the journal.
        refused: saves that were refused, by reason.
        damaged: sentences about lines that were skipped, and files that cannot be read.
        unreadable: how many files cannot be read.
    """

    reported: dict[Stream, SeqSet] = field(default_factory=dict)
    done: dict[Stream, SeqSet] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    unreadable: int = 0

    def add_file(self, path: Path, offset: int) -> int:
        """Counts a spool file that is delivered up to `offset`; returns how many of its events are behind it."""
        try:
            return self._add_file(path, offset)
        except OSError as error:
            self.damaged.append(f"{path} cannot be read, what it holds is not delivered: {error}")
            self.unreadable += 1
            return 0

    def _add_file(self, path: Path, offset: int) -> int:
        behind = 0
        for line in read_lines(path):
            try:
                batch = line.record or {}
                check_batch(batch)
                stream = (batch["attempt_id"], batch["rank"])
                first, last = batch["first"], batch["first"] + len(batch["events"]) - 1
                refused = [
                    f"{event.get('name')}: {event.get('reason')}"
                    for event in batch["events"]
                    if event.get("kind") == "checkpoint" and event.get("state") == "refused"
                ]
            except (KeyError, TypeError):
                self.damaged.append(f"{path}: the line at byte {line.start} is damaged and was skipped")
                continue
            is_new = self.reported.setdefault(stream, SeqSet()).add(first, last)
            if line.end <= offset:
                self.done.setdefault(stream, SeqSet()).add(first, last)
            else:
                behind += last - first + 1
            for reason in refused if is_new else ():
                self.refused[reason] = self.refused.get(reason, 0) + 1
        if partial := partial_last_line(path):
            self.damaged.append(
                f"{path}: its last line has {partial} bytes and no end: its writer is in the middle, or was killed"
            )
        return behind

    def add_pruned(self, pruned: Pruned) -> None:
        """Counts a file that was delivered and deleted."""
        for stream, ranges in pruned.streams.items():
            for first, last in ranges:
                self.reported.setdefault(stream, SeqSet()).add(first, last)
                self.done.setdefault(stream, SeqSet()).add(first, last)
        for reason, count in pruned.refused.items():
            self.refused[reason] = self.refused.get(reason, 0) + count

    def is_within(self, pruned: Pruned) -> bool:
        """Whether every event counted here was in a file that was delivered and deleted."""
        known = Tally()
        known.add_pruned(pruned)
        return all(
            stream in known.done and all(known.done[stream].covers(first, last) for first, last in seqs.ranges())
            for stream, seqs in self.reported.items()
        )

    def to_pruned(self) -> Pruned:
        """What the journal keeps when the counted files are deleted."""
        return Pruned({stream: seqs.ranges() for stream, seqs in self.reported.items()}, dict(self.refused))

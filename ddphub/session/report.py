"""What was generated, delivered and left: read from the run directory alone, so it is true for live and dead runs."""

from dataclasses import dataclass, field
from typing import Any

from ddphub.checkpoints.staging import StagingArea
from ddphub.seqs import SeqSet
from ddphub.session.folder import RunFolder, RunInfo
from ddphub.session.journal import read_journal
from ddphub.session.lines import read_lines


@dataclass
class Report:
    """The state of one run's delivery.

    Attributes:
        run_id: the run.
        model_id: the hub's id, or None.
        url: where to look, or None.
        attempts: starts of the run that left events.
        world_size: of the newest attempt.
        events: reported, delivered, pending, set_aside.
        checkpoints: staged, uploaded, pending, superseded, refused.
        problems: sentences about what is not as it should be.
    """

    run_id: str
    model_id: str | None
    url: str | None
    attempts: int
    world_size: int
    events: dict[str, int]
    checkpoints: dict[str, int]
    folder: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def is_delivered(self) -> bool:
        """Whether nothing is left on disk that the hub should have."""
        left = self.events["pending"] + self.events["set_aside"]
        return not left and not self.checkpoints["pending"] and not self.checkpoints["set_aside"]

    def lines(self) -> list[str]:
        """The report for a person."""
        lines = [
            f"run {self.run_id}: {self.url or 'not on a hub yet'}",
            self._counts(self.events, "events", "reported delivered pending set_aside"),
            self._counts(self.checkpoints, "checkpoints", "staged uploaded pending superseded set_aside refused"),
        ]
        lines += [f"  ! {problem}" for problem in self.problems]
        if self.is_delivered:
            lines.append("  everything is delivered")
        else:
            lines.append(f"  to deliver the rest: ddphub sync {self.folder}")
        return lines

    @staticmethod
    def _counts(counts: dict[str, int], what: str, names: str) -> str:
        words = {"pending": "left on disk", "set_aside": "set aside"}
        return f"  {what:<12} " + ", ".join(f"{counts[name]} {words.get(name, name)}" for name in names.split())

    def to_json(self) -> dict[str, Any]:
        """The fields of `ddphub status --json`."""
        names = ("run_id", "model_id", "url", "attempts", "world_size", "events", "checkpoints", "problems", "folder")
        return {name: getattr(self, name) for name in names}


def report(folder: RunFolder) -> Report:
    """Reads a run directory. Any process; takes no lock and changes nothing.

    Raises:
        FileNotFoundError: it is no run directory.
        JournalError: run.json does not say what it should.
    """
    info = RunInfo.load(folder.run_json)
    problems: list[str] = []
    delivered = read_journal(folder.journal)
    if delivered.damaged:
        problems.append(f"{folder.journal}: {delivered.damaged} damaged lines; what they acknowledged is sent again")

    reported: dict[tuple[str, int], SeqSet] = {}
    done: dict[tuple[str, int], SeqSet] = {}
    refused = 0
    for path in folder.spool_files():
        offset = delivered.offsets.get(path.name, 0)
        for line in read_lines(path):
            try:
                batch = line.record or {}
                stream = (str(batch["attempt_id"]), int(batch["rank"]))
                first, last = int(batch["first"]), int(batch["first"]) + len(batch["events"]) - 1
            except (KeyError, TypeError, ValueError):
                problems.append(f"{path}: the line at byte {line.start} is damaged and was skipped")
                continue
            is_new = reported.setdefault(stream, SeqSet()).add(first, last)
            if line.end <= offset:
                done.setdefault(stream, SeqSet()).add(first, last)
            if is_new:
                refused += sum(
                    event.get("kind") == "checkpoint" and event.get("state") == "refused" for event in batch["events"]
                )
    aside = {key[1:] for key in delivered.aside_events}
    total = sum(seqs.count() for seqs in reported.values())
    covered = sum(
        (attempt_id, rank) in done and done[attempt_id, rank].covers(seq, seq) for attempt_id, rank, seq in aside
    )
    sent = sum(seqs.count() for seqs in done.values()) - covered

    staging = StagingArea(folder.staging)
    waiting = [entry.entry_id for entry in staging.entries() if not delivered.is_done(entry.entry_id)]
    aside_entries = [entry_id for entry_id in waiting if entry_id in delivered.aside_entries]
    problems += [f"checkpoint {entry_id}: {delivered.aside_entries[entry_id]}" for entry_id in aside_entries]
    problems += [f"{folder.staging}/{entry_id}: checkpoint.json is damaged" for entry_id in staging.broken()]
    problems += [f"event {key}: {reason}" for key, reason in list(delivered.aside_events.items())[:5]]
    lost = [entry_id for entry_id in delivered.aside_entries if entry_id not in waiting]
    problems += [f"checkpoint {entry_id} is lost: {delivered.aside_entries[entry_id]}" for entry_id in lost]
    uploaded, superseded = len(delivered.receipts), len(delivered.superseded - delivered.receipts.keys())
    return Report(
        run_id=info.run_id,
        model_id=info.model_id,
        url=info.url,
        attempts=len(info.attempts),
        world_size=info.world_size,
        events={"reported": total, "delivered": sent, "pending": total - sent - len(aside), "set_aside": len(aside)},
        checkpoints={
            "staged": uploaded + superseded + len(waiting) + len(lost),
            "uploaded": uploaded,
            "pending": len(waiting) - len(aside_entries),
            "superseded": superseded,
            "refused": refused,
            "set_aside": len(aside_entries) + len(lost),
        },
        folder=str(folder.path),
        problems=problems,
    )

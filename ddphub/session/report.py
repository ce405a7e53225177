"""What was generated, delivered and left: read from the run directory alone, so it is true for live and dead runs."""

from dataclasses import asdict, dataclass, field
from typing import Any, Final

from ddphub.checkpoints.staging import Entry, PendingClaim, StagingArea
from ddphub.session import presence
from ddphub.session.folder import RunFolder, RunInfo
from ddphub.session.journal import Delivered, read_journal
from ddphub.session.tally import Tally

MANY: Final = 5
"""Problems of one kind that are told one by one."""

SHOWN: Final = 20
"""Things that wait, of each kind, that a person is told one by one; `--json` has all."""


@dataclass
class Report:
    """The state of one run's delivery.

    Attributes:
        run_id: the run.
        hub: the hub that it was delivered to last, else the one it was made for.
        model_id: the hub's id, or None.
        url: where to look, or None.
        attempts: starts of the run that left events.
        world_size: of the newest attempt.
        in_use: whether a process of the run lives.
        events: reported, delivered, pending, set_aside.
        checkpoints: staged, uploaded, pending, superseded, refused.
        waiting_events: spool file -> events in it that are not delivered.
        waiting_checkpoints: entries that are not delivered: what they are, and `why`.
        folder: the run directory.
        problems: sentences about what is not as it should be.
        unusable: files and entries that hold something and cannot be read.
    """

    run_id: str
    hub: str | None
    model_id: str | None
    url: str | None
    attempts: int
    world_size: int
    in_use: bool
    events: dict[str, int]
    checkpoints: dict[str, int]
    waiting_events: dict[str, int] = field(default_factory=dict)
    waiting_checkpoints: list[dict[str, Any]] = field(default_factory=list)
    folder: str = ""
    problems: list[str] = field(default_factory=list)
    unusable: int = 0

    @property
    def is_delivered(self) -> bool:
        """Whether nothing is left on disk that the hub should have."""
        left = self.events["pending"] + self.events["set_aside"]
        return not left and not self.unusable and not self.checkpoints["pending"] and not self.checkpoints["set_aside"]

    def lines(self, rest: str | None = None) -> list[str]:
        """The report for a person.

        Args:
            rest: what becomes of what is left; by default how to deliver it.
        """
        lines = [
            f"run {self.run_id}: {self.url or 'not on a hub yet'}",
            self._counts(self.events, "events", "reported delivered pending set_aside"),
            self._counts(self.checkpoints, "checkpoints", "staged uploaded pending superseded set_aside refused"),
        ]
        waiting = [
            f"{_count(count, 'event')} {'waits' if count == 1 else 'wait'} in spool/{name}"
            for name, count in self.waiting_events.items()
        ]
        lines += self._first(waiting)
        waiting = [
            f"{one['kind']} checkpoint {one['name']} of epoch {one['epoch']} "
            f"({_count(one['bytes'], 'byte')}): {one['why']}"
            for one in self.waiting_checkpoints
        ]
        lines += self._first(waiting)
        lines += [f"  ! {problem}" for problem in self.problems]
        if self.is_delivered:
            lines.append("  everything is delivered")
        else:
            lines.append(f"  {rest or f'to deliver the rest: ddphub sync {self.folder}'}")
        return lines

    @staticmethod
    def _first(waiting: list[str]) -> list[str]:
        lines = [f"  - {one}" for one in waiting[:SHOWN]]
        return lines if len(waiting) <= SHOWN else [*lines, f"  - and {len(waiting) - SHOWN} more"]

    @staticmethod
    def _counts(counts: dict[str, int], what: str, names: str) -> str:
        words = {"pending": "left on disk", "set_aside": "set aside"}
        return f"  {what:<12} " + ", ".join(f"{counts[name]} {words.get(name, name)}" for name in names.split())

    def to_json(self) -> dict[str, Any]:
        """The fields of `ddphub status --json`."""
        return asdict(self)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def hub_of(folder: RunFolder) -> str | None:
    """The hub that a run was delivered to last, else the one it was made for.

    Raises:
        FileNotFoundError, JournalError, OSError: as `report`.
    """
    model = read_journal(folder.journal).model
    return model[0] if model else RunInfo.load(folder.run_json).hub


def report(folder: RunFolder) -> Report:
    """Reads a run directory. Any process; takes no lock and changes nothing.

    Raises:
        FileNotFoundError: it is no run directory.
        JournalError: run.json does not say what it should.
        OSError: a file cannot be read.
    """
    info = RunInfo.load(folder.run_json)
    in_use = presence.is_in_use(folder.alive)
    problems: list[str] = []
    delivered = read_journal(folder.journal)
    if delivered.damaged:
        damaged = _count(delivered.damaged, "damaged line")
        problems.append(f"{folder.journal}: {damaged}; what was acknowledged there is sent again")

    tally = Tally()
    waiting_events: dict[str, int] = {}
    for path in folder.spool_files():
        behind = tally.add_file(path, delivered.offsets.get(path.name, 0))
        if behind and path.name not in delivered.pruned:
            waiting_events[path.name] = behind
    for pruned in delivered.pruned.values():
        tally.add_pruned(pruned)
    problems += tally.damaged
    problems += [f"{_count(count, 'save')} refused, {reason}" for reason, count in list(tally.refused.items())[:MANY]]
    aside = {key[1:] for key in delivered.aside_events}
    total = sum(seqs.count() for seqs in tally.reported.values())
    covered = sum(
        (attempt_id, rank) in tally.done and tally.done[attempt_id, rank].covers(seq, seq)
        for attempt_id, rank, seq in aside
    )
    sent = sum(seqs.count() for seqs in tally.done.values()) - covered
    problems += [f"event {key}: {reason}" for key, reason in list(delivered.aside_events.items())[:MANY]]

    staging = StagingArea(folder.staging)
    entries = [entry for entry in staging.entries() if not delivered.is_done(entry.entry_id)]
    waiting = [_waiting(entry, staging, delivered, in_use=in_use) for entry in entries]
    set_aside = [entry.entry_id for entry in entries if entry.entry_id in delivered.aside_entries]
    broken = staging.broken()
    problems += [f"{folder.staging}/{entry_id}: checkpoint.json is damaged" for entry_id in broken]
    problems += [_explain(claim) for claim in staging.pending_claims()]
    here = {entry.entry_id for entry in entries}
    lost = [entry_id for entry_id in delivered.aside_entries if entry_id not in here]
    problems += [f"checkpoint {entry_id} is lost: {delivered.aside_entries[entry_id]}" for entry_id in lost]
    uploaded, superseded = len(delivered.receipts), len(delivered.superseded - delivered.receipts.keys())
    hub, model_id = delivered.model or (info.hub, None)
    return Report(
        run_id=info.run_id,
        hub=hub,
        model_id=model_id,
        url=delivered.url if model_id else None,
        attempts=len(info.attempts),
        world_size=info.world_size,
        in_use=in_use,
        events={"reported": total, "delivered": sent, "pending": total - sent - len(aside), "set_aside": len(aside)},
        checkpoints={
            "staged": uploaded + superseded + len(entries) + len(lost),
            "uploaded": uploaded,
            "pending": len(entries) - len(set_aside),
            "superseded": superseded,
            "refused": sum(tally.refused.values()),
            "set_aside": len(set_aside) + len(lost),
        },
        waiting_events=waiting_events,
        waiting_checkpoints=waiting,
        folder=str(folder.path),
        problems=problems,
        unusable=tally.unreadable + len(broken),
    )


def _waiting(entry: Entry, staging: StagingArea, delivered: Delivered, *, in_use: bool) -> dict[str, Any]:
    """An entry that is not delivered, and why."""
    slot = entry.slot
    if reason := delivered.aside_entries.get(entry.entry_id):
        why = f"set aside: {reason}; ddphub sync --retry"
    elif in_use:
        why = "waits for its turn: a process has the run in use"
    else:
        why = "nobody delivers it: ddphub sync"
    if staging.digest(entry) is None:
        why += " (its digest is not computed yet)"
    return {
        "entry_id": entry.entry_id,
        "kind": slot.kind,
        "epoch": slot.epoch,
        "step": slot.step,
        "name": slot.name,
        "bytes": entry.size,
        "why": why,
    }


def _explain(claim: PendingClaim) -> str:
    """A copy that is not complete."""
    what = f"checkpoint {claim.entry_id} ({claim.slot.name if claim.slot else 'scratch'}) is not complete: "
    if claim.state == "alive" and claim.owner is not None:
        return f"{what}process {claim.owner.pid} is copying it"
    if claim.state == "dead":
        return f"{what}the process that copied it was killed; ddphub sync removes the rest of it"
    host = claim.owner.host.partition("/")[0] if claim.owner else "an unknown host"
    return f"{what}a process on {host} is copying it, or died there; that can be told on that host only"

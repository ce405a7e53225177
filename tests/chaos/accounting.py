"""What was generated against what the hub has: lost, doubled, torn; and what a SIGKILL may take.

What counts as generated is known from the ranks' own records (see record.py).

- **Events.** A rank that was not killed by SIGKILL has no excuse: whatever `run.log` took must be on the hub, whether
  the process ended by `finish`, at exit, by an exception or by SIGTERM. Only what a script reports *while ending*, in
  the last ENDING seconds of a process that a SIGTERM ends, comes too late: its main thread trains on to the last
  moment, and a report between the last packing and the end is like one after `finish`. A killed rank may take along
    - *not flushed*: what it reported in its last FLUSH_BOUND seconds. Its outbox packs twice a second
      (`outbox.INTERVAL`); on rank 0 what is packed is in a file at once, on another rank it is on its way to the store.
    - *in transit*: on ranks other than 0, what it reported in its last TRANSIT_BOUND seconds, if something kept it from
      getting to rank 0's file: the wire to the store was broken during that process's life (a courier pauses after
      it), or the agent, whose memory the store is, or rank 0 was stopped, dead or gone between the report and
      DRAIN_TIME after the death. The bound is the courier's: what is not acknowledged after `courier.ACK_LATE` is
      written to the rank's own file by the next packing.
    - *never answered*: all of it, when nothing of the process has arrived and something stood in its way as above: it
      keeps events in memory (4 MiB at most) until rank 0 has told it where they belong.
  These are printed beside the losses. Ages are in seconds that the process ran, by its own pulse: a stopped or starved
  process cannot flush.
- **Saves.** One that returned and took the bytes has no excuse. One that the process did not live to see return may be
  there or not, but whole. A refusal is one only on a rank other than 0 that something kept from rank 0.
- **Doubled** is a (rank, step) that the hub has more than once, whatever the attempt or model, and a save of which it
  has two checkpoints. **Torn** is a checkpoint of bytes that no record has a save of, or an event of other content.
"""

import itertools
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from chaos.record import PULSE, ProcessRecord, Save
from ddphub.distributed import collector, courier, outbox

SLACK = 0.4
"""Seconds for packing and writing, and for a thread to be scheduled when the pulse's thread is."""

FLUSH_BOUND = outbox.INTERVAL + SLACK
TRANSIT_BOUND = courier.ACK_LATE + outbox.INTERVAL + SLACK

ENDING = 2 * PULSE
"""Seconds in which a process is gone once ddphub has let it go."""

DRAIN_TIME = 2 * collector.INTERVAL + 1.0
"""Seconds that rank 0 needs to fetch what a dead rank has left in the store."""

STOPPED = 6 * PULSE
"""Seconds without a pulse after which a process did not run."""


@dataclass(frozen=True)
class Metric:
    """A metric record of the hub."""

    model: str
    rank: int
    step: int
    values: dict[str, float]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of the hub: `files` are (name, sha256 of the downloaded bytes), sorted."""

    model: str
    identity: str
    kind: str
    epoch: int | None
    files: tuple[tuple[str, str], ...]


@dataclass
class Broken:
    """What the harness did to one start of the job, as monotonic times.

    Attributes:
        killed: name of a process's record -> when it got SIGKILL.
        relay: (first, last) of every fault that hit the wire to the store.
        agent: (first, last) of every time that the agent did not run.
    """

    killed: dict[str, float] = field(default_factory=dict)
    relay: list[tuple[float, float]] = field(default_factory=list)
    agent: list[tuple[float, float]] = field(default_factory=list)


@dataclass
class Account:
    """The outcome of one run, or of many.

    Attributes:
        excused: `not flushed`, `in transit`, `never answered`, `while ending` -> events.
        longest: the same -> seconds of the oldest such event before its process's death.
        findings: sentences about everything that must not be.
    """

    events: int = 0
    events_delivered: int = 0
    saves: int = 0
    saves_delivered: int = 0
    unfinished_saves: int = 0
    refused: int = 0
    lost: int = 0
    doubled: int = 0
    torn: int = 0
    excused: Counter[str] = field(default_factory=Counter)
    longest: dict[str, float] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)

    def add(self, other: "Account") -> None:
        """Adds another run's."""
        for name in ("events", "events_delivered", "saves", "saves_delivered", "unfinished_saves", "refused"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("lost", "doubled", "torn"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.excused += other.excused
        for why, seconds in other.longest.items():
            self.longest[why] = max(seconds, self.longest.get(why, 0.0))
        self.findings += other.findings


def account(
    records: list[ProcessRecord], broken: dict[int, Broken], metrics: list[Metric], checkpoints: list[Checkpoint]
) -> Account:
    """Compares the ranks' records with the hub's content.

    Args:
        records: of every process of the run.
        broken: number of the start -> what was done to it.
        metrics: every metric record of every model of the hub.
        checkpoints: every committed checkpoint of every model.
    """
    found = Account()
    _account_events(found, records, broken, metrics)
    _account_saves(found, records, broken, checkpoints)
    return found


def _account_events(
    found: Account, records: list[ProcessRecord], broken: dict[int, Broken], metrics: list[Metric]
) -> None:
    seen = Counter((metric.rank, metric.step) for metric in metrics)
    for (rank, step), count in seen.items():
        if count > 1:
            models = sorted({metric.model for metric in metrics if (metric.rank, metric.step) == (rank, step)})
            found.doubled += count - 1
            found.findings.append(f"doubled: step {step} of rank {rank}, {count} times, in models {models}")
    known = set()
    for record in records:
        steps = [step for step, _ in record.logged]
        known |= {(record.rank, step) for step in [*steps, *record.perhaps]}
        found.events += len(steps)
        found.events_delivered += sum((record.rank, step) in seen for step in steps)
        missing = [(step, moment) for step, moment in record.logged if (record.rank, step) not in seen]
        if missing:
            heard = len(missing) < len(steps)
            _excuse(found, record, missing, heard, records, broken.get(record.start, Broken()))
    for metric in metrics:
        if (metric.rank, metric.step) not in known:
            found.torn += 1
            found.findings.append(f"torn: the hub has step {metric.step} of rank {metric.rank}, which nobody logged")
        elif metric.values != {"value": metric.step * 0.5, "rank": metric.rank}:
            found.torn += 1
            found.findings.append(f"torn: step {metric.step} of rank {metric.rank} has {metric.values}")


def _excuse(
    found: Account,
    record: ProcessRecord,
    missing: list[tuple[int, float]],
    heard: bool,
    records: list[ProcessRecord],
    broken: Broken,
) -> None:
    """Sorts a process's missing events into excused ones and losses."""
    lost = []
    death = max(broken.killed.get(record.name, 0.0), record.last)
    for step, moment in missing:
        why, age = None, record.ran(moment)
        if record.name in broken.killed:
            if age <= FLUSH_BOUND:
                why = "not flushed"
            elif record.rank and age <= TRANSIT_BOUND and _impeded(record, moment, death, records, broken):
                why = "in transit"
            elif record.rank and not heard and _impeded(record, record.started, death, records, broken):
                why = "never answered"
        elif record.ended is None and age <= ENDING:
            why = "while ending"
        if why is None:
            lost.append((step, age))
            continue
        found.excused[why] += 1
        found.longest[why] = max(age, found.longest.get(why, 0.0))
    if lost:
        found.lost += len(lost)
        fate = "killed" if record.name in broken.killed else f"ended by {record.ended or 'a signal'}"
        found.findings.append(
            f"lost: {len(lost)} events of {record.name} (start-restart-rank-pid), {fate}, steps {lost[0][0]} to "
            f"{lost[-1][0]}, reported {lost[0][1]:.2f} to {lost[-1][1]:.2f} s before its end"
        )


def _impeded(record: ProcessRecord, since: float, until: float, records: list[ProcessRecord], broken: Broken) -> bool:
    """Whether something stood between this process and rank 0's file from `since` to DRAIN_TIME after `until`."""
    owner = next((one for one in records if _is_owner_of(one, record)), None)
    if owner is None or owner.begun is None or owner.begun > until - DRAIN_TIME:
        return True
    since, until = max(since, owner.begun), until + DRAIN_TIME
    if any(first <= until and last >= record.started for first, last in broken.relay):
        return True
    if any(first <= until and last >= since for first, last in broken.agent):
        return True
    running = [since, *(pulse for pulse in owner.pulses if since <= pulse <= until)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(running)]
    return max(gaps, default=0.0) > STOPPED or running[-1] < until - STOPPED


def _is_owner_of(one: ProcessRecord, record: ProcessRecord) -> bool:
    return one.rank == 0 and (one.start, one.restart) == (record.start, record.restart)


def _account_saves(
    found: Account, records: list[ProcessRecord], broken: dict[int, Broken], checkpoints: list[Checkpoint]
) -> None:
    seen: dict[tuple[tuple[str, str], ...], list[Checkpoint]] = defaultdict(list)
    for checkpoint in checkpoints:
        seen[checkpoint.files].append(checkpoint)
    by_files = {save.files: save for record in records for save in record.saves.values()}
    for files, copies in seen.items():
        _check_copies(found, by_files.get(files), copies)
    for record in records:
        for save in record.saves.values():
            what = f"{save.kind} of epoch {save.epoch} by {save.process} (start-restart-rank-pid)"
            if save.outcome is None:
                found.unfinished_saves += 1
            elif save.outcome == "refused":
                found.refused += 1
                fault = broken.get(record.start, Broken())
                if not record.rank or not _impeded(record, record.started, save.returned, records, fault):
                    found.lost += 1
                    found.findings.append(f"lost: {what} was refused without a reason")
            else:
                found.saves += 1
                found.saves_delivered += save.files in seen
                if save.files not in seen:
                    found.lost += 1
                    found.findings.append(f"lost: {what} returned and is not on the hub")


def _check_copies(found: Account, save: Save | None, copies: list[Checkpoint]) -> None:
    shown = ", ".join(f"{copy.kind} of epoch {copy.epoch} in {copy.model}" for copy in copies)
    if save is None:
        found.torn += len(copies)
        found.findings.append(f"torn: {shown}: its bytes are those of no save: {copies[0].files}")
    elif any((copy.kind, copy.epoch) != (save.kind, save.epoch) for copy in copies):
        found.torn += 1
        found.findings.append(f"torn: {shown} was saved as {save.kind} of epoch {save.epoch}")
    if len(copies) > 1:
        found.doubled += len(copies) - 1
        found.findings.append(f"doubled: {shown}: one save")

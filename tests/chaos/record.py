"""What a rank's process generated, by its own record: the other side of every comparison.

One file a process, one line an entry, each written by one `write` call before the next thing happens, so that a SIGKILL
leaves whole lines. Nothing in it comes from ddphub.

| line | when |
| --- | --- |
| `start <time>` | the process begins, before torch is imported |
| `begin <time>` | before `ddphub.init` |
| `log <time> <step>` | before `run.log`: it returned if another line of the main thread follows |
| `save <time> <number> <kind> <epoch> <name=sha256,...>` | the bytes are written, before the save |
| `saved <time> <number>` | the save returned and said that it took the bytes |
| `refused <time> <number>` | the save returned and said that it did not |
| `end <time> <how>` | the script has ended: `finish` returned, or the interpreter leaves by exit or exception |
| `pulse <time>` | every PULSE seconds from a thread, while the process runs: a stopped or starved process has gaps |

Times are CLOCK_MONOTONIC, which every process of a machine shares.
"""

import itertools
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PULSE = 0.05
"""Seconds between two pulses."""


class Recorder:
    """Writes the record of this process.

    Args:
        folder: where records are.
        start: which start of the job.
        restart: which restart in place of that start.
        rank: this process's rank.
    """

    def __init__(self, folder: Path, start: int, restart: int, rank: int) -> None:
        folder.mkdir(exist_ok=True)
        path = folder / f"{start}-{restart}-{rank}-{os.getpid()}"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.write("start")

    def write(self, what: str, *fields: object) -> None:
        """Writes one line."""
        line = " ".join([what, f"{time.monotonic():.4f}", *map(str, fields)])
        os.write(self._descriptor, f"{line}\n".encode())

    def pulse(self) -> None:
        """Starts the pulse."""

        def beat() -> None:
            while True:
                self.write("pulse")
                time.sleep(PULSE)

        threading.Thread(target=beat, name="pulse", daemon=True).start()


@dataclass
class Save:
    """One save by the record of the process that made it.

    Attributes:
        files: sorted (name, sha256).
        outcome: `saved`, `refused`, or None when the process did not live to say.
        returned: when it said so.
    """

    process: str
    kind: str
    epoch: int
    files: tuple[tuple[str, str], ...]
    outcome: str | None = None
    returned: float = 0.0


@dataclass
class ProcessRecord:
    """The record of one process.

    Attributes:
        logged: (step, time) of every call of `run.log` that returned.
        perhaps: steps of a call that may not have been made.
        pulses: times at which the process ran.
        ended: how the script ended, or None.
    """

    name: str
    start: int
    restart: int
    rank: int
    pid: int
    started: float = 0.0
    begun: float | None = None
    logged: list[tuple[int, float]] = field(default_factory=list)
    perhaps: set[int] = field(default_factory=set)
    saves: dict[int, Save] = field(default_factory=dict)
    pulses: list[float] = field(default_factory=list)
    ended: str | None = None
    last: float = 0.0

    def ran(self, since: float) -> float:
        """Seconds that the process ran from `since` to its last pulse, without the time it was stopped or starved."""
        times = [since, *(pulse for pulse in self.pulses if pulse > since)]
        return sum(min(later - earlier, 2 * PULSE) for earlier, later in itertools.pairwise(times))


def read_records(folder: Path) -> list[ProcessRecord]:
    """Every process's record, sorted by its start."""
    return sorted(map(_read, folder.iterdir()), key=lambda record: record.started) if folder.exists() else []


def _read(path: Path) -> ProcessRecord:
    start, restart, rank, pid = map(int, path.name.split("-"))
    record = ProcessRecord(path.name, start, restart, rank, pid)
    open_call: tuple[int, float] | None = None
    for what, moment, fields in _lines(path):
        record.last = max(record.last, moment)
        if what == "pulse":
            record.pulses.append(moment)
            continue
        if open_call:
            record.logged.append(open_call)
            open_call = None
        match what:
            case "start":
                record.started = moment
            case "begin":
                record.begun = moment
            case "log":
                open_call = (int(fields[0]), moment)
            case "save":
                files = tuple(sorted(tuple(file.split("=")) for file in fields[3].split(",")))
                record.saves[int(fields[0])] = Save(path.name, fields[1], int(fields[2]), files)
            case "saved" | "refused":
                save = record.saves[int(fields[0])]
                save.outcome, save.returned = what, moment
            case "end":
                record.ended = fields[0]
    if open_call:
        record.perhaps.add(open_call[0])
    return record


def _lines(path: Path) -> Iterator[tuple[str, float, list[str]]]:
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            what, moment, *fields = line.split()
            yield what, float(moment), fields

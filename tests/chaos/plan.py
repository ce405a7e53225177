"""What will go wrong in a run, decided before it begins: the same seed and number plan the same again."""

import json
import random
from dataclasses import asdict, dataclass

from chaos.tcp_proxy import BYTE_FAULTS, HTTP_FAULTS, LASTING, UNLIMITED

LONG = 6.5
"""Seconds of a long stop or stall: longer than a rank waits for an acknowledgement before it writes its own file."""


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        at: seconds after the first rank of a start began with ddphub; below 0: from the launch on.
        target: `hub-wire`, `relay-wire`, `rank`, `agent`, `hub` or `sync` (which is started for it).
        kind: on a wire one of `tcp_proxy`; else `kill`, `stop` (SIGSTOP, later SIGCONT), `term` or `none`.
        duration: seconds until the wire is clean, the process goes on or the hub is back.
        amount: see `tcp_proxy`; of a `sync`: seconds after its start.
        times: hits after which a wire is clean again.
        rank: of a `rank`.
    """

    at: float
    target: str
    kind: str
    duration: float = 0.0
    amount: float = 0.0
    times: int = UNLIMITED
    rank: int = 0

    def __str__(self) -> str:
        who = f"{self.target} {self.rank}" if self.target == "rank" else self.target
        hits = f", {self.times} times" if self.times < UNLIMITED else ""
        return f"{self.at:.2f} s: {who} {self.kind} for {self.duration:.2f} s, amount {self.amount:g}{hits}"


@dataclass(frozen=True)
class Plan:
    """One run: what is trained, and what goes wrong in each of its starts.

    Attributes:
        starts: the faults of each start of the job, one after another under the same run id.
        overlaps: whether a start waits for what is left of the one before it (ranks without their agent).
        late_syncs: seconds after which each `ddphub sync` after the job is killed; 0: it may end.
    """

    seed: int
    number: int
    ranks: int
    max_restarts: int
    steps: int
    epochs: int
    pause: float
    style: str
    writer: int
    size: int
    part_size: int
    inline_check_bytes: int
    ending: str
    raises: str
    finish_timeout: float
    run_id: str | None
    overlaps: bool
    starts: tuple[tuple[Fault, ...], ...]
    late_syncs: tuple[float, ...]

    def text(self) -> str:
        """The plan for a person."""
        content = {name: value for name, value in asdict(self).items() if name != "starts"}
        lines = [json.dumps(content)]
        for index, faults in enumerate(self.starts):
            lines += [f"start {index}:", *(f"  {fault}" for fault in faults)]
        return "\n".join(lines)


def make_plan(seed: int, number: int) -> Plan:
    """The plan of one run; depends on nothing but its arguments."""
    dice = random.Random(f"{seed}/{number}")
    ranks = dice.randint(2, 4)
    steps, epochs = dice.randint(25, 50), dice.randint(3, 6)
    pause = dice.uniform(0.01, 0.02)
    lasts = steps * epochs * pause
    size = int(10 ** dice.uniform(3, 6.4))
    starts = dice.choices([1, 2, 3], [65, 30, 5])[0]
    return Plan(
        seed=seed,
        number=number,
        ranks=ranks,
        max_restarts=dice.choices([0, 1, 2], [50, 35, 15])[0],
        steps=steps,
        epochs=epochs,
        pause=round(pause, 4),
        style=dice.choice(["file", "file", "context", "folder", "context-folder"]),
        writer=0 if dice.random() < 0.75 else dice.randrange(ranks),
        size=size,
        part_size=max(1024, size // dice.randint(1, 8)),
        inline_check_bytes=0 if dice.random() < 0.15 else 64 * 1024 * 1024,
        ending=dice.choice(["finish", "finish", "exit"]),
        raises=f"{dice.randrange(ranks)}:{dice.randrange(epochs)}" if dice.random() < 0.15 else "",
        finish_timeout=round(dice.uniform(1, 5), 2),
        run_id="chaos" if starts > 1 or dice.random() < 0.5 else None,
        overlaps=dice.random() < 0.5,
        starts=tuple(_faults(dice, ranks, lasts) for _ in range(starts)),
        late_syncs=tuple(round(dice.choice([0, dice.uniform(0.3, 1.5)]), 2) for _ in range(dice.choice([0, 0, 1, 2]))),
    )


def _faults(dice: random.Random, ranks: int, lasts: float) -> tuple[Fault, ...]:
    def moment(earliest: float = 0.0) -> float:
        return round(dice.uniform(earliest, lasts + 1.0), 3)

    faults = [_wire_fault(dice, "hub-wire", HTTP_FAULTS, moment(-1.0)) for _ in range(dice.choice([0, 1, 2, 3, 4]))]
    faults += [_wire_fault(dice, "relay-wire", BYTE_FAULTS, moment(-1.0)) for _ in range(dice.choice([0, 0, 1, 2, 3]))]
    for _ in range(dice.choices([0, 1, 2, 3], [25, 45, 20, 10])[0]):
        kind = dice.choices(["kill", "stop", "term"], [50, 40, 10])[0]
        target = dice.choices(["rank", "agent"], [75, 25])[0]
        duration = LONG if dice.random() < 0.1 else dice.uniform(0.2, 3)
        faults.append(Fault(moment(), target, kind, round(duration, 3), rank=dice.randrange(ranks)))
    if dice.random() < 0.3:
        kind = dice.choice(["kill", "kill", "stop"])
        faults.append(Fault(moment(), "hub", kind, round(dice.uniform(0.1, 2), 3)))
    if dice.random() < 0.35:
        kind = dice.choice(["kill", "stop", "none"])
        amount = round(dice.uniform(0.2, 1.2), 3)
        faults.append(Fault(moment(), "sync", kind, round(dice.uniform(0.2, 2), 3), amount))
    return tuple(sorted(faults, key=lambda fault: fault.at))


def _wire_fault(dice: random.Random, target: str, kinds: tuple[str, ...], at: float) -> Fault:
    kind = dice.choice(kinds)
    duration = LONG if dice.random() < 0.05 else dice.uniform(0.2, 2.5)
    if kind not in LASTING:
        duration += 2  # spent by its hits
    amount, times = 0.0, UNLIMITED
    match kind:
        case "delay":
            amount = round(dice.uniform(0.02, 0.5), 3)
        case "cut" | "truncate" | "reset":
            amount = int(10 ** dice.uniform(0, 4.5)) if dice.random() < 0.8 else 0
            times = dice.randint(1, 5)
        case "429":
            amount, times = 1, dice.randint(1, 2)
        case "stall" | "blackhole":
            pass
        case _:
            times = dice.randint(1, 6)
    return Fault(at, target, kind, round(duration, 3), amount, times)

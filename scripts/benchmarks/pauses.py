"""What a busy training thread feels while its process digests and uploads a checkpoint: a part of `stall`."""

from typing import Any, Final

from benchmarks.bench import MIB, Bench
from benchmarks.figures import DDPHUB, Aim, Figure, Outcome

ALONE: Final = "nothing going on"

LOOPS: Final = {"torch": "small torch operations", "python": "pure Python"}
"""What the training thread does -> in words."""

SIZES: Final = {"torch": (4096 * MIB, 2), "python": (512 * MIB, 2)}
QUICK: Final = {"torch": (32 * MIB, 1)}
"""Loop -> bytes of a checkpoint, rounds. Pure Python lets other threads in every 5 ms only, so an upload takes long."""

LONGEST: Final = "longest pause"
OWED: Final = "longest wait for another thread of the process"
RATE: Final = "steps a second"

_SHOWN: Final = (
    ("p99.9", "p99.9 of a step", "ms"),
    ("longest", LONGEST, "ms"),
    ("over 10 ms", "pauses over 10 ms", "a minute"),
    ("longest wait for the interpreter", OWED, "ms"),
    ("waits for the interpreter over 10 ms", "waits for another thread over 10 ms", "a minute"),
    ("times it lost its core", "times the kernel gave its core to another", "a second"),
    ("steps a second", RATE, "steps/s"),
)
"""As the worker calls it, as we do, unit."""

NOTES: Final = (
    (
        "Pauses: one process, with nothing going on and while it digests and uploads, in turn. The hub is niced "
        "and shares the cores of this machine, so a pause may be a wait for a core or the machine's own: what the "
        "thread ran (its CPU clock) and what it waited for a core (schedstat) are taken off to tell what ddphub's "
        "threads held it."
    ),
)


def measure_pauses(bench: Bench, outcome: Outcome) -> None:
    """Adds it to what `stall` found."""
    outcome.notes += NOTES
    with bench.hub("pauses-hub") as hub:
        for name, (size, rounds) in (QUICK if bench.quick else SIZES).items():
            folder = bench.folder / f"pauses-{name}"
            found: dict[str, list[dict[str, float]]] = bench.work(
                DDPHUB, "pauses", name, str(size), str(rounds), environment=bench.settings(hub, folder)
            )
            bench.say(f"{LOOPS[name]}: {_shortly(found)}")
            _add(f"{size // MIB} MiB uploaded, {LOOPS[name]}", found, outcome)


def _add(case: str, found: dict[str, list[dict[str, float]]], outcome: Outcome) -> None:
    figures = {}
    for quantity, metric, unit in _SHOWN:
        scale = 60 if unit == "a minute" else 1
        samples = {
            DDPHUB: [one[quantity] * scale for one in found["uploading"]],
            ALONE: [one[quantity] * scale for one in found["idle"]],
        }
        better: Any = "higher" if metric == RATE else "lower"
        figures[metric] = Figure(case, metric, unit, better, samples, limit=ALONE, headline=metric == LONGEST)
    outcome.figures += figures.values()
    outcome.aims.append(Aim(f"{case}: {OWED}, ms", max(figures[OWED].samples[DDPHUB]), 10))


def _shortly(found: dict[str, list[dict[str, float]]]) -> str:
    longest = [f"{one['longest']:.1f}" for one in found["uploading"]]
    return f"longest pauses {', '.join(longest)} ms"

"""The relay benchmark: how many events reach rank 0, how soon, and what rank 0 pays for them."""

from typing import Any, Final

from benchmarks.bench import MIB, Bench
from benchmarks.figures import DDPHUB, Aim, Figure, Outcome, alternate
from benchmarks.worlds import Worlds

ABOUT: Final = "events of many ranks on their way to rank 0's disk"

STORE: Final = "store"
"""The limit: the same bytes in the same batches, pushed to the job's store and popped, and not kept."""

GATHER: Final = "gather_object"

RANKS: Final = (2, 8, 64)
STEPS: Final = {2: 2000, 8: 400, 64: 40, 4: 50}
"""Of gather_object in a turn."""

RATE: Final = 110_000
"""Events a second that the ranks of ddphub log in all: a tenth above the aim."""

SECONDS: Final = 4.0
SIZE: Final = 192 * MIB
ROUNDS: Final = 2

WANTED: Final = 100_000
DELAY: Final = 2.0


def measure(bench: Bench) -> Outcome:
    """Lets the contestants take turns in worlds of each size."""
    outcome = Outcome()
    with Worlds(bench, "relay") as worlds:
        for ranks in (4,) if bench.quick else RANKS:
            _measure_world(bench, outcome, worlds, ranks)
    outcome.notes += [
        (
            f"events: the ranks but rank 0 call run.log with 5 scalars {RATE:,} times a second in all, whatever "
            "becomes of them; of 2 ranks one alone logs all that; counted by rank and step in the run's spool files"
        ),
        (
            "bytes: the ranks hand encoded events to the relay as fast as it takes them: encoding, which `log` "
            "measures, is slower than the store; ddphub writes them to disk with checksums, the store's are thrown away"
        ),
        (
            "gather_object: gloo, every step; each rank gives the same event, and is held until all have; its delay is "
            "the time of a step, which the training pays"
        ),
        (
            "rank 0 is a run on disk, so that its CPU is the relay's; the store is in a process of its own, as in "
            "torchrun's agent; ranks are processes without training, forked from one that has imported torch"
        ),
    ]
    return outcome


def _measure_world(bench: Bench, outcome: Outcome, worlds: Worlds, ranks: int) -> None:
    rate, seconds = (5000, 1.0) if bench.quick else (RATE, SECONDS)
    size = 4 * MIB if bench.quick else SIZE
    found = alternate(
        {
            DDPHUB: lambda: worlds.turn(ranks=ranks, how="events", rate=rate, seconds=seconds),
            GATHER: lambda: worlds.turn(ranks=ranks, how="gather_object", steps=STEPS[ranks]),
            f"{DDPHUB} bytes": lambda: worlds.turn(ranks=ranks, how="bytes", size=size),
            STORE: lambda: worlds.turn(ranks=ranks, how="store", size=size),
        },
        rounds=1 if bench.quick else ROUNDS,
        warm_up=0,
        left_out=outcome.left_out,
        say=bench.say,
    )
    case = f"{ranks} ranks"
    is_largest = ranks == RANKS[-1]

    def figure(metric: str, unit: str, quantity: str, contestants: dict[str, str], **more: Any) -> Figure:  # noqa: ANN401  # JSON
        samples = {shown: found[quantity][name] for shown, name in contestants.items() if name in found[quantity]}
        return Figure(case, metric, unit, samples=samples, **more)

    both = {DDPHUB: DDPHUB, GATHER: GATHER}
    moved = {DDPHUB: f"{DDPHUB} bytes", STORE: STORE}
    events = figure("events a second", "events/s", "events a second", both, better="higher", headline=is_largest)
    delay = figure("p99 of the delay", "s", "delay p99", both, headline=is_largest)
    data = figure("bytes moved", "MiB/s", "MiB/s", moved, better="higher", limit=STORE, headline=is_largest)
    outcome.figures += [
        events,
        delay,
        figure("p50 of the delay", "s", "delay p50", both),
        figure("CPU of rank 0 an event", "us", "CPU of rank 0 an event", both, headline=is_largest),
        figure("CPU of rank 0", "% of a core", "CPU of rank 0", {DDPHUB: DDPHUB}),
        data,
        figure("CPU of rank 0 an event, moving bytes", "us", "CPU of rank 0 an event", moved, limit=STORE),
    ]
    wrong = ("lost", "doubled")
    of_ours = (DDPHUB, f"{DDPHUB} bytes")
    outcome.aims += [
        Aim(f"{case}: bytes moved, by the store's limit", data.ratio(DDPHUB, STORE), 0.5, at_least=True),
        Aim(f"{case}: events a second", events.median(DDPHUB), 0.9 * rate if bench.quick else WANTED, at_least=True),
        Aim(f"{case}: p99 of the delay, s", delay.median(DDPHUB), DELAY),
        Aim(f"{case}: events lost or doubled", sum(sum(found[how][one]) for how in wrong for one in of_ours), 0),
        Aim(f"{case}: events that went by a rank's own file instead", sum(found["spilled"][DDPHUB]), 0),
    ]

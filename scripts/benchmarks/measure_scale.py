"""The scale benchmark: what rank 0 pays for worlds of up to 4,096 ranks."""

from typing import Final

from benchmarks.bench import Bench
from benchmarks.figures import DDPHUB, Aim, Figure, Outcome, alternate
from benchmarks.worlds import Worlds

ABOUT: Final = "rank 0's cost of simulated worlds of 256 to 4,096 ranks"

SIZES: Final = (256, 1024, 4096)
PACES: Final = (1, 4, 16)
"""Events a second of each rank, in the smallest world."""

ROUNDS: Final = 3
SECONDS: Final = 8.0
"""Of reporting in a turn."""

FLAT: Final = 1.25
SHARE: Final = 10.0
"""Percent of one core."""


def measure(bench: Bench) -> Outcome:
    """Lets worlds of all sizes take turns."""
    sizes, paces = ((32, 128), (1,)) if bench.quick else (SIZES, PACES)
    worlds = [(ranks, 1) for ranks in sizes] + [(sizes[0], pace) for pace in paces[1:]]
    outcome = Outcome()
    seconds = 1.0 if bench.quick else SECONDS
    with Worlds(bench, "scale") as made:
        found = alternate(
            {
                _case(ranks, pace): lambda ranks=ranks, pace=pace: made.turn(ranks=ranks, pace=pace, seconds=seconds)  # type: ignore[misc]
                for ranks, pace in worlds
            },
            rounds=1 if bench.quick else ROUNDS,
            warm_up=0,
            left_out=outcome.left_out,
            say=bench.say,
        )

    def figure(quantity: str, metric: str, unit: str, world: tuple[int, int], *, headline: bool = False) -> Figure:
        samples = {DDPHUB: found[quantity][_case(*world)]}
        return Figure(_case(*world), metric, unit, samples=samples, headline=headline)

    for world in worlds:
        is_largest = world == (sizes[-1], 1)
        outcome.figures += [
            figure("CPU of rank 0", "CPU of rank 0", "% of a core", world, headline=is_largest),
            figure("CPU of the store", "CPU of the store, in torchrun's agent", "% of a core", world),
            figure("CPU of rank 0 an event", "CPU of rank 0 an event", "us", world),
            figure("delay p99", "p99 of the delay until rank 0's spool", "s", world, headline=is_largest),
        ]

    def median(quantity: str, world: tuple[int, int]) -> float:
        return figure(quantity, "", "", world).median(DDPHUB)

    smallest, largest, busiest = (sizes[0], 1), (sizes[-1], 1), (sizes[0], paces[-1])
    cost = "CPU of rank 0 an event"
    outcome.aims += [
        Aim(
            f"linear in events: an event's CPU at {paces[-1]} events a second of {sizes[0]} ranks, by that at 1",
            median(cost, busiest) / median(cost, smallest),
            FLAT,
        ),
        Aim(
            f"flat in ranks: an event's CPU in a world of {sizes[-1]:,}, by that in one of {sizes[0]}",
            median(cost, largest) / median(cost, smallest),
            FLAT,
        ),
        Aim(f"CPU of rank 0, {_case(*largest)}, % of a core", median("CPU of rank 0", largest), SHARE),
        Aim("events lost, in all worlds", sum(map(sum, found["lost"].values())), 0),
        Aim("events doubled, in all worlds", sum(map(sum, found["doubled"].values())), 0),
    ]
    outcome.notes += [
        (
            "rank 0 is a real run on disk, so that its CPU is the relay's; the other ranks are real senders with a "
            "connection to the store each, many of them in a process, without their threads"
        ),
        "an event has 5 scalars; its delay begins with the call, up to 0.5 s before the outbox packs it",
        "the store is in a process of its own, as torchrun's agent has it; under srun rank 0 serves it, and pays both",
    ]
    if made.asks_dns:
        outcome.notes.append("torch asked DNS for the name of each connection, as `unshare` is not allowed here")
    return outcome


def _case(ranks: int, pace: int) -> str:
    return f"{ranks:,} ranks x {pace} event{'' if pace == 1 else 's'} a second"

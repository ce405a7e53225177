"""What a benchmark measured: figures with the samples of each contestant, and the aims they are held to."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

DDPHUB: Final = "ddphub"
"""The contestant that all others are compared with."""


@dataclass
class Figure:
    """One quantity, measured for several contestants in turn.

    Args:
        case: under which circumstances, as "rank 0" or "1 GiB, ext4".
        metric: what, as "p50".
        unit: as "us", "MiB/s", "steps/s".
        better: whether lower or higher is better.
        samples: contestant -> one value a round, in the order of the rounds.
        limit: the contestant that nothing can beat, as a plain copy by the kernel; None where there is none.
        headline: whether it belongs into the README's table.
        drawn_only: whether it is in no table, as it is there for a plot.
    """

    case: str
    metric: str
    unit: str
    better: Literal["lower", "higher"] = "lower"
    samples: dict[str, list[float]] = field(default_factory=dict)
    limit: str | None = None
    headline: bool = False
    drawn_only: bool = False

    def median(self, contestant: str) -> float:
        """The median of a contestant's samples."""
        return statistics.median(self.samples[contestant])

    def ratio(self, contestant: str, to: str) -> float:
        """A contestant's median by another's; infinite where that is 0."""
        base = self.median(to)
        return self.median(contestant) / base if base else float("inf")


@dataclass(frozen=True)
class Aim:
    """What ddphub should reach.

    Args:
        what: in words, with the figure: "p99 of a call on rank 0 at most 20 us".
        measured: what it is compared by.
        wanted: the aim.
        at_least: whether `measured` should be at least `wanted`; else at most.
    """

    what: str
    measured: float
    wanted: float
    at_least: bool = False

    @property
    def is_reached(self) -> bool:
        """Whether it is."""
        return self.measured >= self.wanted if self.at_least else self.measured <= self.wanted


@dataclass
class Outcome:
    """What one benchmark found."""

    figures: list[Figure] = field(default_factory=list)
    aims: list[Aim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Contestant -> why it did not take part."""

    def to_json(self) -> dict[str, Any]:
        """As `--json` writes it."""
        return {
            "figures": [asdict(figure) for figure in self.figures],
            "aims": [{**asdict(aim), "is_reached": aim.is_reached} for aim in self.aims],
            "notes": self.notes,
            "left_out": self.left_out,
        }


class LeftOut(Exception):
    """A contestant cannot take part; the message says why."""


Measured = Mapping[str, float]
"""Name of a quantity -> value, of one turn of one contestant."""


def alternate(
    contestants: Mapping[str, Callable[[], Measured]],
    *,
    rounds: int,
    warm_up: int = 1,
    left_out: dict[str, str],
    say: Callable[[str], None] = lambda _text: None,
) -> dict[str, dict[str, list[float]]]:
    """Lets the contestants take turns, A B C A B C, so that a machine that changes its pace changes it for all.

    Args:
        contestants: name -> one turn, which returns what it measured.
        rounds: turns of each that count.
        warm_up: turns of each before them, whose results are thrown away.
        left_out: gets each contestant that raised `LeftOut`, and why; it has no samples.
        say: told what goes on.

    Returns:
        Quantity -> contestant -> samples.

    Raises:
        Exception: whatever else a turn raises: a contestant that is installed and fails is a defect of the benchmark.
    """
    turns: dict[str, list[Measured]] = {name: [] for name in contestants}
    for round_number in range(-warm_up, rounds):
        for name in [name for name in contestants if name not in left_out]:
            try:
                measured = contestants[name]()
            except LeftOut as error:
                left_out[name] = str(error)
                del turns[name]
                say(f"{name} is left out: {error}")
                continue
            if round_number >= 0:
                turns[name].append(measured)
                shown = ", ".join(f"{what} {value:.4g}" for what, value in measured.items())
                say(f"round {round_number + 1} of {rounds}: {name}: {shown}")
    quantities: dict[str, dict[str, list[float]]] = {}
    for name, results in turns.items():
        for result in results:
            for what, value in result.items():
                quantities.setdefault(what, {}).setdefault(name, []).append(value)
    return quantities


def quantile(values: Sequence[float], share: float) -> float:
    """The value that a share of them does not exceed: 0.5 is the median."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]

"""Results as text: what the terminal shows, and tables in Markdown."""

from collections.abc import Iterator
from typing import Any, Final

from benchmarks.figures import DDPHUB, Figure

ORDER: Final = ("log", "step", "stall", "upload", "resume", "relay", "scale", "ingest", "sync", "exit", "start")
"""The benchmarks in the order in which they run and are shown."""


def number(value: float) -> str:
    """Three digits that count, and no more than a reader needs."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def times(ratio: float) -> str:
    """A ratio: 0.993 near 1, 180 far from it."""
    return f"{ratio:.3f}" if 0.9 <= ratio <= 1.1 else number(ratio)


def rows(figure: Figure) -> Iterator[tuple[str, str, str, str, str, str]]:
    """Contestant, median, least, most, times ddphub's, times the limit's: the best first."""
    for name in sorted(figure.samples, key=figure.median, reverse=figure.better == "higher"):
        values = figure.samples[name]
        to_limit = figure.ratio(name, figure.limit) if figure.limit in figure.samples and figure.limit else None
        to_ddphub = figure.ratio(name, DDPHUB) if DDPHUB in figure.samples else None
        yield (
            name,
            number(figure.median(name)),
            number(min(values)),
            number(max(values)),
            "" if to_ddphub is None or name == DDPHUB else f"{times(to_ddphub)} x",
            "" if to_limit is None or name == figure.limit else f"{times(to_limit)} x",
        )


def tabled(result: dict[str, Any]) -> list[Figure]:
    """The figures that tables show."""
    return [Figure(**stored) for stored in result["figures"] if not stored["drawn_only"]]


def report(name: str, result: dict[str, Any]) -> str:
    """One benchmark's result for a terminal."""
    lines = [f"== {name}: {result['about']}"]
    for figure in tabled(result):
        count = max(len(values) for values in figure.samples.values())
        lines.append(f"  {figure.case}: {figure.metric} ({figure.unit}), median of {count} (from, to)")
        width = max(len(contestant) for contestant in figure.samples)
        for contestant, median, least, most, to_ddphub, to_limit in rows(figure):
            ratios = [f"{to_ddphub} ddphub"] if to_ddphub else []
            ratios += [f"{to_limit} {figure.limit}"] if to_limit else []
            spread = f"({least}, {most})"
            lines.append(f"    {contestant:{width}}  {median:>9}  {spread:>20}  {', '.join(ratios)}")
    for aim in result["aims"]:
        sign, word = ("at least" if aim["at_least"] else "at most"), "reached" if aim["is_reached"] else "MISSED"
        lines.append(f"  aim: {aim['what']}: {number(aim['measured'])}, {sign} {number(aim['wanted'])}: {word}")
    lines += [f"  note: {note}" for note in result["notes"]]
    lines += [f"  left out: {contestant}: {why}" for contestant, why in result["left_out"].items()]
    return "\n".join(line.rstrip() for line in lines)


def headlines(results: dict[str, Any]) -> list[str]:
    """The README's table: a line for each headline figure."""
    lines = ["| | what | ddphub | limit | others |", "| --- | --- | --- | --- | --- |"]
    for name in (name for name in ORDER if name in results):
        for stored in results[name]["figures"]:
            figure = Figure(**stored)
            if not figure.headline or DDPHUB not in figure.samples:
                continue
            # The limit may have been measured in two ways.
            limit = figure.limit or " "
            others = [one for one in figure.samples if one != DDPHUB and not one.startswith(limit)]
            cells = [
                name,
                f"{figure.case}: {figure.metric}",
                f"**{number(figure.median(DDPHUB))} {figure.unit}**",
                _beside(figure, figure.limit) if figure.limit in figure.samples and figure.limit else "",
                ", ".join(_beside(figure, one) for one in others),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _beside(figure: Figure, contestant: str) -> str:
    """A contestant's median, and how many times ddphub's it is."""
    return f"{contestant} {number(figure.median(contestant))} ({times(figure.ratio(contestant, DDPHUB))} x)"


def aims(results: dict[str, Any]) -> list[str]:
    """The table of aims."""
    lines = ["| | aim | wanted | measured | |", "| --- | --- | --- | --- | --- |"]
    for name in (name for name in ORDER if name in results):
        for aim in results[name]["aims"]:
            wanted = f"at {'least' if aim['at_least'] else 'most'} {number(aim['wanted'])}"
            verdict = "reached" if aim["is_reached"] else "**missed**"
            lines.append(f"| {name} | {aim['what']} | {wanted} | {number(aim['measured'])} | {verdict} |")
    return lines

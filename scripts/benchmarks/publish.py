"""Puts figures into the documentation: README's table and docs/benchmarks.md, made of docs/benchmarks/figures.json.

What is written is a function of that file alone, so a test can hold the documents to it.
"""

import json
from pathlib import Path
from typing import Any, Final

from benchmarks import text
from benchmarks.figures import Figure

ROOT: Final = Path(__file__).parents[2]
FIGURES: Final = ROOT / "docs" / "benchmarks" / "figures.json"
PAGE: Final = ROOT / "docs" / "benchmarks.md"
README: Final = ROOT / "README.md"

BEGIN: Final = "<!-- scripts/bench --publish writes from here -->\n"
END: Final = "<!-- to here -->\n"

PLOTS: Final = {"log": "log.png", "stall": "stall.png", "upload": "upload.png", "scale": "scale.png"}
"""Benchmark -> its picture in docs/benchmarks/."""


def publish(results: dict[str, Any]) -> None:
    """Writes the page, the README's table and the figures; a benchmark that was not run keeps its earlier figures."""
    stored = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    merged = {**stored, **results}
    FIGURES.parent.mkdir(parents=True, exist_ok=True)
    FIGURES.write_text(json.dumps(merged, indent=1) + "\n")
    PAGE.write_text(page(merged))
    README.write_text(with_table(README.read_text(), merged))


def with_table(readme: str, results: dict[str, Any]) -> str:
    """The README with its table renewed."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md has no place for the table: {BEGIN.strip()} ... {END.strip()}")
    return before + begin + "\n".join(text.headlines(results)) + "\n" + end + after


def page(results: dict[str, Any]) -> str:
    """docs/benchmarks.md."""
    lines = [
        "# Benchmarks",
        "",
        "Made by `scripts/bench --publish`; do not edit. Contestants take turns in one run on one machine: the ratios",
        "hold, the seconds are this machine's. The columns ddphub and limit say how many times ddphub's median, and",
        "the limit's, a contestant's is. All samples: [benchmarks/figures.json](benchmarks/figures.json).",
        "",
        "## Aims",
        "",
        *text.aims(results),
    ]
    for name, result in sorted(results.items(), key=lambda item: text.ORDER.index(item[0])):
        lines += ["", f"## {name}", "", result["about"], ""]
        if name in PLOTS:
            lines += [f"![{name}](benchmarks/{PLOTS[name]})", ""]
        lines += [f"Measured with {_machine(result['machine'])}.", ""]
        for figure in text.tabled(result):
            lines += [*_table(figure), ""]
        lines += [f"- {note}" for note in result["notes"]]
        lines += [f"- Left out: {contestant}: {why}" for contestant, why in result["left_out"].items()]
    return "\n".join(lines).rstrip() + "\n"


def _machine(machine: dict[str, Any]) -> str:
    return (
        f"ddphub {machine['ddphub']}, Python {machine['python']}, torch {machine['torch']} on {machine['cores']} cores "
        f"({machine['processor']}), {machine['memory_gib']} GiB, {machine['file_system']}, Linux {machine['kernel']}; "
        f"{', '.join(machine['contestants'])}"
    )


def _table(figure: Figure) -> list[str]:
    lines = [
        f"**{figure.case}: {figure.metric}** ({figure.unit}, {figure.better} is better)",
        "",
        "| | median | from | to | ddphub | limit |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, median, least, most, to_ddphub, to_limit in text.rows(figure):
        lines.append(f"| {name} | {median} | {least} | {most} | {to_ddphub} | {to_limit} |")
    return lines

"""Draws results, which come as JSON on standard input, into a folder: log, stall, upload and scale."""

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

OURS = "#0b6e4f"
"""The colour of ddphub; the limit is black, the others take theirs in turn."""

OTHERS = ("#c1440e", "#1f6fb2", "#8e5ea2", "#b58900", "#5c5c5c", "#d36ba6", "#6aa84f")

Figures = list[dict[str, Any]]


def colours(figures: Figures) -> dict[str, str]:
    """Contestant -> its colour, the same in every part of a picture."""
    limits = {figure["limit"] for figure in figures}
    names = list(dict.fromkeys(name for figure in figures for name in figure["samples"]))
    others = [name for name in names if not name.startswith("ddphub") and name not in limits]
    chosen = {name: OTHERS[index % len(OTHERS)] for index, name in enumerate(others)}
    return {name: OURS if name.startswith("ddphub") else chosen.get(name, "black") for name in names}


def median(figure: dict[str, Any], name: str) -> float:
    """The median of a contestant's samples."""
    return float(statistics.median(figure["samples"][name]))


def mebibytes(case: str) -> float | None:
    """The size that a case names, in MiB."""
    found = re.search(r"([\d.]+) (MiB|GiB)", case)
    return None if found is None else float(found[1]) * (1024 if found[2] == "GiB" else 1)


def save(figure: Any, path: Path) -> None:  # noqa: ANN401  # the library has no types here
    """Writes a picture that is readable on white and on black pages."""
    figure.tight_layout()
    figure.savefig(path, dpi=110, facecolor="white", metadata={"Software": None})
    plt.close(figure)


def draw_log(figures: Figures, path: Path) -> None:
    """The distribution of a call: a line for each contestant, its quantiles from left to right."""
    shown = [one for one in figures if one["case"] == figures[0]["case"]]
    shown.sort(key=lambda one: float(one["metric"].split()[0].lstrip("p").replace("max", "100")))
    colour = colours(shown)
    figure, axes = plt.subplots(figsize=(8, 4.6))
    for name in colour:
        points = [(one["metric"].split()[0], median(one, name)) for one in shown if name in one["samples"]]
        ours = name.startswith("ddphub")
        axes.plot(
            *zip(*points, strict=True), color=colour[name], label=name, marker="o", linewidth=2.4 if ours else 1.4
        )
    axes.set(yscale="log", ylabel="microseconds", title=f"One logging call of 5 scalars, {shown[0]['case']}")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    save(figure, path)


def draw_stall(figures: Figures, path: Path) -> None:
    """Seconds that a save holds the training thread by the checkpoint's size: a panel for each file system."""
    panels: dict[str, Figures] = {}
    for one in figures:
        if found := re.fullmatch(r"[\d.]+ [MG]iB, (\S+)", one["case"]):
            panels.setdefault(found[1], []).append(one)
    colour = colours([one for panel in panels.values() for one in panel])
    figure, all_axes = plt.subplots(1, len(panels), figsize=(10, 4.6), sharey=True, squeeze=False)
    for axes, (kind, shown) in zip(all_axes[0], panels.items(), strict=True):
        sizes = [mebibytes(one["case"]) for one in shown]
        for name in colour:
            points = [
                (size, median(one, name)) for size, one in zip(sizes, shown, strict=True) if name in one["samples"]
            ]
            if points:
                ours = name.startswith("ddphub")
                width = 2.4 if ours else 1.4
                axes.plot(*zip(*points, strict=True), color=colour[name], label=name, marker="o", linewidth=width)
        axes.set(xscale="log", yscale="log", xlabel="MiB", title=f"A save holds the training thread: {kind}")
        axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axes.minorticks_off()
        axes.grid(visible=True, which="major", alpha=0.3)
    all_axes[0][0].set_ylabel("seconds")
    all_axes[0][0].legend(fontsize=8)
    save(figure, path)


def draw_upload(figures: Figures, path: Path) -> None:
    """Throughput of an upload: bars for each circumstance."""
    shown = [one for one in figures if one["metric"] == "throughput"]
    colour = colours(shown)
    figure, all_axes = plt.subplots(1, len(shown), figsize=(3.2 * len(shown), 3.6), squeeze=False)
    for axes, one in zip(all_axes[0], shown, strict=True):
        names = sorted(one["samples"], key=lambda name: median(one, name))
        axes.barh(names, [median(one, name) for name in names], color=[colour[name] for name in names])
        axes.set(xlabel=one["unit"])
        axes.set_title(one["case"].replace(", ", ",\n", 1), fontsize=9)
    save(figure, path)


def draw_scale(figures: Figures, path: Path) -> None:
    """What is measured by the number of ranks: a panel for each quantity, from 0, so that flat looks flat."""
    panels: dict[str, list[tuple[int, float]]] = {}
    for one in figures:
        if (found := re.match(r"([\d,]+) ranks", one["case"])) and "ddphub" in one["samples"]:
            pace = one["case"][found.end() :].strip()
            about = f"{one['metric']}, {one['unit']}\n(ranks {pace})"
            panels.setdefault(about, []).append((int(found[1].replace(",", "")), median(one, "ddphub")))
    panels = {about: points for about, points in panels.items() if len(points) > 2}
    rows = -(-len(panels) // 2)
    figure, all_axes = plt.subplots(rows, 2, figsize=(9, 3.2 * rows), squeeze=False)
    for axes, (about, points) in zip(all_axes.flat, panels.items(), strict=False):
        axes.plot(*zip(*points, strict=True), color=OURS, marker="o", linewidth=2.4)
        axes.set(xlabel="ranks", xscale="log", ylim=(0, 1.3 * max(value for _, value in points)))
        axes.set_title(about, fontsize=9)
        axes.set_xticks([ranks for ranks, _ in points], [f"{ranks:,}" for ranks, _ in points])
        axes.minorticks_off()
        axes.grid(visible=True, which="major", alpha=0.3)
    save(figure, path)


DRAWN: Final = {"log": draw_log, "stall": draw_stall, "upload": draw_upload, "scale": draw_scale}


def main() -> None:
    """Entry point."""
    results = json.load(sys.stdin)
    for name, draw in DRAWN.items():
        if name in results:
            draw(results[name]["figures"], Path(sys.argv[1]) / f"{name}.png")


if __name__ == "__main__":
    main()

"""Measures ddphub beside what people use today, in turn in one run on one machine, so that the ratios hold.

    scripts/bench                              all benchmarks; about half an hour
    scripts/bench --only log --only stall      some
    scripts/bench --quick                      each one small, under a minute: shows that it works, not how fast
    scripts/bench --json FILE --plot FOLDER    keeps the figures, and draws them
    scripts/bench --publish                    ... and writes them into README.md and docs/

Medians, from-to and ratios are printed; figures of two runs, or of two machines, do not compare. Exit code 1: a
benchmark failed. A missed aim is told, and is no failure.
"""

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, cast

from benchmarks import machine, publish, text
from benchmarks.bench import WORKERS, Bench
from benchmarks.contestants import install, python_of
from benchmarks.figures import LeftOut, Outcome


class Benchmark(Protocol):
    """A module of this package: measure_log and so on."""

    ABOUT: str

    def measure(self, bench: Bench) -> Outcome:
        """Runs it."""


def main() -> int:
    """Entry point; the exit code."""
    options = parse()
    where = machine.describe(Path(options.dir or tempfile.gettempdir()))
    print(json.dumps(where), flush=True)
    if not options.installed:
        install()
    names = options.only or text.ORDER
    if options.quick and len(names) > 1:
        results, failed = run_at_once(names, options)
    else:
        results, failed = run(names, options, where)
    if options.publish:
        publish.publish(results)
    if options.publish or options.plot:
        draw(results, options.plot or publish.FIGURES.parent)
    if failed:
        print(f"failed, see above: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run(names: Sequence[str], options: argparse.Namespace, where: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Runs benchmarks one after the other: their results, and which failed."""
    failed: list[str] = []
    results: dict[str, Any] = {}
    for name in names:
        benchmark = cast("Benchmark", importlib.import_module(f"benchmarks.measure_{name}"))
        print(f"{name}: {benchmark.ABOUT}", file=sys.stderr, flush=True)
        try:
            with tempfile.TemporaryDirectory(prefix=f"ddphub-bench-{name}-", dir=options.dir) as folder:
                outcome = benchmark.measure(Bench(Path(folder).resolve(), options.quick))
        except Exception:  # noqa: BLE001  # the others are measured nevertheless
            traceback.print_exc()
            failed.append(name)
            continue
        results[name] = {"about": benchmark.ABOUT, "machine": where, **outcome.to_json()}
        print(text.report(name, results[name]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    return results, failed


def run_at_once(names: Sequence[str], options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Runs quick benchmarks some at a time, each in a process of its own: they mostly wait for programs to start."""
    with tempfile.TemporaryDirectory(prefix="ddphub-bench-", dir=options.dir) as folder, ThreadPoolExecutor(3) as pool:

        def one(name: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "benchmarks", "--quick", "--installed", "--only", name]
            place = ["--json", f"{folder}/{name}.json", "--dir", folder]
            return subprocess.run([*command, *place], capture_output=True, text=True, check=False)

        done = dict(zip(names, pool.map(one, names), strict=True))
        for process in done.values():
            print(process.stdout, flush=True)
            if process.returncode:
                print(process.stderr, file=sys.stderr, flush=True)
        failed = [name for name, process in done.items() if process.returncode]
        results: dict[str, Any] = {}
        for name in names:
            if name not in failed:
                results |= json.loads(Path(folder, f"{name}.json").read_text())
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return results, failed


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=text.ORDER, metavar="NAME", help=", ".join(text.ORDER))
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where all samples are written")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="where PNG files are drawn")
    parser.add_argument("--publish", action="store_true", help="writes README.md's table, docs/benchmarks.md and plots")
    parser.add_argument("--installed", action="store_true", help="leaves out contestants that are not installed yet")
    parser.add_argument("--dir", type=Path, help="where to write meanwhile, 16 GiB at most; default: a temporary place")
    options = parser.parse_args()
    if options.publish and options.quick:
        parser.error("--quick measures nothing that is worth publishing")
    return options


def draw(results: dict[str, Any], folder: Path) -> None:
    """Draws the plots of the benchmarks that have one, in the environment with the library for it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        python = python_of("matplotlib")
    except LeftOut as error:
        print(f"no plots: {error}", file=sys.stderr)
        return
    subprocess.run(
        [str(python), str(WORKERS / "plots.py"), str(folder)], input=json.dumps(results), text=True, check=True
    )


if __name__ == "__main__":
    sys.exit(main())

"""A crash at every step: each scenario runs again and again, killed before its first call, its second, its third...

Which calls count, and how a process is stopped at one, is in `every_step_calls`; what runs, in `scenarios`; what must
hold afterwards, in `every_step_checks`. A scenario is over when it has run to its end without coming to the k-th call,
twice, because threads do not make quite the same number of calls each time.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from chaos.every_step_calls import missing

AT_ONCE = 2
MOST = 3000
"""Calls of one scenario that are tried: none makes as many."""


@dataclass
class Result:
    """One crash point.

    Attributes:
        scenario: its name.
        number: which call, from 1.
        killed_at: that call, with its file; None when the process ended before it.
        calls: the names of all calls, when the process was left alone.
        problem: what was lost, doubled, torn or left; None when all is well.
        folder: what lies there, when there is a problem.
        seconds: how long it took.
    """

    scenario: str
    number: int
    killed_at: str | None
    calls: list[str]
    problem: str | None
    folder: str
    seconds: float

    @property
    def reason(self) -> str:
        """The problem in one line."""
        return (self.problem or "").strip().rpartition("\n")[2]


class Worker:
    """A process that makes points happen, one at a time."""

    def __init__(self, folder: Path) -> None:
        tests = Path(__file__).parents[1]
        paths = os.pathsep.join(filter(None, [str(tests), os.environ.get("PYTHONPATH")]))
        folder.mkdir()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "chaos.every_step_worker", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=tests.parent,
            env={**os.environ, "PYTHONPATH": paths},
        )

    def happen(self, scenario: str, number: int) -> Result:
        """Kill a scenario before its `number`-th call; 0: leave it alone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"scenario": scenario, "number": number}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended with {self._process.wait()}")
        return Result(scenario=scenario, number=number, **json.loads(line))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(150)
        self._process.stdout.close()


@dataclass
class Plan:
    """Hands out points, one scenario after the other; thread-safe."""

    names: list[str]
    _number: int = 0
    _unharmed: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        while True:
            with self._lock:
                if self.names and (self._unharmed[self.names[0]] >= 2 or self._number >= MOST):
                    self.names, self._number = self.names[1:], 0
                if not self.names:
                    return
                self._number += 1
                point = self.names[0], self._number
            yield point

    def take(self, result: Result) -> None:
        """Learn whether the scenario is over."""
        if result.killed_at is None and result.number:
            with self._lock:
                self._unharmed[result.scenario] += 1


def every_point(names: list[str], folder: Path, tell: Callable[[Result], None]) -> list[Result]:
    """Every crash point of the scenarios, AT_ONCE at a time."""
    plan = Plan(list(names))
    results: list[Result] = []

    def work(number: int) -> None:
        with Worker(folder / str(number)) as worker:
            for scenario, step in plan:
                result = worker.happen(scenario, step)
                plan.take(result)
                results.append(result)
                tell(result)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for future in [pool.submit(work, number) for number in range(AT_ONCE)]:
            future.result()
    return results


def sample(names: list[str], count: int, folder: Path) -> list[Result]:
    """Each scenario left alone, and killed at `count` of its calls, evenly spread; one at a time."""
    results: list[Result] = []
    with Worker(folder / "worker") as worker:
        for name in names:
            whole = worker.happen(name, 0)
            made = len(whole.calls)
            numbers = sorted({1 + (2 * index + 1) * made // (2 * count) for index in range(count)})
            results += [whole, *(worker.happen(name, number) for number in numbers)]
    return results


def table(results: list[Result]) -> str:
    """The account, one scenario a line."""
    from chaos.scenarios import SCENARIOS

    rows: list[tuple[str, ...]] = [("process", "scenario", "points", "outcome", "calls")]
    for name in dict.fromkeys(result.scenario for result in results):
        own = [result for result in results if result.scenario == name]
        killed = [result.killed_at.partition(" ")[0] for result in own if result.killed_at]
        wrong = [result for result in own if result.problem]
        calls = ", ".join(f"{count} {call}" for call, count in Counter(killed).most_common())
        outcome = f"{len(wrong)} FAILED" if wrong else "all recovered"
        rows.append((SCENARIOS[name].process, f"{name}: {SCENARIOS[name].about}", str(len(killed)), outcome, calls))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join([*map(str.ljust, row[:4], widths), row[4]]).rstrip() for row in rows]
    total = sum(result.killed_at is not None for result in results)
    lines.append(f"{total} crash points, {sum(result.problem is not None for result in results)} failed")
    return "\n".join(lines)


def show(result: Result) -> None:
    """Say at once what went wrong, and now and then how far it is."""
    if result.number % 50 == 0:
        print(f"{result.scenario} #{result.number}", flush=True)
    if result.problem:
        where = result.killed_at or "left alone"
        print(f"{result.scenario} #{result.number} ({where}): {result.reason}\n  see {result.folder}", flush=True)


def main(only: list[str]) -> int:
    """Every crash point; prints the table.

    Args:
        only: scenarios whose names hold one of these; all by default.

    Returns:
        The exit code: 0 when everything recovered.
    """
    if reason := missing():
        print(reason)
        return 1
    from chaos.scenarios import SCENARIOS

    names = [name for name in SCENARIOS if not only or any(part in name for part in only)]
    if not names:
        print(f"no such scenario; there are: {'; '.join(SCENARIOS)}")
        return 1
    folder = Path(tempfile.mkdtemp(prefix="ddphub-every-step-"))
    started = time.monotonic()
    results = every_point(names, folder, show)
    print(table(results))
    print(f"{time.monotonic() - started:.0f} s")
    if any(result.problem for result in results):
        return 1
    shutil.rmtree(folder)
    return 0

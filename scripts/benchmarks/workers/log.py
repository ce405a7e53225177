"""Times single logging calls, as a training thread sees them.

    log.py CONTESTANT REPORTER SECONDS

Two paces: blocks of calls with pauses between them, where code and data are in the processor's caches, and one call
after each step of computing, where the step has driven them out. REPORTER "deque.append" reports nothing.
"""

import importlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from reporters import REPORTERS, Log

Block = Callable[[int], list[int]]
"""A number of calls -> nanoseconds of each."""

BLOCK: Final = 200
PAUSE: Final = 0.05
"""Calls of a block, and seconds between two blocks."""

STEP: Final = 0.005
"""Seconds of computing before a call."""

SCALARS: Final = {"train/loss": 0.25, "train/accuracy": 0.5, "lr": 1e-3, "grad_norm": 1.5, "throughput": 1024}
ROWS: Final = [{**SCALARS, "train/loss": 0.25 + turn / 64} for turn in range(64)]


def calls_of(log: Log) -> Block:
    """Times a reporter's function; the clock's own cost, some 0.05 us, is in it."""
    steps = iter(range(10**9))
    clock = time.perf_counter_ns

    def block(count: int) -> list[int]:
        taken = []
        for _ in range(count):
            step = next(steps)
            values = ROWS[step % 64]
            started = clock()
            log(values, step=step)
            taken.append(clock() - started)
        return taken

    return block


def appends() -> Block:
    """The same of an append: what a call costs that only remembers what it was given."""
    gathered: deque[Any] = deque(maxlen=10_000)
    append = gathered.append
    steps = iter(range(10**9))
    clock = time.perf_counter_ns

    def block(count: int) -> list[int]:
        taken = []
        for _ in range(count):
            values = ROWS[next(steps) % 64]
            started = clock()
            append(values)
            taken.append(clock() - started)
        return taken

    return block


def in_blocks(blocks: list[Block], seconds: float) -> list[list[int]]:
    """Blocks of each in turn, with pauses."""
    taken: list[list[int]] = [[] for _ in blocks]
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for number, block in enumerate(blocks):
            time.sleep(PAUSE)
            taken[number] += block(BLOCK)
    return taken


def after_steps(blocks: list[Block], seconds: float) -> list[list[int]]:
    """One call of each in turn after a step of matrix products."""
    taken: list[list[int]] = [[] for _ in blocks]
    weights = np.ones((300, 300), dtype=np.float32)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for number, block in enumerate(blocks):
            step_ends = time.monotonic() + STEP
            while time.monotonic() < step_ends:
                weights @ weights
            taken[number] += block(1)
    return taken


def main(reporter: str, seconds: float) -> None:
    """Prints {what was called: {pace: [nanoseconds]}}."""
    if seconds >= 1:
        importlib.import_module("torch")  # as a training has, with all its objects in the garbage collector's view
    measured = {"deque.append": appends()}
    one = REPORTERS["no reporting"]()
    if reporter != "deque.append":
        one = REPORTERS[reporter]()
        # An append beside ours shows what its threads do to any call.
        measured = {**(measured if reporter == "ddphub" else {}), reporter: calls_of(one.log)}
    blocks = list(measured.values())
    in_blocks(blocks, seconds / 8)  # warms up
    paces = {"blocks": in_blocks(blocks, seconds / 2), "steps": after_steps(blocks, seconds / 2)}
    one.finish()
    calls = {what: {pace: taken[number] for pace, taken in paces.items()} for number, what in enumerate(measured)}
    print(json.dumps(calls), flush=True)
    os._exit(0)  # a contestant prints more when the interpreter exits, behind the line that is read


if __name__ == "__main__":
    main(sys.argv[2], float(sys.argv[3]))

"""A busy training thread in `stall`: how long its steps take while the same process digests and uploads a checkpoint.

    pauses.py ddphub LOOP SIZE ROUNDS

LOOP is "python", which computes nothing and holds the interpreter, or "torch", which does small operations. Each round
runs it with nothing going on, then until a checkpoint of SIZE bytes is on the hub. A step that took 1 ms or longer is
looked into: what of it the thread ran, what it waited for a core (the kernel counts that), and the rest: it waited for
the interpreter, that is for another thread of this process.
"""

import importlib
import json
import os
import resource
import secrets
import sys
import time
from array import array
from collections.abc import Callable
from typing import Any, Final

LONG: Final = 1_000_000
"""Nanoseconds of a step that is looked into."""

LOOK: Final = 50_000_000
"""Nanoseconds between two looks at the clock of the waits for a core, and at what goes on."""

MIB: Final = 1024 * 1024


def python_step() -> Callable[[], None]:
    """About 5 us in which no other thread of the process gets the interpreter by itself."""
    clock = time.perf_counter_ns

    def step() -> None:
        for _ in range(100):
            clock()

    return step


def torch_step() -> Callable[[], None]:
    """Two operations on small tensors, which let the interpreter go meanwhile."""
    torch: Any = importlib.import_module("torch")
    weights = torch.randn(64, 64) / 8
    state = [torch.randn(64, 64)]

    def step() -> None:
        with torch.no_grad():
            state[0] = torch.tanh(state[0] @ weights)

    return step


def loop(step: Callable[[], None], is_over: Callable[[float], bool]) -> dict[str, float]:
    """Steps until it is over, which is asked now and then with the seconds since the start; what they took."""
    steps = array("Q")
    interpreter: list[float] = []
    clock, ran = time.perf_counter_ns, time.thread_time_ns
    switches = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
    with open(f"/proc/self/task/{os.getpid()}/schedstat", "rb", buffering=0) as schedstat:  # noqa: PTH123

        def waited() -> int:
            """Nanoseconds that this thread could run and had no core (sched-stats.rst, field 2)."""
            schedstat.seek(0)
            return int(schedstat.read().split()[1])

        core = waited()
        begin = last = looked = clock()
        last_ran = begin_ran = ran()
        while True:
            step()
            now, now_ran = clock(), ran()
            taken = now - last
            steps.append(taken)
            if taken >= LONG or now - looked >= LOOK:
                now_core = waited()
                if taken >= LONG:
                    interpreter.append(max(0, taken - (now_ran - last_ran) - (now_core - core)) / 1e6)
                core, looked = now_core, now
                if is_over((now - begin) / 1e9):
                    break
                now, now_ran = clock(), ran()
            last, last_ran = now, now_ran
    ordered = sorted(steps)
    seconds = sum(steps) / 1e9
    return {
        "seconds": seconds,
        "steps a second": len(steps) / seconds,
        "p99.9": ordered[len(ordered) * 999 // 1000] / 1e6,
        "longest": ordered[-1] / 1e6,
        "over 10 ms": sum(taken > 10_000_000 for taken in steps) / seconds,
        "longest wait for the interpreter": max(interpreter, default=0.0),
        "waits for the interpreter over 10 ms": sum(wait > 10 for wait in interpreter) / seconds,
        "share of the thread's time on a core": (last_ran - begin_ran) / 1e9 / seconds,
        "times it lost its core": (resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw - switches) / seconds,
    }


def main() -> None:
    """Entry point."""
    name, size, rounds = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    step = {"python": python_step, "torch": torch_step}[name]()
    ddphub = importlib.import_module("ddphub")
    run = ddphub.init(project="bench", name=f"pauses-{name}", rate_limits={"ckpt": 0}, console="off", system_interval=0)
    staging = f"{os.environ['DDPHUB_DIR']}/{run.id}/staging"

    def is_uploaded(seconds: float) -> bool:
        if seconds > 600:
            raise RuntimeError("the checkpoint does not arrive")
        return not any(len(entry) == 32 for entry in os.listdir(staging))  # noqa: PTH208  # names are enough

    loop(step, lambda seconds: seconds > 0.5)
    idle, busy = [], []
    for turn in range(rounds):
        idle.append(loop(step, lambda seconds: seconds > min(10.0, size / 256 / MIB)))
        block = secrets.token_bytes(16 * MIB)
        with run.checkpoint(epoch=turn) as path, path.open("wb") as file:
            for _ in range(0, size, len(block)):
                file.write(block)
        busy.append(loop(step, is_uploaded))
    run.finish()
    print(json.dumps({"idle": idle, "uploading": busy}))


if __name__ == "__main__":
    main()

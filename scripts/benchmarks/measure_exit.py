"""Time from the last step of a training to the end of its process, when nothing is left to send."""

import contextlib
import json
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import IO, Final

from benchmarks.bench import Bench, Hub
from benchmarks.figures import DDPHUB, Aim, Figure, LeftOut, Measured, Outcome, alternate
from benchmarks.mlflow_server import QUIET, mlflow_server
from benchmarks.quickly import at_once
from ddphub.reading.hub import Hub as Reader

ABOUT: Final = "time from the last step to the end of the process, with nothing left to send"

LIMIT: Final = "no reporting"
AIM: Final = 1.0
"""Seconds."""

CASES: Final = {1: "one process", 2: "2 ranks, until both are gone"}
STEPS: Final = 50
PATIENCE: Final = 60.0
"""Seconds for a process to come so far."""

NOTES: Final = (
    (
        "every process has imported torch, whose own end is part of the time, as it is of the limit's; ddphub and "
        "mlflow have everything on their servers when the clock starts, wandb is offline and has nothing to send"
    ),
    "each finishes as its documentation says: run.finish(), mlflow.end_run(); the interpreter's exit is counted",
    (
        "2 ranks: two plain processes, as srun starts them; wandb and mlflow report from one of them only, and have no "
        "figure of their own there"
    ),
)


def measure(bench: Bench) -> Outcome:
    """A new process for each turn; two for our second case."""
    outcome = Outcome(notes=list(NOTES))
    with contextlib.ExitStack() as stack:
        hub = stack.enter_context(bench.hub())
        turns: dict[str, Callable[[], Measured]] = {
            LIMIT: partial(_alone, bench, DDPHUB, LIMIT, {}, CASES.values()),
            DDPHUB: partial(_ours, bench, hub),
            "wandb": partial(_alone, bench, "wandb", "wandb", {}, [CASES[1]]),
        }
        if bench.quick:
            del turns[LIMIT]  # our own run as two ranks shows all that it would
            turns = stack.enter_context(at_once(turns))
            outcome.left_out["mlflow"] = "its server starts too slowly for --quick"
        else:
            try:
                settings = {"MLFLOW_TRACKING_URI": stack.enter_context(mlflow_server(bench))}
                turns["mlflow"] = partial(_alone, bench, "mlflow", "mlflow", settings, [CASES[1]])
            except LeftOut as error:
                outcome.left_out["mlflow"] = str(error)
        rounds = 1 if bench.quick else 5
        measured = alternate(turns, rounds=rounds, warm_up=0, left_out=outcome.left_out, say=bench.say)
    for case in CASES.values():
        figure = Figure(case, "last step to exit", "s", "lower", dict(measured[case]), LIMIT, headline=True)
        outcome.figures.append(figure)
        if DDPHUB in figure.samples:
            outcome.aims.append(Aim(f"{case}: last step to exit, s", figure.median(DDPHUB), AIM))
    return outcome


def _alone(bench: Bench, contestant: str, reporter: str, settings: Mapping[str, str], cases: Iterable[str]) -> Measured:
    taken = _exit(bench, contestant, reporter, [{**QUIET, **settings}], lambda: None)
    return dict.fromkeys(cases, taken)


def _ours(bench: Bench, hub: Hub) -> Measured:
    """Alone, and as two ranks of one run; for --quick as two ranks only."""
    measured = {}
    for world_size, case in CASES.items():
        if bench.quick and world_size == 1:
            continue
        run_id = f"exit-{secrets.token_hex(4)}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launched = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        settings = bench.settings(hub, bench.folder / "runs", DDPHUB_RUN_ID=run_id, **launched)
        ranks = [{**settings, "RANK": str(rank)} for rank in range(world_size)]
        measured[case] = _exit(bench, DDPHUB, DDPHUB, ranks, partial(_await_delivery, hub, run_id, world_size))
    return measured


def _exit(
    bench: Bench,
    contestant: str,
    reporter: str,
    environments: Sequence[Mapping[str, str]],
    await_delivery: Callable[[], None],
) -> float:
    """Seconds from the last step of the last process to the end of the last."""
    said = bench.folder / f"exit-{contestant}.log"
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(said.open("wb"))
        command = bench.command(contestant, "exit", reporter, str(STEPS))
        processes: list[subprocess.Popen[str]] = []
        for one in environments:
            process = subprocess.Popen(
                command,
                env=bench.environment(**one),
                cwd=bench.folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            stack.callback(_end, process)
            processes.append(process)
        for process in processes:
            if not any(line.rstrip().endswith("logged") for line in _lines(process)):
                raise RuntimeError(f"{contestant} ended early: {said.read_text()[-2000:]}")
        await_delivery()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            # Popen's own wait with a timeout looks every 50 ms only.
            timer = threading.Timer(PATIENCE, process.kill)
            timer.start()
            stack.callback(timer.cancel)
        for process in processes:
            process.wait()
        ended = time.clock_gettime(time.CLOCK_MONOTONIC)
        last_steps: list[float] = [
            json.loads(line)["last_step"] for process in processes for line in _lines(process) if "last_step" in line
        ]
        if any(process.returncode for process in processes):
            raise RuntimeError(f"{contestant} failed: {said.read_text()[-2000:]}")
    return ended - max(last_steps)


def _lines(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.communicate()


def _await_delivery(hub: Hub, run_id: str, world_size: int) -> None:
    """Waits until the hub has every step of every rank."""
    until = time.monotonic() + PATIENCE
    with Reader(hub.url, hub.key) as reader:
        while time.monotonic() < until:
            for model in reader.models(search=run_id):
                steps = {(one["rank"], one["step"]) for one in model.metrics("loss")}
                if len(steps) == world_size * STEPS:
                    return
            time.sleep(0.1)
    raise RuntimeError(f"the hub has not got every step of {run_id}")

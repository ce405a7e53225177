"""The step benchmark: what reporting takes from a training's steps a second."""

import contextlib
import json
import os
import signal
import statistics
import subprocess
from functools import partial
from typing import TYPE_CHECKING, Final, cast

from benchmarks.bench import WORKERS, Bench
from benchmarks.contestants import python_of
from benchmarks.figures import DDPHUB, Aim, Figure, Outcome, alternate
from benchmarks.mlflow_server import QUIET, mlflow_server

if TYPE_CHECKING:
    from collections.abc import Callable

ABOUT: Final = "steps a second of a small DDP training on 2 ranks that logs every step and saves every epoch"

LIMIT: Final = "no reporting"
GONE: Final = "ddphub, hub gone"

BUSY: Final = "2 ranks, processor busy"
WAITING: Final = "2 ranks, as beside an accelerator"

CASES: Final = {WAITING: 0.005, BUSY: 0.0}
"""Seconds of each step in which the processor has nothing to do."""

STEPS: Final = {WAITING: 200, BUSY: 150}
"""Of a block."""

PAIRS: Final = 6
"""Blocks with and without reporting in one job."""

ROUNDS: Final = 1
WANTED: Final = 0.99
PATIENCE: Final = 300.0


def measure(bench: Bench) -> Outcome:
    """Lets jobs of all contestants take turns, for each case."""
    outcome = Outcome()
    with contextlib.ExitStack() as stack:
        hub = stack.enter_context(bench.hub())
        ours = bench.settings(hub, bench.folder / "runs")
        environments: dict[str, dict[str, str]] = {DDPHUB: ours, "all_gather_object": {}}
        if not bench.quick:
            url = stack.enter_context(mlflow_server(bench))
            tracking = {**QUIET, "MLFLOW_TRACKING_URI": url}
            environments[GONE] = {**ours, "DDPHUB_URL": "http://127.0.0.1:9"}
            environments |= {"wandb": dict(QUIET), "mlflow": tracking, "mlflow async": tracking}
        for case in [WAITING] if bench.quick else CASES:
            _measure_case(bench, outcome, case, environments)
    outcome.notes += [
        (
            "blocks of steps with and without reporting take turns within one job, in the order A B B A, and each "
            "block that reports is set against the one beside it: jobs differ by more than what is measured"
        ),
        (
            "a block is a run of its own: starting and finishing are not counted, sending beside the steps is; "
            f"{LIMIT} writes the same checkpoints with torch.save"
        ),
        (
            "ddphub logs on both ranks; wandb and mlflow on rank 0 alone, as their documentation has it: they do half "
            "the work; wandb is offline, and saves with wandb.save; mlflow with log_artifact"
        ),
        (
            f"{WAITING}: 5 ms of each step are waited for; {BUSY}: 2 ranks on {len(os.sched_getaffinity(0))} cores "
            "compute all the time, so that hub, server and sending threads, which elsewhere have cores of their own, "
            "take theirs"
        ),
    ]
    if bench.quick:
        why = "each job takes some seconds to start, which a quick run has not"
        outcome.left_out |= dict.fromkeys((GONE, "wandb", "mlflow"), why)
    return outcome


def _measure_case(bench: Bench, outcome: Outcome, case: str, environments: dict[str, dict[str, str]]) -> None:
    pairs: dict[str, list[tuple[float, float]]] = {}
    turns: dict[str, Callable[[], dict[str, float]]] = {
        name: partial(_turn, bench, case, name, environment, pairs.setdefault(name, []))
        for name, environment in environments.items()
    }
    alternate(turns, rounds=1 if bench.quick else ROUNDS, warm_up=0, left_out=outcome.left_out, say=bench.say)
    measured = {name: of_it for name, of_it in pairs.items() if of_it}
    shares = {name: [with_it / without for without, with_it in of_it] for name, of_it in measured.items()}
    rates = {name: [with_it for _, with_it in of_it] for name, of_it in measured.items()}
    limit = [without for of_it in measured.values() for without, _ in of_it]
    share = Figure(case, "steps a second, by those of the block beside it without reporting", "x", "higher", shares)
    share.headline = True
    rate = Figure(case, "steps a second", "steps/s", "higher", {LIMIT: limit, **rates}, LIMIT)
    outcome.figures += [share, rate]
    for name, which in ((DDPHUB, "hub up"), (GONE, "hub gone")):
        if name not in shares:
            continue
        outcome.aims.append(
            Aim(f"{case}: steps a second with the {which}, by no reporting", share.median(name), WANTED, at_least=True)
        )


def _turn(
    bench: Bench, case: str, name: str, environment: dict[str, str], pairs: list[tuple[float, float]]
) -> dict[str, float]:
    """One job; adds its pairs of (without, with)."""
    known = name.removesuffix(" async")
    python = python_of(known if known in {"wandb", "mlflow"} else DDPHUB)
    contestant = DDPHUB if name == GONE else name
    steps = 50 if bench.quick else STEPS[case]
    what = {"wait": CASES[case], "steps": steps, "pairs": 1 if bench.quick else PAIRS}
    launcher = [str(python), "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, str(WORKERS / "step.py"), contestant, json.dumps(what)]
    process = subprocess.Popen(
        command,
        env=bench.environment(**environment),
        cwd=bench.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said, errors = process.communicate(timeout=PATIENCE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # workers, where the launcher did not come to its end
    if process.returncode:
        raise RuntimeError(f"{name} failed: {said[-1000:]} {errors[-3000:]}")
    lines = [line for line in said.splitlines() if line.startswith("[[")]
    found = cast("list[tuple[float, float]]", json.loads(lines[-1]))
    pairs += found
    return {"share": statistics.median(with_it / without for without, with_it in found)}

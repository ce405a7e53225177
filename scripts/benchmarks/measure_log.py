"""One logging call of 5 host scalars in the training thread, its distribution, at two paces."""

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from benchmarks.bench import Bench, Hub
from benchmarks.figures import DDPHUB, Aim, Figure, LeftOut, Measured, Outcome, alternate, quantile
from benchmarks.mlflow_server import QUIET, mlflow_server
from benchmarks.quickly import at_once

ABOUT: Final = "one logging call of 5 host scalars in the training thread"

LIMIT: Final = "deque.append"
BESIDE: Final = "deque.append beside ddphub"
"""The limit in a process of its own, and in ours, where it meets our threads."""

RANKS: Final = 2

PACES: Final = {"blocks": "", "steps": ", one call a step"}
"""As the worker names them -> what they add to a figure's case."""

QUANTILES: Final = {
    "p50": 0.5,
    "p1": 0.01,
    "p5": 0.05,
    "p10": 0.1,
    "p25": 0.25,
    "p75": 0.75,
    "p90": 0.9,
    "p95": 0.95,
    "p99": 0.99,
    "p99.9": 0.999,
    "max": 1.0,
}
"""A figure each: together they draw the distribution."""

AIMS: Final = {"p50": 2.0, "p99": 20.0}
"""Microseconds, in blocks."""

TIMES_WANDB: Final = 100.0

NOTES: Final = (
    (
        "a turn is a process of its own; without more words: blocks of 200 calls 50 ms apart. One call a step: 5 ms of "
        "matrix products before each call, which drive code and data of any reporter out of the processor's caches"
    ),
    (
        "ddphub: both ranks of a job of 2, at the same time, with a hub; the others log on one rank alone, and are "
        "compared with both"
    ),
    "tensorboard: torch.utils.tensorboard's add_scalar five times, as it has no quicker way for five scalars",
    (
        "wandb: offline; mlflow: log_metrics to its own server on loopback, waiting, and with synchronous=False; "
        "trackio: into local files, its default"
    ),
)


def measure(bench: Bench) -> Outcome:
    """Processes of each contestant in turn; ours are the two ranks of one job."""
    rounds, seconds = (1, 0.3) if bench.quick else (3, 6.0)
    outcome = Outcome(notes=list(NOTES))
    with contextlib.ExitStack() as stack:
        hub = stack.enter_context(bench.hub())
        turns: dict[str, Callable[[], Measured]] = {
            LIMIT: partial(_alone, bench, DDPHUB, LIMIT, seconds, {}),
            DDPHUB: partial(_ranks, bench, hub, seconds),
        }
        for contestant in ("wandb", "tensorboard", "trackio"):
            turns[contestant] = partial(_alone, bench, contestant, contestant, seconds, {})
        if bench.quick:
            turns = stack.enter_context(at_once(turns))
            outcome.left_out["mlflow"] = "its server starts too slowly for --quick"
        else:
            try:
                settings = {"MLFLOW_TRACKING_URI": stack.enter_context(mlflow_server(bench))}
                for reporter in ("mlflow", "mlflow async"):
                    turns[reporter] = partial(_alone, bench, "mlflow", reporter, seconds, settings)
            except LeftOut as error:
                outcome.left_out["mlflow"] = str(error)
        measured = alternate(
            turns,
            rounds=rounds,
            warm_up=0,
            left_out=outcome.left_out,
            say=lambda text: bench.say(text.partition(", ")[0]),
        )
    for rank in range(RANKS):
        for pace, more in PACES.items():
            for name in QUANTILES if rank == 0 else ("p50", "p99", "max"):
                what = f"rank {rank} {pace} {name}"
                samples = dict(measured[what])
                samples[BESIDE] = measured[f"beside {what}"][DDPHUB]
                is_headline = name in AIMS and (rank == 0 or pace == "blocks")
                figure = Figure(f"rank {rank}{more}", f"{name} of one call", "us", "lower", samples, LIMIT, is_headline)
                figure.drawn_only = name not in {"p50", "p99", "max"}
                outcome.figures.append(figure)
                if pace == "blocks":
                    outcome.aims += _aims(name, figure)
    return outcome


def _aims(name: str, figure: Figure) -> Iterator[Aim]:
    what = f"{figure.metric} on {figure.case}"
    if name in AIMS:
        yield Aim(f"{what}, us", figure.median(DDPHUB), AIMS[name])
    if name == "p50" and "wandb" in figure.samples:
        yield Aim(f"{what}: times less than wandb", figure.ratio("wandb", DDPHUB), TIMES_WANDB, at_least=True)


def _alone(bench: Bench, contestant: str, reporter: str, seconds: float, settings: Mapping[str, str]) -> Measured:
    """A training of one process, to be compared with each of our ranks."""
    result = _run(bench, contestant, reporter, seconds, settings)
    return {**_quantiles("rank 0", result[reporter]), **_quantiles("rank 1", result[reporter])}


def _ranks(bench: Bench, hub: Hub, seconds: float) -> Measured:
    """A job of ours, both ranks at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = {"WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    settings = bench.settings(hub, bench.folder / "runs", **launched)
    measured: dict[str, float] = {}
    with ThreadPoolExecutor(RANKS) as pool:
        ranks = [
            pool.submit(_run, bench, DDPHUB, DDPHUB, seconds, {**settings, "RANK": str(rank)}) for rank in range(RANKS)
        ]
        for rank, running in enumerate(ranks):
            result = running.result()
            measured |= _quantiles(f"rank {rank}", result[DDPHUB])
            measured |= _quantiles(f"beside rank {rank}", result[LIMIT])
    return measured


Calls = dict[str, list[int]]
"""Pace -> nanoseconds of each call."""


def _run(bench: Bench, contestant: str, reporter: str, seconds: float, settings: Mapping[str, str]) -> dict[str, Calls]:
    """One process; what was called -> its calls."""
    own = {"TRACKIO_DIR": str(bench.folder / "trackio"), "HF_HOME": str(bench.folder / "hf")}
    environment = {**QUIET, **own, **settings}
    calls: dict[str, Calls] = bench.work(contestant, "log", reporter, str(seconds), environment=environment)
    return calls


def _quantiles(where: str, calls: Calls) -> Measured:
    """In microseconds."""
    return {
        f"{where} {pace} {name}": quantile(nanoseconds, share) / 1000
        for pace, nanoseconds in calls.items()
        for name, share in QUANTILES.items()
    }

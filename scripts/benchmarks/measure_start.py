"""How long `import`, `--help` and the start of a run take, with the hub up and with the hub down."""

import contextlib
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final

from benchmarks.bench import Bench, Hub
from benchmarks.contestants import python_of
from benchmarks.figures import DDPHUB, Aim, Figure, LeftOut, Measured, Outcome, alternate
from benchmarks.mlflow_server import QUIET, mlflow_server
from benchmarks.quickly import at_once

ABOUT: Final = "import, --help, and the start of a run"

AFTER_TORCH: Final = "import and first use, after torch"
REFUSES, SILENT = "hub down, connection refused", "hub down, no answer"

AIMS: Final = {"import": 50.0, "--help": 300.0, "hub up": 1000.0, REFUSES: 1000.0, SILENT: 1000.0}
"""Milliseconds."""

METRICS: Final = {
    "import": "a process, less a bare interpreter",
    AFTER_TORCH: "ddphub.init or its like can be called",
    "--help": "a process",
    "hub up": "start of a run",
    REFUSES: "start of a run",
    SILENT: "start of a run",
}

OTHERS_PATIENCE: Final = 10.0
"""Seconds after which another contestant's start without its server is given up."""

NOTES: Final = (
    (
        "import: one statement in a new process, less a bare interpreter of the same environment. `import ddphub` "
        "brings in the rest when a name of it is first used, so a second figure counts that too, in a process that "
        "has imported torch before, as a training has. There, each pays for the garbage collector's next look at "
        "torch's objects, some 80 ms of that figure"
    ),
    (
        "start of a run: ddphub.init, wandb.init (offline), mlflow.set_experiment and start_run, in a process that has "
        "imported torch and the contestant before"
    ),
    "no answer: an address that takes no connection and refuses none, as behind a firewall",
)


def measure(bench: Bench) -> Outcome:
    """A new process for each moment of each turn."""
    outcome = Outcome(notes=list(NOTES))
    with contextlib.ExitStack() as stack:
        hub = stack.enter_context(bench.hub())
        refuses, silent = stack.enter_context(_refusing()), stack.enter_context(_silent())
        turns: dict[str, Callable[[], Measured]] = {
            DDPHUB: partial(_ours, bench, hub, {REFUSES: refuses, SILENT: silent}),
            "wandb": partial(_theirs, bench, "wandb", {}),
        }
        if bench.quick:
            turns = stack.enter_context(at_once(turns))
            outcome.left_out["mlflow"] = "its server starts too slowly for --quick"
        else:
            try:
                url = stack.enter_context(mlflow_server(bench))
                turns["mlflow"] = partial(_theirs, bench, "mlflow", {"MLFLOW_TRACKING_URI": url})
            except LeftOut as error:
                outcome.left_out["mlflow"] = str(error)
        rounds, warm_up = (1, 0) if bench.quick else (5, 1)
        measured = alternate(turns, rounds=rounds, warm_up=warm_up, left_out=outcome.left_out, say=bench.say)
        if not bench.quick:
            outcome.notes += _without_server(bench, {"refused": refuses, "no answer": silent}, outcome.left_out)
    for case, metric in METRICS.items():
        figure = Figure(case, metric, "ms", "lower", dict(measured[case]), headline=case != REFUSES)
        outcome.figures.append(figure)
        if case in AIMS:
            outcome.aims.append(Aim(f"{case}: {metric}, ms", figure.median(DDPHUB), AIMS[case]))
    return outcome


def _ours(bench: Bench, hub: Hub, down: Mapping[str, str]) -> Measured:
    settings = bench.settings(hub, bench.folder / "runs")
    measured = {**_without_a_run(bench, DDPHUB), **_start(bench, DDPHUB, settings)}
    for case, url in down.items():
        measured[case] = _start(bench, DDPHUB, {**settings, "DDPHUB_URL": url})["hub up"]
    return measured


def _theirs(bench: Bench, contestant: str, settings: Mapping[str, str]) -> Measured:
    return {**_without_a_run(bench, contestant), **_start(bench, contestant, settings)}


def _start(bench: Bench, contestant: str, settings: Mapping[str, str]) -> Measured:
    """In milliseconds."""
    taken = bench.work(contestant, "start", contestant, environment={**QUIET, **settings})
    return {AFTER_TORCH: taken["import"] * 1000, "hub up": taken["init"] * 1000}


def _without_a_run(bench: Bench, contestant: str) -> Measured:
    python = python_of(contestant)
    bare = _process(bench, [str(python), "-c", "pass"])
    return {
        "import": _process(bench, [str(python), "-c", f"import {contestant}"]) - bare,
        "--help": _process(bench, [str(python.parent / contestant), "--help"]),
    }


def _process(bench: Bench, command: list[str]) -> float:
    """Milliseconds of a process."""
    environment = bench.environment(**QUIET)
    started = time.perf_counter()
    # Without a time-out: Popen looks for the end every 50 ms only where it has one.
    subprocess.run(command, env=environment, cwd=bench.folder, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - started) * 1000


def _without_server(bench: Bench, down: Mapping[str, str], left_out: Mapping[str, str]) -> Iterator[str]:
    """What the others do without their servers, once each: where that is to wait, no median tells more."""
    for contestant in ("wandb", "mlflow"):
        if contestant in left_out:
            continue
        for what, url in down.items():
            settings = {
                "wandb": {"WANDB_MODE": "online", "WANDB_BASE_URL": url, "WANDB_API_KEY": secrets.token_hex(20)},
                "mlflow": {"MLFLOW_TRACKING_URI": url},
            }[contestant]
            started = time.perf_counter()
            try:
                bench.work(contestant, "start", contestant, environment={**QUIET, **settings}, timeout=OTHERS_PATIENCE)
                outcome = f"its run had begun after {time.perf_counter() - started:.1f} s"
            except subprocess.TimeoutExpired:
                outcome = f"the training had not begun after {OTHERS_PATIENCE:g} s, when it was given up"
            except RuntimeError:
                outcome = f"it raised into the training after {time.perf_counter() - started:.1f} s"
            yield f"{contestant} with its server down ({what}): {outcome}"


@contextlib.contextmanager
def _refusing() -> Iterator[str]:
    """A port that is kept, and not listened on."""
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{kept.getsockname()[1]}"


@contextlib.contextmanager
def _silent() -> Iterator[str]:
    """A port whose queue of connections is full: the kernel drops what asks for another."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)  # the standard library's own
            waiting.connect_ex(listener.getsockname())
        with contextlib.suppress(TimeoutError):
            socket.create_connection(listener.getsockname(), timeout=0.5).close()
            raise RuntimeError("the kernel takes more connections than it was told to")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"

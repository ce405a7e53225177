"""A real `mlflow server`, as a team runs one: SQLite behind it, artifacts through it."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.bench import Bench
from benchmarks.contestants import python_of

QUIET: Final = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    "NO_PROXY": "*",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""For mlflow's server and every contestant's program: nothing phones home, no proxy is asked, no programs for LLM jobs
run beside mlflow's server."""

_PATIENCE: Final = 120.0
"""Seconds until it must serve: it imports for many of them."""


@contextlib.contextmanager
def mlflow_server(
    bench: Bench, *, host: str = "127.0.0.1", prefix: tuple[str, ...] = (), workers: int = 1
) -> Iterator[str]:
    """Serves with an empty database; niced as our hub, as it is another machine in use.

    One worker process: one client after another is all that the benchmarks are, SQLite has one writer, and three more
    would only compete with the training for the cores of a small machine.

    Args:
        bench: whose folder it keeps its data in.
        host: the address to serve on.
        prefix: a command before it, as `ip netns exec NAME`.
        workers: its processes (`mlflow server` has 4 by default).

    Yields:
        Its URL, for MLFLOW_TRACKING_URI. Clients want the variables of `QUIET`, too.

    Raises:
        LeftOut: mlflow cannot be installed.
        RuntimeError: it does not serve.
    """
    python, folder = python_of("mlflow"), bench.folder
    port = _free_port()
    store = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    artifacts = ["--serve-artifacts", "--artifacts-destination", str(folder / "mlartifacts")]
    where = ["--host", host, "--port", str(port), "--workers", str(workers)]
    said = folder / "mlflow-server.log"
    with said.open("ab") as log:
        process = subprocess.Popen(
            [*prefix, "nice", "-n", "10", str(python), "-m", "mlflow", "server", *store, *artifacts, *where],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            env=bench.environment(**QUIET),
            start_new_session=True,
        )
    try:
        _await_health(process, prefix, python, f"http://{host}:{port}/health", said)
        yield f"http://{host}:{port}"
    finally:
        # Its processes are one group: a server that is killed does not always take its workers with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def _free_port() -> int:
    """One that nobody listens on here: the server takes no 0. In another namespace it is free, or the start fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


_ASK: Final = """
import sys, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
sys.exit(opener.open(sys.argv[1], timeout=5).status != 200)
"""


def _await_health(
    process: subprocess.Popen[bytes], prefix: tuple[str, ...], python: Path, url: str, said: Path
) -> None:
    """Waits until it answers: asked from where it runs, as its address may not be ours."""
    until = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < until:
        asked = subprocess.run([*prefix, str(python), "-c", _ASK, url], capture_output=True, timeout=60, check=False)
        if asked.returncode == 0:
            return
        time.sleep(0.3)
    raise RuntimeError(f"mlflow server does not serve: {said.read_text()[-2000:]}")

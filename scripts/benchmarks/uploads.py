"""What the benchmarks of uploads have in common: files, each contestant's server, and its client."""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.bench import DDPHUB, MIB, WORKERS, Bench
from benchmarks.contestants import python_of
from benchmarks.figures import LeftOut
from benchmarks.mlflow_server import QUIET, mlflow_server
from benchmarks.slow_link import Side
from benchmarks.workers.upload import resident

CURL: Final = "curl"
HERE: Final = Side("127.0.0.1", ())

WARM: Final = MIB
"""Bytes of the file that goes first."""

_COPIES: Final = 3
"""hub-sdk has a file twice in memory, by itself and in its request; the rest is for all others."""


@dataclass(frozen=True)
class Server:
    """What a contestant sends to.

    Args:
        url: where.
        key: what it wants to see.
        process: its pid, where all of it is one process.
    """

    url: str
    key: str = ""
    process: int | None = None


@dataclass(frozen=True)
class Client:
    """How a contestant sends.

    Args:
        command: the program; it prints `seconds`, `memory_mib` and more as JSON.
        environment: its variables.
    """

    command: list[str]
    environment: Mapping[str, str]

    def run(self, timeout: float = 900.0) -> dict[str, float]:
        """Sends; what it measured.

        Raises:
            RuntimeError: it failed.
        """
        done = subprocess.run(
            self.command, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{self.command} ended with {done.returncode}: {done.stderr[-3000:]}")
        measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return measured


def make_file(path: Path, size: int) -> Path:
    """A file of random bytes, on disk."""
    with path.open("wb") as file:
        while size:
            size -= file.write(os.urandom(min(size, 8 * MIB)))
        file.flush()
        os.fsync(file.fileno())
    return path


def check_fits(contestant: str, size: int) -> None:
    """Leaves out who would take more memory than there is.

    Raises:
        LeftOut: it would.
    """
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    if contestant == "hub-sdk" and free < _COPIES * size:
        raise LeftOut(
            f"it holds a file twice in memory, {2 * size / 2**30:g} GiB here, and {free / 2**30:.1f} GiB are free"
        )


@contextlib.contextmanager
def server(bench: Bench, contestant: str, folder: Path, side: Side) -> Iterator[Server]:
    """A contestant's server with nothing in it yet; what it keeps is in a folder.

    Raises:
        LeftOut: there is none.
    """
    there = Bench(folder, bench.quick)
    if contestant == "mlflow":
        with mlflow_server(there, host=side.address, prefix=side.prefix) as url:
            yield Server(url)
    elif contestant == "tuspy":
        with _tus_server(there, side) as url:
            yield Server(url)
    else:
        with there.hub(host=side.address, prefix=side.prefix) as hub:
            yield Server(hub.url, hub.key, hub.pid)


@contextlib.contextmanager
def _tus_server(bench: Bench, side: Side) -> Iterator[str]:
    """Niced as our hub."""
    command = bench.command("tuspy", "tus_server", str(bench.folder / "tus"), side.address)
    with (bench.folder / "tus.log").open("ab") as log:
        process = subprocess.Popen(
            [*side.prefix, "nice", "-n", "10", *command],
            env=bench.environment(),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(30)


def client(bench: Bench, contestant: str, to: Server, *, folder: Path, warm: Path, file: Path, side: Side) -> Client:
    """A contestant's program that sends two files.

    Args:
        bench: the benchmark.
        contestant: its name.
        to: its server.
        folder: where it keeps what it needs.
        warm: a small file that goes first.
        file: the one that is measured.
        side: where it runs.

    Raises:
        LeftOut: it cannot be installed.
    """
    where = {"url": to.url, "key": to.key, "folder": str(folder / "client"), "warm": str(warm), "file": str(file)}
    environment = bench.environment(**(QUIET if contestant == "mlflow" else {}))
    program = [str(python_of(DDPHUB if contestant == CURL else contestant))]
    worker = "upload_by_curl" if contestant == CURL else "upload"
    command = [*side.prefix, *program, str(WORKERS / f"{worker}.py"), contestant, json.dumps(where)]
    return Client(command, environment)


def begin_peak(process: int | None) -> int:
    """Bytes that a process has; the most that it has is counted from now on (proc(5), clear_refs)."""
    if process is None:
        return 0
    Path(f"/proc/{process}/clear_refs").write_text("5")
    return resident("VmRSS", process)

"""What a benchmark works with: a folder, the contestants' programs, hubs, and a voice."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.contestants import python_of
from benchmarks.figures import DDPHUB

WORKERS: Final = Path(__file__).parent / "workers"
"""The programs of the contestants; each prints what it measured as a last line of JSON."""

MIB: Final = 1024 * 1024


@dataclass(frozen=True)
class Hub:
    """A hub that serves.

    Args:
        url: where.
        key: its key, which may do all.
        pid: its process.
    """

    url: str
    key: str
    pid: int


@dataclass(frozen=True)
class Bench:
    """One benchmark's surroundings.

    Args:
        folder: its own, empty at the start and deleted afterwards.
        quick: whether it shall only show that it works, in seconds.
    """

    folder: Path
    quick: bool

    def say(self, text: str) -> None:
        """Tells the person who waits, on stderr: stdout has the results alone."""
        print(f"  {text}", file=sys.stderr, flush=True)

    def environment(self, **more: str) -> dict[str, str]:
        """Ours without settings of contestants in it; all threads of a library on one core."""
        ours = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DDPHUB_", "WANDB_", "MLFLOW_", "TRACKIO_", "PYTHONPATH", "PYTHONDONTWRITE"))
        }
        return {**ours, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **more}

    def command(self, contestant: str, worker: str, *arguments: str) -> list[str]:
        """The command of a contestant's program, in its environment.

        Raises:
            LeftOut: it cannot be installed.
        """
        return [str(python_of(contestant)), str(WORKERS / f"{worker}.py"), contestant, *arguments]

    def work(
        self,
        contestant: str,
        worker: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        prefix: tuple[str, ...] = (),
        timeout: float = 900.0,
    ) -> Any:  # noqa: ANN401  # JSON
        """Runs a contestant's program to its end; the JSON of its last line.

        Args:
            contestant: whose environment.
            worker: the program's name in workers/.
            arguments: after the contestant's name.
            environment: added to `environment()`.
            prefix: a command before it, as `ip netns exec NAME`.
            timeout: seconds.

        Raises:
            LeftOut: it cannot be installed.
            RuntimeError: it failed.
        """
        command = [*prefix, *self.command(contestant, worker, *arguments)]
        done = subprocess.run(
            command,
            env=self.environment(**(environment or {})),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout} {done.stderr[-3000:]}")
        return json.loads(done.stdout.splitlines()[-1])

    @contextlib.contextmanager
    def hub(
        self, name: str = "hub", *arguments: str, host: str = "127.0.0.1", prefix: tuple[str, ...] = ()
    ) -> Iterator[Hub]:
        """A hub of our own with an empty data directory; niced, as it is another machine in use.

        Args:
            name: of its data directory.
            arguments: more of `python -m ddphub.server`.
            host: the address to serve on.
            prefix: a command before it, as `ip netns exec NAME`.
        """
        key = secrets.token_hex(21)
        serve = [sys.executable, "-m", "ddphub.server", "--data", str(self.folder / name), "--host", host]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*prefix, "nice", "-n", "10", *serve, "--port", "0", *arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self.environment(DDPHUB_API_KEY=key),
            )
        try:
            assert process.stdout is not None
            ready = next((line for line in process.stdout if line.startswith("ddphub hub on ")), None)
            if ready is None:
                said = (self.folder / f"{name}.log").read_text()[-2000:]
                raise RuntimeError(f"the hub does not serve: {said}")
            yield Hub(ready.split()[-1], key, process.pid)
        finally:
            process.terminate()
            process.wait(150)

    @staticmethod
    def settings(hub: Hub, folder: Path, **more: str) -> dict[str, str]:
        """The environment of a training that reports to a hub of ours."""
        return {"DDPHUB_URL": hub.url, "DDPHUB_API_KEY": hub.key, "DDPHUB_DIR": str(folder), **more}


__all__ = ["DDPHUB", "MIB", "WORKERS", "Bench", "Hub"]

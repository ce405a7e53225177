"""Worlds of many ranks on this machine: a program that has imported torch once, and forks a world for each turn."""

import json
import select
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self, cast

from benchmarks.bench import Bench
from benchmarks.figures import DDPHUB

PATIENCE: Final = 300.0
"""Seconds that one turn may take."""

_WITHOUT_DNS: Final = 'mount --bind "$0" /etc/nsswitch.conf && exec "$@"'


class Worlds:
    """A program of workers/ that takes a turn for each line of JSON it reads. A context manager.

    Args:
        bench: the benchmark's surroundings.
        worker: the program's name.
    """

    def __init__(self, bench: Bench, worker: str) -> None:
        self._folder = bench.folder / "runs"
        prefix = without_dns(bench.folder)
        self.asks_dns = not prefix
        # Torch warns of each connection whose end has no name.
        environment = bench.environment(TORCH_CPP_LOG_LEVEL="ERROR", DDPHUB_API_KEY="")
        self._errors = cast("IO[str]", tempfile.TemporaryFile("w+"))  # noqa: SIM115  # closed with the program
        self._process = subprocess.Popen(
            [*prefix, *bench.command(DDPHUB, worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
            cwd=bench.folder,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.communicate()
        self._errors.close()

    def turn(self, **what: Any) -> dict[str, float]:  # noqa: ANN401  # JSON
        """Lets it take a turn, in a folder of its own.

        Raises:
            RuntimeError: it failed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({**what, "folder": str(self._folder)}) + "\n")
        self._process.stdin.flush()
        try:
            # One line for each turn, so that no other one can be in the buffer.
            answered = select.select([self._process.stdout], [], [], PATIENCE)[0]
            line = self._process.stdout.readline() if answered else ""
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
        if not line:
            self._errors.seek(0)
            raise RuntimeError(f"a world failed: {what}: {self._errors.read()[-3000:]}")
        return cast("dict[str, float]", json.loads(line))


def without_dns(folder: Path) -> tuple[str, ...]:
    """What to put before a command so that names come from /etc/hosts alone; nothing where that is not allowed.

    Torch asks for the name of both ends of each connection, and thousands of ranks ask thousands of times, which a name
    server answers slowly in the end. That is neither ddphub's nor the store's doing.

    Args:
        folder: for a file that has to stay.
    """
    rules = folder / "nsswitch.conf"
    rules.write_text("hosts: files\n")
    prefix = ("unshare", "--map-root-user", "--mount", "sh", "-c", _WITHOUT_DNS, str(rules))
    try:
        works = subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        works = False
    return prefix if works else ()

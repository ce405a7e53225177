"""The processes that save in `stall`: a contestant each, and the servers that some of them need."""

import contextlib
import json
import os
import secrets
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Literal

from benchmarks.bench import MIB, Bench
from benchmarks.figures import DDPHUB, LeftOut, Measured, alternate
from benchmarks.mlflow_server import QUIET, mlflow_server

HELD: Final = "time the training thread is held"

_ENVIRONMENTS: Final = {
    "hub-sdk upload": "hub-sdk",
    "mlflow log_artifact": "mlflow",
    "wandb log_artifact": "wandb",
    "wandb save": "wandb",
}
"""Contestant -> whose packages it needs; the others need ours."""

_READS_WHOLE: Final = {"hub-sdk upload": 3}
"""Contestant -> how many times the file's size it may want of memory at once."""

_WANDB: Final = {
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_DISABLE_CODE": "true",
    "DO_NOT_TRACK": "1",
}


class Savers(contextlib.ExitStack):
    """Those of one file system; they start when they first take part, and end with the block.

    Args:
        bench: what measures.
        place: a folder on the file system.
    """

    def __init__(self, bench: Bench, place: Path) -> None:
        super().__init__()
        self._bench = bench
        self._place = place
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._turns = 0

    def turns(
        self,
        names: Sequence[str],
        size: int,
        rounds: int,
        *,
        left_out: dict[str, str],
        source: Literal["on disk", "just written", "none"] = "on disk",
    ) -> dict[str, list[float]]:
        """Lets contestants save in turn.

        Args:
            names: the contestants.
            size: bytes of what is saved.
            rounds: turns of each that count; one more before them where one of them is new, unless it shall be quick.
            left_out: gets each that cannot take part, and why.
            source: whether the file that is saved has reached the disk, or none is needed.

        Returns:
            Contestant -> seconds that each save held it.
        """
        path = self._place / "last.pt"
        warm_up = 0 if self._bench.quick or self._processes.keys() >= set(names) else 1
        for name in names:
            try:
                self._start(name)
            except LeftOut as error:
                left_out[name] = str(error)

        def turn(name: str) -> Measured:
            self._fits(name, size)
            if source == "just written" or (source == "on disk" and not path.exists()):
                _write(path, size)
            if source != "just written":
                self._sync()
            self._turns += 1
            held = self._ask(name, {"source": str(path), "size": size, "turn": self._turns})
            if source == "just written":
                path.unlink()
            self._sync()
            return {HELD: held}

        contestants: dict[str, Callable[[], Measured]] = {
            name: partial(turn, name) for name in names if name not in left_out
        }
        try:
            taken = alternate(contestants, rounds=rounds, warm_up=warm_up, left_out=left_out, say=self._bench.say)
        finally:
            path.unlink(missing_ok=True)
        return taken[HELD]

    def _sync(self) -> None:
        """All is on the disk: on a busy machine this takes a while, and quick runs do without."""
        if not self._bench.quick:
            os.sync()

    def _start(self, name: str) -> None:
        """Starts a contestant's process, and what it needs; others may start meanwhile."""
        if name in self._processes:
            return
        variables: dict[str, str] = {}
        folder = self._place / name.replace(" ", "-")
        environment = _ENVIRONMENTS.get(name, DDPHUB)
        command = self._bench.command(environment, "stall", name, str(folder))
        folder.mkdir()
        match environment:
            case "wandb":
                folders = {f"WANDB_{what}_DIR": str(folder / what.lower()) for what in ("CACHE", "DATA", "CONFIG")}
                variables = {**_WANDB, **folders}
            case "hub-sdk":
                hub = self.enter_context(self._bench.hub())
                variables = {"ULTRALYTICS_HUB_API": hub.url, "HUB_API_KEY": hub.key, "NO_PROXY": "*"}
            case "mlflow":
                url = self.enter_context(mlflow_server(self._bench))
                variables = {"MLFLOW_TRACKING_URI": url, "KEPT_BY_SERVER": str(self._bench.folder / "mlartifacts")}
                variables |= QUIET
            case _:
                pass
        log = self.enter_context((self._place / f"{folder.name}.log").open("wb"))
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=folder,
            env=self._bench.environment(**variables),
        )
        self.callback(_end, process)
        self._processes[name] = process

    def _ask(self, name: str, request: dict[str, object]) -> float:
        """Seconds that one save held a contestant."""
        process = self._processes[name]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        answer = next((line for line in process.stdout if line.startswith("{")), None)
        if answer is None:
            said = (self._place / f"{name.replace(' ', '-')}.log").read_text()[-3000:]
            raise RuntimeError(f"{name} ended with {process.wait(60)}: {said}")
        return float(json.loads(answer)["held"])

    @staticmethod
    def _fits(name: str, size: int) -> None:
        wanted = _READS_WHOLE.get(name, 0) * size
        if wanted > (free := _free_memory()):
            raise LeftOut(
                f"it builds its request in memory and may want {wanted // MIB} MiB of it, {free // MIB} MiB are free"
            )


def _end(process: subprocess.Popen[str]) -> None:
    """Kills it: nothing of it is wanted any more, least of all the end of a run."""
    process.kill()
    process.wait()


def _write(path: Path, size: int) -> None:
    """A file of random bytes, as floats of a training are to a disk."""
    with path.open("wb") as file:
        for _ in range(0, size, MIB):
            file.write(secrets.token_bytes(MIB))


def _free_memory() -> int:
    """Bytes that the kernel would give to processes (proc(5), MemAvailable)."""
    with Path("/proc/meminfo").open() as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))

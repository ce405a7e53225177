"""A real hub in a process of its own, for tests."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

import postgres
import requests
from nursery import Forked, Nursery

READY = "ddphub hub on "

_HUBS = Nursery("hub_imports")

KEY = "test-key-test-key-test-key-test-key-test-k"
"""The key of the hubs that tests of the training side start."""


class HubProcess:
    """Starts `python -m ddphub.server` on loopback and waits until it serves.

    Args:
        data_dir: the hub's data directory; its log is the file beside it with `.log` added.
        api_key: given to the hub in DDPHUB_API_KEY; None lets the hub make one at its first start.
        port: 0 for a free one; a restart keeps the port that the first start got.
        arguments: more arguments, as `--part-size`.
        cold: start Python and import everything, as a user's hub does; else a fork of a process that has done so.
    """

    def __init__(
        self,
        data_dir: Path,
        api_key: str | None = None,
        port: int = 0,
        arguments: tuple[str, ...] = (),
        *,
        cold: bool = False,
    ):
        self.data_dir = data_dir
        self.log = data_dir.with_name(data_dir.name + ".log")
        self.port = port
        self.key = api_key or ""
        self.url = ""
        self.said: list[str] = []
        self._given_key = api_key
        self._arguments = arguments
        self._cold = cold
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self._stdout: TextIO | None = None
        if not cold:
            _HUBS.open()
        self.start()

    def start(self) -> None:
        """Start, and wait for the line that says the hub serves."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DDPHUB_")}
        if self._given_key is not None:
            environment["DDPHUB_API_KEY"] = self._given_key
        arguments = ["-m", "ddphub.server", "--data", str(self.data_dir), "--port", str(self.port), *self._arguments]
        if "--database-url" not in arguments and isinstance(self.database, str):
            arguments += ["--database-url", self.database]
        reader, writer = os.pipe()
        self._stdout = os.fdopen(reader)
        with self.log.open("ab") as log, os.fdopen(writer, "wb") as stdout:
            if self._cold:
                self._process = subprocess.Popen(
                    [sys.executable, *arguments], stdout=stdout, stderr=log, env=environment
                )
            else:
                self._process = _HUBS.start(
                    arguments, environment=environment, stdout=stdout.fileno(), stderr=log.fileno()
                )
        self.said = []
        for line in self._stdout:
            self.said.append(line.rstrip("\n"))
            if line.startswith("export DDPHUB_API_KEY="):
                self.key = line.strip().partition("=")[2]
            if line.startswith(READY):
                self.url = line.removeprefix(READY).strip()
                self.port = int(self.url.rpartition(":")[2])
                return
        code = self._process.wait()
        self._stdout.close()
        raise RuntimeError(f"the hub ended with {code} before it served: {self.log.read_text()[-4000:]}")

    @property
    def database(self) -> Path | str:
        """What `Database` opens, once the hub has stopped."""
        return postgres.database_of(self.data_dir) or self.data_dir / "hub.db"

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> int:
        """Ask the hub to end, as a service manager does; returns its exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        """End the hub at once, as a crash does; returns its exit code."""
        return self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int:
        process = self._process
        assert process is not None
        process.send_signal(number)
        code = process.wait(150)
        assert self._stdout is not None
        self._stdout.close()
        return code

    def restart(self) -> None:
        """Start again on the same port, after `stop` or `kill` or from the running state."""
        assert self._process is not None
        if self._process.poll() is None:
            self.stop()
        self.start()

    def client(self) -> requests.Session:
        """A session that sends the key."""
        session = requests.Session()
        session.trust_env = False
        session.headers["x-api-key"] = self.key
        return session

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
        postgres.leave(self.data_dir)

"""A real hub in a process of its own, for tests."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import requests

READY = "ddphub hub on "

KEY = "test-key-test-key-test-key-test-key-test-k"
"""The key of the hubs that tests of the training side start."""


class HubProcess:
    """Starts `python -m ddphub.server` on loopback and waits until it serves.

    Args:
        data_dir: the hub's data directory; its log is the file beside it with `.log` added.
        api_key: given to the hub in DDPHUB_API_KEY; None lets the hub make one at its first start.
        port: 0 for a free one; a restart keeps the port that the first start got.
        arguments: more arguments, as `--part-size`.
    """

    def __init__(self, data_dir: Path, api_key: str | None = None, port: int = 0, arguments: tuple[str, ...] = ()):
        self.data_dir = data_dir
        self.log = data_dir.with_name(data_dir.name + ".log")
        self.port = port
        self.key = api_key or ""
        self.url = ""
        self.said: list[str] = []
        self._given_key = api_key
        self._arguments = arguments
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        """Start, and wait for the line that says the hub serves."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DDPHUB_")}
        if self._given_key is not None:
            environment["DDPHUB_API_KEY"] = self._given_key
        command = [sys.executable, "-m", "ddphub.server", "--data", str(self.data_dir), "--port", str(self.port)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self._arguments], stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        assert self._process.stdout is not None
        self.said = []
        for line in self._process.stdout:
            self.said.append(line.rstrip("\n"))
            if line.startswith("export DDPHUB_API_KEY="):
                self.key = line.strip().partition("=")[2]
            if line.startswith(READY):
                self.url = line.removeprefix(READY).strip()
                self.port = int(self.url.rpartition(":")[2])
                return
        code = self._process.wait()
        self._process.stdout.close()
        raise RuntimeError(f"the hub ended with {code} before it served: {self.log.read_text()[-4000:]}")

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

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
        code = process.wait(30)
        assert process.stdout is not None
        process.stdout.close()
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

"""Forks what a crash point needs, from a process that has imported everything and started nothing.

Started by `every_step`, one for each point at a time. Reads a JSON request a line, answers one a line.
"""

import importlib
import json
import os
import pkgutil
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub_process import HubProcess
from jobs import QUIET

import ddphub
from chaos import scenarios
from chaos.every_step_calls import CONTROL, Watched, die_with_parent, submit, watch
from chaos.every_step_checks import HubAddress, Place

KEY = "test-key-test-key-test-key-test-key-test-k"
PATIENCE = 60.0
"""Seconds that any process of a point may take."""


@dataclass
class Forked:
    """A child, and the file with what it printed."""

    pid: int
    output: Path
    code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, timeout: float = PATIENCE) -> int:
        """The exit code; a child that takes too long is killed, and its code is -9."""
        until = time.monotonic() + timeout
        while self.poll() is None and time.monotonic() < until:
            time.sleep(0.003)
        if self.code is None:
            self.signal(signal.SIGKILL)
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            with self.output.open("a") as output:
                output.write(f"\nstill running after {timeout:.0f} s\n")
        return self.code

    def signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")


def fork(do: Callable[[Place], None], place: Place, control: socket.socket | None = None) -> Forked:
    """Runs `do` in a child; with `control` it is watched through that socket."""
    output = place.folder / f"{do.__name__}-{time.monotonic_ns()}.log"
    pid = os.fork()
    if pid:
        return Forked(pid, output)
    code = 1
    try:
        die_with_parent()
        log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        place.enter()
        if control is not None:
            os.dup2(control.fileno(), CONTROL)
            submit(socket.socket(fileno=CONTROL))
        do(place)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:  # noqa: BLE001  # the child must not go on as its parent
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


class Problem(Exception):
    """What a crash point came to."""


def must(child: Forked, what: str) -> None:
    """Waits for success."""
    if child.wait() != 0:
        raise Problem(f"{what} ended with {child.code}: {child.text[-3000:]}")


class Point:
    """One crash point of one scenario."""

    def __init__(self, scenario: scenarios.Scenario, place: Place, number: int) -> None:
        self._scenario = scenario
        self._place = place
        self._number = number
        self._companions: list[Forked] = []
        self._hub: Forked | None = None

    def happen(self) -> dict[str, Any]:
        """What came of it: the calls, the one before which the process died, the problem if any."""
        scenario, place = self._scenario, self._place
        ours, theirs = socket.socketpair()
        watched = None
        problem = None
        try:
            must(fork(scenario.prepare, place), "the preparation")
            victim = fork(scenario.act, place, theirs)
            theirs.close()
            # After the fork, or the victim would be their parent's sibling with a copy of nothing it needs.
            self._companions = [fork(companion, place) for companion in scenario.companions]
            over = self._end_hub_after_client(victim) if scenario.is_hub else lambda: None
            watched = watch(victim.pid, ours, self._number, client=not scenario.is_hub, meanwhile=over)
            self._check_end(victim, watched)
            self._recover(was_killed=watched.killed_at is not None)
        except Problem as found:
            problem = str(found)
        finally:
            ours.close()
            for child in [*self._companions, *([self._hub] if self._hub else [])]:
                child.signal(signal.SIGKILL)
                child.wait()
        return {
            "killed_at": watched.killed_at if watched else None,
            "calls": watched.calls if watched and watched.killed_at is None else [],
            "problem": problem,
        }

    def _end_hub_after_client(self, hub: Forked) -> Callable[[], None]:
        (client,) = self._companions
        is_asked = False

        def end() -> None:
            nonlocal is_asked
            if not is_asked and client.poll() is not None:
                is_asked = True
                hub.signal(signal.SIGTERM)

        return end

    def _check_end(self, victim: Forked, watched: Watched) -> None:
        code = victim.wait()
        if watched.stuck:
            raise Problem(f"did not end: {victim.text[-3000:]}")
        if watched.killed_at is None and code != self._scenario.exit_code:
            raise Problem(f"left alone, it ended with {code}: {victim.text[-3000:]}")

    def _recover(self, *, was_killed: bool) -> None:
        scenario, place = self._scenario, self._place
        if scenario.is_hub and was_killed:
            self._serve()
        for companion in self._companions:
            must(companion, "a process that was left alone")
        if scenario.is_hub and not was_killed:
            self._serve()
        must(fork(scenario.recover, place), "the recovery")
        if scenario.is_hub:
            must(fork(scenarios.check_requests, place), "the check")
            self._stop()
        must(fork(scenario.check, place), "the check")

    def _serve(self) -> None:
        self._hub = fork(scenarios.serve, self._place)

    def _stop(self) -> None:
        if self._hub is not None:
            self._hub.signal(signal.SIGTERM)
            if self._hub.wait() != scenarios.TERMINATED:
                raise Problem(f"the hub that was started again ended with {self._hub.code}: {self._hub.text[-3000:]}")
            self._hub = None


class Worker:
    """Makes points happen, with one hub and one store for all of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._own_port = scenarios.free_port()
        self._hub = HubProcess(folder / "hub", api_key=KEY, arguments=("--part-size", str(scenarios.PART_SIZE)))
        store_port = scenarios.free_port()
        self._store_port = store_port
        place = Place(folder, HubAddress(self._hub.url, KEY), "store", store_port)
        self._store = fork(scenarios.serve_store, place)

    def point(self, name: str, number: int) -> dict[str, Any]:
        self._count += 1
        scenario = (scenarios.SCENARIOS | scenarios.PLANTED)[name]
        folder = self._folder / f"{self._count:05d}"
        folder.mkdir()
        url = f"http://127.0.0.1:{self._own_port}" if scenario.is_hub else self._hub.url
        # A hub of the point's own needs no name of the point's own, and what was prepared once can be used again.
        run_id = "run" if scenario.is_hub else f"run-{number}-{self._count}"
        started = time.monotonic()
        result = Point(scenario, Place(folder, HubAddress(url, KEY), run_id, self._store_port), number).happen()
        if result["problem"] is None:
            shutil.rmtree(folder)
        return {**result, "folder": str(folder), "seconds": time.monotonic() - started}

    def close(self) -> None:
        self._store.signal(signal.SIGKILL)
        self._store.wait()
        self._hub.kill()


def import_everything() -> None:
    """What is imported late would be imported by each process that is killed, and be counted."""
    for module in pkgutil.walk_packages(ddphub.__path__, "ddphub."):
        if not module.name.endswith(("__main__", ".env")) and ".integrations" not in module.name:
            importlib.import_module(module.name)


def main() -> None:
    import_everything()
    for name in [name for name in os.environ if name.startswith(("DDPHUB_", "_DDPHUB_", "SLURM_", "TORCHELASTIC_"))]:
        del os.environ[name]
    folder = Path(sys.argv[1])
    os.environ |= QUIET  # what they report would differ from time to time
    os.environ["XDG_CONFIG_HOME"] = str(folder / "config")
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
    os.environ["OMP_NUM_THREADS"] = "1"
    tempfile.tempdir = str(folder)
    worker = Worker(folder)
    try:
        for line in sys.stdin:
            request = json.loads(line)
            print(json.dumps(worker.point(request["scenario"], request["number"])), flush=True)
    finally:
        worker.close()


if __name__ == "__main__":
    main()

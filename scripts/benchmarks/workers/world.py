"""A world of ranks on this machine, forked from one process that has imported torch before it has any thread.

agent       serves the job's store, as torchrun's agent does
rank 0      a real run
the others  real runs too, or many ranks' senders in one process (simulate.py)
"""

import contextlib
import json
import os
import re
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from torch._C._distributed_c10d import TCPStore  # where its types are declared

import ddphub

SCALARS: Final = {"train/loss": 0.2512, "train/accuracy": 0.5, "lr": 1e-3, "grad_norm": 1.5, "throughput": 1024}
"""What a rank reports in one event."""

PATIENCE: Final = 120.0
"""Seconds that anything here may take."""


class Process:
    """A forked process, which tells its parent things and is told things, a line of JSON each."""

    def __init__(self, work: Callable[["Process"], None]) -> None:
        (up_read, up_write), (down_read, down_write) = os.pipe(), os.pipe()
        self.pid = os.fork()
        mine, theirs = ((up_read, down_write), (up_write, down_read)) if self.pid else ((down_read, up_write), ())
        self._read, self._write = os.fdopen(mine[0], "r"), os.fdopen(mine[1], "w")
        for descriptor in theirs:
            os.close(descriptor)
        if self.pid == 0:
            _be_child(lambda: work(self))

    def tell(self, what: object) -> None:
        """Says something to the other end."""
        print(json.dumps(what), file=self._write, flush=True)

    def hear(self) -> Any:  # noqa: ANN401  # JSON
        """Waits for what the other end says.

        Raises:
            RuntimeError: it has ended.
        """
        line = self._read.readline()
        if not line:
            raise RuntimeError("a process of the world ended early")
        return json.loads(line)

    def has_said(self) -> bool:
        """Whether `hear` would not wait."""
        return bool(select.select([self._read], [], [], 0)[0])

    def cpu_seconds(self) -> float:
        """What its threads have had of the cores, those that live."""
        return sum(
            int(file.read_text().split()[0]) / 1e9
            for file in Path(f"/proc/{self.pid}/task").glob("*/schedstat")
            if file.exists()
        )

    def end(self) -> None:
        """Ends it, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _be_child(work: Callable[[], None]) -> None:
    code = 1
    try:
        signal.alarm(int(2 * PATIENCE))  # nobody is left behind
        work()
        code = 0
    except BaseException:  # noqa: BLE001  # a child must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


@contextlib.contextmanager
def processes() -> Iterator[list[Process]]:
    """A list of processes; all in it are ended at the end."""
    made: list[Process] = []
    try:
        yield made
    finally:
        for process in made:
            process.end()


def serve_store(me: Process) -> None:
    """The agent: tells the port and serves until it is ended; niced, as nothing here waits for its node."""
    store = open_store(0, serve=True)
    me.tell(store.port)
    time.sleep(2 * PATIENCE)


def open_store(port: int, *, serve: bool = False) -> TCPStore:
    """A client of the store, or its server."""
    return TCPStore(
        "127.0.0.1", port, None, serve, timedelta(seconds=PATIENCE), wait_for_workers=False, multi_tenant=serve
    )


def be_rank(rank: int, world_size: int, port: int) -> None:
    """Sets the environment that torchrun gives a rank."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "world",
    }


def start_run(folder: Path) -> ddphub.Run:
    """The run of this rank: on disk alone, so that rank 0's work is the relay's."""
    return ddphub.init(project="bench", name="relay", dir=folder, mode="offline", console="off", system_interval=0)


@dataclass
class SpoolWatch:
    """When which byte came to rank 0's spool file: its size is asked for, which costs rank 0 nothing."""

    folder: Path
    sizes: list[tuple[float, int]] = field(default_factory=list)
    _path: Path | None = None

    def look(self) -> None:
        """Notes the size now (time.time, as in events)."""
        if self._path is None:
            self._path = next(self.folder.glob("*/spool/*-relay.jsonl"), None)
        if self._path is not None:
            size = self._path.stat().st_size
            if not self.sizes or self.sizes[-1][1] != size:
                self.sizes.append((time.time(), size))

    def wait(self, seconds: float) -> None:
        """Looks a hundred times a second for so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.look()
            time.sleep(0.01)

    def hear(self, process: Process) -> Any:  # noqa: ANN401  # JSON
        """What a process says; looks until then."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and not process.has_said():
            self.wait(0.01)
        return process.hear()


@dataclass
class Arrivals:
    """What the spool files of a run hold of the ranks other than 0.

    Attributes:
        delays: seconds of each metrics event between its call and its line in rank 0's spool file.
        arrived: steps by rank, in rank 0's spool file.
        spilled: steps by rank, in the ranks' own files.
        doubled: events that rank 0's file holds more than once.
        at: time.time -> events and bytes of lines that were there then and not before.
    """

    delays: list[float] = field(default_factory=list)
    arrived: dict[int, set[int]] = field(default_factory=dict)
    spilled: dict[int, set[int]] = field(default_factory=dict)
    doubled: int = 0
    at: dict[float, tuple[int, int]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Events in rank 0's file."""
        return sum(map(len, self.arrived.values()))

    def rates(self) -> tuple[float, float]:
        """Events and bytes a second, from the first arrival to the last."""
        (first, _), *rest = sorted(self.at.items())
        if not rest:
            return 0.0, 0.0
        taken = rest[-1][0] - first
        return sum(events for _, (events, _) in rest) / taken, sum(size for _, (_, size) in rest) / taken

    @property
    def spilled_count(self) -> int:
        """Events that only a rank's own file holds."""
        return sum(len(steps - self.arrived.get(rank, set())) for rank, steps in self.spilled.items())


_HEAD: Final = re.compile(rb'"rank":(\d+),')
_EVENT: Final = re.compile(rb'"time":([0-9.]+),"kind":"metrics","step":(\d+)')


def read_arrivals(folder: Path, sizes: list[tuple[float, int]], *, since: float = 0.0) -> Arrivals:
    """Reads the spool files; events logged before `since` (time.time) count for nothing but their presence."""
    found = Arrivals()
    place = 0
    for path in sorted(folder.glob("*/spool/*.jsonl")):
        is_own = "-relay" not in path.name
        end = 0
        with path.open("rb") as file:
            for line in file:
                end += len(line)
                rank = int(_HEAD.search(line)[1])  # type: ignore[index]  # every line has it
                if rank == 0:
                    continue
                events = _EVENT.findall(line)
                steps = {int(step) for _, step in events}
                if is_own:
                    found.spilled.setdefault(rank, set()).update(steps)
                    continue
                known = found.arrived.setdefault(rank, set())
                found.doubled += len(events) - len(steps - known)
                known |= steps
                while place < len(sizes) - 1 and sizes[place][1] < end:
                    place += 1
                at = sizes[place][0]
                times = [float(logged) for logged, _ in events if float(logged) >= since]
                found.delays += [max(0.0, at - logged) for logged in times]
                events_then, bytes_then = found.at.get(at, (0, 0))
                found.at[at] = (events_then + len(times), bytes_then + len(line))
    return found

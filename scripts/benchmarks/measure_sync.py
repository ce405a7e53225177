"""How long `ddphub sync` takes to deliver what a run without a network left on disk."""

import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from benchmarks.bench import MIB, Bench
from benchmarks.figures import DDPHUB, Aim, Figure, LeftOut, Measured, Outcome, alternate

ABOUT: Final = "delivering a spool of up to 1,000,000 events, and 1,000 checkpoints, beside rsync of the same bytes"

LIMIT: Final = "rsync"

CHECKPOINT_BYTES: Final = 64 * 1024

NICE: Final = ("nice", "-n", "10")
"""As the hub runs, rsync's daemon does."""

_SYNC: Final = "from ddphub.cli import main; main()"


def measure(bench: Bench) -> Outcome:
    """Spools of several lengths, then checkpoints, each to a hub of its own."""
    outcome = Outcome(notes=[_ABOUT_SYNC, _ABOUT_LIMIT])
    sizes, few, many, rounds = ((2000,), 2, 2, 1) if bench.quick else ((100_000, 300_000, 1_000_000), 100, 1000, 1)
    with _rsync_daemon(bench, outcome) as address:
        events = {size: _take_turns(bench, address, outcome, rounds, events=size) for size in sizes}
        checkpoints = {
            size: _take_turns(bench, address, outcome, rounds, checkpoints=size) for size in dict.fromkeys((few, many))
        }
    for size, found in events.items():
        is_last = size == sizes[-1]
        outcome.figures.append(_figure(f"{size:,} events", "time", "s", found["seconds"], headline=is_last))
    for size, found in checkpoints.items():
        case = f"{size:,} checkpoints of 64 KiB"
        outcome.figures.append(_figure(case, "time", "s", found["seconds"], headline=size == many))
    for size, found in events.items():
        for what in ("memory of sync", "memory of hub"):
            outcome.figures.append(_figure(f"{size:,} events", f"peak {what}", "MiB", found[what]))
    if not bench.quick:
        outcome.aims += _aims(events, checkpoints)
    return outcome


_ABOUT_SYNC: Final = (
    "the spool is that of 8 ranks with 5 scalars a step, written with the product's own parts; ddphub: the whole "
    "command `ddphub sync`, from its start to its end, with the report that it prints"
)
_ABOUT_LIMIT: Final = (
    "rsync: to a daemon on loopback that writes to disk before it acknowledges (--fsync); it copies files, and neither "
    "reads, checks nor indexes what is in them"
)


def _figure(case: str, metric: str, unit: str, samples: Mapping[str, list[float]], *, headline: bool = False) -> Figure:
    kept = {name: list(values) for name, values in samples.items()}
    return Figure(case, metric, unit, "lower", kept, LIMIT, headline)


Turns = dict[str, dict[str, list[float]]]
"""Quantity -> contestant -> samples."""


def _aims(events: Mapping[int, Turns], checkpoints: Mapping[int, Turns]) -> list[Aim]:
    def median(turns: Turns, what: str) -> float:
        return statistics.median(turns[what][DDPHUB])

    first, *_, last = events
    each = {size: median(turns, "seconds") / size for size, turns in events.items()}
    few, many = checkpoints
    per_checkpoint = {size: median(turns, "seconds") / size for size, turns in checkpoints.items()}
    growth = per_checkpoint[many] / per_checkpoint[few]
    grown = {
        what: median(events[last], what) - median(events[first], what) for what in ("memory of sync", "memory of hub")
    }
    return [
        Aim(f"{last:,} events in under 60 s", median(events[last], "seconds"), 60.0),
        Aim(f"linear: time per event of {last:,} by that of {first:,}", each[last] / each[first], 1.1),
        Aim(f"sync's memory for {last:,} events beyond that for {first:,}, MiB", grown["memory of sync"], 16.0),
        Aim(f"the hub's memory for {last:,} events beyond that for {first:,}, MiB", grown["memory of hub"], 16.0),
        Aim(f"{many:,} checkpoints of 64 KiB in under 60 s", median(checkpoints[many], "seconds"), 60.0),
        Aim(f"linear: time per checkpoint of {many:,} by that of {few:,}", growth, 1.1),
    ]


def _take_turns(
    bench: Bench, address: str | None, outcome: Outcome, rounds: int, *, events: int = 20, checkpoints: int = 0
) -> Turns:
    """Delivers one run again and again, each time as if it never had been."""
    run = bench.folder / f"run-{events}-{checkpoints}"
    amounts = (str(events), str(checkpoints), str(CHECKPOINT_BYTES))
    bench.say(f"{run.name}: {bench.work(DDPHUB, 'make_run', str(run), *amounts)}")
    contestants: dict[str, Callable[[], Measured]] = {}
    if address is not None:
        contestants[LIMIT] = lambda: _rsync(bench, run, address)
    contestants[DDPHUB] = lambda: _sync(bench, run, events, checkpoints)
    turns = alternate(contestants, rounds=rounds, warm_up=0, left_out=outcome.left_out, say=bench.say)
    shutil.rmtree(run)
    return turns


def _sync(bench: Bench, run: Path, events: int, checkpoints: int) -> Measured:
    copy = bench.folder / "copy"
    shutil.copytree(run, copy)
    try:
        _settle(bench)
        with bench.hub("sync-hub") as hub:
            environment = bench.environment(**bench.settings(hub, copy))
            command = [sys.executable, "-c", _SYNC, "sync", str(copy)]
            said = bench.folder / "sync.log"
            with said.open("w") as log:
                began = time.monotonic()
                process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
                _, status, usage = os.wait4(process.pid, 0)
                seconds = time.monotonic() - began
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise RuntimeError(f"ddphub sync ended with {process.returncode}: {said.read_text()[-2000:]}")
            _check(bench, copy, events, checkpoints)
            return {
                "seconds": seconds,
                "memory of sync": usage.ru_maxrss / 1024,
                "memory of hub": _peak(hub.pid) / MIB,
            }
    finally:
        shutil.rmtree(copy)
        shutil.rmtree(bench.folder / "sync-hub", ignore_errors=True)


def _settle(bench: Bench) -> None:
    """Waits for the disk: what was written just now is not the next turn's to bring there."""
    if not bench.quick:
        os.sync()


def _check(bench: Bench, run: Path, events: int, checkpoints: int) -> None:
    """Nothing is left, and as much was delivered as was there."""
    command = [sys.executable, "-c", _SYNC, "status", "--json", str(run)]
    told = json.loads(subprocess.run(command, env=bench.environment(), capture_output=True, check=True).stdout)
    if (told["events"]["delivered"], told["checkpoints"]["uploaded"]) != (events, checkpoints):
        raise RuntimeError(f"not everything was delivered: {told}")


def _peak(pid: int) -> int:
    """Bytes that a process has had in memory at most."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not tell a process's peak memory")


@contextlib.contextmanager
def _rsync_daemon(bench: Bench, outcome: Outcome) -> Iterator[str | None]:
    """A daemon on loopback; None where there is no rsync."""
    if shutil.which("rsync") is None:
        outcome.left_out[LIMIT] = "rsync is not installed here"
        yield None
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    target = bench.folder / "rsync"
    target.mkdir()
    settings = bench.folder / "rsyncd.conf"
    # A daemon of root would give files to nobody.
    identity = f"uid = {os.getuid()}\ngid = {os.getgid()}\n"
    rules = "use chroot = no\nreverse lookup = no\n"
    settings.write_text(f"{rules}[bench]\npath = {target}\nread only = no\n{identity}")
    where = [f"--config={settings}", "--address=127.0.0.1", f"--port={port}"]
    command = [*NICE, "rsync", "--daemon", "--no-detach", *where]
    with (bench.folder / "rsyncd.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _await_port(process, port)
        yield f"rsync://127.0.0.1:{port}/bench/"
    finally:
        process.terminate()
        process.wait(30)


def _await_port(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"the daemon of rsync does not listen; it ended with {process.poll()}")


def _rsync(bench: Bench, run: Path, address: str) -> Measured:
    _settle(bench)
    began = time.monotonic()
    command = ["rsync", "--archive", "--fsync", f"{run}/", f"{address}{run.name}/"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    shutil.rmtree(bench.folder / "rsync" / run.name, ignore_errors=True)
    if done.returncode:
        if "--fsync" in done.stderr:
            raise LeftOut("this rsync is older than 3.2.4, which is the first that can wait for the disk")
        raise RuntimeError(f"rsync ended with {done.returncode}: {done.stderr[-2000:]}")
    return {"seconds": seconds}

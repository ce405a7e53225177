"""Prints what ddphub costs a training process, beside a baseline measured in the same run.

    scripts/measure.py log      one call of run.log with 5 host scalars, beside deque.append; on rank 0 and on rank 1
    scripts/measure.py steps    steps a second of a 3-rank job: hub up, hub gone, beside mode="disabled"
    scripts/measure.py save     time save_checkpoint holds its caller for 1 GiB, beside a copy by the kernel
    scripts/measure.py upload   peak memory of client and hub while 1 GiB is uploaded, beside idle

Each benchmark alternates its contestants. The figures of one run on one machine compare with each other alone.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

import ddphub

SCALARS = {"train/loss": 0.25, "train/accuracy": 0.5, "lr": 1e-3, "grad_norm": 1.5, "throughput": 1024}
MIB = 1024 * 1024


@contextlib.contextmanager
def hub(folder: Path) -> Iterator[tuple[str, str, int]]:
    """A hub on loopback: (url, key, pid)."""
    key = secrets.token_hex(21)
    process = subprocess.Popen(
        ["nice", "-n", "19", sys.executable, "-m", "ddphub.server", "--data", str(folder / "hub"), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "DDPHUB_API_KEY": key},
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1], key, process.pid
    finally:
        process.terminate()
        process.wait()


def quantiles(nanoseconds: list[int]) -> str:
    """p50, p99 and max in microseconds."""
    ordered = sorted(nanoseconds)
    p50, p99 = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
    return f"p50 {p50 / 1000:6.2f} us   p99 {p99 / 1000:6.2f} us   max {ordered[-1] / 1000:8.1f} us"


def time_calls(call: Callable[[], object], count: int) -> list[int]:
    """Nanoseconds of each of `count` calls, the clock's own cost included."""
    taken = []
    clock = time.perf_counter_ns
    for _ in range(count):
        started = clock()
        call()
        taken.append(clock() - started)
    return taken


def log_worker(rank: int, port: int, where: dict[str, Any], results: "multiprocessing.Queue[object]") -> None:
    """One rank of the log benchmark: blocks of run.log and deque.append in turn, with the time of a step between."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    run = ddphub.init(project="measure", name="log", rank=rank, world_size=2, rate_limits={"ckpt": 0}, **where)
    gathered: deque[dict[str, float]] = deque(maxlen=10_000)
    logged: list[int] = []
    appended: list[int] = []
    for _ in range(100):
        appended += time_calls(lambda: gathered.append(SCALARS), 200)
        logged += time_calls(lambda: run.log(SCALARS), 200)
        time.sleep(0.02)
    results.put((rank, appended, logged))
    run.finish()


def measure_log(folder: Path) -> None:
    """One logging call in the training thread."""
    context = multiprocessing.get_context("spawn")
    with hub(folder) as (url, key, _):
        where = {"hub": url, "api_key": key, "dir": str(folder / "runs")}
        results = context.Queue()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = [context.Process(target=log_worker, args=(rank, port, where, results)) for rank in range(2)]
        for process in ranks:
            process.start()
        for rank, appended, logged in sorted((results.get() for _ in ranks), key=lambda result: result[0]):
            print(f"rank {rank}  deque.append  {quantiles(appended)}")
            print(f"rank {rank}  run.log       {quantiles(logged)}")
        for process in ranks:
            process.join()


def measure_save(folder: Path) -> None:
    """The time a save of 1 GiB holds the training thread."""
    source = folder / "last.pt"
    block = secrets.token_bytes(MIB)
    with source.open("wb") as file:
        for _ in range(1024):
            file.write(block)
    run = ddphub.init(project="measure", name="save", dir=folder / "runs", mode="offline", rate_limits={"ckpt": 0})
    copies, saves = [], []
    for turn in range(5):
        target = folder / "copy"
        os.sync()  # neither contestant pays for what the other left to be written
        started = time.perf_counter()
        with source.open("rb") as read, target.open("wb") as written:
            while os.copy_file_range(read.fileno(), written.fileno(), 1 << 30):
                pass
        copies.append(time.perf_counter() - started)
        target.unlink()
        os.sync()
        started = time.perf_counter()
        entry_id = run.save_checkpoint(source, epoch=turn)
        saves.append(time.perf_counter() - started)
        assert entry_id is not None
        wait_for_digest(folder / "runs", entry_id)
    run.finish()
    copy, save = statistics.median(copies), statistics.median(saves)
    print(f"kernel copy      median {copy:.3f} s   {[round(value, 3) for value in copies]}")
    print(f"save_checkpoint  median {save:.3f} s   {[round(value, 3) for value in saves]}   ratio {save / copy:.2f}")


def wait_for_digest(runs: Path, entry_id: str) -> None:
    """Waits until a staged entry's digest is there, so that its computing does not disturb the next turn."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if any(runs.glob(f"*/staging/{entry_id}/digest.json")):
            return
        time.sleep(0.05)


def measure_upload(folder: Path) -> None:
    """Peak memory while 1 GiB goes from the staging area to the hub."""
    with hub(folder) as (url, key, hub_pid):
        run = ddphub.init(
            project="measure", name="upload", hub=url, api_key=key, dir=folder / "runs", rate_limits={"ckpt": 0}
        )
        time.sleep(2)
        processes = {"client": psutil.Process(), "hub": psutil.Process(hub_pid)}
        idle = {name: process.memory_info().rss for name, process in processes.items()}
        peak = dict(idle)
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.01):
                for name, process in processes.items():
                    with contextlib.suppress(psutil.NoSuchProcess):
                        peak[name] = max(peak[name], process.memory_info().rss)

        watcher = threading.Thread(target=watch)
        watcher.start()
        with run.checkpoint(epoch=0) as path, path.open("wb") as file:
            block = secrets.token_bytes(MIB)
            for _ in range(1024):
                file.write(block)
        started = time.perf_counter()
        run.finish()
        taken = time.perf_counter() - started
        done.set()
        watcher.join()
    for name in processes:
        print(f"{name:6}  idle {idle[name] / MIB:6.1f} MiB   peak +{(peak[name] - idle[name]) / MIB:.1f} MiB")
    print(f"1 GiB staged, digested, uploaded and committed within {taken:.1f} s of finish()")


STEP_PROGRAM = """
import os, sys, time, ddphub
steps, mode = int(sys.argv[1]), sys.argv[2]
run = ddphub.init(project="measure", name="steps", mode=mode, rate_limits={"ckpt": 0}, finish_timeout=1)
for _ in range(200):
    run.log({"loss": 0.5, "lr": 0.1})
started = time.perf_counter()
for step in range(steps):
    total = 0
    for number in range(8_000):
        total += number * number
    time.sleep(0.002)  # the accelerator at work
    run.log({"loss": 0.5, "lr": 0.1, "step": step}, step=step)
if run.topology.rank == 0:
    print("RATE", steps / (time.perf_counter() - started))
run.finish()
"""


def measure_steps(folder: Path, turns: int) -> None:
    """Steps a second with the hub up and gone, beside a disabled run.

    A step is part computing, part waiting as for an accelerator. The hub is niced: in use it is another machine.
    """
    program = folder / "steps.py"
    program.write_text(STEP_PROGRAM)
    rates: dict[str, list[float]] = {"disabled": [], "online": [], "hub gone": []}
    with hub(folder) as (url, key, _):
        for _ in range(turns):
            for name, rate_list in rates.items():
                environment = {
                    **os.environ,
                    "DDPHUB_URL": "http://127.0.0.1:9" if name == "hub gone" else url,
                    "DDPHUB_API_KEY": key,
                    "DDPHUB_DIR": str(folder / "runs"),
                    "OMP_NUM_THREADS": "1",
                }
                mode = "disabled" if name == "disabled" else "online"
                launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
                done = subprocess.run(
                    [*launcher, str(program), "2000", mode], env=environment, capture_output=True, text=True, check=True
                )
                rate_list.append(float(done.stdout.split("RATE")[1].split()[0]))
    limit = statistics.median(rates["disabled"])
    for name, values in rates.items():
        median = statistics.median(values)
        print(f"{name:9} median {median:8.1f} steps/s   ratio {median / limit:.3f}   {[round(v, 1) for v in values]}")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["log", "steps", "save", "upload"])
    parser.add_argument("--turns", type=int, default=5, help="repetitions of `steps`")
    parser.add_argument("--dir", type=Path, help="where to write; a temporary folder by default")
    arguments = parser.parse_args()
    print(json.dumps({"cpus": os.cpu_count(), "python": sys.version.split()[0], "ddphub": ddphub.__version__}))
    with tempfile.TemporaryDirectory(prefix="ddphub-measure-", dir=arguments.dir) as name:
        folder = Path(name)
        match arguments.what:
            case "log":
                measure_log(folder)
            case "save":
                measure_save(folder)
            case "upload":
                measure_upload(folder)
            case "steps":
                measure_steps(folder, arguments.turns)


if __name__ == "__main__":
    main()

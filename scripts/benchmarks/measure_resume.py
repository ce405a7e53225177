"""How much of a checkpoint is sent again when its sender is killed, or its connections are cut, nine tenths through."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.bench import DDPHUB, MIB, Bench
from benchmarks.counting_relay import CountingRelay, counting_relay
from benchmarks.figures import Aim, Figure, Measured, Outcome, alternate
from benchmarks.uploads import HERE, WARM, Client, Server, check_fits, client, make_file, server

ABOUT: Final = "bytes sent again after a cut at 90%"

CUT_AT: Final = 0.9

PART_MIB: Final = 8
"""A part of ddphub's, and a request of tuspy's."""

CASES: Final = {"killed": "the sender is killed", "cut": "its connections are cut"}
PATIENCE: Final = 600.0
"""Seconds for an upload with its cut."""

NOTES: Final = (
    """counted by a relay between client and server: all bytes that the client sent, less the files' own; so the heads
    of requests count, too""",
    """after the kill `ddphub sync` goes on, tuspy with the address that it wrote down; hub-sdk and mlflow have nothing
    to go on from, and their callers call them again; what fails on a cut connection is called again at once""",
)


def measure(bench: Bench) -> Outcome:
    """Kill, then cut."""
    outcome = Outcome(notes=[" ".join(note.split()) for note in NOTES])
    mib = 64 if bench.quick else 4096
    size = f"{mib / 1024:g} GiB" if mib >= 1024 else f"{mib} MiB"
    names = (DDPHUB,) if bench.quick else (DDPHUB, "tuspy", "hub-sdk", "mlflow")
    file = make_file(bench.folder / "model.pt", mib * MIB)
    make_file(bench.folder / "warm.pt", WARM)
    for how in CASES:

        def turn(name: str, how: str = how) -> Callable[[], Measured]:
            return lambda: _turn(bench, name, file, how)

        left_out: dict[str, str] = {}
        measured = alternate(
            {name: turn(name) for name in names}, rounds=1, warm_up=0, left_out=left_out, say=bench.say
        )
        outcome.left_out |= {f"{name} ({how})": why for name, why in left_out.items()}
        again = Figure(
            f"{size}, {CASES[how]} at 90%", "sent again", "MiB", "lower", measured["again_mib"], headline=True
        )
        outcome.figures.append(again)
        what = f"{CASES[how]}: MiB sent again, at most one part"
        outcome.aims.append(Aim(what, again.median(DDPHUB), PART_MIB))
    return outcome


def _turn(bench: Bench, name: str, file: Path, how: str) -> dict[str, float]:
    """One upload that is cut."""
    check_fits(name, file.stat().st_size)
    folder = bench.folder / "turn"
    folder.mkdir()
    size = file.stat().st_size + WARM
    try:
        with server(bench, name, folder, HERE) as to, counting_relay(to.url) as relay:
            through = Server(relay.url, to.key)
            warm = file.with_name("warm.pt")
            sender = client(bench, name, through, folder=folder, warm=warm, file=file, side=HERE)
            process = subprocess.Popen(
                sender.command, env=sender.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            try:
                _await(relay, size * CUT_AT, process)
                if how == "cut":
                    relay.cut()
                    _end(process)
                else:
                    process.kill()
                    process.wait()
                    size += WARM * (name in {"hub-sdk", "mlflow"})  # which send the small file again, too
                    _go_on(bench, name, sender, folder, through)
            finally:
                process.kill()
                process.communicate()
            return {"again_mib": (relay.sent - size) / MIB}
    finally:
        shutil.rmtree(folder)


def _await(relay: CountingRelay, sent: float, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + PATIENCE
    while relay.sent < sent:
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            raise RuntimeError(f"it sent {relay.sent} bytes: {process.communicate()[1][-3000:]}")
        time.sleep(0.001)


def _end(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate(timeout=PATIENCE)
    if process.returncode:
        raise RuntimeError(f"the sender ended with {process.returncode}: {said[-3000:]}")


def _go_on(bench: Bench, name: str, sender: Client, folder: Path, to: Server) -> None:
    """What a user does after a kill."""
    if name != DDPHUB:
        sender.run(PATIENCE)
        return
    command = [sys.executable, "-c", "from ddphub.cli import main; main()", "sync", str(folder / "client")]
    environment = bench.environment(DDPHUB_URL=to.url, DDPHUB_API_KEY=to.key)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        raise RuntimeError(f"ddphub sync ended with {done.returncode}: {done.stdout} {done.stderr}")

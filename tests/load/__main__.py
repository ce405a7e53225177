"""Loads a hub with simulated runs while pages are open, and says what it took and what came of it.

    scripts/load                                   200 runs of 64 ranks for 60 s, 20 pages, SQLite
    scripts/load --runs 20 --ranks 8 --seconds 10
    scripts/load --every 0                         as fast as the hub takes it
    scripts/load --database postgresql --workers 2

Everything runs on this machine, the senders beside the hub: each figure is of both together. Each run is what rank 0
sends through the real client: every rank logs two values every `--every` seconds and its machine's every 15 s, rank 0
also prints; heartbeats and checkpoints go beside. Then all of it is read back. Exit code 1: something was lost, is
there twice, or is not what was sent.
"""

import argparse
import contextlib
import multiprocessing
import os
import secrets
import sys
import tempfile
import threading
import time
from pathlib import Path

from hub_process import HubProcess
from postgres import Postgres

from load.figures import Usage, spread
from load.open_pages import OpenPage
from load.read_back import Reader, account
from load.senders import Senders
from load.simulated_run import METRICS, Load


def parse():
    parser = argparse.ArgumentParser(
        prog="scripts/load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--ranks", type=int, default=64, help="of each run")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--pages", type=int, default=20)
    parser.add_argument("--every", type=float, default=Load.every, help="seconds between two steps of a run")
    parser.add_argument(
        "--checkpoint", type=float, default=Load.checkpoint, help="seconds between checkpoints of a run"
    )
    parser.add_argument("--checkpoint-kib", type=int, default=Load.checkpoint_bytes // 1024)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--workers", type=int, default=1, help="processes of the hub; more than one on PostgreSQL only")
    parser.add_argument("--senders", type=int, default=min(4, os.cpu_count() or 1), help="processes that send")
    parser.add_argument("--data", type=Path, help="where the hub's directory is made; default: a temporary place")
    parser.add_argument("--hub", nargs=argparse.REMAINDER, default=[], help="more arguments of the hub, at the end")
    return parser.parse_args()


def main():
    """Load, read back, print."""
    options = parse()
    load = Load(
        ranks=options.ranks,
        every=options.every,
        checkpoint=options.checkpoint,
        checkpoint_bytes=options.checkpoint_kib * 1024,
    )
    with tempfile.TemporaryDirectory(dir=options.data, prefix="load-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # the database's server is another user
        with database(options, folder) as url:
            arguments = ["--workers", str(options.workers), "--rate-limit", "0", *options.hub]
            if url is not None:
                arguments += ["--database-url", url]
            with HubProcess(folder / "hub", secrets.token_hex(21), arguments=tuple(arguments), cold=True) as hub:
                sys.exit(measure(hub, load, options, folder))


@contextlib.contextmanager
def database(options, folder):
    """The URL of an empty database whose commits are on disk, as a team's are; None for SQLite."""
    if options.database == "sqlite":
        yield None
        return
    (folder / "postgresql").mkdir()
    with Postgres(folder / "postgresql", settings=()) as server:
        yield server.create("hub")


def measure(hub, load, options, folder):
    """Everything, on a hub that is empty; the exit code."""
    asked = options.runs * load.ranks / load.every if load.every else 0
    print(
        f"{options.runs} runs of {load.ranks} ranks for {options.seconds:g} s, {options.pages} pages, "
        f"{options.database}, {options.workers} process{'es' if options.workers > 1 else ''}; "
        + (f"{asked:,.0f} steps of a rank a second asked for" if asked else "as fast as the hub takes it")
    )
    usage = Usage(hub.pid)
    senders = Senders(hub.url, hub.key, load, options.runs, options.senders, folder)
    models = senders.begin()
    count = options.pages
    # A fifth of them are lists; the others are shared out over the runs.
    pages = [
        OpenPage(hub.url, hub.key, None if number % 5 == 0 else models[number % len(models)], METRICS)
        for number in range(count)
    ]
    usage.begin()
    time.sleep(options.seconds)
    busy, took = usage.end()
    began = time.monotonic()
    runs = senders.finish()
    drained = time.monotonic() - began
    for page in pages:
        page.close()
    batches = [seconds for sent in runs for seconds, _ in sent.batches]
    sizes = [size for sent in runs for _, size in sent.batches]
    events = sum(sizes)
    took += drained
    print(
        f"rate      {events / took:,.0f} events a second, {len(batches) / took:,.0f} batches "
        f"({events:,} events in {took:.1f} s)"
    )
    print(f"batches   of {events / len(batches):.0f} events: {spread(batches)}")
    print(f"delay     from logged to acknowledged: {spread([delay for sent in runs for delay in sent.delays])}")
    print(f"beats     {spread([seconds for sent in runs for seconds in sent.beats])}")
    print(f"uploads   of {load.checkpoint_bytes // 1024} KiB: {spread([one for sent in runs for one in sent.uploads])}")
    print(f"pages     {spread([seconds for page in pages for seconds in page.seconds])}")
    print(
        f"hub       {busy:.2f} cores, at most {usage.peak / 2**20:,.0f} MiB; {drained:.1f} s to take in what was left"
    )
    again = {}
    for sent in runs:
        for said, number in sent.again.items():
            again[said] = again.get(said, 0) + number
    failures = [failure for page in pages for failure in page.failures]
    print(
        f"again     {sum(again.values())} requests of runs {again or ''}; "
        f"{len(failures)} of pages failed {set(failures) or ''}"
    )
    found = account(Reader(hub.url, hub.key), runs)
    print(
        f"read back {found.events:,} events and {found.checkpoints} checkpoints: "
        f"{found.lost} lost, {found.doubled} doubled, {len(found.wrong)} wrong"
    )
    for wrong in found.wrong[:20]:
        print(f"  {wrong}")
    return 1 if found.wrong or failures else 0


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    threading.stack_size(512 * 1024)
    main()

"""kill -9 of the hub under load: nothing acknowledged is missing afterwards, nothing is there twice.

A few kills as part of the suite, on the database it runs on; CHAOS_KILLS=50 for as many as it takes to believe it.
"""

import contextlib
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
from hub_process import KEY, HubProcess
from jobs import wait_until
from load.read_back import Reader, account, acknowledged
from load.simulated_run import Load, SimulatedRun
from postgres import Postgres

WORKERS = 2
KILLS = int(os.environ.get("CHAOS_KILLS", "3"))

LOAD = Load(
    ranks=4,
    every=0.1,
    pace=0.1,
    heartbeat=0.5,
    system=0.5,
    checkpoint=0.3,
    checkpoint_bytes=300_000,
    longest_pause=0.1,
)
SMALL_PARTS = ("--part-size", "65536", "--heartbeat-s", "0.5")

pytestmark = pytest.mark.timeout(120 + 40 * KILLS)


class Runs:
    """Runs that send for as long as the block lasts.

    Args:
        hub: a HubProcess.
        folder: for their checkpoints.
        count: how many.
    """

    def __init__(self, hub, folder, count=4):
        self._hub = hub
        self._runs = [SimulatedRun(hub.url, KEY, LOAD, number, folder) for number in range(count)]
        self._threads = [threading.Thread(target=run.run, daemon=True) for run in self._runs]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        for run in self._runs:
            assert run.joined.wait(60)
        return self

    def __exit__(self, kind, error, traceback):
        for run in self._runs:
            run.leave()
        for thread in self._threads:
            thread.join(60)

    def acknowledged(self):
        """What the hub has acknowledged until now."""
        return [(run.sent, tuple(run.sent.acknowledged), tuple(run.sent.checkpoints)) for run in self._runs]

    def is_heard(self, since):
        """Whether the hub has acknowledged events and a checkpoint to a run after that."""
        return any(now[1] != then[1] for now, then in zip(self.acknowledged(), since, strict=True)) and any(
            now[2] != then[2] for now, then in zip(self.acknowledged(), since, strict=True)
        )

    def finish(self):
        """The runs end; everything they sent must be there, once."""
        for run in self._runs:
            run.end()
        for thread in self._threads:
            thread.join(90)
            assert not thread.is_alive()
        found = account(Reader(self._hub.url, KEY), [run.sent for run in self._runs])
        assert found.wrong == []
        assert found.checkpoints == sum(len(run.sent.checkpoints) for run in self._runs)
        return found


def start_again(hub, rng):
    """Starts the hub, as a service manager does: until it serves. Once in a while it is killed before that."""
    if rng.random() < 0.25:
        killer = threading.Timer(rng.uniform(0.0, 0.3), lambda: hub.is_running and os.kill(hub.pid, signal.SIGKILL))
        killer.start()
        with contextlib.suppress(RuntimeError):
            hub.start()
        killer.join()
        if hub.is_running:
            hub.kill()
    for _ in range(60):
        try:
            hub.start()
            return
        except RuntimeError as error:
            # The workers of one that was killed end what they are at, and have its socket and its lock until then.
            if not any(said in str(error) for said in ("another hub serves this directory", "cannot listen there")):
                raise
            time.sleep(0.5)
    raise AssertionError("the hub does not start again")


def kill_hub(hub, server, rng):
    hub.kill()
    start_again(hub, rng)


def kill_worker(hub, server, rng):
    workers = psutil.Process(hub.pid).children()
    assert len(workers) == WORKERS
    killed = rng.choice(workers)
    killed.kill()
    wait_until(lambda: not killed.is_running() and len(psutil.Process(hub.pid).children()) == WORKERS)


def crash_database(hub, server, rng):
    server.stop("immediate")
    time.sleep(rng.uniform(0.0, 0.5))
    server.start()


def test_a_killed_hub_has_everything_that_it_acknowledged(tmp_path):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    with HubProcess(tmp_path / "hub", KEY, arguments=SMALL_PARTS) as hub, Runs(hub, tmp_path) as runs:
        reader = Reader(hub.url, KEY)
        for _ in range(KILLS):
            before = runs.acknowledged()
            time.sleep(rng.uniform(0.0, 0.4))
            wait_until(lambda then=before: runs.is_heard(then))
            kill_hub(hub, None, rng)
            assert acknowledged(reader, runs.acknowledged()) == []
        found = runs.finish()
        print(f"{KILLS} kills, {found.events} events and {found.checkpoints} checkpoints: none lost, none doubled")


def test_a_hub_of_several_workers_has_what_any_of_them_acknowledged(tmp_path, tmp_path_factory):
    """The hub is killed, one of its workers, or the database's server."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    kills = [kill_worker, crash_database, kill_hub]
    folder = Path(tempfile.mkdtemp(prefix="ddphub-kills-"))
    folder.chmod(0o755)
    try:
        with Postgres(folder) as server:
            arguments = (*SMALL_PARTS, "--database-url", server.create("hub"), "--workers", str(WORKERS))
            with HubProcess(tmp_path / "hub", KEY, arguments=arguments) as hub, Runs(hub, tmp_path) as runs:
                reader = Reader(hub.url, KEY)
                for number in range(KILLS):
                    before = runs.acknowledged()
                    time.sleep(rng.uniform(0.0, 0.4))
                    wait_until(lambda then=before: runs.is_heard(then))
                    (kills[number] if number < len(kills) else rng.choice(kills))(hub, server, rng)
                    # What they were told before the kill, and what they have been told since.
                    assert acknowledged(reader, runs.acknowledged()) == []
                found = runs.finish()
                print(f"{KILLS} kills, {found.events} events and {found.checkpoints} checkpoints: none lost or doubled")
    finally:
        shutil.rmtree(folder)

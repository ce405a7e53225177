"""Nothing waits for ever: what hangs costs each call its bound at most, and what is left is on disk and said to be.

Bounds are DESIGN's, with room for a slow machine. In test_run.py: a hub that never answers costs init and finish their
bounds, an answer without end; in distributed/test_one_run.py: a killed rank, a rank that exits without `finish`.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mounts
import needs
import pytest
import requests
from hub_process import KEY
from jobs import AT_IMPORT, PROGRAMS, RANKS, ddphub, start_python, wait_until

SLACK = 40.0
"""Seconds that a busy machine may add to a bound."""

HASTY_SYNC = (
    "import ddphub.hubs.ddphub as hub, ddphub.session.sync as sync\n"
    "hub.CONNECT_TIMEOUT = hub.READ_TIMEOUT = 1.0; sync.TRIES = 2\n"
    "from ddphub.cli import main; main()"
)
HOLDER = (
    "import fcntl, os, signal, sys; file = open(sys.argv[1], 'a'); fcntl.flock(file, fcntl.LOCK_EX)\n"
    "print(flush=True); os.kill(os.getpid(), signal.SIGSTOP)"
)


@pytest.fixture
def start(tmp_path):
    """Starts programs; none outlives the test."""
    started = []

    def make(program, *arguments, before=(), **environment):
        variables = {"DDPHUB_DIR": str(tmp_path / "runs"), "DDPHUB_API_KEY": KEY}
        output = [tmp_path / f"{name}-{len(started)}" for name in ("stdout", "stderr")]
        with output[0].open("wb") as out, output[1].open("wb") as err:
            process = start_python(
                [PROGRAMS / program, "--out", tmp_path, *arguments],
                RANKS,
                environment={**os.environ, **AT_IMPORT, **variables, **environment},
                stdout=out,
                stderr=err,
                before=before,
            )
        process.output = output
        started.append(process)
        return process

    (tmp_path / "runs").mkdir(mode=0o700)
    yield make
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ends(process, timeout=150):
    """What the program said of its times, and what ddphub said on stderr; exit code 0."""
    process.wait(timeout)
    said, told = [path.read_text() for path in process.output]
    assert process.returncode == 0, told
    return json.loads(said), told


@contextlib.contextmanager
def stopped_holder(path):
    """A process that holds an flock and is stopped."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def status(place):
    """`ddphub status --json` of the only run."""
    (line,) = ddphub("status", str(place), "--json").stdout.splitlines()
    return json.loads(line)


# Hubs.


@contextlib.contextmanager
def trickling_hub(beginning):
    """Accepts connections, answers with `beginning` (None: with nothing at all) and then a byte every 0.2 s."""
    over = threading.Event()

    def talk(connection):
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            if beginning is None:
                over.wait()
                return
            connection.sendall(beginning)
            while not over.wait(0.2):
                connection.sendall(b"a")

    def serve():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=talk, args=(listener.accept()[0],)).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


TRICKLES = {
    "silence": None,
    "a status line": b"HTTP/1.1 20",
    "a header": b"HTTP/1.1 200 OK\r\nX-Long: ",
    "a body": b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
    "a body of no length": b"HTTP/1.1 200 OK\r\n\r\n",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n",
}


def test_hubs_whose_answers_take_for_ever(tmp_path, start):
    """No call of a run waits for one, and each try of sync ends; both say what is left. All kinds at once."""
    with contextlib.ExitStack() as stack:
        urls = {name: stack.enter_context(trickling_hub(beginning)) for name, beginning in TRICKLES.items()}
        places = {name: str(tmp_path / "runs" / name) for name in TRICKLES}
        arguments = ("--finish-timeout", 1)
        runs = [start("hang_run.py", *arguments, DDPHUB_URL=urls[name], DDPHUB_DIR=places[name]) for name in TRICKLES]
        for run in runs:
            times, told = ends(run)
            assert times["log"] < 1
            assert times["longest log"] < SLACK / 2
            assert times["init"] < 2 + SLACK
            assert times["save"] < SLACK
            assert times["finish"] < 1 + SLACK
            assert "ddphub status" in told
        began = time.monotonic()
        syncs = [hasty_sync(places[name], urls[name]) for name in TRICKLES]
        told = {name: sync.communicate(timeout=150)[1] for name, sync in zip(TRICKLES, syncs, strict=True)}
        assert time.monotonic() - began < 2 * (1 + 1) + SLACK
    for name, sync in zip(TRICKLES, syncs, strict=True):
        assert sync.returncode == 1, name
        assert "timed out" in told[name] or "no whole answer within 1 s" in told[name], (name, told[name])
        left = status(places[name])
        assert left["events"]["pending"] == left["events"]["reported"] > 50
        assert left["checkpoints"]["pending"] == 1


def hasty_sync(place, url):
    """`ddphub sync` with seconds where it has minutes."""
    return subprocess.Popen(
        [sys.executable, "-c", HASTY_SYNC, "sync", str(place)],
        env={**os.environ, "DDPHUB_URL": url, "DDPHUB_API_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def slow_taker(hub):
    """A proxy before a real hub that takes a part's bytes one every 0.2 s, and everything else at once."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            headers = {name: value for name, value in self.headers.items() if name.lower() not in {"host", "accept"}}
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with requests.Session() as session:
                session.trust_env = False
                got = session.request(self.command, hub.url + self.path, data=body, headers=headers, timeout=30)
            self.send_response(got.status_code)
            self.send_header("Content-Length", str(len(got.content)))
            self.end_headers()
            self.wfile.write(got.content)

        do_POST = do_GET

        def do_PUT(self):
            self.server.parts += 1
            while not over.wait(0.2) and self.connection.recv(1):
                pass
            self.close_connection = True

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        parts = 0

        def server_bind(self):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            super().server_bind()

        def handle_error(self, *_):
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            over.set()
            server.shutdown()
            thread.join()


def test_a_hub_that_takes_an_upload_byte_by_byte(tmp_path, start, own_hub, view):
    """Training, finish and sync end; metrics are there all the same, and a better way delivers the checkpoint."""
    with slow_taker(own_hub) as slow:
        arguments = ("--finish-timeout", 3, "--size", 20_000_000)
        times, told = ends(start("hang_run.py", *arguments, DDPHUB_URL=slow.url))
        assert slow.parts == 3  # all at once
        assert max(times["log"], times["save"]) < SLACK
        assert times["finish"] < 3 + SLACK
        assert "ddphub status" in told
        assert len(view.metrics()) == 50
        sync = hasty_sync(tmp_path / "runs", slow.url)
        told = sync.communicate(timeout=150)[1]
        assert sync.returncode == 1
        assert "timed out" in told
    assert status(tmp_path / "runs")["checkpoints"]["pending"] == 1
    ddphub("sync", str(tmp_path / "runs"), "--hub", own_hub.url, hub=own_hub)
    assert len(view.checkpoints()) == 1
    assert len(view.metrics()) == 50


# The job's store.


@pytest.mark.parametrize(
    "when",
    [
        "init",
        "training",
        "finish",
    ],
)
def test_a_store_whose_process_is_stopped(tmp_path, start, free_port, when):
    """As torchrun's agent that hangs: init, training and finish go on, and what a rank could not send is on disk."""
    store = start("hang_store.py", "--port", free_port)
    wait_until((tmp_path / "store").exists)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    arguments = ("--mode", "offline", "--hold", when, "--finish-timeout", 4)
    ranks = [start("hang_run.py", *arguments, **place, WORLD_SIZE="2", RANK=str(rank)) for rank in range(2)]
    wait_until(lambda: len(list(tmp_path.glob("held-*"))) == 2)
    if when != "init":
        time.sleep(1)  # the ranks find each other
    store.send_signal(signal.SIGSTOP)
    (tmp_path / "go").touch()
    (first, told), (second, _) = [ends(rank) for rank in ranks]
    assert max(first["log"], second["log"]) < 1
    assert max(first["longest log"], second["longest log"]) < SLACK / 2
    assert first["init"] < 20 + SLACK
    assert second["init"] < SLACK
    assert first["save"] < SLACK
    assert first["finish"] < 4 + 2 + SLACK
    assert second["finish"] < 5 + SLACK
    assert first["saved"] == 1
    assert "ddphub status" in told or "no goodbye from ranks 1" in told
    reported = sum(
        json.loads(line)["events"]["reported"]
        for line in ddphub("status", str(tmp_path / "runs"), "--json").stdout.splitlines()
    )
    assert reported >= 100


# Locks that a stopped process holds.


def test_session_lock_held_by_a_stopped_process(tmp_path, start, own_hub):
    """Rank 0 trains and stages; finish does not sit out its 60 s, and says who has the lock; so does sync."""
    with stopped_holder(tmp_path / "runs" / "run" / "session.lock"):
        arguments = ("--finish-timeout", 60)
        times, told = ends(start("hang_run.py", *arguments, DDPHUB_URL=own_hub.url, DDPHUB_RUN_ID="run"))
        assert times["init"] < 2 + SLACK
        assert times["finish"] < 5 + SLACK
        assert "another process has session.lock and delivers this run" in told
        assert "to deliver the rest: ddphub sync" in told
        assert "another process delivers it" in ddphub("sync", str(tmp_path / "runs"), hub=own_hub, check=False).stderr
    ddphub("sync", str(tmp_path / "runs"), hub=own_hub)
    assert status(tmp_path / "runs")["checkpoints"]["uploaded"] == 1


def test_staging_lock_held_by_a_stopped_process(tmp_path, start, own_hub):
    """A save waits 10 s, is refused with a warning and an event, and training goes on; sync waits no longer either."""
    lock = tmp_path / "runs" / "run" / "staging" / "staging.lock"
    with stopped_holder(lock):
        times, told = ends(start("hang_run.py", DDPHUB_URL=own_hub.url, DDPHUB_RUN_ID="run"))
    assert times["saved"] == 0
    assert 10 <= times["save"] < 10 + SLACK
    assert times["finish"] < 2 + SLACK
    assert f"{lock} was held for more than 10 s" in told
    assert "everything is delivered" in told
    assert status(tmp_path / "runs")["checkpoints"]["refused"] == 1


# The end.


def test_finish_with_10_gb_to_send_and_5_s(tmp_path, start, own_hub, view):
    """The 10 GB are a hole that XFS clones, so nothing is written; reading them alone takes longer than 5 s."""
    with mounts.disk(tmp_path / "disk", "xfs", 320) as disk:
        arguments = ("--out", disk, "--size", 10 * 2**30, "--finish-timeout", 5)
        process = start("hang_run.py", *arguments, DDPHUB_URL=own_hub.url, DDPHUB_DIR=str(disk / "runs"))
        times, told = ends(process)
        print(f"save of 10 GiB: {times['save']} s, finish: {times['finish']} s")
        assert times["saved"] == 1
        assert times["save"] < SLACK
        assert times["finish"] < 5 + SLACK
        assert "out of time; ddphub status" in told
        left = status(disk / "runs")
        (entry,) = left["waiting_checkpoints"]
        assert entry["bytes"] == 10 * 2**30
        assert left["events"]["pending"] <= 2, "metrics do not wait behind it"
    assert len(view.metrics()) == 50


@pytest.mark.parametrize("never", [0, 1])
def test_a_rank_that_never_finishes(tmp_path, start, free_port, never):
    """It logs on and on. Rank 0 waits 10 s for its goodbye and says so; another rank does not wait for rank 0."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port), "WORLD_SIZE": "2"}
    arguments = ("--mode", "offline", "--never-finish", never, "--finish-timeout", 60)
    ranks = [start("hang_run.py", *arguments, **place, RANK=str(rank)) for rank in range(2)]
    wait_until((tmp_path / f"pid-{never}").exists)
    times, told = ends(ranks[1 - never])
    if never == 1:
        assert times["finish"] < 10 + 2 + SLACK
        assert "no goodbye from ranks 1" in told
    else:
        assert times["finish"] < 5 + SLACK


def test_a_rank_ends_while_its_store_is_slow(tmp_path, start, free_port):
    """A thread that comes back from the store while the interpreter ends would be unwound through C++: SIGABRT."""
    needs.programs("strace")
    slow = ("strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=recvfrom")
    slow += ("-e", "inject=recvfrom:delay_exit=150000")
    start("hang_store.py", "--port", free_port)
    wait_until((tmp_path / "store").exists)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    start("hang_run.py", "--mode", "offline", "--never-finish", 0, **place, WORLD_SIZE="2", RANK="0")
    rank = start("hang_run.py", "--mode", "offline", "--slow-end", 1, **place, WORLD_SIZE="2", RANK="1", before=slow)
    ends(rank)


# Forks.


@pytest.mark.parametrize("call", ["flock", "fsync,fdatasync"])
def test_no_fork_waits_for_a_thread_of_ours(tmp_path, start, call):
    """DataLoaders fork while the lock, the disk and the hub take their time: 6 s a call, and no answer at all."""
    needs.programs("strace")
    slow = ("strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", f"trace={call}")
    slow += ("-e", f"inject={call}:delay_enter=6000000")
    with trickling_hub(None) as url:
        times, _ = ends(start("hang_loader.py", before=slow, DDPHUB_URL=url, DDPHUB_RUN_ID="run"), 120)
    print(f"{times['forks']} forks beside {call}, the longest {times['longest']} s")
    assert times["forks"] >= 2
    assert times["longest"] < 5
    (spool,) = (tmp_path / "runs" / "run" / "spool").iterdir()
    assert "from worker" not in spool.read_text()
    assert spool.read_text().count('"batch":') == times["batches"]

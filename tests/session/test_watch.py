"""`ddphub sync --watch`: what it follows and for how long, the way back for a stop, and who delivers when."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
from faulty_proxy import FaultyProxy, cut
from jobs import PROGRAMS, wait_until

import ddphub
from ddphub.events import to_json
from ddphub.session import loop, session, stop
from ddphub.session.folder import RunFolder
from ddphub.session.lines import LineWriter
from ddphub.session.lock import SessionLock
from ddphub.session.presence import LATE, Sign

PATIENCE = 150

SYNC = "from ddphub.cli import main; main()"

HASTY = """
from ddphub.session import loop, session
loop.FIRST_PAUSE, loop.LONGEST_PAUSE, session.CUT_OFF, session.LOCK_PACE = 0.05, 0.2, 0.5, 0.1
"""
"""Before SYNC: back-offs, and the patience with a silent hub, take no time."""


@pytest.fixture
def runs(tmp_path):
    """Where the run directories are."""
    return tmp_path / "runs"


@pytest.fixture
def watch(runs, own_hub):
    """Starts watches; none outlives the test."""
    with contextlib.ExitStack() as stack:

        def start(*arguments, program=SYNC):
            command = [sys.executable, "-c", program, "sync", "--watch", runs, *arguments]
            variables = {**os.environ, "DDPHUB_URL": own_hub.url, "DDPHUB_API_KEY": own_hub.key}
            made = subprocess.Popen(
                list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables
            )
            stack.callback(made.stdout.close)
            stack.callback(made.wait)
            stack.callback(made.kill)
            return made

        yield start


@pytest.fixture
def begin(runs, own_hub):
    """Starts runs in this process: offline ones, of the test's hub."""
    begun = []

    def start(run_id, **settings):
        settings = {"mode": "offline", "hub": own_hub.url, "api_key": own_hub.key, **settings}
        run = ddphub.init(project="watched", name=run_id, run_id=run_id, dir=runs, finish_timeout=120, **settings)
        begun.append(run)
        return run

    yield start
    for run in begun:
        run.finish()


@pytest.fixture
def quick(monkeypatch):
    """As HASTY, in this process."""
    monkeypatch.setattr(loop, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(loop, "LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(session, "CUT_OFF", 0.5)
    monkeypatch.setattr(session, "LOCK_PACE", 0.1)


def ended(process, code=0):
    """Waits for a watch's end; what it said."""
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, said
    return said


def steps(view):
    """Of every model, sorted; a list, so that a double shows."""
    return sorted(one["step"] for model_id in view.models() for one in view.metrics(model_id))


@pytest.fixture
def process(runs, tmp_path):
    """A process with the offline run `run`: 100 steps and two checkpoints, then it waits."""
    command = [sys.executable, PROGRAMS / "owner_run.py", "--out", tmp_path, "--mode", "offline", "--hold", "1"]
    variables = {"DDPHUB_DIR": str(runs), "DDPHUB_RUN_ID": "run"}
    made = subprocess.Popen(list(map(str, command)), env={**os.environ, **variables}, stdout=subprocess.DEVNULL)
    wait_until((tmp_path / "held-1").exists)
    yield made
    made.kill()
    made.wait()


def die(process):
    process.kill()
    process.wait()


# The way back: stop.


def test_a_stop_asked_for_on_the_hub_reaches_a_run_that_cannot_hear_it(watch, begin, view):
    """And not the attempt that is started after it, nor one that a watch begins to follow later."""
    first = begin("run")
    watching = watch()
    model_id = wait_until(view.models, what="the model")[0]
    first.log({"loss": 1.0}, step=0)
    wait_until(lambda: steps(view) == [0])
    assert not first.should_stop()
    view.post(f"/v1/models/{model_id}/stop")
    wait_until(first.should_stop, what="the stop")
    first.finish()
    second = begin("run")
    for step in range(1, 4):
        second.log({"loss": 1.0}, step=step)
        time.sleep(0.7)
        assert not second.should_stop()
    second.finish()
    assert "the hub asks it to stop" in ended(watching)
    assert steps(view) == [0, 1, 2, 3]
    assert [one["state"] for one in view.model()["attempts"]] == ["stopped", "finished"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"attempt_id": 1}', "[" * 100_000], ids=repr)
def test_a_stop_file_that_says_nothing_asks_nothing(tmp_path, content):
    path = tmp_path / "stop.json"
    assert not stop.is_asked(path, "a" * 32)
    path.write_text(content)
    assert not stop.is_asked(path, "a" * 32)
    stop.ask(path, "a" * 32)
    assert stop.is_asked(path, "a" * 32)
    assert not stop.is_asked(path, "b" * 32)


# What it follows, and for how long.


def test_a_run_that_is_killed_and_comes_back_is_followed_on(watch, process, begin, view):
    """The second attempt's metrics are there while it runs, and a stop is for it; everything once."""
    watching = watch("--linger", 30)
    wait_until(lambda: view.models() and len(view.checkpoints()) == 2, what="the checkpoints")
    die(process)
    time.sleep(2)
    run = begin("run")
    run.log({"loss": 1.0}, step=1000)
    wait_until(lambda: steps(view)[-1] == 1000, what="the metric of the second attempt")
    assert not run.should_stop()
    view.post(f"/v1/models/{view.models()[0]}/stop")
    wait_until(run.should_stop, what="the stop")
    run.finish()
    assert ended(watching).count("following") == 1
    assert steps(view) == [*range(100), 1000]
    assert len(view.checkpoints()) == 2
    assert len(view.model()["attempts"]) == 2


def test_a_run_that_does_not_come_back_is_waited_for_as_long_as_was_asked(watch, process, runs, view):
    """What a rank that outlived rank 0 writes meanwhile is delivered; found dead, it is waited for no more."""
    watching = watch("--linger", 5)
    wait_until(lambda: steps(view) == list(range(100)), what="the metrics")
    die(process)
    killed = time.monotonic()
    time.sleep(2)
    late = RunFolder(runs / "run").rank_file("c" * 32, 1)
    events = [{"kind": "log", "time": 1.0, "level": "info", "message": "late"}]
    LineWriter(late).append([to_json({"attempt_id": "c" * 32, "rank": 1, "first": 0, "events": events})])
    assert watching.poll() is None
    ended(watching)
    assert time.monotonic() - killed > 5
    assert [one["message"] for one in view.events("log")] == ["late"]
    begun = time.monotonic()
    os.utime(late, (1_000_000_000, 1_000_000_000))
    ended(watch("--linger", 0))
    assert time.monotonic() - begun < 60
    assert steps(view) == list(range(100))


def test_a_watch_may_begin_before_the_first_run(watch, begin, view):
    """And ends, with exit code 1, when none appears."""
    watching = watch("--linger", 30)
    time.sleep(2)
    run = begin("run")
    run.log({"loss": 1.0}, step=0)
    wait_until(lambda: view.models() and steps(view) == [0])
    run.finish()
    ended(watching)
    shutil.rmtree(RunFolder(run._owner.folder.path).path)
    assert "no run in" in ended(watch("--linger", 0), code=1)


def test_watches_that_are_killed_leave_nothing_to_mend(watch, begin, view, tmp_path):
    """One after the other, and two at once; each kill comes at a moment of its own."""
    run = begin("run")
    watches = []
    for step in range(8):
        run.log({"loss": 1.0}, step=step)
        (tmp_path / "last.pt").write_bytes(os.urandom(300_000))
        run.save_checkpoint(tmp_path / "last.pt", epoch=step)
        watches.append(watch())
        if len(watches) > 2:
            watches.pop(0).kill()
        time.sleep(0.4 + step * 0.1)
    run.finish()
    codes = {process.wait(PATIENCE) for process in watches}
    assert 0 in codes
    assert steps(view) == list(range(8))
    assert [one["epoch"] for one in view.checkpoints()] == list(range(8))


def test_an_upload_that_stands_still_holds_up_no_other_run(watch, begin, own_hub, view, tmp_path):
    """Neither while its run lives, nor when it has ended, nor one that begins after that."""
    proxy = FaultyProxy(own_hub.url)
    held, release = [], threading.Event()

    def hold(handler):
        if handler.command == "PUT":
            held.append(handler)
            release.wait(240)
        return False

    proxy.fault = hold
    slow, other = begin("slow", hub=proxy.url), begin("other")
    (tmp_path / "last.pt").write_bytes(b"weights")
    slow.save_checkpoint(tmp_path / "last.pt", epoch=0)
    watching = watch("--hub", proxy.url)
    wait_until(lambda: held, what="the upload")

    def arrives(run, step):
        run.log({"loss": 1.0}, step=step)
        wait_until(lambda: step in steps(view), what=f"step {step}")

    arrives(other, 1)
    slow.finish()
    time.sleep(2)
    arrives(other, 2)
    third = begin("third")
    arrives(third, 3)
    assert len(held) == 1
    release.set()
    other.finish()
    third.finish()
    ended(watching)
    assert steps(view) == [1, 2, 3]
    proxy.close()


# Who delivers: a live run whose hub is out of reach, and a watch beside it.


def test_a_run_that_never_reaches_its_hub_leaves_the_delivery_to_a_watch(watch, begin, own_hub, view, tmp_path):
    """Live; when the watch is killed and the hub is there, the run goes on by itself. Everything once."""
    proxy = FaultyProxy(own_hub.url)
    proxy.fault = cut
    run = begin("run", mode="online", hub=proxy.url, rate_limits={"ckpt": 0, "metrics": 0.2})
    watching = watch("--hub", own_hub.url)

    def report(step):
        run.log({"loss": 1.0}, step=step)
        (tmp_path / "last.pt").write_bytes(b"%d" % step)
        run.save_checkpoint(tmp_path / "last.pt", epoch=step)
        wait_until(lambda: view.models() and step in steps(view), what=f"step {step}")
        wait_until(lambda: len(view.checkpoints()) == step + 1, what=f"checkpoint {step}")

    report(0)
    view.post(f"/v1/models/{view.models()[0]}/stop")
    wait_until(run.should_stop, what="the stop")
    proxy.fault = None
    uploads = sum(method == "PUT" for method, _ in proxy.seen)
    report(1)
    assert sum(method == "PUT" for method, _ in proxy.seen) == uploads == 0, "the watch has the lock"
    watching.kill()
    report(2)
    assert sum(method == "PUT" for method, _ in proxy.seen) == 1
    run.finish()
    assert steps(view) == [0, 1, 2]
    assert [one["epoch"] for one in view.checkpoints()] == [0, 1, 2]
    assert view.model()["state"] == "stopped"
    proxy.close()


def test_a_session_keeps_the_lock_while_its_hub_answers_and_lets_it_go_when_it_is_silent(quick, begin, own_hub, view):
    """A hub that is away for a moment costs nobody the lock; what comes after is delivered, once."""
    run = begin("run", mode="online", rate_limits={"ckpt": 0, "metrics": 0.1})
    other = SessionLock(run._owner.folder.session_lock)
    run.log({"loss": 1.0}, step=0)
    wait_until(lambda: view.models() and steps(view) == [0])
    assert not other.acquire()
    own_hub.kill()
    run.log({"loss": 1.0}, step=1)
    wait_until(other.acquire, what="the lock")
    time.sleep(1)
    own_hub.restart()
    run.log({"loss": 1.0}, step=2)
    time.sleep(1)
    assert steps(view) == [0], "while another process delivers, it does not"
    other.release()
    wait_until(lambda: steps(view) == [0, 1, 2], what="the rest")
    assert not other.acquire()
    run.finish()
    assert view.model()["state"] == "finished"


def test_the_delivery_changes_hands_many_times(quick, watch, begin, own_hub, view, tmp_path):
    """A live session and a watch, which reach the hub in turns; each checkpoint is sent by one of them, once."""
    proxies = [FaultyProxy(own_hub.url) for _ in range(2)]
    for proxy in proxies:
        proxy.fault = cut
    run = begin("run", mode="online", hub=proxies[0].url, rate_limits={"ckpt": 0, "metrics": 0.1})
    watching = watch("--hub", proxies[1].url, program=HASTY + SYNC)
    wait_until(lambda: proxies[1].seen, what="the watch's first request")
    for step in range(8):
        here, there = proxies[step % 2], proxies[1 - step % 2]
        here.fault, there.fault = None, cut
        run.log({"loss": 1.0}, step=step)
        (tmp_path / "last.pt").write_bytes(b"%d" % step)
        run.save_checkpoint(tmp_path / "last.pt", epoch=step)
        wait_until(lambda step=step: view.models() and step in steps(view), what=f"step {step}")
        wait_until(lambda step=step: len(view.checkpoints()) == step + 1, what=f"checkpoint {step}")
    for proxy in proxies:
        proxy.fault = None
    run.finish()
    ended(watching)
    assert steps(view) == list(range(8))
    assert [one["epoch"] for one in view.checkpoints()] == list(range(8))
    uploads = [sum(method == "PUT" for method, _ in proxy.seen) for proxy in proxies]
    assert (min(uploads) >= 2, sum(uploads)) == (True, 8)
    for proxy in proxies:
        proxy.close()


def test_a_session_that_was_refused_lets_the_lock_go(quick, begin, own_hub):
    """Its key is wrong; someone else's may be right."""
    run = begin("run", mode="online", api_key="wrong-" + own_hub.key)
    other = SessionLock(run._owner.folder.session_lock)
    wait_until(other.acquire, what="the lock")
    other.release()


# Signs of life of other hosts.


def test_a_sign_of_another_host_counts_while_its_time_goes_on(tmp_path, monkeypatch):
    """By the watcher's own clock, whatever the file's; a first look believes the file."""
    path = tmp_path / "alive.json"
    sign = Sign(path)
    assert not sign.is_in_use()
    path.write_text('{"owner": {"host": "elsewhere/boot/pid", "pid": 1, "started": 1}, "id": "x"}')
    assert sign.is_in_use()
    os.utime(path, (1_000_000_000, 1_000_000_000))
    assert sign.is_in_use(), "it was renewed, by a clock that is wrong"
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + LATE + 1)
    assert not sign.is_in_use()
    os.utime(path, (1_000_000_100, 1_000_000_100))
    assert sign.is_in_use()
    assert not Sign(path).is_in_use(), "found so old"
    path.unlink()
    assert not sign.is_in_use()

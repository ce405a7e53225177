"""A run in a world of one: what a training script may do to it, and what a hub may."""

import json
import logging
import math
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
import torch
from faulty_proxy import FaultyProxy, answer, cut, cut_after_the_hub
from jobs import ddphub as command_line
from jobs import wait_until

import ddphub
from ddphub.session.folder import RunFolder, RunInfo
from ddphub.session.report import report

ALL = {"ckpt": 0, "metrics": 0.2}


@pytest.fixture
def start(own_hub, tmp_path):
    """Starts runs that report to the test's hub; they are finished with the test."""
    runs = []

    def start(**settings):
        defaults = {"project": "tests", "name": "one", "hub": own_hub.url, "api_key": own_hub.key, "finish_timeout": 30}
        run = ddphub.init(**{**defaults, "dir": tmp_path / "runs", "rate_limits": ALL, **settings})
        runs.append(run)
        return run

    yield start
    for run in runs:
        run.finish()


@pytest.fixture
def proxy(own_hub):
    """A proxy in front of the test's hub."""
    made = FaultyProxy(own_hub.url)
    yield made
    made.close()


def report_of(run, tmp_path):
    return report(RunFolder(tmp_path / "runs" / run.id))


def test_what_is_logged_arrives_as_it_was(start, view):
    """Numbers, bools, tensors and numpy scalars keep their values; non-finite ones survive."""
    run = start()
    weight = torch.tensor(2.0, requires_grad=True)
    run.log({"float": 0.1, "int": 3, "bool": True, "tensor": weight * 2, "numpy": np.float32(0.5)}, step=7, epoch=1)
    run.log({"nan": math.nan, "up": math.inf, "down": -np.inf, "huge": 2**70, "half": torch.tensor(1.5).bfloat16()})
    run.finish()
    first, second = view.metrics()
    assert (first["step"], first["epoch"]) == (7, 1)
    assert first["values"] == {"float": 0.1, "int": 3, "bool": True, "tensor": 4.0, "numpy": 0.5}
    assert second["values"] == {"nan": "NaN", "up": "Infinity", "down": "-Infinity", "huge": float(2**70), "half": 1.5}
    assert (second["step"], second["epoch"]) == (1, None)


class UnsayableError(Exception):
    """An error whose own text raises."""

    def __str__(self):
        raise ValueError("no text")


class Broken:
    """A mapping that raises it."""

    def keys(self):
        raise UnsayableError


def test_what_cannot_be_recorded_is_dropped_with_one_warning_a_name(start, view, caplog, capsys):
    """A wrong value costs itself alone, and the report counts it."""
    run = start()
    for _ in range(3):
        run.log({"loss": 1.0, "text": "high", "vector": torch.zeros(3), "": 1.0, "z": 1 + 2j, "none": None})
    run.log(None)
    run.log(Broken())
    run.log({"loss": 1.0}, step="seven")
    run.finish()
    assert [one["values"] for one in view.metrics()] == [{"loss": 1.0}] * 4
    warnings = [record.message for record in caplog.records if "is dropped" in record.message]
    assert len([text for text in warnings if "'text'" in text]) == 1
    assert "18 values or events were dropped" in capsys.readouterr().err


def test_a_checkpoint_is_what_it_was_when_it_was_saved(start, view, tmp_path):
    """The file may be rewritten as soon as the call returns; a second call for the slot is the same checkpoint."""
    run = start()
    path = tmp_path / "last.pt"
    path.write_bytes(b"first")
    entry_id = run.save_checkpoint(path, epoch=0, metrics={"loss": math.nan, "accuracy": torch.tensor(0.5)})
    path.write_bytes(b"second")
    assert run.save_checkpoint(path, epoch=0) == entry_id
    run.save_checkpoint(str(path), epoch=1, kind="best")
    run.finish()
    first, second = view.checkpoints()
    assert view.download(first) == b"first"
    assert view.download(second) == b"second"
    assert (first["entry_id"], first["epoch"], first["kind"]) == (entry_id, 0, "epoch")
    assert first["metrics"] == {"loss": "NaN", "accuracy": 0.5}
    assert not list((tmp_path / "runs").glob("*/staging/*/files/*")), "delivered bytes are deleted"


def test_a_checkpoint_can_be_written_in_place_or_be_a_directory(start, view, tmp_path):
    """`run.checkpoint()` copies nothing; a directory is one checkpoint of several files."""
    run = start()
    with run.checkpoint(epoch=0) as path:
        torch.save({"weight": torch.ones(3)}, path)
    with run.checkpoint(epoch=1, name="shards") as path:
        (path / "deep").mkdir(parents=True)
        (path / "a.bin").write_bytes(b"a")
        (path / "deep" / "b.bin").write_bytes(b"")
    run.finish()
    first, second = view.checkpoints()
    assert (first["name"], len(first["files"])) == ("checkpoint.pt", 1)
    assert [(file["name"], file["size"]) for file in second["files"]] == [("a.bin", 1), ("deep/b.bin", 0)]
    assert view.download(second, "a.bin") == b"a"


def test_a_block_that_fails_leaves_no_checkpoint(start, view):
    """The user's own exception passes through; nothing half-written is reported."""
    run = start()
    with pytest.raises(ZeroDivisionError), run.checkpoint(epoch=0) as path:
        path.write_bytes(b"half")
        raise ZeroDivisionError
    run.finish()
    assert view.checkpoints() == []


@pytest.mark.parametrize("kind_of_path", ["missing", "fifo", "empty directory", "wrong kind", "bad name", "none"])
def test_what_is_no_checkpoint_is_refused_with_a_warning_and_an_event(start, view, tmp_path, caplog, kind_of_path):
    """Training goes on; the hub and the report know."""
    run = start()
    path, options = tmp_path / "checkpoint", {}
    if kind_of_path == "fifo":
        os.mkfifo(path)
    elif kind_of_path == "empty directory":
        path.mkdir()
    elif kind_of_path == "wrong kind":
        path.write_bytes(b"x")
        options = {"kind": "worst"}
    elif kind_of_path == "bad name":
        path.write_bytes(b"x")
        options = {"name": "../up"}
    elif kind_of_path == "none":
        path = None
    assert run.save_checkpoint(path, epoch=0, **options) is None
    run.log({"loss": 1.0})
    run.finish()
    assert "is not reported" in caplog.text
    (event,) = view.events("checkpoint")
    assert event["state"] == "refused"
    assert report_of(run, tmp_path).checkpoints["refused"] == 1
    assert len(view.metrics()) == 1


def test_a_key_in_a_failure_goes_nowhere(start, view, own_hub):
    with pytest.raises(ValueError, match="key"), start():
        raise ValueError(f"first line\nthe key is {own_hub.key}, they say")
    model = view.model()
    assert (model["state"], own_hub.key in repr(model)) == ("failed", False)
    assert "first line\n[a line with an API key]" in model["traceback"]


def test_the_rate_limit_supersedes_but_keeps_first_newest_best_and_final(start, view, tmp_path):
    """With 900 s between uploads a short run sends its first save, its newest ones, and every final."""
    run = start(rate_limits={"ckpt": 900})
    path = tmp_path / "last.pt"
    for epoch in range(5):
        path.write_bytes(b"%d" % epoch)
        run.save_checkpoint(path, epoch=epoch)
        run.save_checkpoint(path, epoch=epoch, kind="best", name="best.pt")
        if epoch == 0:
            wait_until(lambda: view.models() and len(view.checkpoints()) == 2, what="the first upload")
    run.save_checkpoint(path, epoch=4, kind="final", name="final.pt")
    run.finish()
    kept = sorted((one["kind"], one["epoch"]) for one in view.checkpoints())
    assert kept == [("best", 0), ("best", 4), ("epoch", 0), ("epoch", 4), ("final", 4)]
    counts = report_of(run, tmp_path).checkpoints
    assert (counts["staged"], counts["uploaded"], counts["superseded"], counts["pending"]) == (11, 5, 6, 0)


def test_over_the_byte_budget_old_epochs_go_first_and_a_final_finds_room(start, tmp_path, caplog):
    """Without a hub: the oldest epoch entry makes room; a save larger than the budget is refused."""
    run = start(mode="offline", staging_budget=1000)
    path = tmp_path / "last.pt"
    for epoch in range(3):
        path.write_bytes(b"x" * 400)
        assert run.save_checkpoint(path, epoch=epoch)
    assert run.save_checkpoint(path, epoch=2, kind="best", name="best.pt")
    path.write_bytes(b"x" * 900)
    assert run.save_checkpoint(path, epoch=3, kind="final")
    path.write_bytes(b"x" * 1001)
    assert run.save_checkpoint(path, epoch=4) is None
    assert "byte budget" in caplog.text
    run.finish()
    counts = report_of(run, tmp_path).checkpoints
    assert (counts["staged"], counts["pending"], counts["superseded"], counts["refused"]) == (5, 1, 4, 1)


def test_an_offline_run_is_delivered_by_sync(start, view, tmp_path, own_hub):
    """Nothing goes out until sync; then everything is there, and a second sync has nothing to do."""
    run = start(mode="offline")
    path = tmp_path / "last.pt"
    path.write_bytes(b"weights")
    run.log({"loss": 0.5})
    run.save_checkpoint(path, epoch=0)
    run.finish()
    assert view.models() == []
    for _ in range(2):
        command_line("sync", str(tmp_path / "runs"), hub=own_hub)
        assert len(view.metrics()) == 1
        assert view.download(view.checkpoints()[0]) == b"weights"
    assert report_of(run, tmp_path).is_delivered


def test_a_wrong_key_is_warned_of_once_and_costs_nothing(start, view, tmp_path, caplog, capsys, own_hub):
    """Training runs; everything stays on disk; the report says what to do; sync with the right key delivers."""
    run = start(api_key="wrong-key-wrong-key-wrong-key")
    path = tmp_path / "last.pt"
    path.write_bytes(b"weights")
    for step in range(20):
        run.log({"loss": step})
    run.save_checkpoint(path, epoch=0)
    run.finish()
    told = capsys.readouterr().err
    assert "ddphub sync" in told
    assert "401" in told
    assert "wrong-key" not in told + caplog.text
    assert len([record for record in caplog.records if "ddphub-events" in record.message]) == 1
    command_line("sync", str(tmp_path / "runs"), hub=own_hub)
    assert len(view.metrics()) == 20
    assert len(view.checkpoints()) == 1


FAULTS = {
    "garbage": answer(200, b"<html>captive portal</html>"),
    "wrong JSON": answer(200, b'{"data": 7}'),
    "500": answer(500, b"oops"),
    "503": answer(503, b"", Retry_After="1"),
    "429": answer(429, b"{}", Retry_After="1"),
    "redirect": answer(302, b"", Location="http://127.0.0.1:9/"),
    "cut": cut,
    "lost answer": cut_after_the_hub,
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_hub_that_fails_for_a_while_gets_everything_once(start, view, tmp_path, proxy, name):
    """The first answers of every kind of request fail; later ones succeed; nothing is missing or doubled."""
    failed = {}

    def fault(handler):
        kind = (handler.command, len(handler.path.partition("?")[0].split("/")))
        failed[kind] = failed.get(kind, 0) + 1
        return failed[kind] <= 1 and FAULTS[name](handler)

    proxy.fault = fault
    run = start(hub=proxy.url)
    path = tmp_path / "last.pt"
    for epoch in range(2):
        path.write_bytes(os.urandom(1000))
        run.log({"loss": epoch})
        run.save_checkpoint(path, epoch=epoch)
    run.finish()
    assert len(view.metrics()) == 2
    assert len(view.checkpoints()) == 2
    assert report_of(run, tmp_path).is_delivered


def test_an_event_that_the_hub_refuses_is_set_aside_alone(start, view, tmp_path, own_hub):
    """The events around it are delivered, it stays on disk and is named."""
    run = start()
    run.log({"loss": 0.5}, step=1)
    run._outbox.put({"time": time.time(), "kind": "metrics", "step": "two", "epoch": None, "values": {"loss": 0.5}})
    run.log({"loss": 0.5}, step=3)
    run.finish()
    assert sorted(one["step"] for one in view.metrics()) == [1, 3]
    told = report_of(run, tmp_path)
    assert told.events["set_aside"] == 1
    assert told.events["pending"] == 0
    assert not told.is_delivered
    assert command_line("sync", str(tmp_path / "runs"), "--retry", hub=own_hub, check=False).returncode == 1
    assert len(view.metrics()) == 2


def test_a_hub_that_never_answers_holds_up_neither_init_nor_finish(start, tmp_path):
    """A listener that accepts and says nothing: both calls end within their bounds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        began = time.monotonic()
        run = start(hub=f"http://127.0.0.1:{listener.getsockname()[1]}", finish_timeout=2)
        run.log({"loss": 0.5})
        run.finish()
        bound = 0.7 + 2.0 + 20.0  # init's wait, the finish timeout, and room for a slow machine
        assert time.monotonic() - began < bound
    assert report_of(run, tmp_path).events["pending"] >= 1


def test_a_hub_that_answers_after_init_is_named_then(start, proxy, capsys):
    """Training has begun without it; a person still gets the link, once."""
    answers = threading.Event()
    proxy.fault = lambda _handler: not answers.wait(60)
    run = start(hub=proxy.url)
    assert run.url is None
    assert f"run {run.id}: on disk until the hub answers\n" in capsys.readouterr().err
    answers.set()
    told = ""
    until = time.monotonic() + 60
    while "http" not in told and time.monotonic() < until:
        time.sleep(0.05)
        told += capsys.readouterr().err
    run.log({"loss": 0.5})
    assert told == f"ddphub: run {run.id}: {run.url}\n"
    run.finish()


def test_stop_reaches_the_training_loop(start, view):
    """A stop asked for on the hub is what should_stop says."""
    run = start()
    assert not run.should_stop()
    view.post(f"/v1/models/{run.model_id}/stop")
    run.log({"loss": 0.5})
    wait_until(run.should_stop, what="the stop")


def test_a_failure_is_recorded_with_its_traceback(start, view):
    """The context manager records the exception and lets it through."""
    with pytest.raises(ValueError, match="no such batch"), start() as run:
        run.log({"loss": 1.0})
        raise ValueError("no such batch \0 \ud800")
    (attempt,) = view.model()["attempts"]
    assert attempt["state"] == "failed"
    assert "no such batch" in attempt["reason"]


def test_two_runs_in_one_process_are_two_runs(start, view):
    """Each call of init without a run id makes a run of its own."""
    first, second = start(name="first"), start(name="second")
    first.log({"loss": 1.0})
    second.log({"loss": 2.0})
    first.finish()
    second.finish()
    assert first.id != second.id
    assert [view.metrics(run.model_id)[0]["values"]["loss"] for run in (first, second)] == [1.0, 2.0]


def test_after_finish_every_call_is_harmless(start, tmp_path):
    """Also finish itself, twice."""
    run = start(mode="offline")
    run.finish()
    run.finish()
    run.log({"loss": 1.0})
    (tmp_path / "late.pt").write_bytes(b"x")
    run.save_checkpoint(tmp_path / "late.pt", epoch=9)
    assert not run.should_stop()


def test_a_disabled_run_does_nothing(tmp_path, monkeypatch):
    """No directory, no thread, no hub; the calls are there all the same."""
    monkeypatch.chdir(tmp_path)
    run = ddphub.init(project="tests", mode="disabled")
    run.log({"loss": 1.0})
    with run.checkpoint(epoch=0) as path:
        path.write_bytes(b"x")
    run.save_checkpoint("nothing", epoch=0)
    run.finish()
    assert (run.id, run.url, run.model_id) == (None, None, None)
    assert list(tmp_path.iterdir()) == []


def _log_in_child(connection):
    made = ddphub.init(project="tests", name="child", mode="offline")
    made.log({"loss": 1.0})
    connection.send((made.id, made.model_id))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_process_is_never_a_second_owner(start, view, tmp_path, method):
    """A forked child's copy is silent, and init in a child gives a disabled run."""
    run = start()
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    child = context.Process(target=_log_in_child, args=(there,))
    child.start()
    assert here.recv() == (None, None)
    child.join()
    if method == "fork":
        pid = os.fork()
        if pid == 0:
            run.log({"from": 1.0})
            run.finish()
            os._exit(0)
        os.waitpid(pid, 0)
    run.log({"loss": 2.0})
    run.finish()
    assert [one["values"] for one in view.metrics()] == [{"loss": 2.0}]
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_data_loader_workers_do_not_report(start, view):
    """Workers of a DataLoader inherit the run and stay silent."""

    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            run.log({"from worker": index})
            return index

    run = start()
    for batch in torch.utils.data.DataLoader(Data(), num_workers=2):
        run.log({"batch": batch.sum()})
    run.finish()
    assert {name for one in view.metrics() for name in one["values"]} == {"batch"}


def test_a_child_with_a_run_id_of_its_own_is_a_run_of_its_own(start, tmp_path, own_hub):
    """An explicit id other than the parent's makes a run; the parent's own id does not."""
    run = start(run_id="parent")
    program = (
        "import ddphub, sys; run = ddphub.init(project='tests', name='child', mode='offline', run_id=sys.argv[1]); "
    )
    program += "print(run._enabled); run.finish()"
    environment = {**os.environ, "DDPHUB_DIR": str(tmp_path / "runs")}
    said = [
        subprocess.run(
            [sys.executable, "-c", program, run_id], env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()
        for run_id in ("parent", "child")
    ]
    assert said == ["False", "True"]
    assert run.id == "parent"


def test_the_key_is_nowhere_on_disk_and_the_modes_are_private(start, tmp_path, own_hub, caplog):
    """Files are 0600, folders 0700; run.json, spool, journal and log hold no secret."""
    caplog.set_level(logging.DEBUG)
    run = start()
    (tmp_path / "last.pt").write_bytes(b"x")
    run.save_checkpoint(tmp_path / "last.pt", epoch=0)
    run.log({"loss": 1.0})
    run.finish()
    for path in (tmp_path / "runs").rglob("*"):
        mode = path.stat().st_mode & 0o777
        assert mode == (0o700 if path.is_dir() else 0o600), path
        if path.is_file():
            assert own_hub.key.encode() not in path.read_bytes(), path
    assert own_hub.key not in caplog.text
    content = json.loads((tmp_path / "runs" / run.id / "run.json").read_text())
    assert content["hub"] == own_hub.url


def test_a_hub_that_refuses_everything_for_a_while_sets_nothing_aside(start, view, tmp_path, proxy):
    """A proxy that answers 400 to every batch is no reason to give up each event."""
    proxy.fault = lambda handler: handler.path.endswith("/events") and answer(400, b"{}")(handler)
    run = start(hub=proxy.url)
    for step in range(100):
        run.log({"loss": 0.5}, step=step)
    wait_until(lambda: sum(path.endswith("/events") for _, path in proxy.seen) > 30, what="the halving")
    proxy.fault = None
    run.finish()
    assert len(view.metrics()) == 100
    assert report_of(run, tmp_path).events["set_aside"] == 0


def test_an_answer_without_end_is_given_up(start, tmp_path, proxy):
    """A body that does not end costs neither memory nor finish."""

    def fault(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(2000):
            handler.wfile.write(b"x" * 65536)
        return True

    proxy.fault = fault
    before = psutil.Process().memory_info().rss
    run = start(hub=proxy.url, finish_timeout=8)
    run.log({"loss": 0.5})
    run.finish()
    assert psutil.Process().memory_info().rss - before < 160 * 2**20
    assert report_of(run, tmp_path).events["pending"] >= 1


def test_a_clock_set_back_does_not_make_the_newest_best_an_old_one(start, view, tmp_path, monkeypatch):
    """Entries are ordered as they were staged, whatever the clock says."""
    run = start(rate_limits={"ckpt": 900})
    path = tmp_path / "best.pt"
    path.write_bytes(b"1")
    run.save_checkpoint(path, epoch=1, kind="best")
    wait_until(lambda: view.models() and view.checkpoints(), what="the first upload")
    real = time.time
    for epoch in (2, 3):
        monkeypatch.setattr(time, "time", lambda epoch=epoch: real() - 30 * epoch)
        path.write_bytes(b"%d" % epoch)
        run.save_checkpoint(path, epoch=epoch, kind="best")
    monkeypatch.undo()
    run.finish()
    assert [one["epoch"] for one in view.checkpoints()] == [1, 3]


def test_the_lock_is_let_go_when_a_request_outlives_finish(start, tmp_path, proxy, own_hub, view):
    """A process that lives on must not keep `ddphub sync` out for ever."""
    release = threading.Event()
    proxy.fault = lambda handler: handler.path.endswith("/events") and release.wait(240) and False
    run = start(hub=proxy.url, finish_timeout=1)
    run.log({"loss": 0.5})
    wait_until(lambda: any(path.endswith("/events") for _, path in proxy.seen), what="the request")
    run.finish()
    assert command_line("sync", str(tmp_path / "runs"), "--hub", own_hub.url, hub=own_hub, check=False).returncode == 1
    release.set()
    wait_until(
        lambda: (
            command_line("sync", str(tmp_path / "runs"), "--hub", own_hub.url, hub=own_hub, check=False).returncode == 0
        ),
        what="the lock",
    )
    assert len(view.metrics()) == 1


def test_a_process_that_outlives_its_parent_or_its_job_is_its_own_owner(start, tmp_path, monkeypatch):
    """`sbatch` in a training script exports the mark: another job, or a dead owner, does not disable a run."""
    start(mode="offline")
    program = (
        "import ddphub; run = ddphub.init(project='tests', name='next', mode='offline'); print(run.id is not None)"
    )
    environment = {**os.environ, "DDPHUB_DIR": str(tmp_path / "next")}
    other_job = {**environment, "SLURM_JOB_ID": "77"}
    host, pid, started, job, run_id = environment["_DDPHUB_OWNER"].split(":")
    dead = {**environment, "_DDPHUB_OWNER": f"{host}:{pid}:{int(started) - 1}:{job}:{run_id}"}
    said = [
        subprocess.run([sys.executable, "-c", program], env=one, capture_output=True, text=True, check=True).stdout
        for one in (environment, other_job, dead)
    ]
    assert said == ["False\n", "True\n", "True\n"]


def test_hooks_around_ours_are_called_once(start):
    """A library wraps the exception hook between two runs: no circle, and the hook is given back."""
    before = sys.excepthook
    called = []
    try:
        first = start(mode="offline")
        ours = sys.excepthook

        def wrapper(kind, error, trace):
            called.append(error)
            ours(kind, error, trace)

        sys.excepthook = wrapper
        first.finish()
        second = start(mode="offline")
        error = ValueError("told once")
        sys.excepthook(ValueError, error, None)
        assert called == [error]
        second.finish()
    finally:
        sys.excepthook = before


def test_many_events_that_the_hub_refuses_do_not_hold_up_those_behind_them(start, view, tmp_path):
    """More wrong events in a row than make a hub suspect: each is set aside, what follows is delivered."""
    run = start()
    for _ in range(30):
        run._outbox.put({"time": time.time(), "kind": "metrics", "step": "x", "epoch": None, "values": {"loss": 1.0}})
    run.log({"loss": 0.5}, step=1)
    run.finish()
    assert [one["step"] for one in view.metrics()] == [1]
    counts = report_of(run, tmp_path).events
    assert (counts["set_aside"], counts["pending"]) == (30, 0)


def test_two_starts_of_one_run_at_the_same_moment_are_two_attempts(tmp_path):
    """run.json gets both, whoever writes it last."""
    program = (
        "import sys, time, ddphub\n"
        "time.sleep(max(0.0, float(sys.argv[2]) - time.time()))\n"
        "ddphub.init(project='tests', name='twice', dir=sys.argv[1], run_id='twice', mode='offline').finish()\n"
    )
    at = str(time.time() + 3)
    starts = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), at], stderr=subprocess.DEVNULL)
        for _ in range(3)
    ]  # fmt: skip
    assert [start.wait(150) for start in starts] == [0] * 3
    assert len(RunInfo.load(tmp_path / "twice" / "run.json").attempts) == 3

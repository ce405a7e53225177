"""Figures of this process, measured for real; and what does not come in training's way."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from jobs import wait_until

from ddphub.system import host
from ddphub.system.host import host_figures
from ddphub.system.sampler import Sampler

HOST = {"system/cpu", "system/memory", "system/host_memory", "system/disk"}


@pytest.fixture
def sample(tmp_path):
    """Starts samplers, ten a second; they are stopped with the test. Returns the list that events come to."""
    started = []

    def start(**options):
        events = []
        given = {"root": tmp_path, "local_rank": 0, "interval": 0.1, **options}
        started.append(Sampler(events.append, lambda: 7, **given))
        started[-1].start()
        return events

    yield start
    for sampler in started:
        sampler.stop()


def test_a_sample_is_a_metrics_event_of_the_newest_step(sample):
    before = time.time()
    events = sample()
    wait_until(lambda: len(events) >= 3, what="three samples")
    for event in events:
        assert set(event["values"]) >= HOST
        assert (event["kind"], event["step"], event["epoch"]) == ("metrics", 7, None)
        assert before <= event["time"] <= time.time()
        assert 1e6 < event["values"]["system/memory"] < psutil.virtual_memory().total
        assert 0 < event["values"]["system/host_memory"] <= 100
        assert 0 <= event["values"]["system/disk"] <= 100
    assert abs(events[0]["values"]["system/memory"] - psutil.Process().memory_info().rss) < 300e6


def test_work_shows_as_cpu(tmp_path):
    figures = host_figures(tmp_path)
    used, until = time.process_time(), time.monotonic() + 0.3
    while time.process_time() - used < 0.2 and time.monotonic() < until + 20:
        sum(range(1000))
    assert figures["cpu"]() > 5


def test_memory_counts_children_and_theirs(tmp_path):
    figures = host_figures(tmp_path)
    before = figures["memory"]()
    hold = "data = b'x' * 60_000_000; print(flush=True)"
    parent = f"import subprocess, sys; {hold}; subprocess.run([sys.executable, '-c', \"{hold}; input()\"])"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline()
        assert child.stdout.readline()
        assert figures["memory"]() - before > 120_000_000
        assert {one.pid for one in psutil.Process().children(recursive=True)} >= set(host._descendants(os.getpid()))
        child.communicate(b"\n")
    assert figures["memory"]() - before < 60_000_000


def test_what_raises_costs_itself_and_one_quiet_line(sample, monkeypatch, caplog):
    def gone(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(psutil, "disk_usage", gone)
    with caplog.at_level(logging.INFO):
        events = sample()
        wait_until(lambda: len(events) >= 3, what="three samples")
    assert set(events[-1]["values"]) >= HOST - {"system/disk"}
    assert "system/disk" not in events[-1]["values"]
    said = [record for record in caplog.records if "system/disk" in record.message]
    assert [record.levelname for record in said] == ["INFO"]


def test_without_the_extra_there_are_no_figures_and_one_quiet_line(sample, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.delitem(sys.modules, "ddphub.system.host")
    with caplog.at_level(logging.INFO):
        assert sample() == []
    wait_until(lambda: not any(thread.name == "ddphub-system" for thread in threading.enumerate()), what="no thread")
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert "ddphub[system]" in record.message


def test_nothing_is_reported_once_it_is_stopped(tmp_path):
    events = []
    sampler = Sampler(events.append, lambda: 0, root=tmp_path, local_rank=0, interval=0.01)
    sampler.start()
    wait_until(lambda: events, what="a sample")
    sampler.stop()
    count = len(events)
    time.sleep(0.2)
    assert len(events) == count
    wait_until(lambda: not any(thread.name == "ddphub-system" for thread in threading.enumerate()), what="its end")


def test_ranks_do_not_report_at_one_moment(sample):
    """A hundred that start together have begun to drift apart with their first sample."""
    times = [events for _ in range(30) for events in [sample(interval=0.5)]]
    wait_until(lambda: all(times), what="thirty samples")
    first = [events[0]["time"] for events in times]
    assert max(first) - min(first) > 0.1


HUNG = """
import os, sys, time, threading
import psutil
import ddphub

reader, writer = os.pipe()
hangs = threading.Event()
def hung(path):
    hangs.set()
    os.read(reader, 1)  # as statvfs does while a file server is away
psutil.disk_usage = hung
run = ddphub.init(project="tests", name="hung", system_interval=0.5, finish_timeout=200)
assert hangs.wait(150)
run.log({"loss": 1.0})
pid = os.fork()
if pid == 0:
    print("in the child", flush=True)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
if sys.argv[1] == "finish":
    run.finish()
if sys.argv[1] == "wait":
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("end", ["finish", "exit", "wait"])
def test_a_hung_file_server_holds_up_neither_fork_nor_finish_nor_exit_nor_a_signal(tmp_path, end):
    environment = {**os.environ, "DDPHUB_DIR": str(tmp_path / "runs")}
    began = time.monotonic()
    command = [sys.executable, "-c", HUNG, end]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        if end == "wait":
            assert process.stdout.readline() == b"in the child\n"
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=150)
    assert process.returncode == (-signal.SIGTERM if end == "wait" else 0), said
    assert time.monotonic() - began < 100
    (spool,) = (tmp_path / "runs").glob("*/spool/*")
    text = spool.read_text()
    assert '"loss":1.0' in text
    assert "system/" not in text

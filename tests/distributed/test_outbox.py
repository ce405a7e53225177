"""The outbox: order, encoding, bounds, and what one bad event may not do to the others."""

import gc
import itertools
import json
import math
import subprocess
import sys
import threading
import time

import pytest
from jobs import wait_until

from ddphub.distributed import outbox as outbox_module
from ddphub.distributed.outbox import Outbox
from ddphub.distributed.scalars import PendingScalar
from ddphub.events import MAX_EVENT_BYTES


class Collecting:
    """A carrier that keeps what it is given."""

    def __init__(self):
        self.texts = []

    def carry(self, events):
        self.texts += events

    @property
    def events(self):
        return [json.loads(text) for text in self.texts]


@pytest.fixture
def carrier():
    return Collecting()


@pytest.fixture
def outbox(carrier):
    made = Outbox(carrier)
    yield made
    made.close()


def metrics(step=0, **values):
    return {"time": time.time(), "kind": "metrics", "step": step, "epoch": None, "values": values}


def test_events_are_packed_without_a_flush(outbox, carrier):
    """The outbox's thread does it by itself."""
    outbox.put(metrics(1, loss=0.5))
    wait_until(lambda: carrier.texts, what="the packing")
    (event,) = carrier.events
    assert (event["step"], event["values"]) == (1, {"loss": 0.5})


def test_the_order_is_that_of_the_calls(outbox, carrier):
    """Also when the thread packs while events come in."""
    for step in range(20_000):
        outbox.put(metrics(step))
    assert outbox.flush(30)
    assert [event["step"] for event in carrier.events] == list(range(20_000))
    assert (outbox.packed, outbox.dropped) == (20_000, 0)


def test_many_threads_may_put(outbox, carrier):
    """Each thread's events stay in its order, and none is lost."""

    def put(thread):
        for step in range(500):
            outbox.put(metrics(step, thread=thread))

    threads = [threading.Thread(target=put, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outbox.flush(30)
    for number in range(8):
        steps = [event["step"] for event in carrier.events if event["values"]["thread"] == number]
        assert steps == list(range(500))


def test_logged_metrics_keep_their_place_among_other_events(outbox, carrier):
    """Both ways into the outbox are one queue."""
    before = time.time()
    outbox.log({"loss": 0.5}, 1, None)
    outbox.put({"time": 0.0, "kind": "log", "level": "info", "message": "between"})
    outbox.log({"loss": math.nan, "ok": True}, 2, 7)
    assert outbox.flush(30)
    first, between, second = carrier.events
    assert before <= first.pop("time") <= second.pop("time") <= time.time()
    assert first == {"kind": "metrics", "step": 1, "epoch": None, "values": {"loss": 0.5}}
    assert between["message"] == "between"
    assert second == {"kind": "metrics", "step": 2, "epoch": 7, "values": {"loss": "NaN", "ok": True}}


def test_logged_values_are_checked_when_they_are_packed(carrier):
    """One that is left with none, or whose check fails, takes no other with it."""

    def check(values):
        if "raise" in values:
            raise ValueError("no")
        return {name: value for name, value in values.items() if name != "bad"}

    outbox = Outbox(carrier, check)
    for step, values in enumerate([{"bad": 1, "good": 2}, {"bad": 1}, {"raise": 1}, {"good": 3}]):
        outbox.log(values, step, None)
    assert outbox.flush(30)
    assert [(event["step"], event["values"]) for event in carrier.events] == [(0, {"good": 2}), (3, {"good": 3})]
    assert (outbox.packed, outbox.dropped) == (2, 1)
    outbox.close()


def test_logging_leaves_nothing_for_the_garbage_collector(outbox):
    """Or it would look through all objects of a training every so many steps, for 0.1 s."""
    with outbox._packing:
        gc.collect()
        before = len(gc.get_objects())
        for step in range(1000):
            outbox.log({"loss": 0.5, "lr": 0.1}, step, None)
        assert len(gc.get_objects()) - before < 100


def test_what_is_packed_is_json(outbox, carrier):
    """Numbers that are not finite become their names; every text is ASCII on one line."""
    outbox.put(metrics(nan=math.nan, up=math.inf, down=-math.inf, fine=1.5, yes=True, text="ok"))
    outbox.put({"time": 0.0, "kind": "log", "level": "info", "message": "Grüße\n\u2028\ud800"})
    assert outbox.flush(30)
    values = carrier.events[0]["values"]
    assert values == {"nan": "NaN", "up": "Infinity", "down": "-Infinity", "fine": 1.5, "yes": True, "text": "ok"}
    assert all(text.isascii() and "\n" not in text for text in carrier.texts)


def test_an_event_that_is_too_large_is_dropped_and_counted(outbox, carrier, caplog):
    """Those around it are not."""
    outbox.put(metrics(1))
    outbox.put({"time": 0.0, "kind": "log", "message": "x" * MAX_EVENT_BYTES})
    outbox.put(metrics(2))
    assert outbox.flush(30)
    assert [event["step"] for event in carrier.events] == [1, 2]
    assert (outbox.packed, outbox.dropped) == (2, 1)
    assert "was dropped" in caplog.text


def test_an_event_of_just_the_limit_is_kept(outbox, carrier):
    """The limit is on bytes of JSON."""
    event = {"time": 0.0, "kind": "log", "message": ""}
    event["message"] = "x" * (MAX_EVENT_BYTES - len(json.dumps(event, separators=(",", ":"))))
    outbox.put(event)
    assert outbox.flush(30)
    assert [len(text) for text in carrier.texts] == [MAX_EVENT_BYTES]


def test_a_signal_handler_may_log_at_any_moment_of_a_log(monkeypatch):
    """It interrupts the training thread wherever that is, with whatever lock that holds."""
    monkeypatch.setattr(outbox_module, "MANY", 2)
    reached = []

    def train(outbox, moment):
        events = itertools.count()
        for step in range(outbox_module.MANY):
            outbox.log({"loss": 0.5}, step, None)
        sys.setprofile(lambda *_: outbox.log({"handler": 1}, 0, None) if next(events) == moment else None)
        outbox.log({"loss": 0.5}, outbox_module.MANY, None)
        sys.setprofile(None)
        reached.append(next(events))

    for moment in range(40):
        outbox = Outbox(Collecting())
        with outbox._packing:
            thread = threading.Thread(target=train, args=(outbox, moment), daemon=True)
            thread.start()
            thread.join(20)
            assert len(reached) == moment + 1
        outbox.close()
    assert max(reached) < 40  # all moments were tried


def test_memory_is_bounded(monkeypatch):
    """Events beyond the capacity are dropped and counted while the carrier is slow."""
    monkeypatch.setattr(outbox_module, "CAPACITY", 100)
    monkeypatch.setattr(outbox_module, "MANY", 50)
    entered, release = threading.Event(), threading.Event()

    class Slow(Collecting):
        def carry(self, events):
            super().carry(events)
            entered.set()
            release.wait(240)

    carrier = Slow()
    outbox = Outbox(carrier)
    assert entered.wait(150)
    for step in range(0, 250, 2):
        outbox.put(metrics(step))
        outbox.log({"loss": 0.5}, step + 1, None)
    assert outbox.dropped == 150
    release.set()
    assert outbox.flush(60)
    assert [event["step"] for event in carrier.events] == list(range(100))
    outbox.put(metrics(250))
    assert outbox.flush(60)
    assert carrier.events[-1]["step"] == 250
    outbox.close()


def test_a_flush_does_not_wait_for_a_stuck_carrier():
    """False after the timeout, and the event is still there for a later one."""
    entered, release = threading.Event(), threading.Event()

    class Stuck(Collecting):
        def carry(self, events):
            super().carry(events)
            entered.set()
            release.wait(240)

    carrier = Stuck()
    outbox = Outbox(carrier)
    assert entered.wait(150)
    outbox.put(metrics(1))
    assert not outbox.flush(0.05)
    release.set()
    assert outbox.flush(60)
    assert len(carrier.texts) == 1
    outbox.close()


def test_the_carrier_is_called_also_when_nothing_is_new(outbox, carrier):
    """It tends what it still holds."""
    calls = []
    carrier.carry = calls.append
    wait_until(lambda: calls, what="a call without events")
    assert calls[0] == []


def test_the_carrier_is_never_called_by_two_at_once():
    """A flush and the outbox's own thread take turns."""
    overlaps, inside = [], threading.Lock()

    class Checking(Collecting):
        def carry(self, events):
            if not inside.acquire(blocking=False):
                overlaps.append(1)
                return
            time.sleep(0.001)
            super().carry(events)
            inside.release()

    carrier = Checking()
    outbox = Outbox(carrier)
    for step in range(200):
        outbox.put(metrics(step))
        if step % 5 == 0:
            outbox._wake.put(None)
            outbox.flush(30)
    assert outbox.flush(30)
    assert not overlaps
    assert len(carrier.texts) == 200
    outbox.close()


def test_put_after_close_is_harmless(outbox, carrier):
    """A late event does not raise, and the thread is gone."""
    outbox.put(metrics(1))
    assert outbox.flush(30)
    outbox.close()
    outbox._thread.join(30)
    assert not outbox._thread.is_alive()
    outbox.put(metrics(2))
    outbox.close()
    assert len(carrier.texts) == 1


@pytest.mark.parametrize("flush", [True, False], ids=["flush", "thread"])
@pytest.mark.parametrize(
    "bad",
    [{"step": 10**5000}, {"step": object()}, {"values": {"x": object()}}, {"values": {(1, 2): 1}}],
    ids=["endless int", "object", "object value", "key"],
)
def test_an_event_that_cannot_be_encoded_takes_no_other_with_it(outbox, carrier, bad, flush):
    """It is dropped and counted; those before it and behind it arrive."""
    with outbox._packing:  # so that all three are in one packing
        outbox.put(metrics(1))
        outbox.put(metrics(2) | bad)
        outbox.put(metrics(3))
    if flush:
        assert outbox.flush(30)
    else:
        wait_until(lambda: not outbox._gathered and carrier.texts, what="the packing")
    assert [event["step"] for event in carrier.events] == [1, 3]
    assert outbox.dropped == 1


class BrokenDevice:
    """The event of a copy on a device that has failed: after a device-side assert every call of CUDA raises."""

    def query(self):
        raise RuntimeError("CUDA error: device-side assert triggered")


@pytest.mark.parametrize("flush", [True, False], ids=["flush", "thread"])
def test_a_broken_gpu_does_not_keep_what_happened_from_being_told(outbox, carrier, flush):
    """Metrics of the failed device are lost; the events before it and the failure's own behind it are not."""
    lost = PendingScalar(slots=None, index=0, done=BrokenDevice(), to=float)
    with outbox._packing:
        outbox.put(metrics(1, loss=0.5))
        outbox.put(metrics(2, loss=lost, lr=0.1))
        outbox.put({"time": time.time(), "kind": "attempt", "state": "failed"})
    if flush:
        assert outbox.flush(30)
    else:
        wait_until(lambda: not outbox._gathered and carrier.texts, what="the packing")
    assert carrier.events[0]["values"] == {"loss": 0.5}
    assert carrier.events[-1]["state"] == "failed"


FORKED = """
import json, os, sys, time
from ddphub.distributed.outbox import Outbox

class ToFile:
    def carry(self, events):
        with open(sys.argv[1], "a") as file:
            file.writelines(f"{event}\\n" for event in events)

outbox = Outbox(ToFile())
os.register_at_fork(after_in_child=outbox.disable)
with outbox._packing:  # the thread is not at work at the fork
    outbox.put({"time": 0, "who": "parent before"})
    child = os.fork()
    if child == 0:
        outbox.put({"time": 0, "who": "child"})
        outbox._packing.release()
        outbox.flush(5)
        os._exit(0)
os.waitpid(child, 0)
outbox.put({"time": 0, "who": "parent after"})
assert outbox.flush(30)
"""


def test_a_forked_childs_copy_is_silent(tmp_path):
    """What had gathered is the parent's to send, and what the child puts goes nowhere."""
    path = tmp_path / "events"
    subprocess.run([sys.executable, "-c", FORKED, str(path)], check=True, timeout=150)
    assert [json.loads(line)["who"] for line in path.read_text().splitlines()] == ["parent before", "parent after"]

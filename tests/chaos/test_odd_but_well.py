"""What pages say of runs that are odd but well: clocks hours off, counters that begin anew, numbers at the edge.

A hub that calls a healthy run stalled, lost or failed is as wrong as one that calls a dead run well.
"""

import random
import sys
import time

import numpy as np
import pytest
from hub_process import KEY, HubProcess
from server.hub_talk import Talk, attempt_event, metrics_event, new_id, rank_event

from ddphub.console.console import Console
from ddphub.console.tap import Tap
from ddphub.tell import tell

HOURS = 3 * 3600.0
LARGEST = 2**63 - 1


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    patience = ("--heartbeat-s", "1", "--stall-s", "2")
    with HubProcess(tmp_path_factory.mktemp("attack") / "data", KEY, arguments=patience) as process:
        yield process


@pytest.fixture
def talk(hub):
    return Talk(hub)


def beat(talk, attempt_id):
    answer = talk.http.post(
        f"{talk.hub.url}/v1/agent/heartbeat/models/{talk.model_id}", json={"attempt_id": attempt_id}
    )
    return answer.json()["data"]["stop"]


def start(talk, attempt_id, skew=0.0, seq=0):
    return talk.accepted(attempt_event(attempt_id, seq, "started", time=time.time() + skew))


def test_a_requeue_on_a_node_whose_clock_is_hours_behind_is_what_the_model_is(talk):
    old, new = new_id(), new_id()
    start(talk, old)
    talk.accepted(*[metrics_event(old, seq, step=seq, time=time.time()) for seq in range(1, 100)])
    beat(talk, old)
    talk.accepted(attempt_event(old, 100, "failed", time=time.time(), reason="ValueError: no"))
    time.sleep(0.1)
    start(talk, new, -HOURS)
    talk.accepted(*[metrics_event(new, seq, step=50 + seq, time=time.time() - HOURS) for seq in range(1, 100)])
    beat(talk, new)
    assert talk.get()["state"] == "running"
    lines = talk.get("/chart", params={"name": "loss"})["lines"]
    assert [(line["attempt"], line["x"][-1]) for line in lines] == [(1, 50), (2, 149)]
    talk.accepted(attempt_event(new, 100, "finished", time=time.time() - HOURS))
    assert talk.get()["state"] == "finished"


def test_a_second_start_that_failed_does_not_hide_the_first_that_goes_on(talk):
    first, second = new_id(), new_id()
    start(talk, first)
    start(talk, second)
    talk.accepted(attempt_event(second, 1, "failed", time=time.time(), reason="OSError: taken"))
    time.sleep(0.1)
    talk.accepted(metrics_event(first, 1, time=time.time()))
    beat(talk, first)
    assert talk.get()["state"] == "running"


def test_a_stop_that_was_obeyed_is_not_for_the_next_attempt_whatever_its_clock_says(talk):
    old, new = new_id(), new_id()
    start(talk, old)
    assert talk.http.post(talk.url("/stop")).status_code == 200
    talk.accepted(attempt_event(old, 1, "stopped", time=time.time()))
    assert start(talk, new, -HOURS)["stop"] is False
    assert beat(talk, new) is False


@pytest.mark.parametrize(
    "step_of", [lambda i: i % 5, lambda i: 1000 - i, lambda i: 10**9 if i == 3 else i, lambda i: i // 8]
)
def test_a_program_that_goes_on_logging_is_not_stalled_however_it_counts(talk, step_of):
    start(talk, talk.attempt_id)
    for number in range(16):
        talk.accepted(metrics_event(talk.attempt_id, number + 1, step=step_of(number), time=time.time()))
        beat(talk, talk.attempt_id)
        assert talk.get()["state"] == "running"
        time.sleep(0.25)


def test_a_rank_that_is_gone_is_no_stall_where_rank_0_logs_nothing_and_others_go_on(talk):
    start(talk, talk.attempt_id)
    gone = {"host": "n1", "reason": "its process is gone"}
    talk.accepted(rank_event(talk.attempt_id, 1, 2, "lost", time=time.time(), **gone))
    for number in range(4):
        talk.accepted(metrics_event(talk.attempt_id, number, rank=1, step=number, time=time.time()))
        for _ in range(5):
            beat(talk, talk.attempt_id)
            assert talk.get()["state"] == "running"
            time.sleep(0.5)


@pytest.mark.parametrize(
    ("steps", "epochs"),
    [((-LARGEST - 1, LARGEST), (None, None)), ((-1, LARGEST), (None, None)), ((LARGEST,) * 4, (0, 1, 2, 3))],
)
def test_every_step_that_an_event_may_have_is_taken(talk, steps, epochs):
    now = time.time()
    for seq, (step, epoch) in enumerate(zip(steps, epochs, strict=True)):
        talk.accepted(metrics_event(talk.attempt_id, seq, step=step, epoch=epoch, time=now + seq / 10))
    assert talk.get()["progress"]["step"] == LARGEST


def test_series_hold_each_value_once_whenever_the_hub_is_killed(tmp_path):
    chance = random.Random(6)
    with HubProcess(tmp_path / "data", KEY) as hub:
        talk = Talk(hub)
        events = [
            metrics_event(talk.attempt_id, seq, rank, values={"loss": seq + 0.5})
            for rank in (0, 3)
            for seq in range(1500)
        ]
        chance.shuffle(events)
        for _ in range(3):
            begin = 0
            while begin < len(events):
                size = chance.choice((1, 31, 33, 255, 700, 1000))
                talk.accepted(*events[begin : begin + size])
                begin += size
                if chance.random() < 0.2:
                    hub.kill()
                    hub.start()
            chance.shuffle(events)
        for rank in (0, 3):
            query = {"name": "loss", "show": "ranks", "ranks": str(rank), "points": 5000}
            (line,) = talk.get("/chart", params=query)["lines"]
            assert np.array_equal(line["y"], np.arange(1500) + 0.5)


def test_what_the_tap_cannot_hold_is_counted(monkeypatch):
    class Stream:
        def write(self, text):
            return len(text)

    monkeypatch.setattr(sys, "stdout", Stream())
    tap = Tap()
    tap.open()
    try:
        with tap._lock:  # somebody is at work on what came before
            for number in range(30_000):
                sys.stdout.write(f"{number}\n")
        pieces, lost = tap.take()
    finally:
        tap.close()
    assert len(pieces) + lost["stdout"] == 30_000
    assert pieces[-1][2] == "29999\n"


def test_moves_below_the_screen_cost_nothing(monkeypatch):
    class Stream:
        def write(self, text):
            return len(text)

    monkeypatch.setattr(sys, "stdout", Stream())
    events = []
    console = Console(events.append, ())
    console._tap.open()
    sys.stdout.write("\x1b[9999B" * 20_000)
    console.turn()
    assert all(len(screen._rows) <= 200 for screen in console._screens.values())
    sys.stdout.write("last words\n")
    console.stop()
    assert events[-1]["lines"][-1] == "last words"


def test_a_program_without_stderr_is_told_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    tell(["hello"])

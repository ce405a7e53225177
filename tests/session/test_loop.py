"""Loops: how long they wait, how often they try, and that each of their ends is an end."""

import logging
import math
import threading
import time

import pytest
from jobs import wait_until

from ddphub.errors import HubModelGone, HubRejected, HubUnauthorized, HubUnavailable, JournalError
from ddphub.session import loop as loop_module
from ddphub.session.loop import LONGEST_PAUSE, LONGEST_RETRY_AFTER, Backoff, Loop

LONG = 600.0
"""Seconds; what ends is over much sooner, and what does not is a failure of the test."""


@pytest.fixture
def quick(monkeypatch):
    """Pauses of milliseconds: the number of tries is looked at, not their times."""
    monkeypatch.setattr(loop_module, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(loop_module, "LONGEST_PAUSE", 0.01)


@pytest.fixture
def start():
    """Starts loops; they end with the test."""
    started = []

    def make(step, pace=lambda: LONG):
        made = Loop("test-loop", step, pace)
        made.start()
        started.append(made)
        return made

    yield make
    for made in started:
        made.abort()
        assert made.join(30)


class Step:
    """A step that counts its calls, remembers whether they were finishing, and does what it is told."""

    def __init__(self, outcome=True):
        self.outcome = outcome
        self.calls = []

    def __call__(self, finishing):
        self.calls.append(finishing)
        outcome = self.outcome(len(self.calls)) if callable(self.outcome) else self.outcome
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def ended(loop):
    """Whether it ends by itself; no thread of its name is left then."""
    return loop.join(30) and not [thread for thread in threading.enumerate() if thread is loop._thread]


# Back-off.


def test_pauses_double_up_to_the_longest_and_are_shortened_by_half_at_most():
    """So that a thousand runs do not come back at once, and none hammers the hub."""
    for _ in range(50):
        backoff = Backoff()
        for failures in range(1, 40):
            whole = min(LONGEST_PAUSE, 2.0 ** (failures - 1))
            assert whole / 2 <= backoff.next() <= whole
            assert backoff.failures == failures


def test_a_shorter_pause_may_be_asked_for():
    """By a hub that shows a run as lost until it hears it again; it may learn so only later."""
    longest = iter([LONGEST_PAUSE, *[4.0] * 20])
    backoff = Backoff(lambda: next(longest))
    assert max(backoff.next() for _ in range(20)) <= 4.0


def test_pauses_differ():
    """That is what jitter is for."""
    assert len({Backoff().next() for _ in range(20)}) > 10


def test_a_success_starts_over():
    """The next failure is a first one."""
    backoff = Backoff()
    for _ in range(10):
        backoff.next()
    backoff.reset()
    assert backoff.failures == 0
    assert backoff.next() <= 1.0


@pytest.mark.parametrize(
    ("retry_after", "least", "most"),
    [
        (None, 0.5, 1.0),
        (0.0, 0.5, 1.0),
        (-5.0, 0.5, 1.0),
        (0.1, 0.5, 1.0),
        (30.0, 30.0, 30.0),
        (LONGEST_RETRY_AFTER, LONGEST_RETRY_AFTER, LONGEST_RETRY_AFTER),
        (1e300, LONGEST_RETRY_AFTER, LONGEST_RETRY_AFTER),
        (math.inf, LONGEST_RETRY_AFTER, LONGEST_RETRY_AFTER),
        (math.nan, 0.5, 1.0),
    ],
)
def test_retry_after_is_honoured_within_reason(retry_after, least, most):
    """A hub may ask for more time, not for less, and not for a day."""
    assert least <= Backoff().next(retry_after) <= most


# A loop at work.


def test_a_step_runs_again_at_its_pace(start):
    """The pace is asked after every step."""
    step, paces = Step(), []

    def pace():
        paces.append(len(step.calls))
        return 0.001

    start(step, pace)
    wait_until(lambda: len(step.calls) > 5, what="some steps")
    assert paces[:5] == [1, 2, 3, 4, 5]
    assert set(step.calls) == {False}


def test_wake_cuts_the_pace_short(start):
    """There is something to do."""
    step = Step()
    loop = start(step)
    wait_until(lambda: loop.succeeded, what="the first step")
    loop.wake()
    wait_until(lambda: len(step.calls) == 2, what="the second step")


def test_wake_does_not_cut_a_back_off_short(start):
    """A checkpoint a second must not be a request a second to a hub that is down."""
    step = Step(HubUnavailable("down", retry_after=LONG))
    loop = start(step)
    wait_until(lambda: loop.last_error, what="the failure")
    for _ in range(100):
        loop.wake()
        time.sleep(0.001)
    assert len(step.calls) == 1


def test_the_hubs_retry_after_is_the_pause(start, monkeypatch):
    """As the hub has asked."""
    pauses = []
    step = Step(HubUnavailable("busy", retry_after=123.0))
    loop = Loop("test-loop", step, lambda: 0.0)
    monkeypatch.setattr(loop._wake, "wait", lambda pause: pauses.append(pause) or loop.abort())
    loop.start()
    assert ended(loop)
    assert pauses == [123.0]


@pytest.mark.parametrize(
    "error",
    [
        HubUnavailable("down"),
        HubUnauthorized("no"),
        HubModelGone("gone"),
        HubRejected(422, "never"),
        OSError("disk full"),
        JournalError("odd"),
        KeyError("a bug"),
    ],
    ids=repr,
)
def test_no_failure_ends_a_loop(start, quick, monkeypatch, caplog, error):
    """It is said once, and the next success is as good as any."""
    monkeypatch.setattr(loop_module, "REFUSED_PAUSE", 0.001)
    caplog.set_level(logging.INFO)
    step = Step(lambda call: error if call < 20 else True)
    loop = start(step)
    wait_until(lambda: len(step.calls) >= 19, what="the failures")
    wait_until(lambda: loop.succeeded, what="the success")
    wait_until(lambda: loop.last_error is None, what="the success")
    assert len([record for record in caplog.records if "nothing is lost" in record.getMessage()]) == 1


def test_an_error_without_text_is_told_by_its_name(start):
    """`last_error` is for people."""
    loop = start(Step(TimeoutError()))
    assert wait_until(lambda: loop.last_error, what="the failure") == "TimeoutError"


@pytest.mark.parametrize("pace", [threading.TIMEOUT_MAX * 2, 1e300, math.inf], ids=str)
def test_a_pace_beyond_what_a_thread_can_wait_does_not_end_the_loop(start, pace):
    """`Event.wait` raises OverflowError for it, and nobody would hear of the thread's death."""
    step = Step()
    loop = start(step, lambda: pace)
    wait_until(lambda: loop.succeeded, what="the first step")
    time.sleep(0.1)
    assert loop._thread.is_alive()
    loop.wake()
    wait_until(lambda: len(step.calls) == 2, what="the second step")


def test_a_pace_that_fails_does_not_end_the_loop(start, quick):
    """It is part of a try."""
    paces = iter([ValueError("a bug")])

    def pace():
        for error in paces:
            raise error
        return 0.001

    step = Step()
    start(step, pace)
    wait_until(lambda: len(step.calls) > 1, what="the second step")


# The end.


def test_a_loop_ends_when_nothing_is_left(start):
    """Whatever pace it was waiting for."""
    step = Step(lambda call: call == 4)
    loop = start(step)
    wait_until(lambda: loop.succeeded, what="the first step")
    loop.finish(time.monotonic() + LONG)
    assert ended(loop)
    assert step.calls == [False, True, True, True]


def test_a_loop_in_back_off_tries_once_more_when_it_is_to_finish(start):
    """The hub may be back."""
    step = Step(lambda call: HubUnavailable("down", retry_after=LONG) if call == 1 else True)
    loop = start(step)
    wait_until(lambda: loop.last_error, what="the failure")
    loop.finish(time.monotonic() + LONG)
    assert ended(loop)
    assert step.calls == [False, True]


def test_a_loop_ends_at_its_deadline(start):
    """Though something is always left."""
    step = Step(outcome=False)
    loop = start(step)
    loop.finish(time.monotonic() + 0.3)
    assert ended(loop)


@pytest.mark.parametrize("pause", [None, LONG])
def test_a_back_off_does_not_outlast_the_deadline(start, pause):
    """A Retry-After of minutes is cut to what is left."""
    loop = start(Step(HubUnavailable("down", retry_after=pause)))
    loop.finish(time.monotonic() + 0.3)
    assert ended(loop)
    assert loop.last_error == "down"


def test_a_hub_that_never_answered_gets_few_tries(start, quick):
    """A job with a wrong URL does not wait an hour."""
    step = Step(HubUnavailable("down"))
    loop = start(step)
    loop.finish(time.monotonic() + LONG)
    assert ended(loop)
    assert sum(step.calls) == loop_module.FINAL_TRIES_NEVER_REACHED


def test_a_hub_that_has_answered_gets_more_tries(start, quick):
    """It was there a moment ago."""
    step = Step(lambda call: True if call == 1 else HubUnavailable("reset"))
    loop = start(step)
    wait_until(lambda: loop.succeeded, what="the first step")
    loop.finish(time.monotonic() + LONG)
    assert ended(loop)
    assert sum(step.calls) == loop_module.FINAL_TRIES


def test_a_disk_that_refuses_gets_few_tries(start, quick):
    """It will not be mended while the job ends."""
    step = Step(lambda call: True if call == 1 else OSError("full"))
    loop = start(step)
    wait_until(lambda: loop.succeeded, what="the first step")
    loop.finish(time.monotonic() + LONG)
    assert ended(loop)
    assert sum(step.calls) == loop_module.FINAL_TRIES_NEVER_REACHED


def test_failures_before_the_end_do_not_count_as_final_tries(start, quick):
    """A hub that was down for a day gets its last effort."""
    step = Step(HubUnavailable("down"))
    loop = start(step)
    wait_until(lambda: len(step.calls) > loop_module.FINAL_TRIES, what="the failures")
    loop.finish(time.monotonic() + LONG)
    assert ended(loop)
    assert sum(step.calls) == loop_module.FINAL_TRIES_NEVER_REACHED


def test_progress_between_failures_keeps_a_finishing_loop_going(start, quick, monkeypatch):
    """Only failures in a row count."""
    monkeypatch.setattr(loop_module, "FINISHING_PACE", 0.001)

    def outcome(call):
        return HubUnavailable("flaky") if call % 2 else call == 60

    step = Step(outcome)
    loop = start(step)
    loop.finish(time.monotonic() + LONG)
    assert ended(loop)
    assert len(step.calls) == 60


@pytest.mark.parametrize("error", [HubUnauthorized("no"), HubModelGone("gone"), HubRejected(422, "never")], ids=repr)
def test_a_hub_that_refuses_ends_a_finishing_loop(start, error):
    """Trying again within this job would change nothing."""
    step = Step(error)
    loop = start(step)
    loop.finish(time.monotonic() + LONG)
    assert ended(loop)
    assert sum(step.calls) == 1
    assert loop.last_error == str(error)


def test_abort_ends_a_loop_whatever_it_waits_for(start):
    """Before its next step."""
    for step in (Step(), Step(HubUnavailable("down", retry_after=LONG)), Step(HubUnauthorized("no"))):
        loop = start(step)
        wait_until(lambda step=step: step.calls, what="the first step")
        loop.abort()
        assert ended(loop)
        assert len(step.calls) == 1


def test_a_loop_that_was_aborted_first_does_nothing():
    """A session that ends before it has begun."""
    step = Step()
    loop = Loop("test-loop", step, lambda: 1.0)
    loop.abort()
    loop.start()
    assert ended(loop)
    assert step.calls == []


def test_join_does_not_wait_for_a_step_that_hangs(start):
    """False after the timeout; a negative one is none."""
    release = threading.Event()
    loop = start(lambda _finishing: release.wait(240))
    loop.finish(time.monotonic())
    assert not loop.join(0.05)
    assert not loop.join(-1.0)
    release.set()
    assert ended(loop)

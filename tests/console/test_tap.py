"""What is taken off sys.stdout and sys.stderr, and that nobody notices."""

import contextlib
import io
import logging
import os
import signal
import sys
import threading

import pytest

from ddphub.console.tap import CAPACITY, PIECE, Tap


@pytest.fixture
def terminal():
    """sys.stdout and sys.stderr as files that the test may read, in a `with`: pytest sets its own for each phase."""

    @contextlib.contextmanager
    def enter():
        kept = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        try:
            yield sys.stdout, sys.stderr
        finally:
            sys.stdout, sys.stderr = kept

    return enter


@pytest.fixture
def tapped(terminal):
    """The same with a tap on them."""

    @contextlib.contextmanager
    def enter():
        with terminal():
            tap = Tap()
            tap.open()
            try:
                yield tap
            finally:
                tap.close()

    return enter


def recorded(tap, stream=None):
    """The text of one stream or both."""
    return "".join(text for name, _, text in tap.take()[0] if stream in {None, name})


def written(stream):
    return stream.buffer.getvalue().decode()


def test_what_is_printed_is_recorded_and_printed(tapped):
    with tapped() as tap:
        handler = logging.StreamHandler(sys.stderr)
        print("a", 1)
        handler.emit(logging.LogRecord("x", logging.INFO, "", 0, "logged", None, None))
        assert sys.stdout.write("näher\n") == 6, "what the stream returns"
        sys.stdout.writelines(["b\n", "c\n"])
        assert written(sys.stdout) == recorded(tap, "stdout") == "a 1\nnäher\nb\nc\n"
        print("a 2", file=sys.stderr)
        assert written(sys.stderr) == "logged\na 2\n"
        assert recorded(tap, "stderr") == "a 2\n"


def test_errors_of_the_stream_are_its_callers(tapped):
    with tapped() as tap:
        sys.stdout.close()
        with pytest.raises(ValueError, match="closed"):
            print("lost")
        with pytest.raises(TypeError):
            sys.stderr.write(b"bytes")
        assert recorded(tap) == ""


def test_closing_gives_the_streams_back(terminal):
    with terminal() as (stdout, stderr):
        own = stderr.write = stderr.write
        tap = Tap()
        tap.open()
        held = stdout.write
        tap.close()
        assert not vars(stdout)
        assert stderr.write is own, "it was the object's own"
        held("by who held the method\n")
        assert recorded(tap) == ""
        assert written(stdout) == "by who held the method\n"


def test_who_replaced_the_method_since_keeps_it(tapped):
    """As other trackers do; ours stays in between and records nothing more."""
    with tapped() as tap:
        ours, seen = sys.stdout.write, []
        theirs = sys.stdout.write = lambda text: seen.append(text) or ours(text)
        print("both")
        tap.close()
        print("theirs")
        assert sys.stdout.write is theirs
        assert "".join(seen) == written(sys.stdout) == "both\ntheirs\n"
        assert recorded(tap) == "both\n"


def test_two_runs_record_beside_each_other(tapped):
    with tapped() as first, contextlib.closing(Tap()) as second:
        second.open()
        print("both")
        first.close()
        print("second")
        second.close()
        print("none")
        assert recorded(first) == "both\n"
        assert recorded(second) == "both\nsecond\n"
        assert written(sys.stdout) == "both\nsecond\nnone\n"


def test_a_stream_put_in_place_later_is_not_touched(tapped):
    with tapped() as tap:
        before, sys.stdout = sys.stdout, io.StringIO()
        print("elsewhere")
        print("as ever", file=before)
        tap.close()
        assert sys.stdout.getvalue() == "elsewhere\n"
        assert not vars(before)
        assert recorded(tap) == "as ever\n"


def test_streams_that_cannot_be_tapped_are_left(terminal):
    class Stubborn:
        __slots__ = ()

        def write(self, text):
            return len(text)

    class Broken:
        def __getattr__(self, name):
            raise RuntimeError(name)

    for stdout in (None, Broken()):
        with terminal():
            sys.stdout, sys.stderr = stdout, Stubborn()
            tap = Tap()
            tap.open()
            assert sys.stderr.write("x") == 1
            tap.close()
            assert recorded(tap) == ""


def test_one_object_under_both_names_is_recorded_once(terminal):
    with terminal():
        sys.stderr = sys.stdout
        tap = Tap()
        tap.open()
        print("once")
        tap.close()
        assert recorded(tap) == "once\n"
        assert not vars(sys.stdout)


def test_memory_is_bounded_and_the_newest_stay(tapped):
    with tapped() as tap:
        for number in range(20_000):
            print(number)
        pieces, lost = tap.take()
        text = "".join(text for _, _, text in pieces)
        assert sum(len(text) + PIECE for _, _, text in pieces) <= CAPACITY
        assert text.endswith("19999\n")
        assert lost["stdout"] + text.count("\n") == 20_000
        sys.stdout.write("x\n" * CAPACITY)
        ((_, _, text),), lost = tap.take()
        assert 0 < len(text) < CAPACITY
        assert lost["stdout"] + text.count("\n") == CAPACITY


def test_a_signal_handler_may_print_while_its_thread_prints(tapped):
    def handler(*_):
        sys.stderr.write("from the handler\n")

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with tapped() as tap:
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
            for _ in range(20_000):
                sys.stdout.write("x")
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert "from the handler" in recorded(tap, "stderr")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_threads_lose_nothing(tapped):
    """Taken now and then meanwhile."""

    def prints(name):
        for number in range(500):
            sys.stdout.write(f"{name}-{number}\n")

    with tapped() as tap:
        threads = [threading.Thread(target=prints, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        seen = ""
        while any(thread.is_alive() for thread in threads):
            seen += recorded(tap)
        seen += recorded(tap)
    assert sorted(seen.splitlines()) == sorted(f"{name}-{number}" for name in "abcd" for number in range(500))


def test_a_handler_that_waits_in_the_midst_of_recording_holds_up_nobody(tapped):
    """It interrupts a write of ours, and waits for a thread that prints."""
    with tapped() as tap, tap._lock:
        thread = threading.Thread(target=print, args=("printed meanwhile",))
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
        assert recorded(tap) == "printed meanwhile\n"


def test_a_forked_child_waits_for_no_lock(tapped):
    """It prints while a thread of its parent was in the middle of recording."""
    is_held, may_end = threading.Event(), threading.Event()

    def hold(tap):
        with tap._lock:
            is_held.set()
            may_end.wait()

    with tapped() as tap:
        thread = threading.Thread(target=hold, args=(tap,))
        thread.start()
        is_held.wait()
        pid = os.fork()
        if pid == 0:
            signal.alarm(10)
            tap.close()  # what a run's fork hook does
            print("in the child")
            os._exit(0)
        may_end.set()
        thread.join()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert recorded(tap) == ""

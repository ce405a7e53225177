"""What is printed, as events."""

import io
import logging
import sys
import threading
import time
from urllib.parse import quote, unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddphub.console import console as module
from ddphub.console.console import LINE_LENGTH, PACE_BYTES, PACE_LINES, WITHHELD, Console
from ddphub.distributed.outbox import Outbox
from ddphub.events import MAX_CONSOLE_LINE, MAX_CONSOLE_LINES, MAX_EVENT_BYTES, to_json

KEY = "dd-0123456789abcdefABCDEF"


class Listener:
    """A console on streams of its own, for the `with` block; nothing looks unless it is told to.

    Args:
        secrets: keys.
    """

    def __init__(self, *secrets):
        self.events = []
        self.console = Console(self.events.append, secrets)

    def __enter__(self):
        self._kept = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
        self.console._tap.open()
        return self

    def __exit__(self, *_):
        self.console.stop()
        sys.stdout, sys.stderr = self._kept

    def lines(self, stream=None):
        """Every line so far."""
        return [line for event in self.events if stream in {None, event["stream"]} for line in event["lines"]]

    def missing(self):
        """How many lines the events say are left out."""
        return sum(event["left_out"] for event in self.events)


def test_events_say_what_was_printed_in_order():
    before = time.time()
    with Listener() as listener:
        print("one")
        print("two\nthree", file=sys.stderr)
        print("four")
        listener.console.turn()
        print("five")
        listener.console.turn()
        listener.console.turn()
    assert [(event["stream"], event["lines"]) for event in listener.events] == [
        ("stdout", ["one"]),
        ("stderr", ["two", "three"]),
        ("stdout", ["four"]),
        ("stdout", ["five"]),
    ]
    assert all(before <= event["time"] <= time.time() for event in listener.events)
    assert {name: event for name, event in listener.events[0].items() if name not in {"time", "lines"}} == {
        "kind": "console",
        "stream": "stdout",
        "left_out": 0,
    }


def test_what_is_not_ended_arrives_at_the_end():
    with Listener() as listener:
        print("50%", end="\r")
        print("60%", end="")
        listener.console.turn()
        assert listener.events == []
        print("last words", end="", file=sys.stderr)
        listener.console.flush()
        assert listener.lines() == ["60%", "last words"]
        print(", and more", end="", file=sys.stderr)
    assert listener.lines() == ["60%", "last words", "last words, and more"]


def test_a_flood_is_bounded_and_counted():
    """The newest lines arrive, and the events say how many are missing and where."""
    printed = 0
    with Listener() as listener:
        for _ in range(20):
            for _ in range(500):
                print(printed)
                printed += 1
            before = len(listener.lines())
            listener.console.turn()
            assert len(listener.lines()) - before <= PACE_LINES
    lines = list(map(int, listener.lines()))
    assert len(lines) + listener.missing() == printed
    assert lines[-1000:] == list(range(printed - 1000, printed))
    place = -1
    for event in listener.events:
        numbers = list(map(int, event["lines"]))
        assert numbers[0] == place + 1 + event["left_out"], "what is missing is missing right here"
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        place = numbers[-1]


def test_more_than_may_wait_in_memory_is_counted_too():
    with Listener() as listener:
        print("\n" * 300_000, end="")
        listener.console.turn()
        for number in range(50_000):
            print(number)
    assert listener.lines()[-1] == "49999"
    assert len(listener.lines()) + listener.missing() == 350_000
    with Listener() as listener:
        print("one line that is too much" * 20_000)
    assert [(event["lines"], event["left_out"]) for event in listener.events] == [([], 1)]


def test_an_attempt_has_its_bytes_and_its_last_lines_beyond_them(monkeypatch):
    monkeypatch.setattr(module, "ATTEMPT_BYTES", 2000)
    with Listener() as listener:
        for number in range(300):
            print(f"line {number:010}")
            listener.console.turn()
        assert len(to_json(listener.lines())) <= 2000 + 2
        assert listener.lines()[-1] != "line 0000000299"
    assert listener.lines()[-100:] == [f"line {number:010}" for number in range(200, 300)]
    assert len(listener.lines()) + listener.missing() == 300


def test_long_lines_are_cut_and_say_so():
    with Listener() as listener:
        print("x" * LINE_LENGTH)
        print("y" * (LINE_LENGTH + 1))
        print("z" * 100_000)
    exact, longer, longest = listener.lines()
    assert exact == "x" * LINE_LENGTH
    assert longer == "y" * LINE_LENGTH + "... (1 more characters)"
    assert longest == "z" * LINE_LENGTH + f"... ({100_000 - LINE_LENGTH} more characters)"


@pytest.mark.parametrize("character", ["x", "é", "日", "🎉", "\udc80", '"', "\t"])
def test_events_fit_whatever_is_printed(character):
    with Listener() as listener:
        sys.stdout = Loose()
        listener.console._tap.open()
        for _ in range(30):
            print(character * 2000)
        listener.console.turn()
        assert sum(len(to_json(event["lines"])) for event in listener.events) < PACE_BYTES + 1000
        for _ in range(250):
            print(character)
    assert len(listener.lines()) + listener.missing() == 280
    for event in listener.events:
        assert len(event["lines"]) <= MAX_CONSOLE_LINES
        assert all(len(line) <= MAX_CONSOLE_LINE for line in event["lines"])
        assert len(to_json(event)) <= MAX_EVENT_BYTES
        to_json(event).encode()


class Loose(io.StringIO):
    """A stream that takes what cannot be encoded, as one with errors="surrogateescape" does."""


def test_a_line_with_a_key_is_withheld():
    with Listener(KEY, "another-key-of-ours") as listener:
        print("before")
        print(f"https://hub/?api_key={KEY}&x=1")
        print("another-key-of-", end="")
        print("\x1b[1mours")
        print("another-key-of-", end="")
        listener.console.flush()
        print("mine")
        print("another ke" + "y")
        print("x" * (LINE_LENGTH - 5) + KEY)
        print("after")
    lines = listener.lines()
    assert lines == ["before", WITHHELD, WITHHELD, WITHHELD, WITHHELD, "another key", WITHHELD, "after"]


keys = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60)
near = st.sampled_from([0, 1, 50, LINE_LENGTH - 30, LINE_LENGTH - 1, LINE_LENGTH, 3000])
colours = st.sampled_from(["", "", "", "\x1b[31m", "\x1b[0m", "\x1b]0;t\x07", "\x00"])


@st.composite
def disguised(draw, key):
    """The key as a program may print it."""
    text = key
    for _ in range(draw(st.integers(0, 2))):
        form = draw(st.sampled_from(["url", "percent", "repr", "none"]))
        if form == "url":
            text = quote(text, safe=draw(st.sampled_from(["", "/"])))
        elif form == "percent":
            text = "".join(f"%{ord(character):02x}" for character in text)
        elif form == "repr":
            text = repr(text)
    return "".join(character + draw(colours) for character in text)


@settings(deadline=None)
@given(st.data())
def test_no_line_ever_holds_the_key(data):
    """However it is written, between whatever other text, and whenever somebody looks."""
    key = data.draw(keys)
    with Listener(key) as listener:
        for _ in range(data.draw(st.integers(1, 3))):
            text = "a" * data.draw(near) + data.draw(disguised(key)) + "b" * data.draw(near)
            text += data.draw(st.sampled_from(["\n", "\r", "\r\n", ""]))
            stream = data.draw(st.sampled_from([sys.stdout, sys.stderr]))
            while text:
                size = data.draw(st.sampled_from([1, 3, 20, 10_000]))
                stream.write(text[:size])
                text = text[size:]
                if size > 1:
                    data.draw(st.sampled_from([lambda: None, listener.console.turn, listener.console.flush]))()
    for line in listener.lines():
        for form in (line, unquote(line), unquote(unquote(line)), line.replace("\\", "")):
            assert key not in form
    assert listener.lines(), "something is there in its place"


def test_what_our_own_threads_say_is_no_news():
    """A report of trouble with reporting would make more of it."""
    with Listener() as listener:
        handler = logging.StreamHandler(sys.stderr)
        logger = logging.getLogger("ddphub")
        logger.addHandler(handler)
        try:
            for name in ("ddphub-outbox", "somebody"):
                is_done = threading.Event()
                thread = threading.Thread(
                    target=lambda done=is_done: (logger.warning("trouble"), done.set(), time.sleep(2)), name=name
                )
                thread.daemon = True
                thread.start()
                is_done.wait()
                listener.console.turn()
                print(name)
                listener.console.turn()
        finally:
            logger.removeHandler(handler)
    assert listener.lines() == ["ddphub-outbox", "trouble", "somebody"]


class Kept:
    """A carrier that keeps what it is given."""

    def __init__(self):
        self.texts = []

    def carry(self, events):
        self.texts += events


def test_the_thread_looks_by_itself_and_ends_with_the_console(capfd):
    kept = Kept()
    outbox = Outbox(kept)
    console = Console(outbox.put, [])
    console.start()
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "ddphub-console"]
    print("to be seen")
    until = time.monotonic() + 20
    while not kept.texts and time.monotonic() < until:
        time.sleep(0.05)
    print("and this", end="")
    console.stop()
    thread.join(5)
    assert not thread.is_alive()
    outbox.flush(5)
    outbox.close()
    assert ["to be seen" in text for text in kept.texts] == [True, False]
    assert '"lines":["and this"]' in kept.texts[-1]
    assert capfd.readouterr().out == "to be seen\nand this"

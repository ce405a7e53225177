"""What a terminal would show."""

import io
import json
import os
import subprocess
import sys

import pytest
import rich.console
import rich.progress
import trainers
from hypothesis import given, settings
from hypothesis import strategies as st

from ddphub.console.screen import FARTHEST, MOVING, SNAPSHOT, Screen


def shown(*texts, at=0.0, everything=True, width=1000):
    """The lines that a screen shows of texts that come at one time."""
    screen = Screen(width)
    for text in texts:
        screen.feed(text, at)
    return [line.text for line in screen.lines(at, everything=everything)]


@pytest.mark.parametrize(
    ("written", "lines"),
    [
        ("a\nb\n", ["a", "b"]),
        ("a\r\n\r\nb", ["a", "", "b"]),
        ("10%\r20%\r30%\n", ["30%"]),
        ("\r10%\r20%", ["20%"]),
        ("a long bar\rshort\n", ["short"]),
        ("bar\r   \r", []),
        ("bar\x1b[2K\rdone\n", ["done"]),
        ("bar\r\x1b[Kdone\n", ["done"]),
        ("kept\x1b[K\n", ["kept"]),
        ("bar\x1b[1Gdone\n", ["done"]),
        ("\x1b[1;31mred\x1b[0m \x1b[38;5;196mand\x1b[m \x1b(Bback\n", ["red and back"]),
        ("\x1b]0;a title\x07text\x1b]8;;http://h/\x1b\\link\x1b]8;;\x1b\\\n", ["textlink"]),
        ("tab\there\x00\x07\x08\x7f\x9b\n", ["tab\there"]),
        ("one\ntwo\n\x1b[Anew two\n", ["one", "new two"]),
        ("one\ntwo\n\x1b[2Fnew\n", ["new", "two"]),
        ("one\ntwo\x1b[A\rnew\n", ["new", "two"]),
        ("one\ntwo\x1b[A\r\x1b[Jnew", ["new"]),
        ("one\n\x1b[99Atwo\n", ["two"]),
        ("\x1b[31", []),
        ("äöü 日本 🎉\n", ["äöü 日本 🎉"]),
    ],
)
def test_lines_are_what_a_terminal_shows(written, lines):
    assert shown(written) == lines
    assert shown(*written) == lines, "one character a write"


def test_a_bar_is_shown_now_and_then_and_at_its_end():
    """Ten states a second for a minute: one line every SNAPSHOT seconds, and the last state once."""
    screen, seen = Screen(1000), []
    for tenth in range(601):
        screen.feed(f"\r{tenth / 6:.0f}%", tenth / 10)
        if tenth % 10 == 0:
            seen += screen.lines(tenth / 10)
    screen.feed("\n", 61.0)
    seen += screen.lines(61.0)
    assert [line.text for line in seen] == ["17%", "33%", "50%", "67%", "83%", "100%"]


def test_a_line_without_an_end_is_shown_when_it_has_stood():
    screen = Screen(1000)
    screen.feed("loading...", 5.0)
    assert screen.lines(5.0 + SNAPSHOT - 1) == []
    assert [line.text for line in screen.lines(5.0 + SNAPSHOT)] == ["loading..."]
    assert screen.lines(100.0) == [], "nothing new"
    screen.feed("\n", 101.0)
    assert screen.lines(101.0) == [], "its end is nothing new either"
    screen.feed("wait", 102.0)
    screen.feed("ed\n", 103.0)
    assert [line.text for line in screen.lines(103.0)] == ["waited"]


NESTED = """
import json, sys
from tqdm import tqdm

class Recorder:
    def __init__(self): self.texts = []
    def write(self, text): self.texts.append(text)
    def flush(self): pass

recorder = Recorder()
options = {"file": recorder, "mininterval": 0, "ascii": True, "ncols": 60}
for epoch in tqdm(range(2), desc="epochs", **options):
    for batch in tqdm(range(50), desc="batches", leave=False, **options):
        pass
recorder.write("done\\n")
print(json.dumps(recorder.texts))
"""


def test_nested_bars_of_tqdm_are_one_line_each():
    """Real ones: the inner bar moves down and up again with each step."""
    environment = {**os.environ, **trainers.paths("lightning")}
    done = subprocess.run([sys.executable, "-c", NESTED], env=environment, capture_output=True, text=True, check=True)
    screen, seen = Screen(1000), []
    texts = json.loads(done.stdout)
    assert len(texts) > 200
    for number in range(0, len(texts), 10):  # a look at any moment
        screen.feed("".join(texts[number : number + 10]), number / 100)
        seen += screen.lines(number / 100)
    seen += screen.lines(100.0, everything=True)
    assert [line.text.partition(":")[0] for line in seen] == ["epochs", "done"]
    assert "2/2" in seen[0].text


def test_a_live_display_of_rich_is_shown_as_it_stands():
    """Its cursor rests on the last of several lines, and moves up to draw again."""
    written, screen, seen = io.StringIO(), Screen(1000), []
    console = rich.console.Console(file=written, force_terminal=True, width=60)
    with rich.progress.Progress(console=console, auto_refresh=False) as progress:
        tasks = [progress.add_task(name, total=100) for name in ("first", "second")]
        for step in range(100):
            for task in tasks:
                progress.advance(task)
            progress.refresh()
            screen.feed(written.getvalue(), step / 4)
            written.seek(0)
            written.truncate()
            seen += screen.lines(step / 4)
    assert len(seen) <= 2 * 3, "25 seconds"
    screen.feed(written.getvalue(), 25.0)
    seen += screen.lines(25.0 + MOVING + 1)
    assert [line.text.split()[0] for line in seen[-2:]] == ["first", "second"]
    assert all("100%" in line.text for line in seen[-2:])


def test_a_gap_costs_the_lines_that_it_is_in():
    screen = Screen(1000)
    screen.feed("whole\nbegun and ", 0.0)
    assert [line.text for line in screen.lines(0.0)] == ["whole"]
    screen.skip()
    screen.feed("the rest of something", 1.0)
    screen.feed(" else\nwhole again\n", 2.0)
    assert [line.text for line in screen.lines(2.0)] == ["whole again"]


def test_a_line_is_held_to_its_width_and_the_rest_counted():
    screen = Screen(10)
    for _ in range(1000):
        screen.feed("x" * 100, 0.0)
    screen.feed("\n", 0.0)
    ((text, more),) = screen.lines(0.0)
    assert (text, more) == ("x" * 10, 100_000 - 10)


@settings(deadline=None)
@given(st.text(st.sampled_from("ab \t\r\n\x1b[]0123;ABEFGHJKm\x07\\")), st.integers(1, 5))
def test_whatever_is_written_lines_are_plain_and_few(written, size):
    """No control character but tabs comes out, and what is held stays bounded."""
    screen, seen = Screen(20), []
    for start in range(0, len(written), size):
        screen.feed(written[start : start + size], start)
        seen += screen.lines(start)
    seen += screen.lines(len(written), everything=True)
    assert all(line.text.isprintable() for line in seen if "\t" not in line.text)
    assert all(len(line.text) <= 20 for line in seen)
    assert len(seen) <= 2 * len(written) + 1
    assert len(screen._rows) <= FARTHEST + len(written)

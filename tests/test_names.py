"""What may be a name, for the client and the hub alike."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddphub import names

fuzzed = settings(deadline=None, database=None)


@pytest.mark.parametrize("good", ["a", "digits", "My Net", "naïve-模型", "v1.2", "x" * 128, "a.b", "(1)", "a b  c"])
def test_ordinary_names_name_a_project(good):
    """Letters of any script, digits, inner spaces and punctuation are fine."""
    assert names.wrong_name(good) is None


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (None, "expected text, got NoneType"),
        (b"a", "expected text, got bytes"),
        (1, "expected text, got int"),
        ("", "empty"),
        (" \t", "empty"),
        (" a", "white space"),
        ("a\n", "white space"),
        ("x" * 129, "at most 128"),
        ("a/b", "'/'"),
        ("a\\b", "'/'"),
        ("..", "'..'"),
        ("a..b", "'..'"),
        ("a\0b", "control"),
        ("a\nb", "control"),
        ("a\x7fb", "control"),
        ("a\x85b", "control"),
        ("a\u202eb", "control"),  # turns the text of a page around
        ("a\u200bb", "control"),  # looks like another name
        ("a\ud800b", "control"),
    ],
)
def test_what_leaves_a_folder_or_ends_a_line_is_no_name(bad, why):
    """The reason is said."""
    assert why in names.wrong_name(bad)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029"])
def test_a_line_separator_ends_a_line_too(separator):
    """U+2028 and U+2029 are no control characters, but they end a line."""
    assert names.wrong_name(f"a{separator}b")
    assert names.wrong_file_name(f"a{separator}b")


@fuzzed
@given(st.text())
def test_a_name_stays_in_its_folder_and_on_its_line(text):
    """Whatever passes is one line, one path component and not a way out."""
    if names.wrong_name(text) is None:
        assert text.splitlines() == [text]
        assert "/" not in text
        assert "\\" not in text
        assert ".." not in text
        assert text.encode()
        assert len(text) <= names.MAX_NAME


@pytest.mark.parametrize(
    "good", ["last.pt", "shard0/0.distcp", ".metadata", "a b/c d.bin", "x" * 255, "...", "模型.pt"]
)
def test_a_file_name_is_a_relative_path(good):
    """Files of a checkpoint that is a directory have components."""
    assert names.wrong_file_name(good) is None


@pytest.mark.parametrize(
    "bad",
    [
        *("", "/", "/etc/passwd", "a//b", "a/", "./a", "../a", "a/../b", "a/..", "a\\b", "a\0", "a\nb", "a\ud800"),
        *("x" * 256, "é" * 128, "/".join(["x" * 100] * 6), None, b"a", 1),
    ],
)
def test_a_file_name_never_leaves_its_entry(bad):
    """Absolute paths, '..', empty components, control characters and names no file system takes."""
    assert names.wrong_file_name(bad)


@fuzzed
@given(st.text(alphabet=st.one_of(st.sampled_from("./\\ab\0\n"), st.characters())))
def test_an_accepted_file_name_is_below_its_folder(text):
    """Joined to a folder it names something inside it."""
    if names.wrong_file_name(text) is None:
        parts = text.split("/")
        assert all(part not in {"", ".", ".."} for part in parts)
        assert not text.startswith("/")
        assert text.splitlines() == [text]


@pytest.mark.parametrize("good", ["a", "0", "run.1", "A_b-c.9", "x" * 128])
def test_run_ids_are_folder_names(good):
    """ASCII letters, digits, dot, underscore, dash."""
    assert names.wrong_run_id(good) is None


@pytest.mark.parametrize(
    "bad", ["", ".", "..", ".a", "-a", "_a", "a..b", "a/b", "a b", "a\n", "é", "x" * 129, None, 1, b"a", "run\u0661"]
)
def test_what_is_no_folder_name_is_no_run_id(bad):
    """Also a trailing newline, a leading dot and digits of other scripts."""
    assert names.wrong_run_id(bad)


@pytest.mark.parametrize("bad", ["", "0" * 31, "0" * 33, "G" * 32, "A" * 32, "0" * 32 + "\n", None, 0, b"0" * 32])
def test_only_32_lower_case_hex_digits_are_a_hex_id(bad):
    """128 bits."""
    assert not names.is_hex_id(bad)


def test_new_ids_are_valid_and_differ():
    """A thousand of each."""
    hex_ids = {names.new_hex_id() for _ in range(1000)}
    run_ids = {names.new_run_id() for _ in range(1000)}
    assert len(hex_ids) == len(run_ids) == 1000
    assert all(map(names.is_hex_id, hex_ids))
    assert not any(map(names.wrong_run_id, run_ids))


def test_a_run_id_begins_with_its_utc_time():
    """So that a listing is in order of creation."""
    before = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    run_id = names.new_run_id()
    after = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    assert before <= run_id[:15] <= after


@pytest.mark.parametrize(
    ("text", "short"), [("My Net!", "my-net"), ("", "run"), ("模型", "run"), ("--a--", "a"), ("A/B\\..C", "a-b-c")]
)
def test_a_slug_keeps_letters_and_digits(text, short):
    """All else becomes one dash."""
    assert names.slug(text) == short


@fuzzed
@given(st.text())
def test_every_slug_is_a_run_id(text):
    """Whatever it is made of, and short enough to be part of one."""
    made = names.slug(text)
    assert names.wrong_run_id(made) is None
    assert re.fullmatch("[a-z0-9-]{1,40}", made)

"""Lines that hold a key."""

import json
from urllib.parse import quote

import pytest

from ddphub.console.keys import Keys

KEY = "dd-0123456789abcdefABCDEF+/="


@pytest.mark.parametrize(
    "line",
    [
        KEY,
        f"x-api-key: {KEY}!",
        f"GET /?api_key={quote(KEY, safe='')}&x=1",
        f"next=http%3A//h/%3Fkey%3D{quote(quote(KEY, safe=''), safe='')}",
        "".join(f"%{ord(character):02x}" for character in KEY),
        f"100% of {KEY}",
        f"export DDPHUB_API_KEY={KEY[:7]}",
        f"folded: {KEY[9:19]} and on",
    ],
)
def test_a_line_with_a_key_or_its_beginning_at_the_end_is_told(line):
    assert Keys([KEY]).are_in(line)


@pytest.mark.parametrize("line", ["", "loss 0.1", KEY[8:17] + " is short", KEY.upper()[4:], "100 %", "%41%"])
def test_other_lines_are_not(line):
    assert not Keys([KEY]).are_in(line)


def test_quotes_and_backslashes_are_found_as_python_and_json_write_them():
    key = "a\\b'c\"d12345"
    for text in (key, repr(key), json.dumps({"key": key}), repr(repr(key))):
        assert Keys([key]).are_in(f"got {text}."), text


def test_without_keys_nothing_is_told():
    assert not Keys([]).are_in("anything")
    assert not Keys(["", " "]).are_in("anything")
    assert Keys([]).longest == 0

"""A line with its checksum, as files and the relay's messages carry it: crc32 of the text in 8 hex digits, then it."""

import zlib
from typing import Final

CHECKSUM: Final = 8
"""Bytes of a line's checksum."""

_PIECE: Final = 5 * 1024
"""Bytes up to which zlib keeps the interpreter's lock; getting it back beside a busy training thread may take 5 ms."""


def with_checksum(text: bytes) -> bytes:
    """The line of a text, without its newline."""
    return b"%08x %b" % (_crc32(text), text)


def without_checksum(line: bytes) -> bytes | None:
    """The text of a line, which has no newline; None when they do not fit together."""
    checksum, _, text = line.partition(b" ")
    return text if checksum == b"%08x" % _crc32(text) else None


def _crc32(text: bytes) -> int:
    value = 0
    view = memoryview(text)
    for start in range(0, len(text), _PIECE):
        value = zlib.crc32(view[start : start + _PIECE], value)
    return value

"""Files of lines with checksums: what a killed writer, a full disk or a flipped bit leave behind."""

import errno
import os
import signal
import stat
import subprocess
import sys
import zlib
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddphub.events import to_json
from ddphub.session.lines import Line, LineWriter, PartlyWrittenError, read_lines


@pytest.fixture
def path(tmp_path):
    return tmp_path / "spool" / "events.jsonl"


def written(path, *records):
    """A writer that has written these."""
    writer = LineWriter(path)
    writer.append(to_json(record) for record in records)
    return writer


def records(path, offset=0):
    return [line.record for line in read_lines(path, offset)]


def line_of(record):
    text = to_json(record).encode()
    return b"%08x %b\n" % (zlib.crc32(text), text)


def test_a_file_that_is_not_there_has_no_lines(path):
    """And a writer makes none before its first line."""
    writer = LineWriter(path)
    writer.append([])
    writer.sync()
    writer.close()
    assert records(path) == []
    assert not path.parent.exists()


def test_a_line_is_its_checksum_and_its_json(path):
    """So that a person, and any other program, can check it."""
    written(path, {"a": 1}).close()
    assert path.read_bytes() == b"%08x " % zlib.crc32(b'{"a":1}') + b'{"a":1}\n'
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_lines_come_back_in_order_with_their_offsets(path):
    """A reader that goes on at a line's end finds the next one."""
    writer = written(path, {"n": 0}, {"n": 1})
    writer.append([to_json({"n": 2})])
    lines = list(read_lines(path))
    assert [line.record for line in lines] == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert lines[0].start == 0
    assert [line.end for line in lines] == [*(line.start for line in lines[1:]), path.stat().st_size]
    for index, line in enumerate(lines):
        assert records(path, line.end) == [{"n": number} for number in range(index + 1, 3)]
    writer.append([to_json({"n": 3})])
    assert records(path, lines[-1].end) == [{"n": 3}]
    assert records(path, path.stat().st_size + 1000) == []
    writer.close()


def test_lines_with_their_checksums_are_appended_together(path):
    """As rank 0 gets them from other ranks."""
    writer = written(path, {"n": 0})
    writer.append_lines([line_of({"n": 1}), line_of({"n": 2})])
    writer.append([to_json({"n": 3})])
    writer.sync()
    writer.close()
    assert records(path) == [{"n": number} for number in range(4)]


def test_an_appended_line_is_there_for_other_readers_at_once(path):
    """Without sync or close: a SIGKILL takes nothing that was appended."""
    program = (
        "import sys, os, signal; from pathlib import Path; from ddphub.session.lines import LineWriter; "
        "LineWriter(Path(sys.argv[1])).append(['{\"n\":1}']); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False, timeout=150)
    assert done.returncode == -signal.SIGKILL
    assert records(path) == [{"n": 1}]


def test_a_partial_last_line_is_not_consumed(path):
    """Its writer may be alive and about to finish it."""
    written(path, {"n": 0}).close()
    whole = line_of({"n": 1})
    for cut in range(1, len(whole)):
        path.write_bytes(line_of({"n": 0}) + whole[:cut])
        (line,) = read_lines(path)
        assert line.record == {"n": 0}
    path.write_bytes(line_of({"n": 0}) + whole)
    assert records(path, line.end) == [{"n": 1}]


@pytest.mark.parametrize("cut", [1, 8, 9, 10, -1])
def test_the_next_writer_starts_a_new_line_behind_a_partial_one(path, cut):
    """What its predecessor left is one damaged line, and costs nothing of its own."""
    path.parent.mkdir()
    partial = line_of({"n": 1})[:cut]
    path.write_bytes(line_of({"n": 0}) + partial)
    with_new = written(path, {"n": 2})
    with_new.append([to_json({"n": 3})])
    with_new.close()
    lines = list(read_lines(path))
    # A line that lacks its newline alone is whole: the next writer's newline completes it.
    assert [line.record for line in lines] == [{"n": 0}, {"n": 1} if cut == -1 else None, {"n": 2}, {"n": 3}]
    assert lines[1].end - lines[1].start == len(partial) + 1
    assert lines[-1].end == path.stat().st_size


def test_two_writers_in_sequence_go_on_where_the_other_ended(path):
    """Each opens the file anew at its first line after a close."""
    one, other = LineWriter(path), LineWriter(path)
    for number in range(6):
        writer = (one, other)[number % 2]
        writer.append([to_json({"n": number})])
        writer.sync()
        writer.close()
    assert records(path) == [{"n": number} for number in range(6)]


def test_every_flipped_byte_is_found(path):
    """A damaged line says so, and those around it are read."""
    good = [line_of({"n": number}) for number in range(3)]
    path.parent.mkdir()
    for index in range(len(good[1]) - 1):
        damaged = bytearray(good[1])
        damaged[index] ^= 0x04
        path.write_bytes(good[0] + damaged + good[2])
        assert records(path) == [{"n": 0}, None, {"n": 2}]
    path.write_bytes(good[0] + good[1][:-1] + b"\0\n" + good[2])
    assert records(path) == [{"n": 0}, None, {"n": 2}]


@pytest.mark.parametrize(
    "text", [b"", b"7", b"[1]", b'"x"', b"null", b"{", b"\xff", b"[" * 100_000, b'{"a":1}\r', b"NaN", b"9" * 5000]
)
def test_a_line_with_a_good_checksum_and_no_object_is_damaged(path, text):
    """Whatever a later version may write."""
    path.parent.mkdir()
    path.write_bytes(b"%08x %b\n" % (zlib.crc32(text), text))
    (line,) = read_lines(path)
    expected = {"a": 1} if text == b'{"a":1}\r' else None  # white space is JSON
    assert line == Line(0, path.stat().st_size, expected)


@settings(deadline=None, database=None)
@given(st.binary(max_size=200))
def test_any_bytes_can_be_read(tmp_path_factory, data):
    """No content of a file makes reading raise, and the lines cover what ends with a newline."""
    path = tmp_path_factory.getbasetemp() / "any-bytes"
    path.write_bytes(data)
    lines = list(read_lines(path))
    assert all(line.start < line.end <= len(data) for line in lines)
    assert all(before.end <= after.start for before, after in pairwise(lines))
    assert len(lines) == sum(1 for part in data.split(b"\n")[:-1] if part)


@settings(deadline=None, database=None)
@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none()), max_size=5))
def test_any_object_survives(tmp_path_factory, objects):
    """Line separators, NUL and lone surrogates too."""
    path = tmp_path_factory.getbasetemp() / "any-object"
    path.unlink(missing_ok=True)
    writer = written(path, *objects)
    writer.close()
    assert records(path) == objects


def test_lines_of_many_threads_do_not_mix(path):
    """A writer belongs to a process; its threads share it."""
    import threading

    writer = LineWriter(path)

    def write(thread):
        for number in range(200):
            writer.append([to_json({"thread": thread, "n": number}), to_json({"thread": thread, "n": -number})])

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.sync()
    writer.close()
    found = records(path)
    assert len(found) == 6 * 400
    assert None not in found
    assert all(one["thread"] == two["thread"] for one, two in zip(found[::2], found[1::2], strict=True))


def test_a_closed_writer_can_go_on(path):
    """Closing twice is fine; no file stays open."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    writer = written(path, {"n": 0})
    writer.close()
    writer.close()
    writer.append([to_json({"n": 1})])
    writer.sync()
    writer.close()
    writer.sync()
    assert records(path) == [{"n": 0}, {"n": 1}]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_text_that_cannot_be_written_writes_nothing(path):
    """Not a part of a line either."""
    writer = written(path, {"n": 0})
    with pytest.raises(UnicodeEncodeError):
        writer.append(['{"n":"\ud800"}'])
    writer.append(['{"n":2}'])
    writer.close()
    assert records(path) == [{"n": 0}, {"n": 2}]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KiB."""
    if os.geteuid():
        pytest.skip("only root may mount a small disk")
    point = tmp_path / "small"
    point.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(point)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield point
    subprocess.run(["umount", "-l", str(point)], check=True)


def test_a_full_disk_leaves_nothing_half_written(small_disk):
    """The error says how many lines are there, whole; the rest, once there is room, is neither doubled nor lost."""
    path = small_disk / "events.jsonl"
    filler = small_disk / "filler"
    filler.write_bytes(bytes(40 * 1024))
    writer = written(path, {"n": 0}, {"n": 1})
    rest = [to_json({"n": number, "text": "x" * 4000}) for number in range(2, 12)]
    with pytest.raises(PartlyWrittenError, match="No space left") as raised:
        writer.append(rest)
    assert raised.value.errno == errno.ENOSPC
    taken = raised.value.lines
    assert 0 < taken < len(rest)
    rest = rest[taken:]
    for _ in range(3):
        assert [record["n"] for record in records(path)] == list(range(2 + taken))
        assert list(read_lines(path))[-1].end == path.stat().st_size
        with pytest.raises(OSError, match="No space left") as raised:
            writer.append(rest)
        assert not isinstance(raised.value, PartlyWrittenError)
    filler.unlink()
    writer.append(rest)
    writer.append([to_json({"n": 12})])
    writer.sync()
    writer.close()
    assert [record["n"] for record in records(path)] == list(range(13))


def test_a_full_disk_keeps_whole_lines_of_many(small_disk):
    """It took some of them, and none in part; what the writer appends later is read."""
    path = small_disk / "events.jsonl"
    writer = LineWriter(path)
    lines = [line_of({"n": number, "text": "x" * 1000}) for number in range(10_000)]
    with pytest.raises(OSError, match="No space"):
        writer.append_lines(lines)
    kept = records(path)
    assert kept == [{"n": number, "text": "x" * 1000} for number in range(len(kept))]
    assert 0 < len(kept) < len(lines)
    assert path.read_bytes().endswith(b"\n")
    writer.close()


def test_a_disk_that_is_full_from_the_start_takes_lines_later(small_disk):
    """Neither the file's first line nor the newline behind a partial one needs the first try to succeed."""
    path = small_disk / "events.jsonl"
    page = os.sysconf("SC_PAGESIZE")
    partial = line_of({"n": 0, "text": "x" * page})[:page]
    path.write_bytes(partial)  # fills its page: the newline needs another one
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(1024 * 1024))
    writer = LineWriter(path)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            writer.append([to_json({"n": 1})])
    filler.unlink()
    writer.append([to_json({"n": 1})])
    writer.close()
    assert records(path) == [None, {"n": 1}]


def test_a_full_disk_of_one_writer_does_not_take_back_lines_of_another(small_disk):
    """Two may believe that the file is theirs where locks do not hold: what one has written stays."""
    path = small_disk / "journal.jsonl"
    first = written(path, {"n": 0})
    written(path, {"n": 1}).close()
    (small_disk / "filler").write_bytes(bytes(40 * 1024))
    with pytest.raises(OSError, match="No space left"):
        first.append([to_json({"n": 2, "text": "x" * 40_000})])
    first.append([to_json({"n": 3})])
    first.close()
    assert records(path) == [{"n": 0}, {"n": 1}, {"n": 3}]


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path):
    """And nothing stays open; it works when the obstacle is gone."""
    (tmp_path / "file").write_text("")
    writer = LineWriter(tmp_path / "file" / "events.jsonl")
    with pytest.raises(OSError, match="file"):
        writer.append(["{}"])
    (tmp_path / "file").unlink()
    writer.append(["{}"])
    writer.close()
    assert records(tmp_path / "file" / "events.jsonl") == [{}]

"""Sealing: bytes on the disk, and their sha256 whole and by part."""

import hashlib
import json
import os

import pytest

from ddphub.checkpoints.digest import Digest, FileDigest
from ddphub.errors import StagingError

PART = 1000


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 3 * PART, 3 * PART + 1])
def test_digests_are_those_of_the_bytes(tmp_path, area, slot, size):
    """For every size around a part's, whole and parts are what hashlib says of the bytes; an empty file has no part."""
    data = os.urandom(size)
    source = tmp_path / "last.pt"
    source.write_bytes(data)
    entry = area.stage(slot(), source, {}).entry
    assert area.digest(entry) is None
    parts = tuple(hashlib.sha256(data[start : start + PART]).hexdigest() for start in range(0, size, PART))
    expected = Digest(PART, (FileDigest("last.pt", size, hashlib.sha256(data).hexdigest(), parts),))
    assert area.seal(entry, PART) == expected
    assert area.seal(entry, PART) == expected
    assert area.digest(entry) == expected


def test_parts_larger_than_a_read(tmp_path, area, slot):
    """Parts that take several reads, and do not divide the size of one, are right too."""
    part = 1024 * 1024 + 7
    data = os.urandom(3 * part + 5)
    (tmp_path / "last.pt").write_bytes(data)
    digest = area.seal(area.stage(slot(), tmp_path / "last.pt", {}).entry, part)
    assert digest.files[0].parts == tuple(
        hashlib.sha256(data[start : start + part]).hexdigest() for start in range(0, len(data), part)
    )


def test_another_part_size_is_computed_again(area, slot, checkpoint):
    """A hub with other parts gets its own digests, of the same bytes."""
    entry = area.stage(slot(), checkpoint, {}).entry
    first = area.seal(entry, PART)
    second = area.seal(entry, PART * 2)
    assert second.files[0].sha256 == first.files[0].sha256
    assert len(second.files[0].parts) == len(first.files[0].parts) / 2
    assert area.digest(entry) == second


def test_bytes_that_changed_are_noticed(area, slot, checkpoint):
    """A staged file that somebody changed is named: by its size at once, by its sha256 when it is read again."""
    entry = area.stage(slot(), checkpoint, {}).entry
    area.seal(entry, PART)
    path = entry.file_path("last.pt")
    path.write_bytes(b"x" + path.read_bytes()[1:])
    with pytest.raises(StagingError, match=rf"{path}: the bytes changed"):
        area.seal(entry, PART + 1)
    path.write_bytes(b"x")
    with pytest.raises(StagingError, match=rf"{path}: 256000 bytes were staged and 1 are there"):
        area.seal(entry, PART + 1)
    path.unlink()
    with pytest.raises(StagingError, match=str(path)):
        area.seal(entry, PART + 1)


def test_an_unreadable_digest_is_made_again(area, slot, checkpoint, caplog):
    """A digest.json that is not this entry's does not count, and is replaced."""
    entry = area.stage(slot(), checkpoint, {}).entry
    expected = area.seal(entry, PART)
    record = entry.folder / "digest.json"
    good = json.loads(record.read_text())
    for bad in (
        "",
        "[]",
        "{}",
        "[" * 100_000,
        json.dumps(good | {"part_size": 0}),
        json.dumps(good | {"part_size": PART * 2}),
        json.dumps(good | {"files": []}),
        json.dumps(good | {"files": [good["files"][0] | {"name": "other"}]}),
        json.dumps(good | {"files": [good["files"][0] | {"sha256": "x"}]}),
    ):
        record.write_text(bad)
        assert area.digest(entry) is None
        assert area.seal(entry, PART) == expected
    assert "is made again" in caplog.text


def test_a_removed_entry_cannot_be_sealed(area, slot, checkpoint):
    """Sealing what another process removed says so."""
    entry = area.stage(slot(), checkpoint, {}).entry
    area.remove(entry.entry_id)
    with pytest.raises(StagingError, match=rf"could not seal the staged checkpoint {entry.entry_id} \(last.pt\)"):
        area.seal(entry, PART)
    with pytest.raises(StagingError, match="part_size=0"):
        area.seal(entry, 0)


def test_memory_stays_bounded(tmp_path, run_python):
    """Staging 512 MiB, from the same file system and from another one, and sealing them, takes less than 32 MiB."""
    program = """
import os, sys, tempfile
from pathlib import Path
from ddphub.checkpoints.staging import Slot, StagingArea

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

folder = Path(sys.argv[1])
area = StagingArea(folder / "staging")
before = peak()
for number, where in enumerate([folder, "/dev/shm"]):
    if not os.access(where, os.W_OK):
        continue
    with tempfile.NamedTemporaryFile(dir=where) as file:
        file.truncate(512 << 20)
        file.file.close()
        entry = area.stage(Slot("a" * 32, "epoch", number, None, "last.pt"), Path(file.name), {}).entry
        if number == 0:
            area.seal(entry, 8 << 20)
        assert entry.size == 512 << 20
        area.remove(entry.entry_id)
print((peak() - before) >> 20)
"""
    assert int(run_python(program, tmp_path)) < 32

"""What is kept in memory of committed entries."""

import json

import pytest

from ddphub.checkpoints.entry import Entry
from ddphub.checkpoints.staging import StagingArea


@pytest.fixture
def reads(monkeypatch):
    """The entries whose records are read, one after another."""
    read, names = Entry.read.__func__, []

    def counted(cls, folder):
        names.append(folder.name)
        return read(cls, folder)

    monkeypatch.setattr(Entry, "read", classmethod(counted))
    return names


def test_a_save_does_not_read_what_waits(tmp_path, slot, checkpoint, reads):
    """However many do: each record is read once, and the budget and the order of entries are kept nevertheless."""
    size = checkpoint.stat().st_size
    area = StagingArea(tmp_path / "staging", budget=21 * size)
    staged = [area.stage(slot(epoch), checkpoint, {}).entry for epoch in range(20)]
    assert len(reads) == len(set(reads)) == 19
    assert area.entries() == staged
    area.remove(staged[0].entry_id)
    assert area.used() == 19 * size
    staged.append(area.stage(slot(20), checkpoint, {}).entry)
    assert area.entries() == staged[1:]
    assert len(reads) == 21


def test_a_record_that_someone_changed_is_read_again(area, slot, checkpoint):
    entry = area.stage(slot(), checkpoint, {"accuracy": 0.5}).entry
    assert area.entries() == [entry]
    path = entry.folder / "checkpoint.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"metrics": {"accuracy": 0.75}}))
    assert [one.metrics for one in area.entries()] == [{"accuracy": 0.75}]
    path.write_text("{}")
    assert area.entries() == []
    assert area.broken() == [entry.entry_id]


def test_another_process_sees_and_is_seen(area, slot, checkpoint):
    """Two areas on one folder, as rank 0 and `ddphub sync` have them."""
    other = StagingArea(area.folder)
    first = area.stage(slot(0), checkpoint, {}).entry
    assert other.entries() == [first]
    second = other.stage(slot(1), checkpoint, {}).entry
    assert area.entries() == [first, second]
    other.remove(first.entry_id)
    assert area.entries() == [second]


def test_a_digest_is_read_once_to_know_that_it_is_there(area, slot, checkpoint, monkeypatch):
    entry = area.stage(slot(), checkpoint, {}).entry
    assert not area.is_sealed(entry)
    area.seal(entry, 1000)
    assert area.is_sealed(entry)
    digest = entry.folder / "digest.json"
    with monkeypatch.context() as without:
        without.setattr("ddphub.checkpoints.records.read_digest", None)
        assert area.is_sealed(entry)
    digest.write_text("{}")
    assert not area.is_sealed(entry)
    area.seal(entry, 1000)
    assert area.is_sealed(entry)
    area.remove(entry.entry_id)
    assert not area.is_sealed(entry)

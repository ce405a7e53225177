"""The delivery journal: what it says, after a restart and after damage."""

import zlib

import pytest

from ddphub.events import to_json
from ddphub.session.journal import Delivered, Journal, read_journal

ATTEMPT = "0" * 32


@pytest.fixture
def path(tmp_path):
    return tmp_path / "delivered.jsonl"


def offset(spool, number):
    return {"record": "offset", "spool": spool, "offset": number}


def receipt(entry_id, checkpoint_id="c1"):
    return {"record": "receipt", "entry_id": entry_id, "checkpoint_id": checkpoint_id, "model_id": "m", "at": 1.0}


def aside_event(spool, seq, rank=0):
    return {
        "record": "aside_event",
        "spool": spool,
        "attempt_id": ATTEMPT,
        "rank": rank,
        "seq": seq,
        "reason": "422: no",
    }


def aside_entry(entry_id):
    return {"record": "aside_entry", "entry_id": entry_id, "reason": "422: no"}


def superseded(entry_id):
    return {"record": "superseded", "entry_id": entry_id, "reason": "e2"}


def test_no_journal_says_nothing(path):
    """And reading makes none."""
    assert read_journal(path) == Delivered()
    Journal(path).close()
    assert not path.exists()


def test_what_is_appended_is_said_now_and_after_a_restart(path):
    """Every kind of record."""
    journal = Journal(path)
    journal.append(offset("a", 10), receipt("e1"), superseded("e2"), durable=True)
    journal.append(aside_event("b", 3, rank=2), aside_entry("e3"))
    journal.close()
    expected = Delivered(
        offsets={"a": 10},
        receipts={"e1": "c1"},
        superseded={"e2"},
        aside_events={("b", ATTEMPT, 2, 3): "422: no"},
        aside_entries={"e3": "422: no"},
    )
    assert journal.state == expected
    assert read_journal(path) == expected
    again = Journal(path)
    assert again.state == expected
    again.append(offset("a", 20))
    again.close()
    assert read_journal(path).offsets == {"a": 20}


def test_an_offset_never_goes_back(path):
    """Two deliverers may have taken turns."""
    journal = Journal(path)
    journal.append(offset("a", 20), offset("a", 10), offset("b", 5))
    journal.close()
    assert journal.state.offsets == read_journal(path).offsets == {"a": 20, "b": 5}


def test_an_entry_is_done_when_the_hub_has_it_or_never_gets_it(path):
    """One that was set aside is not."""
    journal = Journal(path)
    journal.append(receipt("e1"), superseded("e2"), aside_entry("e3"))
    journal.close()
    assert [journal.state.is_done(entry_id) for entry_id in ("e1", "e2", "e3", "e4")] == [True, True, False, False]


def test_a_receipt_ends_being_set_aside(path):
    """A later try has succeeded."""
    journal = Journal(path)
    journal.append(aside_entry("e1"), receipt("e1"))
    journal.close()
    assert journal.state.aside_entries == read_journal(path).aside_entries == {}


def test_a_retry_starts_spool_files_over_that_hold_something_set_aside(path):
    """Others stay where they are, and so do receipts."""
    journal = Journal(path)
    journal.append(
        offset("a", 10), offset("b", 10), aside_event("a", 1), aside_entry("e1"), receipt("e2"), superseded("e3")
    )
    journal.append({"record": "retry"})
    journal.close()
    expected = Delivered(offsets={"b": 10}, receipts={"e2": "c1"}, superseded={"e3"})
    assert journal.state == expected
    assert read_journal(path) == expected
    again = Journal(path)
    again.append(offset("a", 4))
    again.close()
    assert read_journal(path).offsets == {"a": 4, "b": 10}


def test_a_damaged_line_costs_its_own_word_only(path, caplog):
    """What it acknowledged is sent again, which changes nothing; the warning names the file."""
    journal = Journal(path)
    for number in range(3):
        journal.append(receipt(f"e{number}"))
    journal.close()
    data = bytearray(path.read_bytes())
    data[data.index(b"e1") + 1] ^= 1
    path.write_bytes(data)
    state = read_journal(path)
    assert set(state.receipts) == {"e0", "e2"}
    assert state.damaged == 1
    assert str(path) in caplog.text


WRONG = [
    {},
    {"record": None},
    {"record": "unknown"},
    {"record": ["offset"]},
    {"record": "offset"},
    {"record": "offset", "spool": "a", "offset": "x"},
    {"record": "offset", "spool": "a", "offset": None},
    {"record": "receipt", "entry_id": "e"},
    {"record": "superseded"},
    aside_event("a", "x"),
    {"record": "aside_entry", "entry_id": "e"},
]


@pytest.mark.parametrize("record", WRONG, ids=str)
def test_a_line_that_is_no_record_is_damage(path, record):
    """Those around it count."""
    texts = [to_json(receipt("e1")), to_json(record), to_json(receipt("e2"))]
    path.write_bytes(b"".join(b"%08x %b\n" % (zlib.crc32(text.encode()), text.encode()) for text in texts))
    state = read_journal(path)
    assert set(state.receipts) == {"e1", "e2"}
    assert state.damaged == 1
    assert state.offsets == {}


@pytest.mark.parametrize("number", [b"Infinity", b"NaN", b"1e400"])
def test_a_number_that_is_none_is_damage(path, number):
    """A parser may take it; nothing is raised."""
    text = b'{"record":"offset","spool":"a","offset":%b}' % number
    path.write_bytes(b"%08x %b\n" % (zlib.crc32(text), text))
    assert read_journal(path).damaged == 1


def test_a_partial_last_line_is_not_damage(path):
    """Its writer may be alive; the next one starts a new line."""
    journal = Journal(path)
    journal.append(receipt("e1"))
    journal.close()
    with path.open("ab") as file:
        file.write(b"0123")
    state = read_journal(path)
    assert (set(state.receipts), state.damaged) == ({"e1"}, 0)
    again = Journal(path)
    again.append(receipt("e2"))
    again.close()
    state = read_journal(path)
    assert (set(state.receipts), state.damaged) == ({"e1", "e2"}, 1)


def test_what_cannot_be_written_is_not_in_the_state(tmp_path):
    """Bytes are deleted on the journal's word, so it must not say what is not on disk."""
    journal = Journal(tmp_path / "run" / "delivered.jsonl")
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(OSError, match="run"):
        journal.append(receipt("e1"), durable=True)
    assert journal.state == Delivered()
    (tmp_path / "run").unlink()
    with pytest.raises(ValueError, match="JSON"):
        journal.append({"record": "offset", "spool": "a", "offset": float("nan")})
    assert journal.state == Delivered()
    journal.append(receipt("e1"), durable=True)
    journal.close()
    assert set(read_journal(tmp_path / "run" / "delivered.jsonl").receipts) == {"e1"}

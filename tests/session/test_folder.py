"""The run directory's layout, and run.json: whatever is in it, reading it raises one error."""

import json
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddphub.errors import JournalError
from ddphub.session.folder import RunFolder, RunInfo

ATTEMPT = "0123456789abcdef" * 2
GOOD = {
    "run_id": "run-1",
    "project": "digits",
    "name": "net",
    "hub": "https://hub",
    "config": {"lr": 0.1},
    "attempts": [ATTEMPT],
    "world_size": 4,
    "restart_count": 0,
    "created": 1700000000.5,
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.json"


def damaged(path, content):
    """The error of reading it."""
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(JournalError) as raised:
        RunInfo.load(path)
    assert str(path) in str(raised.value)
    return str(raised.value)


def test_what_is_saved_is_loaded(path):
    """Every field."""
    info = RunInfo("run-1", "digits", "Netz ü", "https://h", {"a": [1, None, "\ud800"]}, [ATTEMPT], 8, 2, 1.5)
    info.save(path)
    assert RunInfo.load(path) == info
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_defaults_are_saved_too(path):
    """A run without a hub."""
    info = RunInfo("run-1", "digits", "net")
    info.save(path)
    assert RunInfo.load(path) == info
    assert (info.hub, info.restart_count) == (None, None)


def test_a_save_replaces_the_file_as_a_whole(path):
    """No other file stays beside it, and a reader that has the old one open sees the old one."""
    RunInfo("run-1", "digits", "net").save(path)
    with path.open() as old:
        RunInfo("run-1", "digits", "net", config={"x": "y" * 100_000}).save(path)
        assert "yyy" not in old.read()
    assert list(path.parent.iterdir()) == [path]


def test_a_save_that_fails_leaves_the_old_file_and_no_other(path):
    """Whatever the reason."""
    RunInfo("run-1", "digits", "net").save(path)
    with pytest.raises(TypeError):
        RunInfo("run-1", "digits", "net", config={"x": object()}).save(path)
    assert RunInfo.load(path).config == {}
    assert list(path.parent.iterdir()) == [path]


def test_a_save_into_a_folder_that_is_gone_is_an_os_error(tmp_path):
    """The run's folder was deleted under it."""
    with pytest.raises(OSError, match="gone"):
        RunInfo("run-1", "digits", "net").save(tmp_path / "gone" / "run.json")


def test_no_run_json_is_no_journal_error(path):
    """Whoever asks knows the difference."""
    with pytest.raises(FileNotFoundError):
        RunInfo.load(path)


@pytest.mark.parametrize("content", ["", "{", "7", "null", "[]", '"x"', "[" * 100_000, "9" * 5000, "{}x", "\0"])
def test_what_is_no_json_object_is_damaged(path, content):
    """The message names the file."""
    damaged(path, content)


def test_what_is_no_utf_8_is_damaged(path):
    """Bytes of another file, say."""
    path.write_bytes(b"\xff\xfe" * 100)
    with pytest.raises(JournalError, match=r"run\.json"):
        RunInfo.load(path)


@pytest.mark.parametrize("field", GOOD)
def test_a_missing_field_is_named(path, field):
    """None where None is a value is not the same as nothing, but it does no harm."""
    content = {name: value for name, value in GOOD.items() if name != field}
    path.write_text(json.dumps(content))
    try:
        RunInfo.load(path)
    except JournalError as error:
        assert field in str(error)  # noqa: PT017  # naming it and doing without it are both right
    else:
        assert field in {"hub", "restart_count"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("run_id", bad) for bad in (None, 7, "", "../up", "a/b", ".x", "x" * 200, ["a"])),
        *((field, bad) for field in ("project", "name") for bad in (None, 7, "", "a/b", "..", "a\nb", " ")),
        *((field, bad) for field in ("hub",) for bad in (7, True, [], {})),
        *(("config", bad) for bad in (None, [], "x", 7)),
        *(("attempts", bad) for bad in (None, {}, "x", [None], [7], ["x"], [ATTEMPT, ATTEMPT.upper()], [[ATTEMPT]])),
        *(("world_size", bad) for bad in (None, "4", 4.0, True, [])),
        *(("restart_count", bad) for bad in ("0", 0.5, False, [])),
        *(("created", bad) for bad in (None, "now", True, [])),
    ],
)
def test_a_wrong_field_is_named(path, field, value):
    """File and field are in the message, which stays short."""
    message = damaged(path, GOOD | {field: value})
    assert field in message.removeprefix(str(path))
    assert len(message) < len(str(path)) + 300


def test_fields_of_a_later_version_do_not_matter(path):
    """They are not kept, and nothing is said."""
    path.write_text(json.dumps(GOOD | {"color": "red", "self": 1, "__class__": "x"}))
    assert RunInfo.load(path) == RunInfo(**GOOD)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)


@settings(deadline=None, database=None, max_examples=300)
@given(st.dictionaries(st.sampled_from(sorted(GOOD)), json_values) | json_values)
def test_no_json_makes_reading_raise_anything_else(tmp_path_factory, changed):
    """Any value in any field: it is a run, or a JournalError."""
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    path.write_text(json.dumps(GOOD | changed if isinstance(changed, dict) else changed))
    try:
        info = RunInfo.load(path)
    except JournalError as error:
        assert str(path) in str(error)  # noqa: PT017  # both are right
        return
    info.save(path)
    assert RunInfo.load(path) == info


@settings(deadline=None, database=None, max_examples=300)
@given(st.data())
def test_no_damage_makes_reading_raise_anything_else(tmp_path_factory, data):
    """A cut file, or one with bytes of something else in it."""
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    whole = json.dumps(GOOD).encode()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    path.write_bytes(whole[:start] + data.draw(st.binary(max_size=20)) + whole[end:])
    try:
        RunInfo.load(path)
    except JournalError as error:
        assert str(path) in str(error)  # noqa: PT017  # both are right


@pytest.mark.parametrize("depth", [900, 960, 980, 985, 990, 991, 992, 993, 994, 995, 996, 997, 998, 999, 1000, 5000])
def test_deep_nesting_is_damage(path, depth):
    """On either side of what the parser can take."""
    damaged(path, '{"run_id":"a","project":"p","name":"n","hub":' + "[" * depth + "]" * depth + "}")


def test_the_layout_is_as_drawn(tmp_path):
    """Every path in its place, and nothing is made by asking."""
    folder = RunFolder(tmp_path / "run")
    made = {
        "run.json": folder.run_json,
        "alive.json": folder.alive,
        "run.lock": folder.run_lock,
        "session.lock": folder.session_lock,
        "delivered.jsonl": folder.journal,
        f"spool/{ATTEMPT}-relay.jsonl": folder.relay_file(ATTEMPT),
        f"spool/{ATTEMPT}-rank3.jsonl": folder.rank_file(ATTEMPT, 3),
        "staging": folder.staging,
    }
    assert {name: path.relative_to(folder.path).as_posix() for name, path in made.items()} == {
        name: name for name in made
    }
    assert folder.spool_files() == []
    assert not folder.path.exists()


def test_a_new_folder_is_for_its_owner_alone(tmp_path):
    """0700; making it twice is fine."""
    folder = RunFolder(tmp_path / "runs" / "one")
    folder.create()
    folder.create()
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_spool_files_are_sorted_and_nothing_else_counts(tmp_path):
    """Only *.jsonl."""
    folder = RunFolder(tmp_path)
    folder.spool.mkdir()
    for name in ("b.jsonl", "a.jsonl", "c.txt", ".run-x"):
        (folder.spool / name).write_text("")
    assert [path.name for path in folder.spool_files()] == ["a.jsonl", "b.jsonl"]

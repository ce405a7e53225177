"""Settings: where they come from, and what every wrong one says."""

import json
import logging
import math
import pickle
import signal
import stat
import threading
import types
from pathlib import Path

import pytest

from ddphub import config
from ddphub.address import check_url
from ddphub.config import SETTINGS, VARIABLES, Credentials, RateLimits, Settings
from ddphub.errors import DdphubError, SettingsError

KEY = "a-key-that-nobody-may-see"


@pytest.fixture
def environ(tmp_path):
    """An environment of the test's own: a home, no variable of ours."""
    return {"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path / "config")}


@pytest.fixture
def resolve(tmp_path, environ):
    """Settings of good arguments, but for those of the test; variables are given as DDPHUB_*."""

    def make(**given):
        variables = {name: given.pop(name) for name in list(given) if name.startswith("DDPHUB_")}
        return Settings.resolve(
            {"project": "digits", "name": "net", "dir": tmp_path / "runs", **given}, {**environ, **variables}
        )

    return make


@pytest.fixture
def wrong(resolve):
    """The error of wrong settings."""

    def make(**given):
        with pytest.raises(SettingsError) as raised:
            resolve(**given)
        return raised.value

    return make


def credentials_file(environ):
    return Path(environ["XDG_CONFIG_HOME"]) / "ddphub" / "credentials.json"


def write_credentials(environ, content):
    path = credentials_file(environ)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


# What a good set of settings is.


def test_defaults_are_an_offline_run_below_the_working_directory(environ, tmp_path, monkeypatch):
    """Without a hub a run stays on disk."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["/somewhere/train_net.py"])
    settings = Settings.resolve({"project": "digits"}, environ)
    assert (settings.mode, settings.hub, settings.run_id, settings.api_key) == ("offline", None, None, None)
    assert settings.name == "train_net"
    assert settings.root == tmp_path / ".ddphub"
    assert settings.finish_timeout == 600.0
    assert settings.staging_budget == 50 * 1024**3
    assert settings.rate_limits == RateLimits(metrics=3.0, ckpt=900.0, heartbeat=300.0)


@pytest.mark.parametrize("argv", [[], [""]])
def test_a_program_without_a_name_is_called_run(environ, tmp_path, monkeypatch, argv):
    """As in an interactive or an embedded interpreter."""
    monkeypatch.setattr("sys.argv", argv)
    assert Settings.resolve({"project": "digits", "dir": tmp_path}, environ).name == "run"


def test_none_counts_as_not_given(resolve):
    """Every keyword of `init` may be None, but for the project."""
    assert resolve(**dict.fromkeys(set(SETTINGS) - {"project", "name", "dir"})).mode == "offline"


def test_settings_are_keywords_of_init():
    """The table and the signature are one list."""
    import inspect

    from ddphub import init

    parameters = inspect.signature(init).parameters
    assert {name for name in parameters if name != "unknown"} == set(SETTINGS)


def test_an_argument_goes_before_a_variable_before_the_credentials_file(resolve, environ):
    """For the hub and for the key that belongs to it."""
    write_credentials(environ, {"default": "https://file", "keys": {"https://file": "file-key"}})
    assert (resolve().hub, resolve().api_key, resolve().mode) == ("https://file", "file-key", "online")

    variables = {"DDPHUB_URL": "https://variable", "DDPHUB_API_KEY": "variable-key", "DDPHUB_MODE": "offline"}
    from_variables = resolve(**variables)
    assert (from_variables.hub, from_variables.api_key) == ("https://variable", "variable-key")
    assert from_variables.mode == "offline"

    given = resolve(hub="https://argument/", api_key="argument-key", mode="online", **variables)
    assert (given.hub, given.api_key, given.mode) == ("https://argument", "argument-key", "online")


def test_every_other_variable_is_read(resolve, tmp_path):
    """DDPHUB_RUN_ID, DDPHUB_DIR, DDPHUB_STAGING_BUDGET; an argument still wins."""
    variables = {"DDPHUB_RUN_ID": "run-7", "DDPHUB_DIR": str(tmp_path / "v"), "DDPHUB_STAGING_BUDGET": "1024"}
    settings = resolve(dir=None, **variables)
    assert (settings.run_id, settings.root, settings.staging_budget) == ("run-7", tmp_path / "v", 1024)
    settings = resolve(run_id="mine", staging_budget=0, **variables)
    assert (settings.run_id, settings.root, settings.staging_budget) == ("mine", tmp_path / "runs", 0)


def test_an_empty_variable_is_no_variable(resolve):
    """A shell's `export NAME=` means that it is not set."""
    assert resolve(**dict.fromkeys(VARIABLES.values(), "")).mode == "offline"


def test_a_key_of_the_file_goes_to_its_own_hub_only(resolve, environ):
    """Never to a hub that another source names."""
    write_credentials(environ, {"default": "https://a", "keys": {"https://a": "key-of-a", "https://b": "key-of-b"}})
    assert resolve(hub="https://b").api_key == "key-of-b"
    assert resolve(hub="https://c").api_key is None
    assert resolve(DDPHUB_URL="https://c").api_key is None


def test_a_disabled_run_makes_no_folder(resolve, tmp_path):
    """It leaves nothing at all."""
    assert resolve(mode="disabled").mode == "disabled"
    assert not (tmp_path / "runs").exists()


def test_a_new_root_is_for_its_owner_alone(resolve):
    """0700, and nothing of the trial is left in it."""
    root = resolve().root
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert list(root.iterdir()) == []


# What is wrong, and what the message says.


@pytest.mark.parametrize(
    ("written", "meant"), [("projct", "project"), ("run_ids", "run_id"), ("rate_limit", "rate_limits")]
)
def test_an_unknown_setting_is_refused_with_the_one_that_was_meant(wrong, written, meant):
    """A misspelt keyword must not be a silent default."""
    error = wrong(**{written: "x"})
    assert error.field == written
    assert f"did you mean {meant!r}?" in str(error)


def test_an_unknown_setting_without_a_likeness_lists_what_there_is(wrong):
    """Every known one."""
    message = str(wrong(zzz=1))
    assert "did you mean" not in message
    assert all(setting in message for setting in SETTINGS)


@pytest.mark.parametrize("written", ["apikey", "api_keys", "key", "token", "API_KEY"])
def test_a_key_under_a_wrong_keyword_is_not_repeated(wrong, written):
    """The message of a misspelt `api_key` ends in a job's log."""
    assert KEY not in str(wrong(**{written: KEY}))


def test_an_unknown_variable_is_warned_of(resolve, caplog):
    """It may be meant for another version, so it does not stop a job; its value is not shown."""
    resolve(DDPHUB_APIKEY=KEY)
    assert "DDPHUB_APIKEY" in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize("bad", ["", " ", "a/b", "a\\b", "..", "a\nb", "a\x1bb", "x" * 129, " a", 7, b"a", ["a"]])
@pytest.mark.parametrize("field", ["project", "name"])
def test_a_wrong_name_is_refused(wrong, field, bad):
    """The message names field, value and source."""
    error = wrong(**{field: bad})
    assert (error.field, error.value, error.source) == (field, bad, "argument")
    assert str(error).startswith(f"{field}={bad!r} (from argument): ")


def test_a_project_is_asked_for(wrong):
    """It has no default."""
    assert wrong(project=None).field == "project"


def test_a_wrong_name_of_the_script_is_said_to_be_the_scripts(environ, tmp_path, monkeypatch):
    """Nobody passed it."""
    monkeypatch.setattr("sys.argv", ["a\x01b.py"])
    with pytest.raises(SettingsError, match="the script's name"):
        Settings.resolve({"project": "digits", "dir": tmp_path}, environ)


@pytest.mark.parametrize("bad", ["", "a/b", "../up", ".hidden", "a b", "x" * 129, 7, "a..b"])
def test_a_wrong_run_id_is_refused(wrong, bad):
    """It becomes a folder's name."""
    error = wrong(run_id=bad)
    assert (error.field, error.value, error.source) == ("run_id", bad, "argument")


def test_a_wrong_variable_is_named(wrong):
    """The source is the variable, so that it can be found."""
    assert wrong(DDPHUB_RUN_ID="a/b").source == "DDPHUB_RUN_ID"
    assert wrong(DDPHUB_MODE="Online").source == "DDPHUB_MODE"
    assert wrong(DDPHUB_URL="hub").source == "DDPHUB_URL"
    assert wrong(DDPHUB_STAGING_BUDGET="50G").source == "DDPHUB_STAGING_BUDGET"
    assert wrong(DDPHUB_API_KEY="two words").source == "DDPHUB_API_KEY"


BAD_URLS = [
    *("", "hub", "//hub", "hub:8765", "ftp://hub", "file:///etc/passwd", "http://", "http:///x", "https://?x=1"),
    *("http://h:0", "http://h:99999", "http://h:port", "http://[::1", "http://h?x=1", "http://h/#part", "http://h?"),
    *("http://a b", "http://h\n", " http://h", "http://h\t", "http://h\u2028", "http://h\x00", "http://h/\x7f"),
    *("https://@hub", "https://:@hub"),
    *(8765, None, b"http://h", ["http://h"]),
]


@pytest.mark.parametrize("bad", BAD_URLS)
def test_a_url_that_is_no_hub_is_refused(bad):
    """Scheme, host, port, nothing behind the path, no white space."""
    with pytest.raises(SettingsError, match="hub=") as raised:
        check_url(bad, "--url")
    assert (raised.value.field, raised.value.source) == ("hub", "--url")


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://127.0.0.1:8765", "http://127.0.0.1:8765"),
        ("https://hub.example.org/", "https://hub.example.org"),
        ("https://hub.example.org/api//", "https://hub.example.org/api"),
        ("http://[::1]:80", "http://[::1]:80"),
    ],
)
def test_a_base_url_has_no_trailing_slash(url, base):
    """Paths are put behind it."""
    assert check_url(url, "argument") == base


@pytest.mark.parametrize(
    "url",
    [
        *("https://user:hunter2@hub", "https://hunter2@hub", "https://user:hunter2@hub/", "https://:hunter2@hub"),
        # Wrong in another way too: whichever is found first must not show the password.
        *("https://user:hunter2@hub?x=1", "ftp://user:hunter2@hub", "https://user:hunter2@hub:99999"),
        *("https://user:hunter2@", "https://user:hunter2@hub:port", "https://user:hunter2@hub\n", "user:hunter2@hub"),
        *("https://hub?api_key=hunter2", "https://hub/#hunter2"),
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(wrong, url):
    """The message of a wrong URL ends in a job's log."""
    error = wrong(hub=url)
    assert "hunter2" not in str(error)
    assert "hunter2" not in repr(error)


@pytest.mark.parametrize("bad", ["Online", "on", "", "none", 1, ["online"]])
def test_a_wrong_mode_is_refused(wrong, bad):
    """The message has the three that there are."""
    error = wrong(mode=bad)
    assert (error.field, error.value) == ("mode", bad)
    assert "online, offline, disabled" in str(error)


def test_online_needs_a_hub(wrong):
    """The message says how one is named."""
    message = str(wrong(mode="online"))
    assert "DDPHUB_URL" in message
    assert "ddphub login" in message


@pytest.mark.parametrize("bad", ["two words", "line\n", "schlüssel", "nul\0", "", " ", 7, b"key"])
def test_a_key_that_http_cannot_carry_is_refused_and_not_shown(wrong, bad):
    """The value is not repeated."""
    error = wrong(hub="https://hub", api_key=bad)
    assert error.field == "api_key"
    assert error.value == "..."


def test_a_key_is_never_in_what_is_shown(resolve, wrong):
    """Neither in the settings' repr nor in the message of another wrong setting."""
    settings = resolve(hub="https://hub", api_key=KEY)
    assert settings.api_key == KEY
    assert KEY not in repr(settings)
    assert KEY not in str(settings)
    assert KEY not in str(wrong(hub="https://hub", api_key=KEY, mode="x"))
    assert KEY not in str(wrong(hub="https://hub", api_key=f"{KEY} {KEY}"))
    assert KEY not in repr(Credentials(Path("x"), "https://hub", {"https://hub": KEY}))


@pytest.mark.parametrize(
    ("bad", "value"),
    [
        (5, 5),
        ([("ckpt", 1)], [("ckpt", 1)]),
        ("ckpt=1", "ckpt=1"),
        ({"ckpts": 1}, "ckpts"),
        ({1: 1}, 1),
        ({"ckpt": -1}, -1),
        ({"ckpt": -0.5}, -0.5),
        ({"ckpt": math.inf}, math.inf),
        ({"ckpt": "900"}, "900"),
        ({"ckpt": None}, None),
        ({"ckpt": True}, True),
        ({"metrics": 3, "ckpt": [1]}, [1]),
        ({"ckpt": 10**400}, 10**400),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_wrong_rate_limits_are_refused(wrong, bad, value):
    """The field says which key."""
    error = wrong(rate_limits=bad)
    assert error.field.startswith("rate_limits")
    assert error.value == value
    assert error.source == "argument"


def test_nan_is_no_number_of_seconds(wrong):
    """It compares false with everything."""
    assert math.isnan(wrong(rate_limits={"ckpt": math.nan}).value)
    assert math.isnan(wrong(finish_timeout=math.nan).value)


def test_some_rate_limits_may_be_given(resolve):
    """The others keep their defaults; 0 is none."""
    assert resolve(rate_limits={"ckpt": 0}).rate_limits == RateLimits(metrics=3.0, ckpt=0.0, heartbeat=300.0)


@pytest.mark.parametrize("field", ["finish_timeout", "metrics", "ckpt", "heartbeat"])
def test_no_accepted_time_is_longer_than_a_thread_can_wait(resolve, field):
    """A year and more is either refused or cut: threading raises OverflowError for it, in the middle of delivery."""
    seconds = 1e10
    given = {"finish_timeout": seconds} if field == "finish_timeout" else {"rate_limits": {field: seconds}}
    try:
        settings = resolve(**given)
    except SettingsError as error:
        assert field in error.field  # noqa: PT017  # refusing and cutting are both right
        return
    accepted = settings.finish_timeout if field == "finish_timeout" else getattr(settings.rate_limits, field)
    assert accepted <= threading.TIMEOUT_MAX


@pytest.mark.parametrize("bad", [-1, "60", True, math.inf, [1], 10**400], ids=lambda value: repr(value)[:30])
def test_a_wrong_finish_timeout_is_refused(wrong, bad):
    """Seconds, 0 or more."""
    assert wrong(finish_timeout=bad).field == "finish_timeout"


@pytest.mark.parametrize("bad", [-1, 1.5, True, "1.5", "-1", "", "٣", "1e9", [1]])
@pytest.mark.parametrize("field", ["rank", "world_size", "staging_budget"])
def test_what_is_no_whole_number_is_refused(wrong, field, bad):
    """Also digits of other scripts."""
    error = wrong(**{field: bad})
    assert (error.field, error.value) == (field, bad)


def test_an_endless_number_is_refused(wrong):
    """Python itself refuses to read one of more than 4,300 digits."""
    assert wrong(DDPHUB_STAGING_BUDGET="9" * 5000).field == "staging_budget"


def test_a_dir_that_is_a_file_is_refused(wrong, tmp_path):
    """The message names it."""
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file", tmp_path / "file" / "below"):
        error = wrong(dir=bad)
        assert (error.field, error.value, error.source) == ("dir", str(bad), "argument")
        assert "cannot be written" in str(error)


def test_a_dir_that_cannot_be_written_is_refused(wrong):
    """Before training starts. /proc takes no files, whoever asks."""
    assert wrong(dir="/proc/sys").field == "dir"


@pytest.mark.parametrize("bad", ["a\0b", 7, b"bytes", ["a"], "x" * 5000, "~no-such-user-here/runs"])
def test_a_dir_that_is_no_path_is_refused(wrong, bad):
    """As every wrong setting: by SettingsError."""
    assert wrong(dir=bad).field == "dir"


def test_a_working_directory_that_is_gone_is_said(wrong, tmp_path, monkeypatch):
    """A relative dir cannot be made below it."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert wrong(dir="runs").field == "dir"


# The user's configuration.


@pytest.mark.parametrize("bad", [[], "a=1", 5, [("a", 1)], {1, 2}, object()])
def test_a_config_that_is_no_dict_is_refused(wrong, bad):
    """The message says what to do with a namespace."""
    error = wrong(config=bad)
    assert (error.field, error.source) == ("config", "argument")
    assert "vars(args)" in str(error)


def test_a_config_becomes_json(resolve, tmp_path):
    """What JSON does not know becomes text; numbers that are not finite become their names."""
    given = {
        "lr": 0.1,
        "epochs": 3,
        "on": True,
        "none": None,
        "nan": math.nan,
        "in": {"inf": [math.inf, -math.inf]},
        "path": Path("/data"),
        "shape": (1, 2),
        "dtype": float,
        3: "three",
        "nested": {(1, 2): {4: 5}},
        "text": "Grüße \ud800 \0",
        "huge": 2**70,
    }
    safe = resolve(config=given).config
    assert json.loads(json.dumps(safe, allow_nan=False)) == safe
    assert (safe["lr"], safe["epochs"], safe["on"], safe["none"]) == (0.1, 3, True, None)
    assert safe["nan"] == "NaN"
    assert safe["in"] == {"inf": ["Infinity", "-Infinity"]}
    assert safe["path"] == "/data"
    assert safe["shape"] == [1, 2]
    assert safe["3"] == "three"
    assert safe["nested"] == {"(1, 2)": {"4": 5}}
    assert safe["text"].startswith("Grüße")
    assert safe["text"].encode()


def test_any_mapping_is_a_config(resolve):
    """Configuration libraries have types of their own."""
    assert resolve(config=types.MappingProxyType({"a": types.MappingProxyType({"b": 1})})).config == {"a": {"b": 1}}


def test_a_config_is_a_copy(resolve):
    """What the script does to its dict later changes nothing."""
    given = {"a": [1]}
    safe = resolve(config=given).config
    given["a"].append(2)
    assert safe == {"a": [1]}


class Unshowable:
    """Something whose text cannot be had."""

    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.mark.parametrize("value", [10**5000, Unshowable(), [Unshowable()]], ids=["huge int", "object", "inner object"])
def test_what_cannot_be_shown_does_not_stop_a_job_without_saying_so(resolve, value):
    """It is taken in some form or refused by SettingsError; no other exception comes out of `init`."""
    try:
        json.dumps(resolve(config={"x": value}).config)
    except SettingsError as error:
        assert str(error).startswith("config=")  # noqa: PT017  # refusing and taking are both right


def test_a_config_that_holds_itself_ends(resolve):
    """Also one that holds itself more than once: its nesting is cut before it grows beyond all bounds."""
    inner = {}
    inner["a"] = inner["b"] = [inner, inner]
    try:
        safe = resolve(config={"x": inner}).config
    except SettingsError as error:
        assert error.field == "config"  # noqa: PT017  # refusing and cutting are both right
        return
    assert len(json.dumps(safe)) <= config.CONFIG_BYTES


def test_a_config_is_bounded(wrong):
    """It is a part of one request."""
    assert wrong(config={"x": ["y" * 1000] * 2000}).field == "config"


# The credentials file.


def test_credentials_are_for_their_owner_alone(environ):
    """0600 in a folder of 0700; a second hub keeps the first one's key."""
    Credentials.load(environ).save("https://a", KEY)
    Credentials.load(environ).save("https://b", "other")
    path = credentials_file(environ)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    loaded = Credentials.load(environ)
    assert loaded.default_hub == "https://b"
    assert (loaded.key_for("https://a"), loaded.key_for("https://b")) == (KEY, "other")
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_others_could_read_is_closed_to_them_by_the_next_save(environ):
    """The new file does not inherit the old one's mode."""
    write_credentials(environ, {"default": "https://a", "keys": {}})
    credentials_file(environ).chmod(0o644)
    Credentials.load(environ).save("https://a", KEY)
    assert stat.S_IMODE(credentials_file(environ).stat().st_mode) == 0o600


def test_credentials_that_cannot_be_saved_leave_nothing_behind(environ):
    """No copy of a key lies about under another name."""
    path = credentials_file(environ)
    (path / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        Credentials(path).save("https://a", KEY)
    assert list(path.parent.iterdir()) == [path]


def test_credentials_without_xdg_are_below_home(tmp_path):
    """~/.config, as everyone's."""
    assert Credentials.load({"HOME": str(tmp_path)}).path == tmp_path / ".config" / "ddphub" / "credentials.json"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        '"text"',
        "{}",
        '{"keys": {}}',
        '{"default": "https://h"}',
        '{"default": "https://h", "keys": "abc"}',
        '{"default": "https://h", "keys": [1]}',
        '{"default": null, "keys": {}}',
        '{"default": ["https://h"], "keys": {}}',
        '{"default": "https://h", "keys": {"https://h": null}}',
        "[" * 100_000,
    ],
    ids=lambda content: content[:50],
)
def test_a_damaged_credentials_file_counts_as_empty(resolve, environ, caplog, content):
    """A job does not fail for it; a warning says what to do, without the file's content."""
    write_credentials(environ, content)
    loaded = Credentials.load(environ)
    assert (loaded.default_hub, dict(loaded.keys)) == (None, {})
    assert "ddphub login" in caplog.text
    assert resolve().mode == "offline"


def test_an_undecodable_credentials_file_counts_as_empty(environ, caplog):
    """Bytes that are no UTF-8."""
    write_credentials(environ, "")
    credentials_file(environ).write_bytes(b"\xff\xfe\x00")
    assert Credentials.load(environ).default_hub is None
    assert "ddphub login" in caplog.text


def test_no_credentials_file_is_nothing_to_speak_of(environ, caplog):
    """Nobody has to log in; also where a file is in the way of its folder."""
    caplog.set_level(logging.DEBUG)
    assert Credentials.load(environ).default_hub is None
    Path(environ["XDG_CONFIG_HOME"]).write_text("in the way")
    assert Credentials.load(environ).default_hub is None
    assert not caplog.records


# The error itself.


def test_a_settings_error_is_a_value_error_that_can_travel():
    """Launchers pickle what a rank raises."""
    error = SettingsError("mode", "x", "DDPHUB_MODE", "expected y")
    back = pickle.loads(pickle.dumps(error))
    assert isinstance(back, ValueError)
    assert isinstance(back, DdphubError)
    assert str(back) == str(error) == "mode='x' (from DDPHUB_MODE): expected y"
    assert (back.field, back.value, back.source, back.expected) == ("mode", "x", "DDPHUB_MODE", "expected y")


def test_a_warning_signal_is_one_that_may_be_caught(resolve, wrong):
    assert resolve().signals == (signal.SIGTERM,)
    for text in ("USR1", "sigusr1", "SIGUSR1"):
        assert resolve(DDPHUB_WARNING_SIGNAL=text).signals == (signal.SIGTERM, signal.SIGUSR1)
    for text in ("KILL", "USR3", "10"):
        assert wrong(DDPHUB_WARNING_SIGNAL=text).field == "warning_signal"
        assert wrong(warning_signal=text).source == "argument"


def test_the_signal_budget_is_seconds(resolve, wrong):
    assert resolve().signal_budget == 20.0
    assert resolve(DDPHUB_SIGNAL_BUDGET="7.5").signal_budget == 7.5
    assert resolve(signal_budget=5, DDPHUB_SIGNAL_BUDGET="7.5").signal_budget == 5.0
    for text in ("soon", "-1", "nan", "inf"):
        error = wrong(DDPHUB_SIGNAL_BUDGET=text)
        assert (error.field, error.source) == ("signal_budget", "DDPHUB_SIGNAL_BUDGET")


# What ranks report beside what their scripts log.


def test_console_and_system_interval(resolve):
    assert (resolve().console, resolve().system_interval) == ("rank0", 15.0)
    assert resolve(DDPHUB_CONSOLE="all", DDPHUB_SYSTEM_INTERVAL="60").console == "all"
    assert resolve(DDPHUB_CONSOLE="all", DDPHUB_SYSTEM_INTERVAL="60").system_interval == 60.0
    assert resolve(console="off", system_interval=0, DDPHUB_CONSOLE="all").console == "off"
    assert resolve(system_interval=0, DDPHUB_SYSTEM_INTERVAL="60").system_interval == 0.0


@pytest.mark.parametrize("value", ["Rank0", "rank1", "1", 0, True, ["all"]])
def test_a_wrong_console_is_named(wrong, value):
    error = wrong(console=value)
    assert (error.field, error.value, error.source) == ("console", value, "argument")
    assert "rank0, all, off" in str(error)
    assert wrong(DDPHUB_CONSOLE="yes").source == "DDPHUB_CONSOLE"


@pytest.mark.parametrize("value", [-1, 0.1, "0.49", "often", "nan", True, 1e9])
def test_a_wrong_system_interval_is_named(wrong, value):
    error = wrong(system_interval=value)
    assert (error.field, error.source) == ("system_interval", "argument")
    assert "seconds" in str(error)
    assert wrong(DDPHUB_SYSTEM_INTERVAL="often").source == "DDPHUB_SYSTEM_INTERVAL"


def test_every_key_in_reach_is_a_secret(resolve, environ):
    """Those of other hubs and services, too: a script may print them all the same."""
    write_credentials(environ, {"default": "https://a", "keys": {"https://a": "key-of-a", "https://b": "key-of-b"}})
    key = "k" * 42
    variables = {"DDPHUB_API_KEY": "variable-key"}
    settings = resolve(api_key="argument-key", model=f"{key}_{'m' * 20}", **variables)
    assert settings.secrets == {"argument-key", key, "variable-key", "key-of-a", "key-of-b"}
    environ["ULTRALYTICS_API_KEY"] = "platform-key"
    assert "platform-key" in resolve().secrets
    assert not [secret for secret in settings.secrets if secret in repr(settings)]

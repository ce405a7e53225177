"""Settings: arguments of `init` first, then DDPHUB_* variables, then the credentials file of `ddphub login`.

Settings are checked when they are made, on every rank, before training starts. After that nothing raises.
"""

import dataclasses
import difflib
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from ddphub import names
from ddphub.address import HubAddress, ModelAddress
from ddphub.errors import SettingsError
from ddphub.events import encode_scalar, plain_text
from ddphub.files import read_regular

logger = logging.getLogger(__name__)

Mode = Literal["online", "offline", "disabled"]
MODES: Final = ("online", "offline", "disabled")

ConsoleRanks = Literal["rank0", "all", "off"]
CONSOLE_RANKS: Final = ("rank0", "all", "off")
"""Whose printed lines the hub shows."""

VARIABLES: Final = {
    "hub": "DDPHUB_URL",
    "api_key": "DDPHUB_API_KEY",
    "dir": "DDPHUB_DIR",
    "run_id": "DDPHUB_RUN_ID",
    "mode": "DDPHUB_MODE",
    "staging_budget": "DDPHUB_STAGING_BUDGET",
    "warning_signal": "DDPHUB_WARNING_SIGNAL",
    "signal_budget": "DDPHUB_SIGNAL_BUDGET",
    "console": "DDPHUB_CONSOLE",
    "system_interval": "DDPHUB_SYSTEM_INTERVAL",
    "usage_url": "DDPHUB_USAGE_URL",
}
"""The environment variable of each setting that has one; `usage_url` has only that, see `ddphub.usage`."""

SERVICE_KEYS: Final = {"platform": "ULTRALYTICS_API_KEY"}
"""The variable that holds the key of a service that has a name; it comes before DDPHUB_API_KEY."""

DEFAULT_DIR: Final = ".ddphub"
STAGING_BUDGET: Final = 50 * 1024**3
"""Bytes of checkpoints that may wait on disk."""

SIGNAL_BUDGET: Final = 20.0
"""Seconds between SIGTERM and the end; torchrun kills after 30."""

WARNING_SIGNALS: Final = ("USR1", "USR2", "HUP", "INT")

SYSTEM_INTERVAL: Final = 15.0
"""Seconds between two looks at process, machine and GPU."""

SHORTEST_SYSTEM_INTERVAL: Final = 0.5
"""Seconds: a look every step would be training that pays."""

LONGEST: Final = 30 * 24 * 3600
"""Seconds, the most that a setting may ask for: a month."""

CONFIG_BYTES: Final = 1024 * 1024
CONFIG_DEPTH: Final = 10
"""A configuration's size as JSON, and how deep it may nest; what is deeper becomes text."""


@dataclass(frozen=True, kw_only=True)
class RateLimits:
    """Seconds at least between two requests of a kind. The defaults are those that HUB clients have used."""

    metrics: float = 3.0
    ckpt: float = 900.0
    heartbeat: float = 300.0

    @classmethod
    def resolve(cls, given: object) -> "RateLimits":
        """Checks a `rate_limits` argument: a dict with some of the three keys.

        Raises:
            SettingsError: for another type, an unknown key, or a value that is no number of seconds.
        """
        if given is None:
            return cls()
        known = [item.name for item in dataclasses.fields(cls)]
        if not isinstance(given, Mapping):
            raise SettingsError("rate_limits", given, "argument", f"expected a dict with keys {', '.join(known)}")
        for key, value in given.items():
            if key not in known:
                raise SettingsError("rate_limits", key, "argument", f"unknown key; expected {', '.join(known)}")
            _seconds(f"rate_limits[{key!r}]", value)
        return cls(**{key: float(value) for key, value in given.items()})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `init` was asked for, checked.

    Attributes:
        project: the project's name.
        name: the model's name within it.
        run_id: the run to continue or to make; None lets rank 0 decide.
        hub: the hub, see `ddphub.address`; None means that the run stays on disk.
        model: the hub's id of an existing model to report to.
        api_key: never shown, never written to the run directory.
        root: folder that holds one folder a run.
        mode: `online`, `offline` (disk only) or `disabled` (nothing at all).
        config: JSON-safe configuration shown by the hub.
        rate_limits: seconds between requests.
        rank: given rank, for launchers that name none.
        world_size: given world size, likewise.
        finish_timeout: seconds that `finish` may take on rank 0.
        staging_budget: bytes of checkpoints that may wait on disk.
        signals: numbers of the signals that tell the run to leave: SIGTERM, and a warning signal.
        signal_budget: seconds between SIGTERM and the end.
        console: whose printed lines are reported: `rank0`, `all` or `off`.
        system_interval: seconds between two looks at process, machine and GPU; 0 for none.
        secrets: every API key that this process could read of settings, environment and credentials file: no reported
            line may hold one.
    """

    project: str
    name: str
    run_id: str | None = None
    hub: str | None = None
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    root: Path = Path(DEFAULT_DIR)
    mode: Mode = "online"
    config: dict[str, Any] = field(default_factory=dict)
    rate_limits: RateLimits = field(default_factory=RateLimits)
    rank: int | None = None
    world_size: int | None = None
    finish_timeout: float = 600.0
    staging_budget: int = STAGING_BUDGET
    signals: tuple[int, ...] = (signal.SIGTERM,)
    signal_budget: float = SIGNAL_BUDGET
    console: ConsoleRanks = "rank0"
    system_interval: float = SYSTEM_INTERVAL
    secrets: frozenset[str] = field(default=frozenset(), repr=False)

    @classmethod
    def resolve(cls, given: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> "Settings":
        """Completes and checks the arguments of `init`; the directory is made and tried.

        Args:
            given: keyword arguments of `init`; None counts as not given.
            environ: the environment; `os.environ` when None.

        Raises:
            SettingsError: names the setting, its value, where it came from and what is expected.
        """
        environ = os.environ if environ is None else environ
        _refuse_unknown(given, environ)
        lookup = _Lookup(given, environ)

        project, source = lookup.get("project")
        _check("project", project, source, names.wrong_name(project))
        name, source = lookup.get("name", Path((sys.argv or [""])[0]).stem or "run", "the script's name")
        _check("name", name, source, names.wrong_name(name))
        run_id, source = lookup.get("run_id")
        if run_id is not None:
            _check("run_id", run_id, source, names.wrong_run_id(run_id))
        credentials = Credentials.load(environ)
        model = None
        if given.get("model") is not None:
            model = ModelAddress.parse(given["model"], "argument", environ)
        hub, source = lookup.get("hub", credentials.default_hub, "the credentials file")
        if model is not None and model.hub is not None:
            hub, source = _same_hub(given.get("hub"), model.hub, environ), "the URL of the model"
        if hub is not None:
            hub = str(HubAddress.parse(hub, source, environ))
        mode, source = lookup.get("mode", "online" if hub else "offline", "default")
        _check_one_of("mode", mode, source, MODES)
        if mode == "online" and hub is None:
            raise SettingsError(
                "hub",
                None,
                "nothing",
                "mode 'online' needs a hub: pass hub=, set DDPHUB_URL or run `ddphub login`",
            )
        api_key, source = _key(given, environ, credentials, hub, model)
        check_key(api_key, source)
        directory, source = lookup.get("dir", DEFAULT_DIR, "default")
        root = _check_dir(directory, source) if mode != "disabled" else Path(DEFAULT_DIR)
        budget, source = lookup.get("staging_budget", STAGING_BUDGET, "default")
        finish_timeout, _ = lookup.get("finish_timeout", 600.0)
        warning_signal, warning_source = lookup.get("warning_signal")
        signal_budget, budget_source = lookup.get("signal_budget", SIGNAL_BUDGET)
        console, console_source = lookup.get("console", "rank0")
        _check_one_of("console", console, console_source, CONSOLE_RANKS)
        interval, interval_source = lookup.get("system_interval", SYSTEM_INTERVAL)
        return cls(
            project=project,
            name=name,
            run_id=run_id,
            hub=hub,
            model=model.model_id if model else None,
            api_key=api_key,
            root=root,
            mode=mode,
            config=_json_safe(given.get("config")),
            rate_limits=RateLimits.resolve(given.get("rate_limits")),
            rank=_whole("rank", given.get("rank"), "argument"),
            world_size=_whole("world_size", given.get("world_size"), "argument"),
            finish_timeout=_seconds("finish_timeout", finish_timeout),
            staging_budget=_whole("staging_budget", budget, source) or 0,
            signals=(signal.SIGTERM, *_warning_signal(warning_signal, warning_source)),
            signal_budget=_seconds_of_text("signal_budget", signal_budget, budget_source),
            console=console,
            system_interval=_system_interval(interval, interval_source),
            secrets=_secrets(api_key, environ, credentials, model),
        )


SETTINGS: Final = (
    *("project", "name", "run_id", "hub", "model", "dir", "mode", "config", "rate_limits"),
    *("rank", "world_size", "finish_timeout", "staging_budget", "warning_signal", "signal_budget", "console"),
    *("system_interval", "api_key"),
)
"""The keyword arguments of `init`."""


@dataclass(frozen=True)
class Credentials:
    """The file that `ddphub login` writes: one key a hub, mode 0600.

    `{"default": "https://hub", "keys": {"https://hub": "..."}}`
    """

    path: Path
    default_hub: str | None = None
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> "Credentials":
        """Reads the file; one that is absent, unreadable or damaged counts as empty, the last with a warning."""
        base = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME", "~")).expanduser() / ".config")
        path = Path(base) / "ddphub" / "credentials.json"
        try:
            content = json.loads(read_regular(path))
            default, keys = content["default"], dict(content["keys"])
            if all(isinstance(text, str) and text.isascii() for text in (default, *keys, *keys.values())):
                return cls(path, default, keys)
            problem: object = "expected ASCII text"
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return cls(path)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            problem = error
        logger.warning("%s is damaged (%s): run `ddphub login` again", path, problem)
        return cls(path)

    def key_for(self, hub: str) -> str | None:
        """The key that belongs to exactly this hub: a key is never sent to another one."""
        return self.keys.get(hub)

    def save(self, hub: str, key: str) -> None:
        """Adds a hub's key and makes the hub the default; the file appears whole, 0600, or not at all."""
        content = {"default": hub, "keys": {**self.keys, hub: key}}
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False) as file:  # made 0600
            try:
                json.dump(content, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(self.path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise


class _Lookup:
    """Where a setting comes from: argument, variable, default."""

    def __init__(self, given: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        self._given = given
        self._environ = environ

    def get(self, setting: str, default: object = None, default_source: str = "default") -> tuple[Any, str]:
        """The setting's value and the words for where it was found."""
        if self._given.get(setting) is not None:
            return self._given[setting], "argument"
        variable = VARIABLES.get(setting)
        if variable and self._environ.get(variable):
            return self._environ[variable], variable
        return default, default_source


def _same_hub(given: object, named: str, environ: Mapping[str, str]) -> str:
    """The hub that a model's URL names, which must be the one that was given beside it."""
    if given is not None and str(HubAddress.parse(given, "argument", environ)) != named:
        raise SettingsError("hub", given, "argument", f"the model is on {named}")
    return named


def _key(
    given: Mapping[str, Any],
    environ: Mapping[str, str],
    credentials: Credentials,
    hub: str | None,
    model: ModelAddress | None,
) -> tuple[Any, str]:
    """The key for a hub, and where it was found."""
    if given.get("api_key") is not None:
        return given["api_key"], "argument"
    if model is not None and model.api_key is not None:
        return model.api_key, "model"
    variable = service_variable(hub)
    for name in (variable, VARIABLES["api_key"]):
        if name and environ.get(name):
            return environ[name], name
    return (credentials.key_for(hub) if hub else None), "the credentials file"


def _secrets(
    api_key: str | None, environ: Mapping[str, str], credentials: Credentials, model: ModelAddress | None
) -> frozenset[str]:
    """Every key in reach, also those that this run does not use: a script may print them all the same."""
    variables = (VARIABLES["api_key"], *SERVICE_KEYS.values())
    found = {api_key, model.api_key if model else None, *map(environ.get, variables), *credentials.keys.values()}
    return frozenset(filter(None, found))


def service_variable(hub: str | None) -> str | None:
    """The variable that holds the key of a hub's service, if it has one."""
    return SERVICE_KEYS.get((hub or "").partition("+")[0])


def _refuse_unknown(given: Mapping[str, Any], environ: Mapping[str, str]) -> None:
    for setting in given:
        if setting not in SETTINGS:
            close = difflib.get_close_matches(setting, SETTINGS, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            # The value is not shown: it may be a key under a misspelt name.
            raise SettingsError(setting, "...", "argument", f"unknown setting; {hint}known: {', '.join(SETTINGS)}")
    for variable in environ:
        if variable.startswith("DDPHUB_") and variable not in VARIABLES.values():
            logger.warning("%s is no variable of ddphub; known: %s", variable, ", ".join(VARIABLES.values()))


def _check(setting: str, value: object, source: str, wrong: str | None) -> None:
    if wrong:
        raise SettingsError(setting, value, source, wrong)


def _check_one_of(setting: str, value: object, source: str, known: tuple[str, ...]) -> None:
    is_known = isinstance(value, str) and value in known
    _check(setting, value, source, None if is_known else f"expected one of {', '.join(known)}")


def check_key(api_key: object, source: str) -> None:
    """A key that HTTP cannot carry would fail at every request; the value itself is not repeated.

    Raises:
        SettingsError: it is such a key.
    """
    if api_key is None:
        return
    if (
        not isinstance(api_key, str)
        or not api_key
        or not api_key.isascii()
        or not api_key.isprintable()
        or " " in api_key
    ):
        raise SettingsError("api_key", "...", source, "expected printable ASCII without spaces")


def _check_dir(directory: object, source: str) -> Path:
    if not isinstance(directory, str | os.PathLike):
        raise SettingsError("dir", directory, source, "expected a path")
    try:
        root = Path(directory).expanduser().absolute()
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=root):
            pass
    except (OSError, ValueError, RuntimeError) as error:
        raise SettingsError("dir", str(directory), source, f"cannot be written: {error}") from error
    return root


def _seconds(setting: str, value: object, source: str = "argument") -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= LONGEST:
        raise SettingsError(setting, value, source, f"expected seconds, 0 to {LONGEST}")
    return float(value)


def _seconds_of_text(setting: str, value: object, source: str) -> float:
    """The same of a variable."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise SettingsError(setting, value, source, f"expected seconds, 0 to {LONGEST}") from None
    return _seconds(setting, value, source)


def _system_interval(value: object, source: str) -> float:
    seconds = _seconds_of_text("system_interval", value, source)
    if 0 < seconds < SHORTEST_SYSTEM_INTERVAL:
        expected = f"expected seconds, {SHORTEST_SYSTEM_INTERVAL} or more, or 0 for none"
        raise SettingsError("system_interval", value, source, expected)
    return seconds


def _warning_signal(value: object, source: str) -> tuple[int, ...]:
    if value is None:
        return ()
    name = str(value).upper().removeprefix("SIG")
    if name not in WARNING_SIGNALS:
        raise SettingsError("warning_signal", value, source, f"expected one of {', '.join(WARNING_SIGNALS)}")
    return (signal.Signals[f"SIG{name}"],)


def _whole(setting: str, value: object, source: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SettingsError(setting, value, source, "expected a whole number, 0 or more")
    return value


def _json_safe(config: object) -> dict[str, Any]:
    """The user's configuration as every hub can store it; what JSON does not know becomes its text."""
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        raise SettingsError("config", config, "argument", "expected a dict (for a namespace: vars(args))")
    safe = {plain_text(str(key), 200): _plain(value, 1) for key, value in config.items()}
    size = len(json.dumps(safe))
    if size > CONFIG_BYTES:
        raise SettingsError("config", f"{size} bytes of JSON", "argument", f"expected at most {CONFIG_BYTES} bytes")
    return safe


def _plain(value: object, depth: int) -> Any:  # noqa: ANN401  # JSON
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return int(value)
    if isinstance(value, float):
        return encode_scalar(float(value))
    if isinstance(value, Mapping) and depth < CONFIG_DEPTH:
        return {plain_text(str(key), 200): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple) and depth < CONFIG_DEPTH:
        return [_plain(item, depth + 1) for item in value]
    try:
        return plain_text(str(value), 4000)
    except Exception:  # noqa: BLE001  # the user's __str__; an int of more digits than Python prints
        return f"<{type(value).__name__}>"

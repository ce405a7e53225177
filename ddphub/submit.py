"""Submitting a training to SLURM: what `ddphub submit` does, with the files of slurm/ as templates.

The file's `#SBATCH` lines get the options' values, and behind them come the run id, the settings and the program. No
secret is among them: the job finds the key in the credentials file, or in the environment that sbatch passes on.
"""

import contextlib
import importlib.resources
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ddphub import names
from ddphub.address import HubAddress
from ddphub.config import VARIABLES, Credentials, Settings, service_variable
from ddphub.errors import DdphubError, HubError, HubUnavailable, SettingsError
from ddphub.hubs.client import Registration
from ddphub.session.folder import RunFolder, RunInfo

LAUNCHERS: Final = ("torchrun", "srun")
"""What may start the ranks."""

WARNING: Final = 120
"""Seconds before the time limit at which a job that requeues itself asks its ranks to leave."""

SBATCH_TIMEOUT: Final = 120.0
"""Seconds for sbatch to answer; SLURM's own limit for a message is 10 s, and it tries again."""

_PASSED_ON: Final = (
    *(VARIABLES[setting] for setting in ("mode", "staging_budget", "warning_signal", "signal_budget")),
    *(VARIABLES[setting] for setting in ("console", "system_interval")),
    "XDG_CONFIG_HOME",  # where the credentials file is
)
"""What the file gets from the environment, for sites whose sbatch passes none of it on."""

_TIME: Final = re.compile(r"(?:(?P<d>\d+)-(?P<dh>\d+)(?::(?P<dm>\d+)(?::(?P<ds>\d+))?)?)|(?P<t>\d+(?::\d+){0,2})")
_ARRAY: Final = re.compile(r"\d+(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*(%[1-9]\d*)?")
_JOBS: Final = re.compile(r"(?P<when>after|afterok|afterany|afternotok|aftercorr):\S+|\d+(_\d+)?(:\d+(_\d+)?)*")


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What is to be submitted, checked when it is made.

    Attributes:
        program: the Python program.
        arguments: its arguments.
        nodes: nodes.
        gpus: GPUs a node, each with a rank; None trains on CPUs.
        ranks: ranks a node on CPUs.
        cpus: CPUs a rank.
        time: the time limit as sbatch takes it.
        partition: the partition.
        array: numbers of an array's elements, as `0-15%4`.
        requeue: whether the job asks its ranks to leave before the time limit, and requeues itself.
        warning: seconds before the time limit.
        launcher: what starts the ranks.
        after: jobs that must have succeeded, `17:18`, or a dependency as sbatch takes it, `afterany:17`.
        project: as `ddphub.init` gets it.
        name: as `ddphub.init` gets it; the program's name by default, as there.
        options: more options of sbatch.

    Raises:
        SettingsError: a value is wrong, or two do not go together.
    """

    program: str
    arguments: Sequence[str] = ()
    nodes: int | None = None
    gpus: int | None = None
    ranks: int | None = None
    cpus: int | None = None
    time: str | None = None
    partition: str | None = None
    array: str | None = None
    requeue: bool = False
    warning: int | None = None
    launcher: str | None = None
    after: str | None = None
    project: str | None = None
    name: str | None = None
    options: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not Path(self.program).is_file():
            raise SettingsError("program", self.program, "the command line", "no such file")
        for field in ("nodes", "gpus", "ranks", "cpus", "warning"):
            value = getattr(self, field)
            hint = "; without --gpus it trains on CPUs" if field == "gpus" else ""
            self._check(field, value is None or value >= 1, f"expected 1 or more{hint}")
        is_time = self.time is None or _seconds(self.time) is not None
        self._check("time", is_time, "expected 90 (minutes), 12:00:00, 1-12 (days-hours) or another form of sbatch's")
        self._check("array", self.array is None or _ARRAY.fullmatch(self.array), "expected 0-15, 0-15%4 or 1,3,7")
        self._check("after", self.after is None or _JOBS.fullmatch(self.after), "expected 17, 17:18 or afterany:17")
        self._check("partition", self.partition is None or re.fullmatch(r"[\w.,-]+", self.partition), "expected a name")
        for option in self.options:
            is_one = re.fullmatch(r"-[^\n\r]+", option)
            self._check("sbatch", is_one, "expected one option of sbatch, as --account=me", option)
        self._check("ranks", self.ranks is None or self.gpus is None, "with --gpus each GPU has a rank")
        self._check("requeue", not (self.requeue and self.array), "an array's elements cannot requeue themselves")
        self._check("launcher", self.launcher in {None, *LAUNCHERS}, f"expected {' or '.join(LAUNCHERS)}")
        is_free = self.launcher is None or not (self.requeue or self.array)
        self._check("launcher", is_free, "--requeue and --array have one of their own")
        self._check("warning", self.warning is None or self.requeue, "means something with --requeue only")
        if self.requeue and self.time:
            limit, warning = _seconds(self.time) or 0, self.warning or WARNING
            self._check("time", limit > warning, f"expected more than the {warning} s of --warning")

    def _check(self, field: str, is_right: object, expected: str, value: object = None) -> None:
        if not is_right:
            raise SettingsError(field, getattr(self, field) if value is None else value, f"--{field}", expected)

    @property
    def template(self) -> str:
        """The file of slurm/ that is taken."""
        kind = "requeue" if self.requeue else "array" if self.array else self.launcher or "torchrun"
        return (importlib.resources.files("ddphub") / "slurm" / f"train-{kind}.sbatch").read_text()

    def script(self, settings: Settings, run_id: str, environ: Mapping[str, str]) -> str:
        """The file that sbatch gets."""
        after = self.after if self.after is None or self.after.startswith("after") else f"afterok:{self.after}"
        values = {
            "job-name": names.slug(settings.name),
            "nodes": self.nodes or 1,
            "ntasks-per-node": self.gpus or self.ranks or 1,
            "cpus-per-task": self.cpus,
            "gpus-per-node": self.gpus,
            "time": self.time,
            "partition": self.partition,
            "array": self.array,
            "signal": f"B:USR1@{self.warning}" if self.warning else None,
            "dependency": after,
            "kill-on-invalid-dep": "yes" if after else None,  # it would wait for ever for a job that has failed
        }
        lines = self.template.splitlines()
        last = max(number for number, line in enumerate(lines) if line.startswith("#SBATCH"))
        header = lines[: last + 1]
        for option, value in values.items():
            if value is None:
                continue
            line, known = f"#SBATCH --{option}={value}", re.compile(rf"#SBATCH --{option}=")
            if any(map(known.match, header)):
                header = [line if known.match(old) else old for old in header]
            else:
                header.append(line)
        header += [f"#SBATCH {option}" for option in self.options]
        exports = {"DDPHUB_RUN_ID": run_id, "DDPHUB_DIR": str(settings.root)}
        exports |= {variable: environ[variable] for variable in _PASSED_ON if environ.get(variable)}
        if settings.hub is not None:
            exports["DDPHUB_URL"] = settings.hub
        own = [f"export {variable}={shlex.quote(value)}" for variable, value in exports.items()]
        own.append(f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH")
        own.append(shlex.join(["set", "--", self.program, *self.arguments]))
        return "\n".join([*header, "", "# From ddphub submit.", *own, *lines[last + 1 :], ""])


def prepare(submission: Submission, environ: Mapping[str, str]) -> tuple[Settings, str, str]:
    """The settings that the job will find, its run id, and the file for sbatch. Changes nothing but makes `dir`.

    Raises:
        SettingsError: a setting is wrong.
    """
    project = "-" if submission.project is None else submission.project  # what is not known registers nothing
    name = Path(submission.program).stem if submission.name is None else submission.name
    settings = Settings.resolve({"project": project, "name": name}, environ)
    run_id = settings.run_id or names.new_run_id()
    _check_key_travels(submission, settings, environ)
    return settings, run_id, submission.script(settings, run_id, environ)


def submit(submission: Submission, environ: Mapping[str, str], say: Callable[[str], None]) -> str:
    """Registers the run and submits the job; returns the job's id.

    Args:
        submission: what.
        environ: the environment; sbatch gets it.
        say: tells a person where the run will be seen, before the job is submitted.

    Raises:
        SettingsError: a setting is wrong, or there is no sbatch here.
        DdphubError: the hub refuses the key or the run, or sbatch the job.
    """
    settings, run_id, script = prepare(submission, environ)
    if shutil.which("sbatch", path=environ.get("PATH")) is None:
        raise SettingsError("sbatch", None, "PATH", "not found; submit it where SLURM is, or look at it with --print")
    folder = RunFolder(settings.root / run_id)
    was_there = folder.run_json.exists()
    url = _register(submission, settings, folder, run_id, say)
    try:
        done = subprocess.run(
            ["sbatch", "--parsable"],  # noqa: S607  # the site's, wherever it is
            input=script,
            capture_output=True,
            text=True,
            env=dict(environ),
            timeout=SBATCH_TIMEOUT,
            check=False,
        )
        refusal = None if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DdphubError(f"sbatch did not answer, so the job may be in the queue or not: {error}") from error
    if refusal is not None:
        if url and not was_there:
            with contextlib.suppress(OSError):
                folder.run_json.unlink()
                folder.path.rmdir()
        left = f"\nthe hub has a model without a job now: {url}" if url and not was_there else ""
        raise DdphubError(f"sbatch refuses the job: {refusal}{left}")
    return done.stdout.strip().partition(";")[0]


def _register(
    submission: Submission, settings: Settings, folder: RunFolder, run_id: str, say: Callable[[str], None]
) -> str | None:
    """Makes the run's model where that can be done before the run, and says where it is; returns its URL.

    run.json is written beside it, so that the job reports to this model whatever its program calls itself.
    """
    if settings.mode == "disabled":
        say("no run: mode is disabled")
    elif settings.mode == "offline" or settings.hub is None:
        say(f"run {run_id}: on disk in {settings.root}")
    elif submission.array:
        say(f"runs {run_id}_NUMBER: each on {settings.hub} when it starts")
    elif HubAddress.parse(settings.hub, "run.json", {}).service != "ddphub":
        say(f"run {run_id}: on {settings.hub} when the job starts")
    elif submission.project is None and not folder.run_json.exists():
        say(f"run {run_id}: on {settings.hub} when the job starts; with --project you see its URL now")
    else:
        return _register_now(settings, folder, run_id, say)
    return None


def _register_now(settings: Settings, folder: RunFolder, run_id: str, say: Callable[[str], None]) -> str | None:
    from ddphub.hubs.connect import connect  # noqa: PLC0415  # requests, only where it is used

    hub = settings.hub or ""
    made = RunInfo(run_id, settings.project, settings.name, hub)
    info = RunInfo.load(folder.run_json) if folder.run_json.exists() else made
    client = connect(hub, settings.api_key)
    try:
        url = client.url(client.register(Registration(run_id, info.project, info.name, info.config, wanted=info.model)))
    except HubUnavailable as error:
        say(f"run {run_id}: on {hub} when the job starts ({error})")
        return None
    except HubError as error:
        raise DdphubError(f"nothing is submitted, as {hub} refuses the run: {error}") from error
    finally:
        client.close()
    if info is made:
        try:
            folder.create()
            info.save(folder.run_json)
        except OSError as error:
            raise DdphubError(f"nothing is submitted, as {folder.path} cannot be written: {error}") from error
    say(f"run {run_id}: {url}")
    return url


def _check_key_travels(submission: Submission, settings: Settings, environ: Mapping[str, str]) -> None:
    """A key that is in the environment only does not reach a job that gets no environment."""
    if settings.hub is None or settings.mode != "online":
        return
    said = [option.partition("=")[2] for option in submission.options if option.startswith("--export=")]
    export = said[-1] if said else environ.get("SBATCH_EXPORT") or "ALL"
    variables = {service_variable(settings.hub), VARIABLES["api_key"]} & set(environ)
    travels = {"ALL", *variables} & set(export.split(","))
    if variables and not travels and Credentials.load(environ).key_for(settings.hub) is None:
        source = " or ".join(sorted(map(str, variables)))
        raise SettingsError("api_key", "...", source, f"sbatch passes on {export} only: run `ddphub login`")


def _seconds(text: str) -> float | None:
    """A time limit in seconds; None when sbatch would not know it.

    https://slurm.schedmd.com/sbatch.html#OPT_time
    """
    if text.upper() in {"UNLIMITED", "INFINITE"}:
        return float("inf")
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    if found["t"] is None:
        days, hours, minutes, seconds = (int(found[part] or 0) for part in ("d", "dh", "dm", "ds"))
    else:
        numbers = [int(part) for part in found["t"].split(":")]
        days = 0
        hours = numbers[0] if len(numbers) == 3 else 0
        minutes, seconds = [*numbers, 0][:2] if len(numbers) < 3 else numbers[1:]
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds or None

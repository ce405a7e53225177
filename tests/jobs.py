"""Real training jobs in processes of their own, and what the hub says of them."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from hub_process import HubProcess
from nursery import Nursery

PROGRAMS = Path(__file__).parent / "programs"
MAIN = "from ddphub.cli import main; main()"

AT_IMPORT = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
"""What torch and Python look at once."""

RANKS = Nursery("torch.distributed.run", "requests", "filelock", environment=AT_IMPORT)
COMMANDS = Nursery("ddphub.cli", "requests", "filelock")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
_FORKING_TORCHRUN = Path(__file__).with_name("forking_torchrun.py")

QUIET = {"DDPHUB_CONSOLE": "off", "DDPHUB_SYSTEM_INTERVAL": "0"}
"""A run reports what its script does and nothing else: for tests that count events."""


def wait_until(condition, timeout=150.0, what="the condition"):
    """Polls until `condition()` is true and returns its value; fails after `timeout` seconds."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come true within {timeout} s")


def start_python(arguments, nursery, *, environment, stdout, stderr, cold=False, before=(), may_ask=False):
    """Starts `python ARGUMENTS` in a session of its own: a fork of the nursery where one would be the same.

    Args:
        arguments: what python would get.
        nursery: has imported what the program needs.
        environment: all of it.
        stdout: a file.
        stderr: a file.
        cold: start Python all the same.
        before: the beginning of another command, that starts python.
        may_ask: see `Nursery.start`.
    """
    if cold or before or not nursery.fits(environment):
        command = [*before, sys.executable, *map(str, arguments)]
        return subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment, start_new_session=True)
    return nursery.start(
        arguments,
        environment=environment,
        stdout=stdout.fileno(),
        stderr=stderr.fileno(),
        new_session=True,
        may_ask=may_ask,
    )


class Job:
    """One program of tests/programs in a process group of its own.

    Args:
        folder: the job's folder; its run directories are in `runs`.
        program: the file's name.
        hub: the hub it reports to.
        ranks: processes; 0 starts the program without a launcher.
        launcher: arguments of torchrun.
        python: options of Python, for the program without a launcher.
        cold: start Python and import everything, as a user's job does; else forks of a process that has torch.
        arguments: arguments of the program, as `--name value`.
        environment: more variables.
    """

    nursery = RANKS

    def __init__(
        self,
        folder,
        program,
        *,
        hub,
        ranks=3,
        launcher=("--standalone",),
        environment=None,
        python=(),
        cold=False,
        **arguments,
    ):
        self.folder = folder
        self.runs = folder / "runs"
        self.output = folder / f"job-{time.monotonic_ns()}.log"
        command = [*launcher, f"--nproc-per-node={ranks}"] if ranks else [*python]
        command += [str(PROGRAMS / program), "--out", str(folder)]
        for name, value in arguments.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        variables = {"DDPHUB_DIR": str(self.runs), **AT_IMPORT}
        if hub is not None:
            variables |= {"DDPHUB_URL": hub.url, "DDPHUB_API_KEY": hub.key}
        # Ultralytics takes a process that has it for a test of its own, and saves elsewhere.
        inherited = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
        variables = {**QUIET, **inherited, **variables, **(environment or {})}
        cold = cold or python or not self.nursery.fits(variables)
        if ranks:
            command = [*TORCHRUN[1:], *command] if cold else [_FORKING_TORCHRUN, *command]
        with self.output.open("w") as output:
            options = {"stdout": output, "stderr": output, "cold": cold, "may_ask": bool(ranks)}
            self.process = start_python(command, self.nursery, environment=variables, **options)

    @property
    def text(self):
        """What the job has printed so far."""
        return self.output.read_text(errors="replace")

    def wait(self, timeout=240):
        """The exit code; the job's output is in the failure message when it takes too long."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the job did not end:\n{self.text[-6000:]}") from None

    def succeed(self, timeout=240):
        """Waits for exit code 0."""
        code = self.wait(timeout)
        assert code == 0, f"exit code {code}:\n{self.text[-6000:]}"
        return self

    def pid_of(self, rank, timeout=150):
        """The pid that a rank wrote down when it began its loop."""
        path = self.folder / f"pid-{rank}"
        return int(wait_until(lambda: path.exists() and path.read_text(), timeout, f"rank {rank}'s start"))

    def kill_rank(self, rank):
        """SIGKILL to one rank."""
        os.kill(self.pid_of(rank), signal.SIGKILL)

    def end(self):
        """Ends every process of the job."""
        # Ranks have sessions of their own under torchrun; an orphan of a killed agent is known by its folder.
        for process in [*self._descendants(), *self._orphans()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def _descendants(self):
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def _orphans(self):
        mark = ["--out", str(self.folder)]
        for pid in self.nursery.find(*mark):
            with contextlib.suppress(psutil.NoSuchProcess):
                yield from psutil.Process(pid).children(recursive=True)
                yield psutil.Process(pid)
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or []
            if any(command[index : index + 2] == mark for index in range(len(command))):
                yield process

    def run_folders(self):
        """The run directories, sorted."""
        return sorted(path.parent for path in self.runs.glob("*/run.json"))

    def status(self):
        """`ddphub status --json` of the job's only run."""
        (folder,) = self.run_folders()
        return json.loads(ddphub("status", str(folder), "--json").stdout)

    def saved(self):
        """(epoch, sha256) of every checkpoint that the program wrote, by its own record."""
        lines = (self.folder / "saved.txt").read_text().splitlines()
        return sorted((int(epoch), sha256) for epoch, sha256 in map(str.split, lines))


def ddphub(*arguments, hub=None, check=True, timeout=240, environment=None, text_in=None):
    """Runs the command line; `check` wants exit code 0."""
    variables = {"DDPHUB_URL": hub.url, "DDPHUB_API_KEY": hub.key} if isinstance(hub, HubProcess) else {}
    variables = {**os.environ, **variables, **(environment or {})}
    if text_in is not None or not COMMANDS.fits(variables):
        command = [sys.executable, "-c", MAIN, *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, input=text_in, timeout=timeout, env=variables, check=False
        )
    else:
        done = _forked_command(arguments, variables, timeout)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def _forked_command(arguments, variables, timeout):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = COMMANDS.start(
            ["-c", MAIN, *arguments], environment=variables, stdout=out.fileno(), stderr=err.fileno()
        )
        try:
            process.wait(timeout)
        finally:
            process.kill()
        texts = [os.pread(file.fileno(), 1 << 30, 0).decode() for file in (out, err)]
    return subprocess.CompletedProcess(arguments, process.returncode, *texts)


class HubView:
    """Reads a hub as a program would."""

    def __init__(self, hub):
        self._hub = hub

    def get(self, path, **parameters):
        """`data` of one answer."""
        with self._hub.client() as client:
            answer = client.get(self._hub.url + path, params=parameters, timeout=30)
            answer.raise_for_status()
            return answer.json()["data"]

    def post(self, path, body=None):
        """`data` of one answer."""
        with self._hub.client() as client:
            answer = client.post(self._hub.url + path, json=body, timeout=30)
            answer.raise_for_status()
            return answer.json()["data"]

    def models(self):
        """Every model's id."""
        return [model["id"] for model in self.get("/v1/models")["results"]]

    def model(self):
        """The hub's only model."""
        (model_id,) = self.models()
        return self.get(f"/v1/models/{model_id}")

    def metrics(self, model_id=None):
        """Every metric record of the only model, page by page."""
        model_id = model_id or self.model()["id"]
        records, after = [], 0
        while page := self.get(f"/v1/models/{model_id}/metrics", after=after, limit=1000):
            records += page
            after = page[-1]["id"]
        return records

    def events(self, kind, model_id=None):
        """Events of a kind other than metrics."""
        return self.get(f"/v1/models/{model_id or self.model()['id']}/events", kind=kind, limit=1000)

    def checkpoints(self, model_id=None):
        """Committed checkpoints."""
        return self.get(f"/v1/models/{model_id or self.model()['id']}/checkpoints")

    def download(self, checkpoint, name=None):
        """The bytes of one file."""
        model_id = self.model()["id"]
        name = name or checkpoint["files"][0]["name"]
        url = f"{self._hub.url}/v1/models/{model_id}/checkpoints/{checkpoint['id']}/files/{name}"
        with self._hub.client() as client:
            answer = client.get(url, timeout=30)
            answer.raise_for_status()
            return answer.content

    def saved(self):
        """(epoch, sha256) of every checkpoint, computed from the bytes that the hub hands out."""
        return sorted((one["epoch"], hashlib.sha256(self.download(one)).hexdigest()) for one in self.checkpoints())

    def logged(self):
        """(attempt_id, rank, step) of every metric record; a list, so that a double shows."""
        return sorted((one["attempt_id"], one["rank"], one["step"]) for one in self.metrics())

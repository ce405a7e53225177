"""A real SLURM cluster for tests, started by `scripts/slurm-cluster`."""

import contextlib
import ctypes
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import needs
import requests
from hub_process import HubProcess
from jobs import wait_until

SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm-cluster"
OUTSIDE = "10.78.0.1"
"""The address beside the controller that stands for the internet: nodes reach it unless they are cut off."""

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def slurm_cluster(*arguments, timeout=120, **options) -> subprocess.CompletedProcess:
    """Runs the script to its end, whatever its exit code."""
    command = [str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)


class Cluster:
    """Runs from the block's begin to its end.

    Args:
        state: where the cluster's files will be; it must not exist.
        options: of `scripts/slurm-cluster start`, as `"--nodes", 3`.
    """

    def __init__(self, state: Path, *options):
        self.state = state
        self._options = options
        self._hubs: list[HubOutside] = []
        self._off: set[int] = set()
        self._cut: set[int] = set()

    def __enter__(self) -> Self:
        needs.root()
        needs.programs("slurmctld", "munged", "ip")
        started = slurm_cluster("--state", self.state, "start", *self._options)
        if started.returncode == 2:
            needs.without(started.stderr.strip())
        assert started.returncode == 0, started.stdout + started.stderr
        return self

    def __exit__(self, *_) -> None:
        self._end_hubs()
        self.script("stop")

    def script(self, *arguments) -> str:
        """One command of the script, which must succeed; returns what it printed."""
        done = slurm_cluster("--state", self.state, *arguments)
        assert done.returncode == 0, f"slurm-cluster {arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def command(self, *command) -> list[str]:
        """What runs a command beside the controller, for `subprocess`."""
        return [str(SCRIPT), "--state", str(self.state), "exec", *map(str, command)]

    def run(self, *command, check=True, timeout=150, environment=None, text_in=None, folder=None):
        """Runs a command beside the controller, as on a login node; `check` wants exit code 0.

        Args:
            command: the program and its arguments.
            check: whether another exit code fails the test.
            timeout: seconds.
            environment: more variables.
            text_in: what it reads.
            folder: where it runs.
        """
        done = subprocess.run(
            self.command(*command),
            capture_output=True,
            text=True,
            timeout=timeout,
            input=text_in,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def sbatch(self, script: str | Path, *options, environment=None, folder=None) -> str:
        """Submits a batch script, a file or its text; returns the job's id."""
        if isinstance(script, Path):
            done = self.run("sbatch", "--parsable", *options, script, environment=environment, folder=folder)
        else:
            done = self.run("sbatch", "--parsable", *options, text_in=script, environment=environment, folder=folder)
        return done.stdout.strip().partition(";")[0]

    def jobs(self, job_id: str) -> list[dict[str, str]]:
        """What `scontrol show job` says, a dictionary for each element of an array."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job_id).stdout
        return [_fields(line) for line in shown.splitlines() if line]

    def job(self, job_id: str) -> dict[str, str]:
        """The same of a job that is no array, or of one element, as `17_2`."""
        (job,) = self.jobs(job_id)
        return job

    def wait_job(self, job_id: str, *states: str, timeout=60, **wanted: str) -> dict[str, str]:
        """Waits until a job is in one of the states and its fields are as wanted: `Restarts="1"`."""
        job: dict[str, str] = {}

        def reached():
            job.update(self.job(job_id))
            return (not states or job["JobState"] in states) and wanted.items() <= job.items()

        try:
            wait_until(reached, timeout, f"{states} {wanted} of job {job_id}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {job}\n{self.logs()}") from None
        return job

    def nodes(self) -> dict[str, str]:
        """Every node's state, as `{"node1": "idle"}`; a `*` behind it says that the node does not answer."""
        shown = self.run("sinfo", "--noheader", "--Node", "--partition", "main", "--format", "%N %T").stdout
        return dict(line.split() for line in shown.splitlines())

    def wait_node(self, node: int, *states: str, timeout=150) -> None:
        """Waits until a node is in one of the states."""
        wait_until(lambda: self.nodes()[f"node{node}"] in states, timeout, f"{states} of node {node}")

    def fail(self, node: int) -> None:
        """Cuts a node's power."""
        self.script("fail", node)
        self._off.add(node)

    def revive(self, node: int) -> None:
        """Switches it on again, with a way out."""
        self.script("revive", node)
        self._off.discard(node)
        self._cut.discard(node)

    def cut(self, node: int, *, silently=False) -> None:
        """Takes a node's way to `OUTSIDE`."""
        self.script("cut", *(["--silently"] if silently else []), node)
        self._cut.add(node)

    def mend(self, node: int) -> None:
        """Gives it back."""
        self.script("mend", node)
        self._cut.discard(node)

    def hub(self, data_dir: Path, **options) -> "HubOutside":
        """A hub that nodes reach unless they are cut off; it ends with the test."""
        hub = HubOutside(self, data_dir, **options)
        self._hubs.append(hub)
        return hub

    def holder(self) -> int:
        """The process that owns the cluster: all others are its descendants, or were started by `run`."""
        return int((self.state / "pid").read_text())

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """This thread is in the controller's network: sockets and processes that it makes in the block stay there."""
        with Path("/proc/thread-self/ns/net").open() as ours, Path(f"/proc/{self.holder()}/ns/net").open() as theirs:
            _enter_network(theirs.fileno())
            try:
                yield
            finally:
                _enter_network(ours.fileno())

    def logs(self) -> str:
        """The end of each of SLURM's logs."""
        return "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in sorted(self.state.glob("log/*.log")))

    def clean(self) -> None:
        """Ends what a test left: its hubs and jobs; every node is on, has a way out, and is idle."""
        self._end_hubs()
        self.run("scancel", "--user", "root")
        for node in sorted(self._off):
            self.revive(node)
        for node in sorted(self._cut):
            self.mend(node)
        wait_until(lambda: not self.run("squeue", "--noheader").stdout, what="the end of all jobs")
        wait_until(lambda: set(self.nodes().values()) == {"idle"}, what="idle nodes")

    def _end_hubs(self) -> None:
        while self._hubs:
            self._hubs.pop().__exit__(None, None, None)


class HubOutside(HubProcess):
    """A hub in the controller's network, on `OUTSIDE`; `jobs.HubView` reads it from the test's own."""

    def __init__(self, cluster: Cluster, data_dir: Path, api_key: str | None = None, arguments: tuple[str, ...] = ()):
        self._cluster = cluster
        super().__init__(data_dir, api_key, arguments=("--host", OUTSIDE, *arguments))

    @property
    def database(self) -> Path:
        """SQLite: from this network there is no way to a PostgreSQL of the tests."""
        return self.data_dir / "hub.db"

    def start(self) -> None:
        """Start, and wait for the line that says the hub serves."""
        with self._cluster.network():
            super().start()

    def client(self) -> requests.Session:
        """A session that sends the key."""
        cluster = self._cluster

        class Inside(requests.Session):
            def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
                with cluster.network():
                    return super().send(request, **options)

        session = Inside()
        session.trust_env = False
        session.headers["x-api-key"] = self.key
        return session


def _enter_network(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _fields(line: str) -> dict[str, str]:
    """`A=1 B=x y C=` as a dictionary; a value may have blanks in it."""
    return dict(re.findall(r"(\S+?)=(.*?)\s*(?= [A-Z]\S*?=|$)", line))

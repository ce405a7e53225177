"""What SLURM says about a job: one table of variables, the run id made of them, and why the job has to leave.

When a signal tells rank 0 to leave, SLURM's controller knows why. What it says then, and the state that the attempt
ends with (the first row that fits; seen with SLURM 22.05):

| what happened | state | `squeue` says |
| --- | --- | --- |
| preemption by another partition or QOS | preempted | PreemptTime is set, from the signal until the job starts again |
| a node of the job died, the job runs again | node_failed | RestartCnt is above ours, and a node of the job is down |
| `scontrol requeue` | requeued | RestartCnt is above ours |
| the time limit, a deadline | timed_out | COMPLETING, reason TimeLimit |
| a node died, the job was made with `--no-requeue` | node_failed | COMPLETING, reason NodeDown |
| the batch script ended before this step, in error | failed | COMPLETING, reason NonZeroExitCode |
| `scancel`, or the batch script ended before this step | cancelled | COMPLETING without a reason |
| a node died, and SLURM has not acted upon it yet | node_failed | RUNNING, a node of the job is down or silent |
| a warning signal less than 10 minutes before the time limit | timed_out | RUNNING, TimeLeft |
| any other signal, as `kill` and `scancel -s` send it | preempted | RUNNING |
| no SLURM, no `squeue`, no answer within 2 s | preempted | |

In the last two rows nobody said why: `preempted` means no more than "told to leave by a signal".
"""

import logging
import os
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ddphub import names
from ddphub.events import MAX_SLURM_NODES, MAX_SLURM_TEXT, plain_text

logger = logging.getLogger(__name__)

VARIABLES: Final = {
    "cluster": "SLURM_CLUSTER_NAME",
    "job": "SLURM_JOB_ID",
    "array_job": "SLURM_ARRAY_JOB_ID",
    "array_task": "SLURM_ARRAY_TASK_ID",
    "step": "SLURM_STEP_ID",
    "restart_count": "SLURM_RESTART_COUNT",
    "partition": "SLURM_JOB_PARTITION",
    "nodes": "SLURM_JOB_NODELIST",
    "node_count": "SLURM_JOB_NUM_NODES",
    "name": "SLURM_JOB_NAME",
}
"""https://slurm.schedmd.com/sbatch.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES"""

ASK_WAIT: Final = 2.0
"""Seconds that SLURM has to say why."""

ASK_PAUSE: Final = 0.05

WARNING_WINDOW: Final = 600
"""Seconds before the time limit in which a warning signal is taken for the one that `--signal` asked for."""

_COLUMNS: Final = {"State": 24, "Reason": 64, "RestartCnt": 12, "PreemptTime": 24, "TimeLeft": 20}
"""https://slurm.schedmd.com/squeue.html#OPT_Format, with the width of each."""

_STATES: Final = {
    "TIMEOUT": "timed_out",
    "TimeLimit": "timed_out",
    "DEADLINE": "timed_out",
    "DeadLine": "timed_out",
    "NODE_FAIL": "node_failed",
    "BOOT_FAIL": "node_failed",
    "NodeDown": "node_failed",
    "FAILED": "failed",
    "NonZeroExitCode": "failed",
    "OUT_OF_MEMORY": "failed",
    "OutOfMemory": "failed",
}
"""SLURM's states and reasons that say it all."""

_GOES_ON: Final = ("RUNNING", "SUSPENDED", "SIGNALING", "STOPPED", "RESIZING", "STAGE_OUT")


@dataclass(frozen=True)
class SlurmJob:
    """The SLURM job this process belongs to; every field as SLURM gave it."""

    job: str
    step: str
    cluster: str = "slurm"
    array_job: str | None = None
    array_task: str | None = None
    restart_count: int = 0
    partition: str | None = None
    nodes: str | None = None
    node_count: int | None = None
    name: str | None = None

    @classmethod
    def detect(cls, environ: Mapping[str, str] | None = None) -> "SlurmJob | None":
        """The job of this process, or None outside SLURM. In the batch shell the step is `batch`."""
        environ = os.environ if environ is None else environ
        found = {field: environ[variable] for field, variable in VARIABLES.items() if environ.get(variable)}
        if "job" not in found:
            return None
        restarts, node_count = (_count(found.pop(field, "")) for field in ("restart_count", "node_count"))
        return cls(**{"step": "batch", **found}, restart_count=restarts or 0, node_count=node_count)

    @property
    def task(self) -> str:
        """The job as SLURM's commands name it; an array's last element has the id of the whole array."""
        return f"{self.array_job or self.job}_{self.array_task}" if self.array_task else self.job

    def run_id(self, project: str, name: str, ordinal: int) -> str:
        """The run id: `<cluster>-<job>[_<task>]-<step>-<slug of project and name>-<ordinal of init>`."""
        step = names.slug(self.step)
        return f"{names.slug(self.cluster)}-{self.task}-{step}-{names.slug(f'{project} {name}')}-{ordinal}"

    def about(self) -> dict[str, Any]:
        """What the hub is told of it: the `slurm` of an attempt event, see `ddphub.events`."""
        texts = {
            "cluster": self.cluster,
            "job_id": self.job,
            "array_job_id": self.array_job,
            "array_task_id": self.array_task,
            "step": self.step,
            "partition": self.partition,
            "job_name": self.name,
        }
        return {
            **{name: None if text is None else _begin(text, MAX_SLURM_TEXT) for name, text in texts.items()},
            "nodes": None if self.nodes is None else _begin(self.nodes, MAX_SLURM_NODES),
            "node_count": self.node_count,
            "restart_count": self.restart_count,
        }


@dataclass(frozen=True)
class JobStatus:
    """What `squeue` says of a job, as it says it; `seconds_left` until the time limit, None without one."""

    state: str
    reason: str
    restart_count: int
    is_preempted: bool
    seconds_left: int | None

    @classmethod
    def parse(cls, line: str) -> "JobStatus":
        """One line of `squeue`.

        Raises:
            ValueError: it is no such line.
        """
        said, start = {}, 0
        for column, width in _COLUMNS.items():
            said[column], start = line[start : start + width].strip(), start + width
        restarts = _count(said["RestartCnt"])
        if restarts is None or not said["State"]:
            raise ValueError(f"expected a job, got {line[:200]!r}")
        is_preempted = said["PreemptTime"] not in {"", "N/A", "None"}
        return cls(said["State"], said["Reason"], restarts, is_preempted, _seconds(said["TimeLeft"]))


@dataclass(frozen=True)
class Ending:
    """How an attempt ends: its state, why, and who said so (`slurm`, or None where nobody did)."""

    state: str
    reason: str
    said_by: str | None = None


def why(signal_name: str, job: SlurmJob, status: JobStatus, node_states: list[str]) -> Ending:
    """The table above.

    Args:
        signal_name: the signal that tells to leave.
        job: as it began.
        status: as SLURM says it is now.
        node_states: of the job's nodes, as `sinfo` says them: `down*`.
    """

    def ends(state: str, words: str) -> Ending:
        return Ending(state, f"{signal_name}: {words}", "slurm")

    is_node_down = any(state.startswith("down") for state in node_states)
    if status.is_preempted:
        return ends("preempted", "SLURM preempted the job")
    if status.restart_count > job.restart_count:
        if is_node_down:
            return ends("node_failed", "a node of the job is down, SLURM requeued the job")
        return ends("requeued", "the job was requeued")
    for word in (status.state, status.reason):
        if state := _STATES.get(word):
            return ends(state, f"SLURM ends the job ({word})")
    if status.state not in _GOES_ON:
        return ends("cancelled", "SLURM ends the job (scancel, or its batch script ended)")
    if is_node_down or any(state.endswith("*") for state in node_states):
        return ends("node_failed", "a node of the job does not answer")
    is_warning = signal_name != "SIGTERM"
    if is_warning and status.seconds_left is not None and status.seconds_left <= WARNING_WINDOW:
        return ends("timed_out", f"{status.seconds_left} s before the time limit")
    return Ending("preempted", f"{signal_name} (for SLURM the job is {status.state})")


class Departure:
    """Why a signal tells this process to leave. Asked of SLURM at once, in a thread, and only for a bounded time.

    Args:
        signal_name: the signal.
        job: the job of this process, if it has one.
    """

    def __init__(self, signal_name: str, job: SlurmJob | None) -> None:
        self._signal_name = signal_name
        self._job = job
        self._until = time.monotonic() + ASK_WAIT
        self._found: Ending | None = None
        # A thread, because a command that hangs in the kernel heeds no timeout.
        self._asking = threading.Thread(target=self._ask, name="ddphub-why", daemon=True)
        try:
            self._asking.start()
        except RuntimeError:  # the interpreter exits
            self._until = 0.0

    def ending(self, deadline: float) -> Ending:
        """How the attempt ends; waits until `deadline` (time.monotonic) at most, and no longer than ASK_WAIT."""
        while self._asking.is_alive() and time.monotonic() < min(deadline, self._until):
            self._asking.join(ASK_PAUSE)
        return self._found or Ending("preempted", self._signal_name)

    def _ask(self) -> None:
        if self._job is None:
            return
        try:
            status = JobStatus.parse(self._output("squeue", "--states=all", f"--jobs={self._job.task}", _FORMAT))
            self._found = why(self._signal_name, self._job, status, [])
            if self._job.nodes:
                states = self._output("sinfo", "--Node", "--format=%T", f"--nodes={self._job.nodes}").split()
                self._found = why(self._signal_name, self._job, status, states)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            logger.info("SLURM does not say why the job has to leave: %s", error)

    def _output(self, *command: str) -> str:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(_CHANGES_OUTPUT)}
        while True:
            done = subprocess.run(  # noqa: S603  # two programs, no shell
                [command[0], "--noheader", *command[1:]],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                env=environ,
                timeout=max(0.0, self._until - time.monotonic()),
                check=False,
            )
            # SLURM signals every process of a step, so a command may die of the signal that it asks about.
            if done.returncode >= 0:
                done.check_returncode()
                return done.stdout
            time.sleep(ASK_PAUSE)


_FORMAT: Final = "--Format=" + ",".join(f"{column}:{width}" for column, width in _COLUMNS.items())

_CHANGES_OUTPUT: Final = ("SQUEUE_", "SINFO_", "SLURM_TIME_FORMAT", "SLURM_CLUSTERS")
"""Variables by which users set the commands' defaults."""


def _begin(text: str, limit: int) -> str:
    return plain_text(text[:limit], limit)[:limit]


def _count(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _seconds(time_left: str) -> int | None:
    """Seconds of `1-02:03:04` or `3:04`; None for `UNLIMITED` and the like."""
    days, _, clock = time_left.rpartition("-")
    parts = [_count(part) for part in [days or "0", *clock.split(":")]]
    if None in parts or not 3 <= len(parts) <= 4:
        return None
    seconds = 0
    for part in parts[1:]:
        seconds = seconds * 60 + (part or 0)
    return (parts[0] or 0) * 86400 + seconds

"""SLURM's queue: which jobs are still there, so that their runs may come back."""

import logging
import os
import subprocess
import time
from collections.abc import Set as AbstractSet
from typing import Final

logger = logging.getLogger(__name__)

PACE: Final = 10.0
"""Seconds between two questions to SLURM's controller about the same jobs."""

PATIENCE: Final = 20.0
"""Seconds that `squeue` may take."""

_OVER: Final = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT"}
)
"""https://slurm.schedmd.com/squeue.html#SECTION_JOB-STATE-CODES; jobs of NODE_FAIL and PREEMPTED may be requeued."""

_CHANGES_OUTPUT: Final = ("SQUEUE_", "SLURM_CLUSTERS")
"""Variables by which users set the command's defaults."""


class SlurmQueue:
    """The jobs that wait or run, of those that one asks about. One thread."""

    def __init__(self) -> None:
        self._asked: AbstractSet[str] = frozenset()
        self._there: AbstractSet[str] | None = None
        self._at = float("-inf")

    def ask(self, jobs: AbstractSet[str]) -> None:
        """Asks SLURM about jobs, with one call, unless it has just said.

        Args:
            jobs: their numbers, as in SLURM_JOB_ID.
        """
        if jobs and (not jobs <= self._asked or time.monotonic() - self._at >= PACE):
            self._asked, self._there = jobs, _there(jobs)
            self._at = time.monotonic()

    def has(self, job: str) -> bool | None:
        """Whether a job waits or runs; None when SLURM does not say, or was not asked."""
        return None if self._there is None or job not in self._asked else job in self._there


def _there(jobs: AbstractSet[str]) -> AbstractSet[str] | None:
    command = ["squeue", "--noheader", "--states=all", "--format=%A %T", f"--jobs={','.join(sorted(jobs))}"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(_CHANGES_OUTPUT)}
    try:
        said = subprocess.run(  # noqa: S603  # one program, no shell
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environ,
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.info("SLURM's queue is not known here: %s", error)
        return None
    if said.returncode != 0:
        if "Invalid job id" in said.stderr:  # what it says of one job that it has forgotten
            return frozenset()
        logger.info("squeue: %s", said.stderr.strip())
        return None
    found = (line.split() for line in said.stdout.splitlines())
    return {words[0] for words in found if len(words) == 2 and words[1] not in _OVER}

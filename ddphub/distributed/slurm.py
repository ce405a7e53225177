"""What SLURM says about a job: one table of variables, and the run id made of them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ddphub import names

VARIABLES: Final = {
    "cluster": "SLURM_CLUSTER_NAME",
    "job": "SLURM_JOB_ID",
    "array_job": "SLURM_ARRAY_JOB_ID",
    "array_task": "SLURM_ARRAY_TASK_ID",
    "step": "SLURM_STEP_ID",
    "restart_count": "SLURM_RESTART_COUNT",
    "partition": "SLURM_JOB_PARTITION",
    "nodes": "SLURM_JOB_NODELIST",
}
"""https://slurm.schedmd.com/sbatch.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES"""


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

    @classmethod
    def detect(cls, environ: Mapping[str, str] | None = None) -> "SlurmJob | None":
        """The job of this process, or None outside SLURM. In the batch shell the step is `batch`."""
        environ = os.environ if environ is None else environ
        found = {field: environ[variable] for field, variable in VARIABLES.items() if environ.get(variable)}
        if "job" not in found:
            return None
        restarts = found.pop("restart_count", "0")
        return cls(
            **{"step": "batch", **found},
            restart_count=int(restarts) if restarts.isascii() and restarts.isdigit() else 0,
        )

    def run_id(self, project: str, name: str, ordinal: int) -> str:
        """The run id: `<cluster>-<job>[_<task>]-<step>-<slug of project and name>-<ordinal of init>`."""
        job = f"{self.array_job or self.job}_{self.array_task}" if self.array_task else self.job
        step = names.slug(self.step)
        return f"{names.slug(self.cluster)}-{job}-{step}-{names.slug(f'{project} {name}')}-{ordinal}"

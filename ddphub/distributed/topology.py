"""Which rank a process is, and of how many.

Looked up in this order: the arguments of `init`, an initialised process group, then the table of launchers below,
else a world of one. A world of one is the same class.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ddphub.errors import SettingsError


@dataclass(frozen=True)
class Launcher:
    """The variables by which a launcher tells a process its place; several names: the first that is set counts."""

    name: str
    rank: str
    world_size: tuple[str, ...]
    local_rank: str
    node: str
    marker: str
    """The variable whose presence says that this launcher started the process."""


LAUNCHERS: Final = (
    # torch.distributed's own names: torchrun sets all of them, other launchers at least the first two.
    # https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables
    Launcher("torchrun", "RANK", ("WORLD_SIZE",), "LOCAL_RANK", "GROUP_RANK", "RANK"),
    # A SLURM step; outside a step (in the batch shell) SLURM_PROCID is 0 and says nothing about ranks.
    # https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES
    Launcher(
        "slurm",
        "SLURM_PROCID",
        ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        "SLURM_LOCALID",
        "SLURM_NODEID",
        "SLURM_STEP_ID",
    ),
)


@dataclass(frozen=True)
class Topology:
    """A process's place in its world.

    Attributes:
        rank: 0 to world_size - 1; rank 0 owns the hub session.
        world_size: number of processes.
        local_rank: place among the processes of its node.
        node: the node's number.
        source: what said so: `arguments`, `process group`, a launcher's name, or `single`.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    node: int = 0
    source: str = "single"

    @property
    def is_owner(self) -> bool:
        """Whether this process owns the hub session."""
        return self.rank == 0

    @classmethod
    def detect(
        cls,
        rank: int | None = None,
        world_size: int | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> "Topology":
        """Finds the place of this process. Any rank.

        Args:
            rank: given place, for launchers that name none (`mp.spawn`); needs `world_size`.
            world_size: given size.
            environ: the environment; `os.environ` when None.

        Raises:
            SettingsError: when what the process was told does not fit together.
        """
        environ = os.environ if environ is None else environ
        if rank is not None or world_size is not None:
            if rank is None or world_size is None:
                missing = "rank" if rank is None else "world_size"
                raise SettingsError(missing, None, "argument", "rank= and world_size= go together")
            return cls(*_checked("rank", rank, "world_size", world_size, "argument"), source="arguments")
        group = _process_group()
        launcher = next((known for known in LAUNCHERS if environ.get(known.marker)), None)
        if launcher is None and not group and (environ.get("WORLD_SIZE") or "1") != "1":
            raise SettingsError(
                "RANK",
                None,
                "the environment",
                f"WORLD_SIZE is {environ['WORLD_SIZE']!r}, so RANK must be set too",
            )
        if launcher is None:
            return cls(*group, source="process group") if group else cls()
        local_rank = _number(environ, launcher.local_rank, 0)
        node = _number(environ, launcher.node, 0)
        if group:
            return cls(*group, local_rank, node, "process group")
        size_name = next((name for name in launcher.world_size if environ.get(name)), launcher.world_size[-1])
        place = _checked(
            launcher.rank,
            _number(environ, launcher.rank),
            size_name,
            _number(environ, size_name),
            "the environment",
        )
        return cls(*place, local_rank, node, launcher.name)


def _process_group() -> tuple[int, int] | None:
    """(rank, world size) of the default process group; torch is not imported for the question."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed.get_rank(), distributed.get_world_size()


def _number(environ: Mapping[str, str], variable: str, default: int | None = None) -> int:
    value = environ.get(variable)
    if value is None or value == "":
        if default is not None:
            return default
        raise SettingsError(variable, value, "the environment", "is not set, although its launcher's others are")
    try:
        number = int(value)
    except ValueError:
        number = -1
    if number < 0:
        raise SettingsError(variable, value, "the environment", "expected a whole number, 0 or more")
    return number


def _checked(rank_name: str, rank: int, size_name: str, world_size: int, source: str) -> tuple[int, int]:
    if world_size < 1:
        raise SettingsError(size_name, world_size, source, "expected 1 or more")
    if not 0 <= rank < world_size:
        raise SettingsError(rank_name, rank, source, f"expected 0 to {world_size - 1}, as {size_name}={world_size}")
    return rank, world_size

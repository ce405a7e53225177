"""Figures of this process and its machine, by psutil."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from ddphub.system import Figure


def host_figures(root: Path) -> dict[str, Figure]:
    """Figures by name. Any rank.

    | name | what |
    | --- | --- |
    | cpu | percent of one core that this process has used since the last look; 400 is four cores |
    | memory | bytes of this process and its descendants (DataLoader workers); what they share counts for each |
    | host_memory | percent of the machine's memory that is in use |
    | disk | percent of the file system of `root` that is in use, as `df` says it |

    Args:
        root: where run directories are.
    """
    process = psutil.Process()
    process.cpu_percent()  # from here on it counts
    return {
        "cpu": process.cpu_percent,
        "memory": lambda: sum(map(_resident, [process.pid, *_descendants(process.pid)])),
        "host_memory": lambda: psutil.virtual_memory().percent,
        "disk": lambda: psutil.disk_usage(str(root)).percent,  # the last one: on a hung file server it hangs, too
    }


def _resident(pid: int) -> int:
    """Bytes of memory; 0 for a process that has ended meanwhile."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def _descendants(pid: int) -> Iterator[int]:
    """Children and theirs. The kernel keeps a list for each thread; psutil would read every process of the machine."""
    with contextlib.suppress(OSError):  # it has ended, or this kernel keeps none
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208  # names are enough, and this is done often
            with contextlib.suppress(OSError):
                for child in map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split()):
                    yield child
                    yield from _descendants(child)

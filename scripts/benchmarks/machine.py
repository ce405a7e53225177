"""The machine and the versions that figures belong to."""

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ddphub
from benchmarks.contestants import REQUIREMENTS


def describe(folder: Path) -> dict[str, Any]:
    """What a reader needs to know of where figures came from: no host name, no path."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "ddphub": ddphub.__version__,
        "python": sys.version.split()[0],
        "torch": version("torch"),
        "kernel": platform.release().partition("-")[0],
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30),
        "file_system": file_system(folder),
        "contestants": sorted(REQUIREMENTS.values()),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def file_system(folder: Path) -> str:
    """The type of the longest mount point that holds a folder."""
    place = folder.resolve()
    found = ("", "unknown")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount_point, kind, *_ = line.split()
        if place.is_relative_to(mount_point) and len(mount_point) >= len(found[0]):
            found = (mount_point, kind)
    return found[1]

"""What a test needs of the machine: a test without it is skipped with a reason, and fails in CI.

`CI=true scripts/test` installs the programs (as root, on Debian or Ubuntu).
"""

import os
import shutil
from typing import NoReturn

import pytest

PACKAGES = {
    "bindfs": "bindfs",
    "chromedriver": "chromium-driver",
    "chromium": "chromium",
    "fusermount3": "fuse3",
    "ip": "iproute2",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "munged": "munge",
    "slurmctld": "slurm-wlm",
    "strace": "strace",
}
"""Program -> Debian package."""


def programs(*names: str) -> None:
    """Skips the test unless the programs are on the path."""
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        packages = " ".join(PACKAGES[name] for name in missing)
        without(f"needs {', '.join(missing)}: apt-get install {packages}")


def root() -> None:
    """Skips the test unless it may mount file systems."""
    if os.geteuid() != 0:
        without("mounts a file system: run it as root, in a container for instance")


def without(reason: str) -> NoReturn:
    """Skips the test, or fails it in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)

"""A file system that shares blocks between files: XFS in a sparse file. Root only."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import LeftOut


@contextlib.contextmanager
def reflink_xfs(folder: Path, size: int) -> Iterator[Path]:
    """Mounts one at `folder`/xfs, and unmounts and deletes it afterwards.

    What is deleted in it is given back to the file system below at once; neither of the two keeps a file's pages twice.

    Args:
        folder: where its image lies.
        size: bytes at most.

    Yields:
        Where it is mounted.

    Raises:
        LeftOut: not root, no programs for it, or the kernel refuses.
    """
    if os.geteuid() != 0:
        raise LeftOut("only root may mount it")
    if missing := [name for name in ("mkfs.xfs", "losetup", "mount", "umount") if shutil.which(name) is None]:
        raise LeftOut(f"not installed: {', '.join(missing)}")
    image, place = folder / "xfs.img", folder / "xfs"
    with image.open("wb") as file:
        file.truncate(size)
    place.mkdir()
    try:
        _run("mkfs.xfs", "-q", "-m", "reflink=1", str(image))
        device = _run("losetup", "--find", "--show", "--direct-io=on", str(image)).strip()
        try:
            _run("mount", "-t", "xfs", "-o", "discard", device, str(place))
        finally:
            # While it is mounted this waits; then no unmounting can leave the device behind.
            _run("losetup", "--detach", device)
        try:
            yield place
        finally:
            _run("umount", str(place))
    finally:
        image.unlink()


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LeftOut(f"{command[0]}: {done.stderr.strip()[:200]}")
    return done.stdout

"""A directory for runs: can it be written, is there room, and how do locks and copies work there?

```
<directory>/.doctor-<random>/    made here, and removed again
```
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ddphub import names
from ddphub.checkpoints.copying import clone
from ddphub.checkpoints.disk import create_private, disk_errors, make_private, remove_tree, write_all, write_json

# The very functions that a snapshot is made with: what they say here is what will happen to a checkpoint.
from ddphub.checkpoints.lease import Busy, _file_system, take_lease
from ddphub.doctor.finding import Finding
from ddphub.errors import StagingError
from ddphub.session.lock import SessionLock

LITTLE_ROOM: Final = 1024**3
"""Bytes; less than that is one checkpoint of a small model."""

FEW_INODES: Final = 10_000
"""A run has some tens of files, and a few for each checkpoint that waits."""

SLOW_SYNC: Final = 2.0
"""Seconds; the relay acknowledges events after an fdatasync, half a second at most after the last one."""

ELSEWHERE: Final = "set DDPHUB_DIR to a folder elsewhere"


def examine_place(directory: Path, source: str, budget: int) -> tuple[str, list[Finding]]:
    """Looks at a directory that is there. Any rank; may hang as its file server does.

    Args:
        directory: the folder of run directories.
        source: which setting named it.
        budget: bytes of checkpoints that may wait there.

    Returns:
        How locks work there (`flock`, `lease` or `none`), and the findings.
    """
    shown = f"{directory} (from {source})"
    try:
        with disk_errors("it cannot be written"), probe_folder(directory) as folder:
            findings = [_writes(folder, shown), _room(directory, budget)]
            kind, locks = _locks(folder)
            return kind, [*findings, locks, _copies(folder)]
    except StagingError as error:
        return "none", [Finding("directory", "problem", f"{shown}: {error}", ELSEWHERE)]


@contextmanager
def probe_folder(directory: Path, name: str | None = None) -> Iterator[Path]:
    """A folder that is there for the block."""
    folder = directory / (name or probe_name())
    make_private(folder)
    try:
        yield folder
    finally:
        with suppress(OSError):
            remove_tree(folder)


def probe_name() -> str:
    """A name that no run has: `ddphub status` and `ddphub sync` pass over it."""
    return f".doctor-{names.new_hex_id()}"


def _writes(folder: Path, shown: str) -> Finding:
    """Create, write, fsync, rename, fsync of the folder."""
    begin = time.monotonic()
    write_json(folder / "written", {"by": "ddphub doctor"}, durable=True)
    seconds = time.monotonic() - begin
    text = f"{shown}: a file was made, synced and renamed in {seconds * 1000:.0f} ms"
    if seconds > SLOW_SYNC:
        return Finding("directory", "warning", text, f"so slow a disk delays events; {ELSEWHERE}")
    return Finding("directory", "ok", text)


def _room(directory: Path, budget: int) -> Finding:
    found = os.statvfs(directory)
    free = found.f_bavail * found.f_frsize
    text = f"{_gibibytes(free)} free; checkpoints that wait may take {_gibibytes(budget)}"
    few = found.f_files > 0 and found.f_favail < FEW_INODES  # some file systems do not count them
    if found.f_files > 0:
        text += f"; {found.f_favail} inodes free"
    if free < LITTLE_ROOM or few:
        return Finding("room", "warning", text, f"free some, or {ELSEWHERE}")
    return Finding("room", "ok", text)


def _locks(folder: Path) -> tuple[str, Finding]:
    first, second = SessionLock(folder / "lock"), SessionLock(folder / "lock")
    try:
        granted = first.acquire(), second.acquire()
    except OSError as error:
        return "none", Finding("lock", "problem", f"a lock file cannot be used: {error}", ELSEWHERE)
    finally:
        for lock in (first, second):
            with suppress(OSError):
                lock.release()
    kind = "lease" if first.patience else "flock"
    if granted != (True, False):
        text = f"{kind} is granted twice to one process" if all(granted) else f"{kind} is granted to nobody"
        return kind, Finding("lock", "problem", text, ELSEWHERE)
    if kind == "lease":
        advice = "two deliverers may meet for 30 s after one was killed; mount it with locks if you can"
        return kind, Finding("lock", "warning", "flock does not work; a lease of 30 s takes its place", advice)
    return kind, Finding("lock", "ok", "flock works")


def _copies(folder: Path) -> Finding:
    """How a checkpoint that was written on this file system gets into the staging area."""
    path, target = folder / "source", folder / "target"
    data = bytes(64 * 1024)
    fd = create_private(path)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    source_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    target_fd = create_private(target)
    try:
        how = _how(source_fd, target_fd, len(data))
        try:
            leased = take_lease(source_fd, path)
        except Busy:
            leased = False
        if leased:
            fcntl.fcntl(source_fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        text = f"{_file_system(source_fd) or 'this file system'}: a checkpoint is {how}"
    finally:
        os.close(target_fd)
        os.close(source_fd)
    if leased:
        return Finding("copy", "ok", f"{text}; a read lease notices writers on this node")
    advice = "save after the writer has closed the file, on the node that wrote it, or use run.checkpoint()"
    return Finding("copy", "warning", f"{text}; leases do not work, so a writer may go unnoticed", advice)


def _how(source_fd: int, target_fd: int, size: int) -> str:
    if clone(source_fd, target_fd):
        return "cloned: it shares its blocks, and no byte is copied"
    try:
        in_kernel = os.copy_file_range(source_fd, target_fd, size, 0, 0) > 0
    except OSError:
        in_kernel = False
    return "copied inside the kernel" if in_kernel else "copied piece by piece"


def _gibibytes(size: int) -> str:
    return f"{size / 1024**3:.1f} GiB"

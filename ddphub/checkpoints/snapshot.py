"""A copy of a checkpoint that nobody was writing while it was made.

Contract: call after the writer has closed the file. How the bytes get there says `copying`. It is never a hard link:
trainers rewrite `last.pt` in place. What was being written meanwhile is thrown away and copied again, at most
`len(PAUSES)` times.

Where leases do not work (see `lease`) a writer is noticed by size, times and inode only. That is weaker: one that
pauses between two writes is not seen.
"""

import os
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from ddphub.checkpoints.copying import copy_bytes
from ddphub.checkpoints.disk import create_private, disk_errors, make_private, remove_tree
from ddphub.checkpoints.entry import StagedFile
from ddphub.checkpoints.lease import Busy, unwritten
from ddphub.errors import StagingError
from ddphub.names import wrong_file_name

PAUSES: Final = (0.0, 0.05, 0.15, 0.45, 1.35)
"""Seconds to wait before each try."""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Found:
    """A file of a checkpoint where its writer left it; equal to a later one when nobody touched it."""

    name: str
    path: Path
    size: int
    mtime_ns: int
    ctime_ns: int
    """Whoever puts the mtime back (`rsync --inplace`, `os.utime`) cannot put this one back."""
    device: int
    inode: int
    plain: bool
    """A regular file with one name: no symlink, no hard link."""


def snapshot(source: Path, target: Path) -> list[StagedFile]:
    """Copy a file, or every file below a folder, into `target`. The writing rank, any thread.

    Args:
        source: a regular file, or a folder of regular files; links to regular files are followed.
        target: a folder; made if it is not there.

    Returns:
        What was copied, ordered by name: a file under its own name, a folder's files under their relative ones.

    Raises:
        StagingError: nothing to copy, no copy possible, or someone keeps writing; nothing usable is in `target`.
    """
    return _until_quiet(source, lambda: _copy_all(source, target))


def find_files(source: Path) -> list[Found]:
    """The files that make up a checkpoint, ordered by name. Any process.

    Raises:
        StagingError: there is none, or something is neither file nor folder, or a name cannot be kept.
    """
    try:
        info = source.stat()
    except (FileNotFoundError, NotADirectoryError) as problem:
        raise StagingError(f"{source} does not exist: expected the file or folder that was saved") from problem
    except OSError as problem:
        raise StagingError(f"could not read {source}: {problem.strerror}") from problem
    if not stat.S_ISDIR(info.st_mode):
        return [_found(source.name, source)]
    files: list[Found] = []
    folders = [""]
    with disk_errors(f"could not read {source}"):
        while folders:
            prefix = folders.pop()
            with os.scandir(source / prefix) as listing:
                for item in listing:
                    name = prefix + item.name
                    if item.is_dir(follow_symlinks=False):
                        folders.append(f"{name}/")
                    else:
                        files.append(_found(name, source / name))
    if not files:
        raise StagingError(f"{source} is a folder without files: expected a saved checkpoint")
    return sorted(files, key=lambda file: file.name)


def check_unchanged(source: Path, files: list[Found]) -> None:
    """Compare a checkpoint with what `find_files` said before.

    Raises:
        Busy: a file came, went or changed.
    """
    if find_files(source) != files:
        raise Busy(f"{source} was changed")


def is_written(path: Path) -> bool:
    """Whether a file, or a folder with a file somewhere below it, was made at `path`."""
    if path.is_symlink() or not path.is_dir():
        return os.path.lexists(path)
    return any(item.is_symlink() or not item.is_dir() for item in path.rglob("*"))


def settle(folder: Path) -> list[StagedFile]:
    """The files below a folder that nobody can open by name any more, once nobody has one of them open for writing.

    The writing rank, any thread.

    Raises:
        StagingError: someone keeps one of them open.
    """

    def attempt() -> list[StagedFile]:
        found = find_files(folder)
        for file in found:
            fd = _open_source(file.path)
            try:
                with unwritten(fd, file.path):
                    pass
            finally:
                os.close(fd)
        check_unchanged(folder, found)
        return [StagedFile(file.name, file.size) for file in found]

    return _until_quiet(folder, attempt)


def _until_quiet(source: Path, attempt: Callable[[], _Result]) -> _Result:
    busy: Busy | None = None
    for pause in PAUSES:
        if pause:
            threading.Event().wait(pause)
        try:
            with disk_errors(f"could not copy {source}"):
                return attempt()
        except Busy as problem:
            busy = problem
    raise StagingError(
        f"{busy} while it was staged ({len(PAUSES)} tries): stage a checkpoint after its writer has closed it "
        "(a child process forked meanwhile keeps it open too)"
    ) from busy


def _copy_all(source: Path, target: Path) -> list[StagedFile]:
    files = find_files(source)
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise StagingError(f"{source} holds the staging area {target}: expected the folder of one checkpoint")
    make_private(target)
    try:
        for file in files:
            _copy_file(file, target / file.name)
        check_unchanged(source, files)
    except BaseException:
        with suppress(OSError):
            remove_tree(target)
        raise
    return [StagedFile(file.name, file.size) for file in files]


def _copy_file(file: Found, target: Path) -> None:
    make_private(target.parent)
    with disk_errors(f"could not copy {file.path} to {target}"):
        source_fd = _open_source(file.path)
        try:
            target_fd = create_private(target)
            try:
                with unwritten(source_fd, file.path) as watch:
                    size = os.fstat(source_fd).st_size
                    if size != file.size:
                        raise Busy(f"{file.path} was changed")
                    copy_bytes(source_fd, target_fd, size, watch)
                if os.fstat(target_fd).st_size != size:
                    raise Busy(f"{file.path} was changed")
            finally:
                os.close(target_fd)
        finally:
            os.close(source_fd)


def _open_source(path: Path) -> int:
    """A regular file, open for reading; anything else is refused without waiting for it (a pipe has no end)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except BlockingIOError as problem:
        raise Busy(f"{path} is leased by another process") from problem
    except FileNotFoundError as problem:
        raise Busy(f"{path} was removed") from problem
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise StagingError(f"{path} is no regular file any more")
    return fd


def _found(name: str, path: Path) -> Found:
    if wrong := wrong_file_name(name):
        raise StagingError(f"{path}: a checkpoint's file name {wrong}")
    try:
        own = path.lstat()
        info = path.stat()
    except FileNotFoundError as problem:
        if path.is_symlink():
            raise StagingError(f"{path} is a link to nothing: expected a regular file") from problem
        raise Busy(f"{path} was removed") from problem
    if not stat.S_ISREG(info.st_mode):
        raise StagingError(f"{path} is {_kind(info.st_mode)}: expected a regular file or a folder of regular files")
    return Found(
        name=name,
        path=path,
        size=info.st_size,
        mtime_ns=info.st_mtime_ns,
        ctime_ns=info.st_ctime_ns,
        device=info.st_dev,
        inode=info.st_ino,
        plain=stat.S_ISREG(own.st_mode) and own.st_nlink == 1,
    )


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a link to a folder"
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a device"

"""Small file operations that a crash cannot leave half done, and private modes whatever the umask."""

import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from ddphub.errors import StagingError
from ddphub.events import to_json
from ddphub.files import read_regular

FOLDER_MODE: Final = 0o700
FILE_MODE: Final = 0o600

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""Errors of a disk that takes nothing more and still gives what it has."""

_REASONS: Final = {
    errno.ENOSPC: "the disk is full; free some space, or set a smaller byte budget",
    errno.EDQUOT: "the disk quota is used up; free some space, or set a smaller byte budget",
    errno.EROFS: "the file system is read-only; set DDPHUB_DIR to a folder that can be written",
    errno.EIO: "the disk reported an input/output error",
    errno.ESTALE: "the file server no longer knows the file",
    errno.ENOTCONN: "the file system is gone for now: its process has ended",
}


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn an `OSError` into a `StagingError` that says what was being done, where, and why it failed.

    Args:
        doing: the beginning of the message, such as "could not stage weights/last.pt".
    """
    try:
        yield
    except OSError as problem:
        reason = _REASONS.get(problem.errno or 0, problem.strerror or str(problem))
        path = problem.filename2 or problem.filename
        where = f" at {os.fsdecode(path)}" if isinstance(path, str | bytes) else ""
        raise StagingError(f"{doing}: {reason}{where}") from problem


def make_private(folder: Path) -> None:
    """Make a folder and its missing parents with mode 0700; one that exists keeps its mode."""
    if folder.is_dir():
        return
    try:
        folder.mkdir(FOLDER_MODE)
    except FileExistsError:
        return
    except FileNotFoundError:
        make_private(folder.parent)
        make_private(folder)
        return
    # The umask may have taken bits that we need ourselves. Gone already: another process cleans up here.
    with suppress(FileNotFoundError):
        folder.chmod(FOLDER_MODE)


def keep_private(path: Path) -> None:
    """Give a file, or a folder and all below it, the modes 0600 and 0700."""
    path.chmod(FOLDER_MODE if path.is_dir() else FILE_MODE)
    if path.is_dir():
        for name in list_names(path):
            keep_private(path / name)


def create_private(path: Path) -> int:
    """A new file with mode 0600, open for writing; the caller closes the descriptor."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
    try:
        os.fchmod(fd, FILE_MODE)
    except BaseException:
        os.close(fd)
        raise
    return fd


def write_all(fd: int, data: bytes, offset: int = 0) -> None:
    """Write every byte at `offset`: a write may be short."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def write_json(path: Path, value: object, *, durable: bool = False) -> None:
    """Replace `path` by one JSON value: whole or not at all.

    Args:
        path: the file.
        value: JSON types only.
        durable: whether it must also survive a power cut.
    """
    data = to_json(value).encode()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        fd = create_private(temporary)
        try:
            write_all(fd, data)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds anything else.
    """
    try:
        value = json.loads(read_regular(path), parse_constant=_refuse)
    except RecursionError as problem:
        raise ValueError(f"{path}: nested too deeply") from problem
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object")  # noqa: TRY004 - callers catch one error for bad content
    return value


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


def sync_file(path: Path) -> None:
    """Bring a file's bytes to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # never waits for the writer of a FIFO
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk."""
    try:
        sync_file(folder)
    except OSError as problem:
        # Some network and FUSE file systems have no fsync for folders.
        if problem.errno not in {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}:
            raise


def list_names(folder: Path) -> list[str]:
    """The names in a folder, sorted; none where the folder does not exist."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - names, not paths
    except (FileNotFoundError, NotADirectoryError):
        return []


def tree_size(path: Path) -> int:
    """Bytes of the regular files at or below `path`; what another process removes meanwhile does not count."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return 0
    if stat.S_ISDIR(found.st_mode):
        return sum(tree_size(path / name) for name in list_names(path))
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def remove_tree(folder: Path) -> None:
    """Delete a folder and all below it, also while another process deletes it too."""
    while True:
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            # Another process was faster with some name below; that is progress, so the loop ends.
            if not os.path.lexists(folder):
                return
        else:
            return

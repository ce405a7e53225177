"""The sha256 of an entry's files, whole and by part: what the hub compares, kept in `digest.json`.

Integrity, not identity: two entries with equal bytes stay two entries.
"""

import hashlib
import logging
import re
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from ddphub.checkpoints.disk import NO_ROOM, read_json, sync_file, sync_folder, write_json
from ddphub.checkpoints.entry import Entry
from ddphub.checkpoints.layout import DIGEST, FILES, RECORD
from ddphub.errors import StagingError
from ddphub.files import open_regular

_PIECE: Final = 8 * 1024 * 1024
"""Bytes read and hashed at a time, without the interpreter. Each time it may be 5 ms until a training thread that
computes in Python lets it go, so small pieces would take long."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileDigest:
    """One file: `sha256` (hex) of the whole, and `parts`, those of each `part_size` bytes in order.

    The last part is shorter; an empty file has no part.
    """

    name: str
    size: int
    sha256: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Digest:
    """All files of an entry, in the entry's order; `part_size` in bytes."""

    part_size: int
    files: tuple[FileDigest, ...]

    def to_json(self) -> dict[str, Any]:
        """The content of `digest.json`."""
        return {"part_size": self.part_size, "files": [asdict(file) for file in self.files]}

    @classmethod
    def read(cls, entry: Entry) -> Self:
        """The digest that lies beside an entry. Any process.

        Raises:
            OSError: there is none.
            ValueError: it is not one of this entry.
        """
        record = read_json(entry.folder / DIGEST)
        part_size, files = record.get("part_size"), record.get("files")
        if type(part_size) is not int or part_size < 1:
            raise ValueError("part_size: expected bytes")
        if not isinstance(files, list) or len(files) != len(entry.files):
            raise ValueError("files: expected those of the entry")
        return cls(
            part_size=part_size,
            files=tuple(
                _file_digest(value, staged.name, staged.size, part_size)
                for value, staged in zip(files, entry.files, strict=True)
            ),
        )

    @classmethod
    def compute(cls, entry: Entry, part_size: int) -> Self:
        """Read every byte of an entry once. Any process.

        Raises:
            OSError: a file cannot be read.
            StagingError: a file has another size than when it was staged.
        """
        return cls(
            part_size=part_size,
            files=tuple(_compute(entry.file_path(file.name), file.name, file.size, part_size) for file in entry.files),
        )


def read_digest(entry: Entry) -> Digest | None:
    """The digest that lies beside an entry; None when there is none, or none of this entry. Any process."""
    try:
        return Digest.read(entry)
    except OSError:
        return None
    except ValueError as problem:
        _logger.warning("%s is made again: %s", entry.folder / DIGEST, problem)
        return None


def check_sizes(entry: Entry) -> None:
    """Look whether the files are there with the sizes they were staged with. Any process.

    Raises:
        OSError: one cannot be looked at.
        StagingError: one has another size, or is no file any more.
    """
    for file in entry.files:
        path = entry.file_path(file.name)
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size != file.size:
            raise StagingError(f"{path}: {file.size} bytes were staged and {found.st_size} are there")


def write_digest(entry: Entry, part_size: int, former: Digest | None) -> Digest:
    """Bring an entry to the disk and write its digest. Any process.

    A disk without room for the digest is no obstacle: only the next reader must compute it again, and an entry that
    is sent makes room.

    Args:
        entry: a committed entry.
        part_size: bytes of a part.
        former: a digest that the bytes must still have, or None.

    Raises:
        OSError: the entry is gone or cannot be read.
        StagingError: the bytes changed since they were staged or sealed.
    """
    paths = [entry.file_path(file.name) for file in entry.files]
    for path in (*paths, entry.folder / RECORD):
        sync_file(path)
    top = entry.folder / FILES
    folders = {parent for path in paths for parent in path.parents if parent.is_relative_to(top)}
    for folder in (*folders, entry.folder):
        sync_folder(folder)
    digest = Digest.compute(entry, part_size)
    for old, now in zip(former.files if former else (), digest.files, strict=False):
        if old.sha256 != now.sha256:
            raise StagingError(f"{entry.file_path(now.name)}: the bytes changed since they were sealed")
    try:
        write_json(entry.folder / DIGEST, digest.to_json(), durable=True)
    except OSError as problem:
        if problem.errno not in NO_ROOM:
            raise
        _logger.info("%s is not kept: %s", entry.folder / DIGEST, problem.strerror)
    return digest


def _compute(path: Path, name: str, size: int, part_size: int) -> FileDigest:
    whole = hashlib.sha256()
    parts: list[str] = []
    done = 0
    buffer = memoryview(bytearray(min(_PIECE, part_size)))
    # One part is the whole file: hash it once.
    single = size <= part_size
    with open_regular(path) as file:
        part = hashlib.sha256()
        left = part_size
        while count := file.readinto(buffer[: min(len(buffer), left)]):
            whole.update(buffer[:count])
            if not single:
                part.update(buffer[:count])
            done += count
            left -= count
            if left == 0:
                parts.append(part.hexdigest())
                part = hashlib.sha256()
                left = part_size
        if left < part_size:
            parts.append(part.hexdigest())
    if done != size:
        raise StagingError(f"{path}: {size} bytes were staged and {done} are there: the file was changed")
    if single and size:
        parts = [whole.hexdigest()]
    return FileDigest(name=name, size=size, sha256=whole.hexdigest(), parts=tuple(parts))


def _file_digest(value: object, name: str, size: int, part_size: int) -> FileDigest:
    if not isinstance(value, dict) or value.get("name") != name or value.get("size") != size:
        raise ValueError(f"files: expected {name} of {size} bytes")
    sha256, parts = value.get("sha256"), value.get("parts")
    if not isinstance(parts, list) or len(parts) != -(-size // part_size):
        raise ValueError(f"files: {name}: expected the digests of its parts")
    if not all(isinstance(digest, str) and _SHA256.fullmatch(digest) for digest in (sha256, *parts)):
        raise ValueError(f"files: {name}: expected sha256 digests")
    return FileDigest(name=name, size=size, sha256=str(sha256), parts=tuple(parts))

"""The folder that backups are kept in, and what each of them says of itself.

```
<folder>/                         0700, files 0600
  backups.lock                    flock: one backup at a time is made or removed
  blobs/<sha256[:2]>/<sha256>     files of checkpoints, each content once for all backups
  making/                         a backup that is being made; removed when the next one begins
  <20261123T091633Z>/             one backup, named by when it began
    manifest.json                 what it holds, with the digest of every file and of itself
    secret                        the hub's, which signs URLs and browser sessions
    tables/<name>.jsonl.gz        the rows of a table, see table_files
```

A backup gets its name by one rename, when all of it and every blob that it names is on disk: so it is there and whole,
or it is not there.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

from ddphub.errors import BackupError
from ddphub.server.backups.table_files import SUFFIX, TableFile
from ddphub.server.directory import create_private, sync_folder, write_synced

FORMAT: Final = 1
"""Of the folder and its files; a later one is for a later ddphub."""

_NAME: Final = re.compile("[0-9]{8}T[0-9]{6}Z")
_DIGEST: Final = re.compile("[0-9a-f]{64}")
_TABLE: Final = re.compile("[a-z_]{1,63}")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a backup holds.

    Attributes:
        version: of the ddphub that made it.
        database: what it came from: sqlite or postgresql.
        revision: of the schema of its tables.
        began_at: seconds since the epoch; all that the hub acknowledged before is in it.
        ended_at: when it was whole.
        tables: their files, in an order in which each comes after those that its rows name.
        highest_event: the highest id that an event ever had.
        secret: sha256 of the hub's secret.
        blobs: files of checkpoints that it has.
        blob_bytes: their bytes.
        deleted: (project's id, sha256) of those that someone deleted on the hub while it was made.
        damaged: the same of those that the hub itself had no longer, or not as they were sent.
        format: of the folder.
    """

    version: str
    database: str
    revision: str
    began_at: float
    ended_at: float
    tables: Mapping[str, TableFile]
    highest_event: int
    secret: str
    blobs: int
    blob_bytes: int
    deleted: list[tuple[str, str]] = field(default_factory=list)
    damaged: list[tuple[str, str]] = field(default_factory=list)
    format: int = FORMAT

    def to_bytes(self) -> bytes:
        """The file: JSON for people to read, and its own digest."""
        content = asdict(self)
        return json.dumps({**content, "sha256": _digest(content)}, indent=1).encode() + b"\n"

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The manifest of a file.

        Raises:
            ValueError: it is none, or was changed.
        """
        value = json.loads(content)
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ValueError(f"it is not of format {FORMAT}: a newer ddphub made it")
        if value.pop("sha256", None) != _digest(value):
            raise ValueError("its digest is not the one that it names: it was changed or is damaged")
        if not all(_TABLE.fullmatch(name) for name in value["tables"]):
            raise ValueError("it names a table that cannot be one")
        value["tables"] = {name: TableFile(**one) for name, one in value["tables"].items()}
        for name in ("deleted", "damaged"):
            value[name] = [(project, sha256) for project, sha256 in value[name]]
        return cls(**value)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Backup:
    """One backup: where it is, and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """When it began, UTC."""
        return self.path.name

    @property
    def secret(self) -> Path:
        """The hub's secret."""
        return self.path / "secret"

    def table(self, name: str) -> Path:
        """The file of a table."""
        return self.path / "tables" / f"{name}{SUFFIX}"


class BackupFolder:
    """A folder of backups.

    Args:
        path: where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.blobs = self.path / "blobs"
        self.making = self.path / "making"

    def all(self) -> list[Backup]:
        """The backups, oldest first.

        Raises:
            BackupError: one cannot be read.
        """
        if not self.path.is_dir():
            return []
        names = sorted(entry.name for entry in self.path.iterdir() if _NAME.fullmatch(entry.name))
        return [self.find(name) for name in names]

    def find(self, name: str | None = None) -> Backup:
        """One backup.

        Args:
            name: its name; the newest one by default.

        Raises:
            BackupError: it is not there or cannot be read.
        """
        if name is None:
            names = [entry.name for entry in self.path.iterdir()] if self.path.is_dir() else []
            name = max((one for one in names if _NAME.fullmatch(one)), default=None)
            if name is None:
                raise BackupError(f"{self.path} has no backup")
        path = self.path / name
        if not _NAME.fullmatch(name) or not path.is_dir():
            raise BackupError(f"{self.path} has no backup {name}")
        try:
            return Backup(path, Manifest.parse((path / "manifest.json").read_bytes()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BackupError(f"{path / 'manifest.json'} cannot be read: {error}") from error

    def blob(self, sha256: str) -> Path:
        """Where the bytes with this digest are, or will be.

        Raises:
            BackupError: it is no digest.
        """
        if not _DIGEST.fullmatch(sha256):
            raise BackupError(f"{sha256[:80]!a} is no sha256")
        return self.blobs / sha256[:2] / sha256

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else makes or removes a backup here meanwhile.

        Raises:
            BackupError: somebody does, or the folder holds something else.
        """
        lock_file = self.path / "backups.lock"
        if not self.path.exists():
            self.path.mkdir(mode=0o700, parents=True)
        elif not lock_file.exists() and any(self.path.iterdir()):
            raise BackupError(f"{self.path} holds other files: name an empty folder, or one that has backups")
        lock = os.open(lock_file, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise BackupError(f"another backup is being made in {self.path}, or it takes no locks") from error
            self.path.chmod(0o700)
            yield
        finally:
            os.close(lock)

    def begin(self) -> None:
        """Make room for a backup; what a crash left of another one goes."""
        shutil.rmtree(self.making, ignore_errors=True)
        for folder in (self.blobs, self.making, self.making / "tables"):
            folder.mkdir(mode=0o700, exist_ok=True)

    def finish(self, manifest: Manifest) -> Backup:
        """Let the backup that is being made be there."""
        write_synced(self.making / "manifest.json", manifest.to_bytes())
        for folder in (*self.blobs.iterdir(), self.blobs, self.making / "tables", self.making):
            sync_folder(folder)
        moment = manifest.began_at
        while (path := self.path / time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(moment))).exists():
            moment += 1
        self.making.rename(path)
        sync_folder(self.path)
        return Backup(path, manifest)

    def remove(self, backup: Backup) -> None:
        """Remove a backup; its blobs stay until `remove_blobs`."""
        shutil.rmtree(self.making, ignore_errors=True)
        # From one moment to the next it is not there; half of it would be one that cannot be read.
        backup.path.rename(self.making)
        shutil.rmtree(self.making)

    def has_blob(self, sha256: str, size: int) -> bool:
        """Whether a blob is there with its size."""
        try:
            return self.blob(sha256).stat().st_size == size
        except FileNotFoundError:
            return False

    def keep_blob(self, sha256: str, made: Path) -> None:
        """Put a file that is synced in a blob's place; the place itself is on disk once a backup is finished."""
        place = self.blob(sha256)
        place.parent.mkdir(mode=0o700, exist_ok=True)
        made.replace(place)

    def remove_blobs(self, needed: set[str]) -> int:
        """Remove the blobs that no backup needs; returns how many those were."""
        count = 0
        for folder in self.blobs.iterdir():
            for blob in folder.iterdir():
                if blob.name not in needed:
                    blob.unlink()
                    count += 1
        return count

    def new_file(self, name: str) -> BinaryIO:
        """A new private file in the backup that is being made."""
        return os.fdopen(create_private(self.making / name), "wb")

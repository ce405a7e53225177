"""Making a backup beside a hub that serves.

1. The rows of all tables are written down as they are at one moment. Nobody who writes waits for that: a reader of
   SQLite in WAL mode, or of PostgreSQL, sees one state of the database and stops no one.
2. Then the bytes of every blob among those rows are copied, unless the folder has them already. Blobs never change, so
   they may be copied later. One may be deleted meanwhile: its row is gone then, too, and the manifest says so; a
   restored hub deletes what needs it, as the hub did. A row without its bytes is damage, and is named.
3. The manifest is written, and the backup is there.

What the hub acknowledged before the backup began is in it. Of what came later, nothing is, or some.
"""

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from sqlalchemy import select

from ddphub import __version__
from ddphub.errors import BackupError
from ddphub.server.backups.folder import Backup, BackupFolder, Manifest
from ddphub.server.backups.table_files import (
    SUFFIX,
    TableFile,
    highest_event,
    read_rows,
    tables_of,
    write_table,
)
from ddphub.server.database import Database, revision_of
from ddphub.server.storage.interface import Storage, StoredBlob
from ddphub.server.tables import Blob, Project

_THREADS: Final = 4
"""Blobs that are copied at once: an object storage answers many as fast as one."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """A backup that was made, and what that took.

    Attributes:
        backup: the backup.
        rows: in all tables.
        new_blobs: that the folder did not have.
        new_bytes: of those.
        tables_s: seconds for the tables.
        blobs_s: seconds for the blobs.
    """

    backup: Backup
    rows: int
    new_blobs: int
    new_bytes: int
    tables_s: float
    blobs_s: float


def make_backup(folder: BackupFolder, database: Database, storage: Storage, secret: bytes) -> Made:
    """Make a backup.

    Args:
        folder: where to; the caller has it locked.
        database: the hub's.
        storage: the hub's.
        secret: the hub's.

    Raises:
        BackupError: it cannot be made; what was there before is as it was.
        Problem: the storage does not answer.
    """
    folder.begin()
    began_at, began = time.time(), time.monotonic()
    with folder.new_file("secret") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())
    files: dict[str, TableFile] = {}
    with database.snapshot() as connection:
        revision = revision_of(connection)
        if revision is None:
            raise BackupError("the database has no tables: start a hub on it first")
        kind = connection.dialect.name
        for table in tables_of(connection):
            files[table.name] = write_table(connection, table, folder.making / "tables" / f"{table.name}{SUFFIX}")
        highest = highest_event(connection)
    written = time.monotonic()
    copied = _copy_blobs(folder, database, storage, files)
    manifest = Manifest(
        version=__version__,
        database=kind,
        revision=revision,
        began_at=began_at,
        ended_at=time.time(),
        tables=files,
        highest_event=highest,
        secret=hashlib.sha256(secret).hexdigest(),
        blobs=copied.count,
        blob_bytes=copied.bytes,
        deleted=copied.deleted,
        damaged=copied.damaged,
    )
    return Made(
        backup=folder.finish(manifest),
        rows=sum(one.rows for one in files.values()),
        new_blobs=copied.new,
        new_bytes=copied.new_bytes,
        tables_s=written - began,
        blobs_s=time.monotonic() - written,
    )


def remove_old(folder: BackupFolder, keep: int) -> tuple[list[Backup], int]:
    """Remove all but the newest backups, and the blobs that only they needed.

    Args:
        folder: of the backups; the caller has it locked.
        keep: how many stay.

    Returns:
        The backups that went, and how many blobs.
    """
    backups = folder.all()
    old = backups[:-keep]
    for backup in old:
        folder.remove(backup)
    needed = {blob.sha256 for backup in backups[-keep:] for some in blobs_of(backup) for blob in some}
    return old, folder.remove_blobs(needed)


def blobs_of(backup: Backup) -> Iterator[list[StoredBlob]]:
    """The blobs of a backup as its tables name them, some at a time; `location` is where its hub had them.

    Raises:
        BackupError: the tables are damaged.
    """
    return _blobs_of(partial(_rows, backup.path, backup.manifest.tables))


def _rows(path: Path, files: Mapping[str, TableFile], name: str) -> Iterator[list[dict[str, Any]]]:
    return read_rows(path / "tables" / f"{name}{SUFFIX}", files[name])


def _blobs_of(rows_of: Callable[[str], Iterator[list[dict[str, Any]]]]) -> Iterator[list[StoredBlob]]:
    projects = {row["id"]: row["public_id"] for some in rows_of("projects") for row in some}
    for rows in rows_of("blobs"):
        yield [
            StoredBlob(
                project=projects[row["project_ref"]],
                sha256=row["sha256"],
                size=row["size"],
                location=row.get("location"),
            )
            for row in rows
        ]


@dataclass
class _Copied:
    """What became of the blobs."""

    count: int = 0
    bytes: int = 0
    new: int = 0
    new_bytes: int = 0
    deleted: list[tuple[str, str]] = field(default_factory=list)
    damaged: list[tuple[str, str]] = field(default_factory=list)


_Outcome = Literal["there", "copied", "deleted", "damaged"]


def _copy_blobs(folder: BackupFolder, database: Database, storage: Storage, files: dict[str, TableFile]) -> _Copied:
    copied = _Copied()
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="ddphub-backup") as threads:
        for blobs in _blobs_of(partial(_rows, folder.making, files)):
            for blob, outcome in zip(blobs, threads.map(partial(_copy, folder, database, storage), blobs), strict=True):
                if outcome in {"deleted", "damaged"}:
                    getattr(copied, outcome).append((blob.project, blob.sha256))
                    continue
                copied.count += 1
                copied.bytes += blob.size
                if outcome == "copied":
                    copied.new += 1
                    copied.new_bytes += blob.size
    return copied


def _copy(folder: BackupFolder, database: Database, storage: Storage, blob: StoredBlob) -> _Outcome:
    if folder.has_blob(blob.sha256, blob.size):
        return "there"
    if _fetch(folder, storage, blob):
        return "copied"
    # Deleted since, or even sent again to another place.
    now = find_blob(database, blob)
    if now is None:
        return "deleted"
    return "copied" if _fetch(folder, storage, now) else "damaged"


def _fetch(folder: BackupFolder, storage: Storage, blob: StoredBlob) -> bool:
    """Copy one blob; False when its bytes are not there, or others are."""
    name = secrets.token_hex(8)
    digest = hashlib.sha256()
    try:
        chunks = storage.read(blob)
        with folder.new_file(name) as file:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except FileNotFoundError:
        (folder.making / name).unlink(missing_ok=True)
        return False
    if digest.hexdigest() != blob.sha256:
        (folder.making / name).unlink()
        return False
    folder.keep_blob(blob.sha256, folder.making / name)
    return True


def find_blob(database: Database, blob: StoredBlob) -> StoredBlob | None:
    """A blob as its row is now; None when there is none."""
    with database.read() as session:
        row = session.scalar(
            select(Blob)
            .join(Project, Project.id == Blob.project_ref)
            .where(Project.public_id == blob.project, Blob.sha256 == blob.sha256)
        )
    if row is None:
        return None
    return StoredBlob(project=blob.project, sha256=row.sha256, size=row.size, location=row.location)

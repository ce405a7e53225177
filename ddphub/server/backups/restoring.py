"""Restoring a backup to a place where nothing is: a new data directory, an empty database, an empty storage.

The tables are made as they were in the backup's version, filled, and then brought up to date as at any start of a newer
hub. All of the database comes in one transaction, after every byte of every blob was read and its digest checked. In
the data directory everything is made in a folder of its own and moved up at the end, the lock file last: a hub refuses
to start on what a restore left that was cut short.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from alembic.util import CommandError
from sqlalchemy import Connection, Table, delete, exists, insert, inspect, not_, select, update

from ddphub.errors import BackupError
from ddphub.server import postgresql, sqlite
from ddphub.server.backups.folder import Backup, BackupFolder
from ddphub.server.backups.making import blobs_of
from ddphub.server.backups.table_files import fill_table, go_on_counting, read_rows, tables_of
from ddphub.server.database import Database, upgrade
from ddphub.server.directory import SECRET_BYTES, DataDirectory, create_private, sync_folder, write_synced
from ddphub.server.settings import ServerSettings
from ddphub.server.signing import Signer
from ddphub.server.storage.incoming import CHUNK
from ddphub.server.storage.interface import Storage, StoredBlob, WrongBytes
from ddphub.server.storage.opening import open_storage

BEING_MADE: Final = "restoring"
"""The folder of a data directory in which it is made."""

_ID: Final = re.compile("[A-Za-z0-9]{1,32}")


@dataclass
class Restored:
    """What was restored.

    Attributes:
        rows: in all tables.
        blobs: files of checkpoints.
        blob_bytes: theirs.
        missing: (project's id, sha256) of blobs that have a row and no bytes.
    """

    rows: int = 0
    blobs: int = 0
    blob_bytes: int = 0
    missing: list[tuple[str, str]] = field(default_factory=list)


@contextmanager
def new_directory(path: Path) -> Iterator[DataDirectory]:
    """A data directory that is there once the block has ended, and not at all when it raises.

    Args:
        path: where; nothing, or an empty folder.

    Raises:
        BackupError: something is there.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise BackupError(f"{path} is not empty: a backup is restored to a new or empty folder, never over another hub")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
    place = path / BEING_MADE
    directory = DataDirectory(place)
    try:
        yield directory
        # Its lock last: without that, no hub takes the folder for one of its own.
        for entry in sorted(place.iterdir(), key=lambda entry: entry.name == "hub.lock"):
            entry.rename(path / entry.name)
        place.rmdir()
        sync_folder(path)
    finally:
        directory.close()


def restore(settings: ServerSettings, folder: BackupFolder, backup: Backup, *, incomplete: bool = False) -> Restored:
    """Restore a backup to where a new hub is to keep what.

    Args:
        settings: of the new hub.
        folder: of the backup.
        backup: which.
        incomplete: restore the rest also where the folder has lost blobs.

    Raises:
        BackupError: the backup is damaged, a newer ddphub made it, or something is there already. A database or an
            object storage that is not the data directory's is then as it was, but for objects that nothing names.
    """
    secret = backup.secret.read_bytes()
    if hashlib.sha256(secret).hexdigest() != backup.manifest.secret or len(secret) != SECRET_BYTES:
        raise BackupError(f"{backup.secret} is not the file that the manifest names: it was changed or is damaged")
    restored = Restored(rows=sum(one.rows for one in backup.manifest.tables.values()))
    with new_directory(settings.data) as directory:
        write_synced(directory.root / "secret", secret)
        with closing(open_storage(settings, directory, Signer(secret, settings.url_lifetime_s))) as storage:
            if next(iter(storage.stored()), None) is not None:
                raise BackupError(
                    "the storage holds blobs already: name an empty one, or an empty prefix of its bucket"
                )
            if settings.database_url is None:
                os.close(create_private(directory.database))
            with _empty_database(directory, settings.database_url) as connection:
                tables = _fill(connection, backup)
                _forget_arrivals(connection, tables)
                _delete(connection, tables, backup.manifest.deleted)
                _Blobs(folder, connection, tables, storage, restored, incomplete=incomplete).put(backup)
        # What a newer version of the hub makes of these tables.
        Database(settings.database_url or directory.database).close()
    return restored


@contextmanager
def _empty_database(directory: DataDirectory, database_url: str | None) -> Iterator[Connection]:
    _, engine = (
        sqlite.engines(directory.database)
        if database_url is None
        else postgresql.engines(postgresql.checked_url(database_url, "--database-url"))
    )
    try:
        with engine.begin() as connection:
            if database_url is not None:
                if wrong := postgresql.check(connection):
                    raise BackupError(f"the database cannot be used: {wrong}")
                # Nor may it end while a large blob is copied.
                postgresql.lock_schema(connection)
            if inspect(connection).get_table_names():
                raise BackupError("the database has tables already: name an empty one, as CREATE DATABASE makes it")
            yield connection
    finally:
        engine.dispose()


def _fill(connection: Connection, backup: Backup) -> Mapping[str, Table]:
    manifest = backup.manifest
    try:
        upgrade(connection, manifest.revision)
    except CommandError as error:
        why = f"ddphub {manifest.version} made it, with a schema that this version does not know"
        raise BackupError(f"{backup.path} cannot be restored: {why} ({error})") from error
    tables = {table.name: table for table in tables_of(connection)}
    if set(tables) != set(manifest.tables):
        odd = ", ".join(sorted(set(tables) ^ set(manifest.tables)))
        raise BackupError(f"{backup.path} does not have the tables of its schema: {odd}")
    for name, table in tables.items():
        fill_table(connection, table, _checked(backup, name))
    go_on_counting(connection, list(tables.values()), manifest.highest_event)
    return tables


def _checked(backup: Backup, name: str) -> Iterator[list[dict[str, Any]]]:
    """The rows of a table, whose ids become names of files and folders: whoever wrote the backup leads to no others."""
    for rows in read_rows(backup.table(name), backup.manifest.tables[name]):
        for row in rows:
            public_id = row.get("public_id")
            if public_id is not None and (not isinstance(public_id, str) or not _ID.fullmatch(public_id)):
                raise BackupError(f"{backup.table(name)} cannot be restored: {str(public_id)[:80]!a} is no id of a hub")
        yield rows


def _forget_arrivals(connection: Connection, tables: Mapping[str, Table]) -> None:
    """Bytes on their way are in no backup: their senders are asked for them again."""
    for name, columns in (
        ("checkpoint_files", ("location", "upload_id")),
        ("checkpoints", ("checking_by", "checking_until")),
        ("blobs", ("location",)),
    ):
        table = tables[name]
        values = {column: None for column in columns if column in table.c}
        if values:
            connection.execute(update(table).values(values))


def _delete(connection: Connection, tables: Mapping[str, Table], blobs: Sequence[tuple[str, str]]) -> None:
    """Delete the checkpoints that need these blobs, as the hub did; and rows of blobs that nothing needs then."""
    projects, models, checkpoints, files, held = (
        tables[name] for name in ("projects", "models", "checkpoints", "checkpoint_files", "blobs")
    )
    for project, sha256 in blobs:
        gone = (
            select(checkpoints)
            .join(models, models.c.id == checkpoints.c.model_ref)
            .join(projects, projects.c.id == models.c.project_ref)
            .where(
                projects.c.public_id == project,
                checkpoints.c.committed_at.is_not(None),
                exists().where(files.c.checkpoint_ref == checkpoints.c.id, files.c.sha256 == sha256),
            )
        )
        for row in connection.execute(gone).mappings().all():
            known = {name: row[name] for name in ("model_ref", "public_id", "entry_id", "fingerprint")}
            connection.execute(insert(tables["deleted_checkpoints"]), known)
            connection.execute(delete(files).where(files.c.checkpoint_ref == row["id"]))
            connection.execute(delete(checkpoints).where(checkpoints.c.id == row["id"]))
        of_project = select(projects.c.id).where(projects.c.public_id == project).scalar_subquery()
        connection.execute(delete(held).where(held.c.project_ref == of_project, held.c.sha256 == sha256))
    if blobs:
        needed = (
            exists()
            .where(files.c.sha256 == held.c.sha256)
            .where(files.c.checkpoint_ref == checkpoints.c.id, checkpoints.c.model_ref == models.c.id)
            .where(models.c.project_ref == held.c.project_ref)
        )
        connection.execute(delete(held).where(not_(needed)))


class _Blobs:
    """Puts the blobs of a backup in a storage, and where they are in their rows."""

    def __init__(
        self,
        folder: BackupFolder,
        connection: Connection,
        tables: Mapping[str, Table],
        storage: Storage,
        restored: Restored,
        *,
        incomplete: bool,
    ) -> None:
        self._folder = folder
        self._connection = connection
        self._projects = tables["projects"]
        self._rows = tables["blobs"]
        self._storage = storage
        self._restored = restored
        self._incomplete = incomplete

    def put(self, backup: Backup) -> None:
        known = set(backup.manifest.damaged) | set(backup.manifest.deleted)
        for blobs in blobs_of(backup):
            for blob in blobs:
                if not self._is_wanted(blob):
                    continue
                if self._put(blob):
                    self._restored.blobs += 1
                    self._restored.blob_bytes += blob.size
                    continue
                if not self._incomplete and (blob.project, blob.sha256) not in known:
                    path = self._folder.blob(blob.sha256)
                    raise BackupError(f"{path} is missing or damaged: --incomplete restores what there is")
                self._restored.missing.append((blob.project, blob.sha256))

    def _is_wanted(self, blob: StoredBlob) -> bool:
        return self._connection.scalar(select(self._rows.c.id).where(self._row_of(blob))) is not None

    def _row_of(self, blob: StoredBlob) -> Any:  # noqa: ANN401  # a condition of SQLAlchemy's
        project = select(self._projects.c.id).where(self._projects.c.public_id == blob.project).scalar_subquery()
        return (self._rows.c.project_ref == project) & (self._rows.c.sha256 == blob.sha256)

    def _put(self, blob: StoredBlob) -> bool:
        try:
            with self._folder.blob(blob.sha256).open("rb") as file:
                prepared = self._storage.prepare(blob, iter(lambda: file.read(CHUNK), b""))
        except (FileNotFoundError, WrongBytes):
            return False
        self._storage.place([prepared])
        if "location" in self._rows.c:
            location = {"location": prepared.blob.location}
            self._connection.execute(update(self._rows).where(self._row_of(blob)).values(location))
        return True

"""Tables as files that no database made and any can read: gzipped JSON lines.

The first line of a file is an object: the `table`, its `columns`, and which of them are `bytes`, which JSON cannot hold
and base64 can. Every other line is a row, a list in the order of the columns.

What is read from a database is what its tables are there, not what this version of the hub would make of them: so a
backup of any version can be restored, by the migrations that made its tables.
"""

import base64
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import psycopg
from psycopg import sql
from sqlalchemy import Connection, LargeBinary, MetaData, Table, func, insert, select, text

from ddphub.errors import BackupError
from ddphub.server.directory import create_private

LEFT_OUT: Final = frozenset({"alembic_version", "browser_sessions", "sign_in_failures", "chores"})
"""Tables of the moment: who restores a hub signs in again, and the schema's version is in the manifest."""

ID_GAP: Final = 1_000_000_000
"""Ids of events that a restored hub leaves out: the hub gave them after the backup, and readers know some of them."""

SUFFIX: Final = ".jsonl.gz"

_AT_ONCE: Final = 1000
_LARGE: Final = {"points": 4}
"""Rows that are read at once, fewer where one may have a megabyte."""

_BATCH: Final = 1000
_BATCH_BYTES: Final = 1024 * 1024
"""Rows that are inserted at once, and after how many bytes of them there are enough."""

_LEVEL: Final = 1
_COUNTED: Final = "events"
"""The table whose ids readers page by."""


@dataclass(frozen=True, kw_only=True)
class TableFile:
    """What a manifest says of the file of a table: how many rows, and the file's sha256 and bytes."""

    rows: int
    sha256: str
    size: int


def tables_of(connection: Connection) -> list[Table]:
    """The tables of a database that a backup has, each after those that its rows name."""
    metadata = MetaData()
    metadata.reflect(connection)
    return [table for table in metadata.sorted_tables if table.name not in LEFT_OUT]


def highest_event(connection: Connection) -> int:
    """The highest id that an event ever had, also one that is deleted."""
    if connection.dialect.name == "sqlite":
        found = connection.scalar(text("SELECT seq FROM sqlite_sequence WHERE name = :name"), {"name": _COUNTED})
    else:
        sequence = connection.scalar(text("SELECT pg_get_serial_sequence(:name, 'id')"), {"name": _COUNTED})
        found = connection.scalar(text(f"SELECT last_value FROM {sequence}"))  # noqa: S608  # the database's own name
    return int(found or 0)


def write_table(connection: Connection, table: Table, path: Path) -> TableFile:
    """Write the rows of a table to a new file that is on disk when this returns.

    Args:
        connection: sees one state of the database.
        table: as the database has it.
        path: the file.
    """
    coded = [column.name for column in table.columns if isinstance(column.type, LargeBinary)]
    head = {"table": table.name, "columns": [column.name for column in table.columns], "bytes": coded}
    encode = json.JSONEncoder(separators=(",", ":"), default=_coded).encode
    order = [table.c.id] if "id" in table.c else list(table.primary_key)
    at_once = _LARGE.get(table.name, _AT_ONCE)
    count = 0
    with os.fdopen(create_private(path), "wb") as file:
        hashing = _Hashing(file)
        # A fixed time and no name: the same rows are the same file.
        packed = gzip.GzipFile(filename="", fileobj=cast("BinaryIO", hashing), mode="wb", compresslevel=_LEVEL, mtime=0)
        with packed:
            packed.write(encode(head).encode() + b"\n")
            rows = connection.execute(select(table).order_by(*order), execution_options={"yield_per": at_once})
            for some in rows.partitions():
                packed.write("".join([encode(list(row)) + "\n" for row in some]).encode())
                count += len(some)
        file.flush()
        os.fsync(file.fileno())
    return TableFile(rows=count, sha256=hashing.sha256, size=hashing.size)


def read_rows(path: Path, expected: TableFile) -> Iterator[list[dict[str, Any]]]:
    """The rows of a table's file, some at a time, by the names of their columns.

    Args:
        path: the file.
        expected: what the manifest says of it.

    Raises:
        BackupError: the file is not the one of the manifest; known only when its last rows were read.
    """
    count = 0
    try:
        with path.open("rb") as file:
            hashing = _Hashing(file)
            with gzip.GzipFile(fileobj=cast("BinaryIO", hashing), mode="rb") as lines:
                columns, coded = _head(lines.readline(), path)
                for batch in _batches(lines):
                    rows = [dict(zip(columns, json.loads(line), strict=True)) for line in batch]
                    for name in coded:
                        for row in rows:
                            row[name] = row[name] if row[name] is None else base64.b64decode(row[name])
                    count += len(rows)
                    yield rows
    except (EOFError, ValueError, KeyError, TypeError, zlib.error, gzip.BadGzipFile) as error:
        raise BackupError(f"{path} is damaged: {error}") from error
    if (count, hashing.sha256, hashing.size) != (expected.rows, expected.sha256, expected.size):
        raise BackupError(f"{path} is not the file that the manifest names: it was changed or is damaged")


def _batches(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for line in lines:
        batch.append(line)
        size += len(line)
        if len(batch) == _BATCH or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _head(line: bytes, path: Path) -> tuple[list[str], list[str]]:
    head = json.loads(line)
    if f"{head['table']}{SUFFIX}" != path.name:
        raise ValueError(f"it holds the table {head['table']}")
    return head["columns"], head["bytes"]


def fill_table(connection: Connection, table: Table, batches: Iterator[list[dict[str, Any]]]) -> None:
    """Insert rows into an empty table.

    Args:
        connection: in a transaction.
        table: as the database has it.
        batches: from `read_rows`.
    """
    if connection.dialect.name == "postgresql":
        _copy(connection, table, batches)
        return
    statement = insert(table)
    for rows in batches:
        connection.execute(statement, rows)


def _copy(connection: Connection, table: Table, batches: Iterator[list[dict[str, Any]]]) -> None:
    """The same by COPY, which takes PostgreSQL a third of the time."""
    names = [column.name for column in table.columns]
    columns = sql.SQL(", ").join(map(sql.Identifier, names))
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table.name), columns)
    driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        for rows in batches:
            for row in rows:
                copy.write_row([row[name] for name in names])


def go_on_counting(connection: Connection, tables: Sequence[Table], highest: int) -> None:
    """Let the database give ids that no row has, and events ids that no reader of the hub has seen.

    Args:
        connection: in a transaction.
        tables: all of them, filled.
        highest: the highest id that an event had when the backup was made.
    """
    if connection.dialect.name == "sqlite":
        # Only this table remembers there what it gave: ids of others are those that are free.
        name = {"name": _COUNTED}
        connection.execute(text("DELETE FROM sqlite_sequence WHERE name = :name"), name)
        row = {**name, "seq": highest + ID_GAP}
        connection.execute(text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :seq)"), row)
        return
    for table in tables:
        if "id" not in table.c:
            continue
        most = connection.scalar(select(func.max(table.c.id))) or 0
        if table.name == _COUNTED:
            most = max(most, highest) + ID_GAP
        values = {"name": table.name, "next": most + 1}
        connection.execute(text("SELECT setval(pg_get_serial_sequence(:name, 'id'), :next, false)"), values)


def _coded(value: object) -> str:
    if isinstance(value, bytes | memoryview):
        return base64.b64encode(value).decode()
    raise TypeError(f"a column holds a {type(value).__name__}, which a backup cannot")


class _Hashing:
    """A file that hashes and counts what passes.

    Args:
        file: where the bytes go or come from.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, chunk: bytes) -> int:
        self._note(chunk)
        return self._file.write(chunk)

    def read(self, size: int = -1) -> bytes:
        chunk = self._file.read(size)
        self._note(chunk)
        return chunk

    def flush(self) -> None:
        self._file.flush()

    def _note(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self.size += len(chunk)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

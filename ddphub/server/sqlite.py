"""SQLite in WAL mode: the database of a hub that is one process."""

import sqlite3
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError

_FULL: Final = (507, "the hub has no room left; try again when its administrator made some")
_PROBLEMS: Final = {
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_IOERR: (503, "the hub's disk failed; try again"),
    sqlite3.SQLITE_BUSY: (503, "the hub's database is busy; try again"),
    sqlite3.SQLITE_READONLY: (503, "the hub's database cannot be written; try again when its administrator mended it"),
}


def engines(path: Path) -> tuple[Engine, Engine]:
    """The engine that reads and the one that writes; they share a pool of connections.

    Args:
        path: the database file.
    """
    engine = create_engine(
        f"sqlite:///{path}",
        pool_size=16,
        max_overflow=32,
        # An error's message ends in a log, and parameters are what users sent.
        hide_parameters=True,
    )
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine, engine.execution_options(ddphub_writes=True)


def _prepare(connection: Any, _record: object) -> None:  # noqa: ANN401  # the driver's connection, untyped
    # None leaves BEGIN to `_begin`; the driver's own would defer the write lock and deadlock two upgrades.
    connection.isolation_level = None
    connection.create_function("casefold", 1, _casefold, deterministic=True)
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout = 10000")
    cursor.execute("PRAGMA journal_mode = WAL")
    # FULL: what the hub acknowledged survives a power cut, not only the end of the process.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _casefold(text: str | None) -> str | None:
    return text and text.casefold()


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("ddphub_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def problem_of(error: DBAPIError) -> tuple[int, str] | None:
    """The HTTP status and the words for an error that is no defect of the hub; None for any other."""
    # The low byte of SQLite's code, whatever the rest says of where it happened.
    return _PROBLEMS.get(getattr(error.orig, "sqlite_errorcode", 0) & 0xFF)

"""The hub's database: SQLite in WAL mode, one writer at a time, schema by migrations."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, event
from sqlalchemy.orm import Session

from ddphub.errors import SettingsError


class Database:
    """Opens the database and brings its schema up to date.

    Args:
        path: the database file.

    Raises:
        SettingsError: when a newer hub made it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._engine = create_engine(
            f"sqlite:///{path}",
            pool_size=16,
            max_overflow=32,
            # An error's message ends in a log, and parameters are what users sent.
            hide_parameters=True,
        )
        event.listen(self._engine, "connect", _prepare)
        event.listen(self._engine, "begin", _begin)
        self._writing_engine = self._engine.execution_options(ddphub_writes=True)
        # SQLite has one writer: waiting here is fair and needs no busy time-out.
        self._writer = threading.Lock()
        self._migrate()

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", "ddphub.server:migrations")
        with self._writer, self._writing_engine.begin() as connection:
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                expected = f"its schema is not one that this version knows ({error}); a newer ddphub made it"
                raise SettingsError("data", str(self._path), "server settings", expected) from error

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one state of the database."""
        with Session(self._engine, expire_on_commit=False, autoflush=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction: on disk when the block ends, undone when it raises."""
        with self._writer, Session(self._writing_engine, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


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

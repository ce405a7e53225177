"""The hub's database: SQLite in the data directory, or PostgreSQL; its schema is made by migrations."""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, QueuePool, Select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session

from ddphub.errors import SettingsError
from ddphub.server import postgresql, sqlite

__all__ = ["Database", "add_new", "insert", "locked", "number_in_turn", "problem_of"]

_Selected = TypeVar("_Selected", bound=Select[Any])


class Database:
    """Opens the database and brings its schema up to date.

    Args:
        where: the file of SQLite, or the URL of PostgreSQL as `postgresql.checked_url` takes it.
        migrates: bring the schema up to date; else the database is one that a hub of this version serves.

    Attributes:
        shown: where it is, for logs and messages: without a password.

    Raises:
        SettingsError: when it cannot be used, or a newer hub made it.
    """

    def __init__(self, where: Path | str, *, migrates: bool = True) -> None:
        self._is_sqlite = isinstance(where, Path)
        if isinstance(where, Path):
            self.shown = str(where)
            self._engine, self._writing_engine = sqlite.engines(where)
        else:
            url = postgresql.checked_url(where, "server settings")
            self.shown = postgresql.shown(url)
            self._engine, self._writing_engine = postgresql.engines(url)
        # SQLite has one writer: waiting here is fair and needs no busy time-out. PostgreSQL locks rows.
        self._writer = threading.Lock() if self._is_sqlite else nullcontext()
        try:
            if migrates:
                self._migrate()
            else:
                self._check_schema()
        except DBAPIError as error:
            self.close()
            raise self._unusable(f"cannot be used: {str(error.orig).partition(chr(10))[0]}") from error
        except BaseException:
            self.close()
            raise

    def _unusable(self, why: str) -> SettingsError:
        return SettingsError("data" if self._is_sqlite else "database_url", self.shown, "server settings", why)

    def _migrate(self) -> None:
        with self._writer, self._writing_engine.begin() as connection:
            if not self._is_sqlite:
                if wrong := postgresql.check(connection):
                    raise self._unusable(wrong)
                postgresql.lock_schema(connection)
            try:
                upgrade(connection)
            except CommandError as error:
                why = f"its schema is not one that this version knows ({error}); a newer ddphub made it"
                raise self._unusable(why) from error
            if not self._is_sqlite:
                postgresql.order_by_code_point(connection)

    def _check_schema(self) -> None:
        with self._engine.connect() as connection:
            found = revision_of(connection)
        if found != newest_revision():
            why = f"its schema is {found or 'missing'}, and this version of ddphub has {newest_revision()}"
            raise self._unusable(f"{why}: use the version that serves it, or start this one's hub on it once")

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A connection that sees one state of the database, for as long as it takes; nobody who writes waits for it."""
        with self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one state of the database."""
        with Session(self._engine, expire_on_commit=False, autoflush=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction: on disk when the block ends, undone when it raises."""
        with (
            self._writer,
            Session(self._writing_engine, expire_on_commit=False, info={"writes": True}) as session,
            session.begin(),
        ):
            yield session

    def check(self) -> None:
        """Raise when the database does not answer."""
        with self.read() as session:
            session.execute(text("SELECT 1"))

    def connections(self) -> tuple[int, int]:
        """Connections of this process: how many are in use, and how many wait to be used."""
        pool = self._engine.pool
        return (pool.checkedout(), pool.checkedin()) if isinstance(pool, QueuePool) else (0, 0)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


_ROWS: Final = 50
"""Rows that one statement adds: each statement is a way to the database and back, and there Python lets other threads
run; far fewer parameters than SQLite takes."""


def add_new(session: Session, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> int:
    """Insert many rows that come by the thousand, but for those whose key is there already.

    Args:
        session: a write session.
        table: the table's name.
        columns: names of columns.
        rows: what is in them, as the driver takes it.

    Returns:
        How many were added.
    """
    connection = session.connection()
    mark = "?" if connection.dialect.paramstyle == "qmark" else "%s"
    row = f"({', '.join([mark] * len(columns))})"
    added = 0
    for start in range(0, len(rows), _ROWS):
        some = rows[start : start + _ROWS]
        added += connection.exec_driver_sql(
            f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([row] * len(some))} ON CONFLICT DO NOTHING",  # noqa: S608  # our names
            tuple(chain.from_iterable(some)),
            execution_options={"preserve_rowcount": True},
        ).rowcount
    return added


def locked(session: Session, statement: _Selected) -> _Selected:
    """The statement; in a session that writes, nobody else changes or locks the rows that it finds before it ends.

    SQLite, which has one writer, needs no such locks. For the order in which they are taken see postgresql.py.

    Args:
        session: any session.
        statement: selects whole rows of one table.
    """
    # Not so strong that rows which refer to these could not be added.
    return statement.with_for_update(key_share=True) if session.info.get("writes") else statement


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Make the tables, or bring them up to a revision of the schema.

    Args:
        connection: in a transaction that may write.
        revision: a later one than that of the database, or that one.

    Raises:
        CommandError: there is no such revision, or the database is of one that this version does not know.
    """
    config = _alembic()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def revision_of(connection: Connection) -> str | None:
    """The revision of a database's schema; None of one without tables."""
    return MigrationContext.configure(connection).get_current_revision()


def newest_revision() -> str | None:
    """The revision that this version of the hub has."""
    return ScriptDirectory.from_config(_alembic()).get_current_head()


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", "ddphub.server:migrations")
    return config


def number_in_turn(session: Session, table: str) -> None:
    """Let rows that are added to a table after this become visible in the order of their numbers.

    Readers that ask for what comes `after` a number would miss a row that got a lower one and was committed later.
    Where something else that both lock does that, as a model for its events, this is not needed.

    Args:
        session: a write session; nobody else gets past this until it ends, so call it last.
        table: the table's name.
    """
    if session.get_bind().dialect.name == "postgresql":
        postgresql.lock_numbers(session.connection(), table)


def problem_of(error: SQLAlchemyError) -> tuple[int, str] | None:
    """The HTTP status and the words for an error of the database that is no defect of the hub; None for any other."""
    if not isinstance(error, DBAPIError):
        return postgresql.BUSY  # no connection became free
    return sqlite.problem_of(error) if isinstance(error.orig, sqlite3.Error) else postgresql.problem_of(error)

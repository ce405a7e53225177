"""The rows of a hub's database, whichever that is, for tests that look at them or leave some as an older hub did."""

from contextlib import contextmanager
from pathlib import Path

import postgres
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text


@contextmanager
def connected(where):
    """A connection to a database, in a transaction; `where` is as `Database` takes it."""
    url = f"sqlite:///{where}" if isinstance(where, Path) else where.replace("postgresql:", "postgresql+psycopg:", 1)
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def selected(where, statement):
    """The rows that a statement gives."""
    with connected(where) as connection:
        return [tuple(row) for row in connection.execute(text(statement))]


@contextmanager
def older(data, version):
    """A hub's directory as an older version left it: a connection to its database, which has that schema."""
    data.mkdir()
    (data / "hub.lock").touch()
    with connected(postgres.database_of(data, empty=True) or data / "hub.db") as connection:
        migrate(connection, version)
        yield connection
        count_on(connection)


def migrate(connection, version):
    """Brings a database to the schema of a version."""
    alembic = config()
    alembic.attributes["connection"] = connection
    command.upgrade(alembic, version)


def config():
    """Where alembic finds the migrations."""
    made = Config()
    made.set_main_option("script_location", "ddphub.server:migrations")
    return made


def count_on(connection):
    """Rows that were added with their numbers have them: PostgreSQL gives the next ones after them."""
    if connection.dialect.name == "postgresql":
        tables = connection.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).scalars().all()
        for table in {*tables} - {"alembic_version"}:
            sequence = f"pg_get_serial_sequence('{table}', 'id')"
            connection.execute(text(f"SELECT setval({sequence}, coalesce(max(id), 0) + 1, false) FROM {table}"))

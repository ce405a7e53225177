"""PostgreSQL: the database of a hub that is several processes, on one machine or many.

Writers run side by side here. What keeps them apart:

- Whoever changes what belongs to a model locks the model's row first (`database.locked`), and holds it to the end. So
  all rows of one model have one writer at a time, and ids of its events rise in the order of their commits.
- Rows that two requests may make at once (a project, a run's model, a blob) are made with `ON CONFLICT DO NOTHING`,
  which waits for the other one, and read afterwards.
- Locks are taken in one order: model, project, then anything else, several of a kind in the order of their keys. Should
  two writers wait for each other nevertheless, PostgreSQL ends one of them after a second: its client is told to try
  again, and every request of a client can be repeated.
"""

import logging
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, InterfaceError, OperationalError

from ddphub.errors import SettingsError

_log = logging.getLogger(__name__)

CONNECTIONS: Final = 16
"""Connections of one process at most; others wait for one."""

WAIT_S: Final = 10
"""Seconds to wait for a connection, and for a row that another request has locked."""

OLDEST: Final = 13
"""The oldest major version that the hub is written for."""

_IDLE_S: Final = 60
"""Seconds after which PostgreSQL ends a transaction whose process does nothing: a stopped one would keep its locks."""

_MIGRATING: Final = 0x64647068
"""The advisory lock of whoever changes the schema."""

_NUMBERING: Final = _MIGRATING
"""The first of the two numbers of the locks of `lock_numbers`: a kind of lock apart from those of one number."""

_SESSION: Final = f"""
    SELECT set_config('lock_timeout', '{WAIT_S}s', false),
           set_config('idle_in_transaction_session_timeout', '{_IDLE_S}s', false),
           set_config('synchronous_commit', CASE current_setting('synchronous_commit')
               WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, false)
"""
"""What was acknowledged is on disk, whatever the server's default is; and no request keeps others waiting for long."""

_TCP: Final = {"connect_timeout": 10, "keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3}
"""libpq's: a server that vanished is noticed within half a minute."""

_COLLATED: Final = text("""
    SELECT relname, attname, format_type(atttypid, atttypmod)
    FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
    WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace AND attnum > 0
        AND NOT attisdropped AND attcollation = 'pg_catalog."default"'::regcollation
""")

BUSY: Final = (503, "the hub's database is busy; try again")
"""An HTTP status, and what its answer says."""

_GONE: Final = (503, "the hub's database does not answer; try again")
_FULL: Final = (507, "the hub has no room left; try again when its administrator made some")
_READ_ONLY: Final = (503, "the hub's database cannot be written; try again when its administrator mended it")
_UNSTORABLE: Final = (422, "the request holds text or numbers that the hub's database cannot store")
_PROBLEMS: Final = {
    "25006": _READ_ONLY,  # read_only_sql_transaction: a standby
    "25P03": BUSY,  # idle_in_transaction_session_timeout
    "40001": BUSY,  # serialization_failure
    "40P01": BUSY,  # deadlock_detected
    "53100": _FULL,  # disk_full
    "53300": BUSY,  # too_many_connections
    "55P03": BUSY,  # lock_not_available
    "57014": BUSY,  # query_canceled
}
"""By SQLSTATE: https://www.postgresql.org/docs/current/errcodes-appendix.html."""


def checked_url(text: str, source: str) -> URL:
    """The URL of a database, with the driver that is used here.

    Args:
        text: `postgresql://user@host:port/database?sslmode=...`, as libpq has it; a password may be in it.
        source: where it was given, for the message.

    Raises:
        SettingsError: when it is none. The message holds no password.
    """
    expected = "expected postgresql://USER@HOST/DATABASE"
    try:
        url = make_url(text)
    except ArgumentError:
        # What cannot be read may hold a password anywhere.
        raise SettingsError("database_url", "***", source, expected) from None
    if url.drivername not in {"postgresql", "postgres", "postgresql+psycopg"}:
        raise SettingsError("database_url", shown(url), source, expected)
    return url.set(drivername="postgresql+psycopg")


def shown(url: URL) -> str:
    """The URL for logs and messages: without its password."""
    hidden = {name: "***" if "password" in name else value for name, value in url.query.items()}
    return url.set(drivername="postgresql", query=hidden).render_as_string(hide_password=True)


def engines(url: URL) -> tuple[Engine, Engine]:
    """The engine that reads and the one that writes; they share a pool of connections.

    Args:
        url: what `checked_url` gave.
    """
    engine = create_engine(
        url,
        pool_size=CONNECTIONS,
        max_overflow=0,
        pool_timeout=WAIT_S,
        # A server that was restarted costs no request an error.
        pool_pre_ping=True,
        isolation_level="READ COMMITTED",
        # An error's message ends in a log, and parameters are what users sent.
        hide_parameters=True,
        connect_args=_TCP,
    )
    event.listen(engine, "connect", _prepare)
    # One state of the database for all that a request reads.
    reading = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    return reading, engine


def _prepare(connection: Any, _record: object) -> None:  # noqa: ANN401  # the driver's connection, untyped
    connection.execute(_SESSION)
    connection.commit()


def check(connection: Connection) -> str | None:
    """Why a hub cannot use this server or database; None when it can."""
    version = connection.scalar(text("SELECT current_setting('server_version_num')::int / 10000"))
    if version < OLDEST:
        return f"expected PostgreSQL {OLDEST} or newer, this one is {version}"
    encoding = connection.scalar(text("SHOW server_encoding"))
    if encoding != "UTF8":
        return f"expected a database made with ENCODING 'UTF8', this one has {encoding}"
    if connection.scalar(text("SELECT count(*) FROM pg_collation WHERE collname = 'und-x-icu'")) == 0:
        return "expected a server built with ICU, which knows upper and lower case in every script"
    if connection.scalar(text("SHOW fsync")) == "off":
        _log.warning("this PostgreSQL runs with fsync=off: a power cut can take what runs were told is stored")
    return None


def lock_schema(connection: Connection) -> None:
    """Wait until nobody else changes the schema, and keep others from it until the transaction ends."""
    # A migration of a large hub takes minutes, and those who start meanwhile wait for it.
    connection.execute(text("SET LOCAL lock_timeout = 0"))
    connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATING})


def lock_numbers(connection: Connection, table: str) -> None:
    """Wait until nobody else adds rows to a table in turn, and keep others from it until the transaction ends."""
    keys = {"one": _NUMBERING, "two": table}
    connection.execute(text("SELECT pg_advisory_xact_lock(:one, hashtext(:two))"), keys)


def order_by_code_point(connection: Connection) -> None:
    """Give every text column that has the database's collation the one that compares code points, as SQLite does.

    The C library's collations change with its version, and with them what an index takes for the same text: a run could
    be registered a second time after the server's system was updated.
    """
    for table, column, type_ in connection.execute(_COLLATED).all():
        connection.execute(text(f'ALTER TABLE "{table}" ALTER COLUMN "{column}" TYPE {type_} COLLATE "C"'))


def problem_of(error: DBAPIError) -> tuple[int, str] | None:
    """The HTTP status and the words for an error that is no defect of the hub; None for any other."""
    state = getattr(error.orig, "sqlstate", None)
    if isinstance(error, DataError):
        return _UNSTORABLE
    if state in _PROBLEMS:
        return _PROBLEMS[state]
    if error.connection_invalidated or (state is None and isinstance(error, InterfaceError | OperationalError)):
        return _GONE
    # Connection exceptions; shutdowns and restarts of the server.
    return _GONE if state is not None and state.startswith(("08", "57P")) else None

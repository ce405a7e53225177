"""A PostgreSQL server for the tests, and the switch that puts every hub's database into it.

`pytest --database postgresql` starts one server for the whole run, and makes in it one database with the newest schema.
Each hub that a test starts gets a copy of that, named for its data directory: a hub that starts again finds its own.
Without the switch a test that needs a server starts one of its own.
"""

import contextlib
import hashlib
import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import needs
import psycopg
import pytest

SERVER = "TEST_POSTGRES_URL"
"""The environment variable by which the processes of a pytest run find its server: an URL without a database."""

_MIGRATED = "migrated"

_INITDB = ("--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync", "--no-instructions")

_MISSING = "needs a PostgreSQL server: apt-get install postgresql"

_FAST = ("fsync=off", "full_page_writes=off")
"""Settings of a server that no power cut will hit."""


def programs():
    """The folder of the newest server's programs; None without one."""
    # Debian keeps them off the path, one folder a version.
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    on_path = shutil.which("postgres")
    found = [*debian, *([Path(on_path)] if on_path else [])]
    return found[-1].parent if found else None


class Postgres:
    """A server on a loopback port and a Unix socket, with data of its own; its superuser has no password.

    Args:
        folder: an empty folder that everyone may enter, as the server does not run as root.
        settings: settings of the server, as `NAME=VALUE`.
    """

    def __init__(self, folder, settings=_FAST):
        self.folder = folder
        self.log = folder / "postgres.log"
        self.port = _free_port()
        self._settings = [f"port={self.port}", f"unix_socket_directories={folder}", "max_connections=400", *settings]
        self._data = folder / "data"
        self._process = None
        # It ends with this process, whatever ends that; and it refuses to be root.
        self._setpriv = ["setpriv", "--pdeathsig=QUIT"]
        if os.geteuid() == 0:
            self._setpriv += ["--reuid=postgres", "--regid=postgres", "--clear-groups"]
            shutil.chown(folder, "postgres", "postgres")
        self._run("initdb", f"--pgdata={self._data}", *_INITDB)

    def _run(self, program, *arguments):
        command = [*self._setpriv, programs() / program, *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.folder)

    def start(self):
        """Start, and wait until it answers."""
        options = [option for setting in self._settings for option in ("-c", setting)]
        command = [*self._setpriv, programs() / "postgres", "-D", self._data, *options]
        with self.log.open("ab") as log:
            # A Ctrl-C is for pytest, which then ends it.
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True)
        while self._process.poll() is None:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.url("postgres")).close()
                return
            time.sleep(0.02)
        raise RuntimeError(f"PostgreSQL ended: {self.log.read_text()[-2000:]}")

    def stop(self, mode="fast"):
        """Stop, and wait for it: `fast` ends its connections first, `immediate` is a crash."""
        self._run("pg_ctl", "stop", f"--pgdata={self._data}", f"--mode={mode}", "--wait")
        self._process.wait(30)

    @property
    def pid(self):
        return self._process.pid

    def url(self, database=""):
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def create(self, name, options="TEMPLATE template0"):
        """Make a database; its URL."""
        execute(self.url("postgres"), f'CREATE DATABASE "{name}" {options}')
        return self.url(name)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, kind, error, traceback):
        if self._process.poll() is None:
            self.stop("immediate")


@contextlib.contextmanager
def started(settings=_FAST):
    """A server that runs."""
    if programs() is None:
        needs.without(_MISSING)
    # pytest's own folders are for one user only.
    folder = Path(tempfile.mkdtemp(prefix="ddphub-postgres-"))
    folder.chmod(0o755)
    try:
        with Postgres(folder, settings) as server:
            yield server
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def new_database():
    """Makes an empty database on a server that tests share, and gives its URL."""
    with contextlib.ExitStack() as stack:
        server = os.environ.get(SERVER) or stack.enter_context(started()).url()
        numbers = itertools.count()

        def make(options="TEMPLATE template0"):
            name = f"test_{os.getpid()}_{next(numbers)}"
            execute(server + "postgres", f'CREATE DATABASE "{name}" {options}')
            return server + name

        yield make


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def execute(url, statement, *parameters):
    """One statement in a transaction of its own, or none; its rows."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []


# The switch ----------------------------------------------------------------------------------------------------------

_left = set()
"""Databases of hubs that ended for good, as far as one knows before their test has."""


def is_on():
    """Whether the hubs of this pytest run have their databases in PostgreSQL."""
    return SERVER in os.environ


def database_of(data_dir, *, empty=False):
    """The URL of the database of the hub with this data directory; None where that is in the directory.

    It is made when it is first asked for, with the newest schema or `empty`.
    """
    if not is_on():
        return None
    name = _name(data_dir)
    _left.discard(name)
    with contextlib.suppress(psycopg.errors.DuplicateDatabase):
        execute(
            os.environ[SERVER] + "postgres", f'CREATE DATABASE "{name}" TEMPLATE {"template0" if empty else _MIGRATED}'
        )
    return os.environ[SERVER] + name


def leave(data_dir):
    """A hub has ended: its database goes with the test, unless the hub starts again before."""
    if is_on():
        _left.add(_name(data_dir))


def _name(data_dir):
    return "hub_" + hashlib.sha256(os.fsencode(data_dir.absolute())).hexdigest()[:24]


def pytest_addoption(parser):
    parser.addoption(
        "--database", choices=("sqlite", "postgresql"), default="sqlite", help="where hubs keep their rows"
    )


def pytest_configure(config):
    if config.getoption("--database") != "postgresql" or is_on():  # the latter in the processes of xdist
        return
    if programs() is None:
        raise pytest.UsageError(_MISSING)
    from ddphub.server.database import Database

    running = config.stash[_RUNNING] = contextlib.ExitStack()
    server = running.enter_context(started())
    Database(server.create(_MIGRATED)).close()
    os.environ[SERVER] = server.url()


_RUNNING = pytest.StashKey[contextlib.ExitStack]()


def pytest_unconfigure(config):
    if _RUNNING in config.stash:
        os.environ.pop(SERVER, None)
        config.stash[_RUNNING].close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown():
    """An empty database has eight megabytes, and tests start hundreds of hubs."""
    try:
        return (yield)
    finally:
        while _left:
            execute(os.environ[SERVER] + "postgres", f'DROP DATABASE IF EXISTS "{_left.pop()}" WITH (FORCE)')

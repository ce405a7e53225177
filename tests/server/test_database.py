"""PostgreSQL as a setting: how it is reached, what is refused, and what a hub says when it cannot do its part."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import needs
import postgres
import psycopg
import pytest
from hub_process import HubProcess
from hub_talk import Talk, metrics_event, problem
from sqlalchemy import select, text

from ddphub.server.database import Database, add_new
from ddphub.server.tables import Project

KEY = "k" * 42
PASSWORD = "correct-horse-battery"


def refusal(tmp_path, *arguments, **environment):
    """What a hub says that does not start."""
    done = subprocess.run(
        [sys.executable, "-m", "ddphub.server", "--data", tmp_path / "data", "--port", "0", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert PASSWORD not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"postgresql://hub:{PASSWORD}@localhost/hub", "everyone on the machine sees arguments"),
        (f"postgresql://hub@localhost/hub?password={PASSWORD}", "everyone on the machine sees arguments"),
        (f"mysql://hub:{PASSWORD}@localhost/hub", "expected postgresql://USER@HOST/DATABASE"),
        (f"hub:{PASSWORD}@localhost", "expected postgresql://USER@HOST/DATABASE"),
        ("postgresql://postgres@127.0.0.1:1/hub", "cannot be used: connection failed"),
    ],
)
def test_an_argument_that_cannot_be_used_is_refused(tmp_path, url, said):
    assert said in refusal(tmp_path, "--database-url", url)


def test_a_url_in_the_environment_may_have_a_password_and_is_shown_without(tmp_path):
    said = refusal(tmp_path, DDPHUB_DATABASE_URL=f"postgresql://hub:{PASSWORD}@127.0.0.1:1/hub")
    assert "postgresql://hub:***@127.0.0.1:1/hub" in said


@pytest.mark.parametrize(
    ("options", "prepare", "said"),
    [
        ("ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0", None, "expected a database made with ENCODING 'UTF8'"),
        (
            "TEMPLATE template0",
            "CREATE TABLE alembic_version AS SELECT '9999' AS version_num",
            "a newer ddphub made it",
        ),
        ("TEMPLATE template0", "CREATE TABLE projects (n integer)", 'relation "projects" already exists'),
    ],
)
def test_a_database_that_cannot_be_used_is_refused(new_database, tmp_path, options, prepare, said):
    url = new_database(options)
    if prepare:
        postgres.execute(url, prepare)
    assert said in refusal(tmp_path, "--database-url", url)


@pytest.fixture(scope="module")
def guarded():
    """A server where the role `hub`, no superuser, needs its password; the URL of its database."""
    with postgres.started() as server:
        url = server.url("postgres")
        postgres.execute(url, f"CREATE ROLE hub LOGIN PASSWORD '{PASSWORD}'")
        postgres.execute(url, "CREATE DATABASE hub OWNER hub TEMPLATE template0")
        rules = "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        (server.folder / "data" / "pg_hba.conf").write_text(rules)
        postgres.execute(url, "SELECT pg_reload_conf()")
        yield server.url("hub").replace("postgres@", "hub@")


def test_the_password_comes_from_the_environment_or_a_file_and_goes_nowhere(guarded, tmp_path, monkeypatch):
    assert "password authentication failed" in refusal(tmp_path, "--database-url", guarded, PGPASSWORD="wrong")
    passwords = tmp_path / "passwords"
    passwords.write_text(f"*:*:hub:hub:{PASSWORD}\n")
    passwords.chmod(0o600)
    for name, value in (("PGPASSWORD", PASSWORD), ("PGPASSFILE", str(passwords))):
        with monkeypatch.context() as environment:
            environment.setenv(name, value)
            with HubProcess(tmp_path / "data", api_key=KEY, arguments=("--database-url", guarded)) as hub:
                talk = Talk(hub)
                talk.accepted(metrics_event(talk.attempt_id, 0))
                assert PASSWORD not in Path(f"/proc/{hub.pid}/cmdline").read_text()
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path != passwords]
    assert any(path.name == "data.log" for path in written)
    for path in written:
        assert PASSWORD.encode() not in path.read_bytes(), path


def test_a_transaction_is_on_disk_and_nobody_waits_for_ever(new_database):
    url = new_database()
    name = url.rpartition("/")[2]
    postgres.execute(url, f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    postgres.execute(url, f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = 'serializable'")
    database = Database(url)

    def settings(session, *names):
        return [session.scalar(text(f"SHOW {name}")) for name in names]

    with database.write() as session:
        assert settings(session, "synchronous_commit", "lock_timeout") == ["on", "10s"]
        assert settings(session, "idle_in_transaction_session_timeout", "transaction_isolation") == [
            *("1min", "read committed")
        ]
    with database.read() as session:
        assert settings(session, "transaction_isolation", "transaction_read_only") == ["repeatable read", "on"]
    database.close()


@pytest.fixture
def hub(new_database, tmp_path):
    """A hub on PostgreSQL; `database_url` is its database's."""
    url = new_database()
    with HubProcess(tmp_path / "data", api_key=KEY, arguments=("--database-url", url)) as hub:
        hub.database_url = url
        yield hub


def test_a_database_that_only_reads_is_said_to_be_one(hub):
    """As after a failover to a standby: pages go on, runs keep what they have and try again."""
    talk = Talk(hub)
    name = hub.database_url.rpartition("/")[2]
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"

    def let_write(value):
        with psycopg.connect(hub.database_url, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = {value}')
            connection.execute(others, [name])

    let_write("on")
    refused = problem(talk.events(metrics_event(talk.attempt_id, 0)), 503)
    assert "cannot be written" in refused["detail"]
    assert talk.get()["events"] == 0
    let_write("off")
    assert talk.accepted(metrics_event(talk.attempt_id, 0))["accepted"] == 1


def test_a_full_disk_is_507_and_what_was_refused_can_be_sent_again(tmp_path):
    needs.root()
    with postgres.started() as server, small_disk(server.folder / "small", "12m") as disk:
        postgres.execute(server.url("postgres"), f"CREATE TABLESPACE small LOCATION '{disk}'")
        url = server.create("hub", "TABLESPACE small TEMPLATE template0")
        with HubProcess(tmp_path / "data", api_key=KEY, arguments=("--database-url", url)) as hub:
            talk = Talk(hub)
            bodies = [os.urandom(9000).hex() for _ in range(900)]
            large = [metrics_event(talk.attempt_id, seq, kind="large", text=body) for seq, body in enumerate(bodies)]
            stored = 0
            while (answer := talk.events(*large[stored : stored + 20])).status_code == 200 and stored < len(large):
                stored += 20
            assert "no room" in problem(answer, 507)["detail"]
            assert talk.get()["events"] == stored
            subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
            assert talk.accepted(*large[stored - 20 : stored + 20]) == {"accepted": 20, "duplicates": 20, "stop": False}


@contextlib.contextmanager
def small_disk(folder, size):
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},uid=postgres,mode=700", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_an_address_with_nul_is_refused(hub):
    """No text of PostgreSQL can hold it, so no text of a hub does, whichever database it has."""
    with hub.client() as http:
        for path in ("/v1/models/%00", "/v1/models?search=a%00", "/v1/models?last_doc_id=%00", "/models/%00"):
            answer = http.get(hub.url + path)
            assert answer.status_code == 422, path
            assert "NUL" in answer.text


def test_a_reader_sees_one_state_while_others_write(new_database):
    database = Database(new_database())
    with database.read() as session:
        assert session.scalar(text("SELECT count(*) FROM projects")) == 0
        with database.write() as writing:
            writing.execute(text("INSERT INTO projects (public_id, name, created_at) VALUES ('p', 'p', 1)"))
        assert session.scalar(text("SELECT count(*) FROM projects")) == 0
    with database.read() as session:
        assert session.scalar(text("SELECT count(*) FROM projects")) == 1
    database.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_an_insert_says_how_many_rows_are_new(kind, new_database, tmp_path):
    """By this the hub knows that no event of a batch was there before."""
    database = Database(tmp_path / "hub.db" if kind == "sqlite" else new_database())
    rows = [(str(number), f"name {number}", 1.0, None if number % 2 else "{}") for number in range(120)]
    counts = []
    for some in (rows[:1], rows, rows, ()):
        with database.write() as session:
            counts.append(add_new(session, "projects", ("public_id", "name", "created_at", "retention"), some))
    assert counts == [1, 119, 0, 0]
    with database.read() as session:
        found = session.execute(select(Project.public_id, Project.name, Project.created_at, Project.retention))
        assert sorted(map(tuple, found)) == sorted(rows)
    database.close()


def test_a_directory_whose_rows_are_in_postgresql_is_not_served_without_it(new_database, tmp_path, monkeypatch):
    """Every run would be registered anew, in an empty database."""
    with HubProcess(tmp_path / "data", api_key=KEY, arguments=("--database-url", new_database())):
        pass
    monkeypatch.delenv(postgres.SERVER, raising=False)
    assert "has its database elsewhere" in refusal(tmp_path)
    assert not (tmp_path / "data" / "hub.db").exists()

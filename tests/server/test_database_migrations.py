"""Databases of older hubs: a newer one brings them up to date, whole or not at all, and goes on with what is there."""

import hashlib
import secrets
from concurrent.futures import ThreadPoolExecutor

import postgres
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from hub_process import HubProcess
from hub_talk import Talk, attempt_event, metrics_event, new_id, problem, sha256
from rows import config, connected, count_on, migrate, selected
from sqlalchemy import inspect, text

from ddphub.errors import SettingsError
from ddphub.server.database import Database
from ddphub.server.incoming_events import check_batch
from ddphub.server.tables import Base

KEY = "anOldKey" * 5 + "42"
VERSIONS = [script.revision for script in reversed(list(ScriptDirectory.from_config(config()).walk_revisions()))]
ATTEMPTS = [new_id(), new_id()]
EVENTS = [
    attempt_event(ATTEMPTS[0], 0, "started", time=10.0),
    *[metrics_event(ATTEMPTS[0], seq, time=10.0 + seq, values={"loss": 1 / seq, "odd": "NaN"}) for seq in range(1, 40)],
    *[metrics_event(ATTEMPTS[0], seq, rank=1, time=10.0 + seq, values={"loss": 2.0}) for seq in range(5)],
    attempt_event(ATTEMPTS[0], 40, "preempted", time=50.0, reason="SIGTERM"),
    attempt_event(ATTEMPTS[1], 0, "started", time=60.0),
]
WEIGHTS = b"weights of an older hub"


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request, tmp_path, new_database):
    """A data directory, and what `Database` opens: nothing is in it yet."""
    if request.param == "sqlite" and postgres.is_on():
        pytest.skip("the hubs of this run have their rows in PostgreSQL")
    data = tmp_path / "data"
    data.mkdir()
    (data / "hub.lock").touch()
    return data, data / "hub.db" if request.param == "sqlite" else new_database()


def start(place, **options):
    data, where = place
    arguments = () if where == data / "hub.db" else ("--database-url", where)
    return HubProcess(data, arguments=arguments, **options)


def fill(connection, data):
    """What a hub of the first version had after a run's attempt, a checkpoint and the start of another attempt."""
    salt = secrets.token_bytes(16)
    blob = data / "blobs" / "project" / sha256(WEIGHTS)[:2] / sha256(WEIGHTS)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(WEIGHTS)

    def add(table, *rows):
        for row in rows:
            names = ", ".join(row)
            values = ", ".join(f":{name}" for name in row)
            connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({values})"), row)

    add("api_keys", {"id": 1, "salt": salt, "digest": hashlib.sha256(salt + KEY.encode()).digest(), "created_at": 1.0})
    add("projects", {"id": 1, "public_id": "project", "name": "Größe", "created_at": 1.0})
    add("blobs", {"id": 1, "project_ref": 1, "sha256": sha256(WEIGHTS), "size": len(WEIGHTS), "created_at": 1.0})
    request = '{"project":"Größe","meta":{"name":"net"},"config":{"epochs":5}}'
    model = {"id": 1, "public_id": "model", "project_ref": 1, "run_id": "run", "name": "net", "request": request}
    add("models", {**model, "created_at": 1.0, "last_seen": 61.0, "events": len(EVENTS)})
    for number, attempt_id in enumerate(ATTEMPTS, start=1):
        add("attempts", {"id": number, "model_ref": 1, "attempt_id": attempt_id, "number": number, "first_time": 10.0})
    state = {"state": "preempted", "state_time": 50.0, "state_seq": 40, "started_at": 10.0, "ended_at": 50.0}
    connection.execute(
        text(f"UPDATE attempts SET {', '.join(f'{name} = :{name}' for name in state)} WHERE id = 1"), state
    )
    add("ranks", *[{"id": 1 + rank, "attempt_ref": 1, "rank": rank, "last_step": 39 - rank} for rank in range(2)])
    for event in check_batch(EVENTS):
        key = {"rank": event.rank, "seq": event.seq, "time": event.time, "kind": event.kind, "body": event.body}
        ref = 1 + ATTEMPTS.index(event.attempt_id)
        add("events", {**key, "model_ref": 1, "attempt_ref": ref, "fingerprint": event.fingerprint})
    latest = {"model_ref": 1, "rank": 0, "name": "loss", "value": "0.5", "step": 39, "time": 49.0}
    add("latest_metrics", {"id": 1, **latest, "attempt": 1, "seq": 39})
    entry = {"public_id": "checkpoint", "model_ref": 1, "attempt_ref": 1, "entry_id": "e" * 32, "epoch": 4}
    what = {"kind": "best", "name": "best.pt", "metrics": "{}", "part_size": 65536, "fingerprint": b"f" * 32}
    add("checkpoints", {"id": 1, **entry, **what, "created_at": 40.0, "committed_at": 41.0})
    file = {"name": "best.pt", "size": len(WEIGHTS), "sha256": sha256(WEIGHTS), "parts": "[]"}
    add("checkpoint_files", {"id": 1, "checkpoint_ref": 1, "number": 0, **file})
    count_on(connection)


def test_what_a_hub_of_the_first_version_had_is_all_there(place):
    data, where = place
    with connected(where) as connection:
        migrate(connection, VERSIONS[0])
        fill(connection, data)
    with start(place) as hub:
        hub.key = KEY
        talk = Talk(hub)
        talk.model_id = "model"
        model = talk.get()
        assert (model["project"], model["run_id"], model["events"]) == ("Größe", "run", len(EVENTS))
        assert [attempt["state"] for attempt in model["attempts"]][:1] == ["preempted"]
        assert [series["count"] for series in talk.get("/series")["results"]] == [44, 39]
        (line,) = talk.get("/chart", params={"name": "loss"})["lines"]
        assert len(line["x"]) == 39
        assert talk.download("checkpoint", "best.pt").content == WEIGHTS
        # It goes on: a repeat is a repeat, and what is new gets new numbers.
        assert talk.accepted(*EVENTS)["duplicates"] == len(EVENTS)
        assert talk.accepted(metrics_event(new_id(), 0))["accepted"] == 1
        assert [attempt["number"] for attempt in talk.get()["attempts"]] == [1, 2, 3]
        contradiction = metrics_event(ATTEMPTS[0], 1, time=11.0, values={"loss": 3})
        problem(talk.events(contradiction), 422)
    with connected(where) as connection:
        found = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(found, Base.metadata) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_brought_up_to_date(place, version):
    _, where = place
    with connected(where) as connection:
        migrate(connection, version)
        connection.execute(text("INSERT INTO projects (id, public_id, name, created_at) VALUES (1, 'p', 'one', 1.0)"))
    for _ in range(2):
        Database(where).close()
    assert selected(where, "SELECT public_id, name FROM projects") == [("p", "one")]
    with connected(where) as connection:
        found = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(found, Base.metadata) == []


def test_a_migration_that_fails_leaves_the_schema_as_it_was(place):
    _, where = place
    with connected(where) as connection:
        migrate(connection, "0004")
        connection.execute(text("CREATE TABLE tags (in_the_way integer)"))  # 0005 makes one, after other changes
        before = columns(connection)
    with pytest.raises(SettingsError, match="tags"):
        Database(where)
    with connected(where) as connection:
        assert columns(connection) == before
        connection.execute(text("DROP TABLE tags"))
    assert selected(where, "SELECT version_num FROM alembic_version") == [("0004",)]
    Database(where).close()
    assert selected(where, "SELECT version_num FROM alembic_version") == [(VERSIONS[-1],)]


def columns(connection):
    found = inspect(connection)
    return {table: [one["name"] for one in found.get_columns(table)] for table in found.get_table_names()}


def test_hubs_that_start_at_once_change_the_schema_once(new_database, tmp_path):
    """Three processes on one database, which is two versions behind and has rows that take a while."""
    where = new_database()
    with connected(where) as connection:
        migrate(connection, "0003")
        connection.execute(text("INSERT INTO projects VALUES (1, 'p', 'old', 1.0)"))
        numbers = {"body": '{"step": 1, "values": {"loss": 1}}', "models": 50, "events": 5000}
        for table, row, count in (
            ("models (id, public_id, project_ref, name, request, created_at, events)", "n, n, 1, n, n, 1, 0", "models"),
            ("attempts (id, model_ref, attempt_id, number, first_time)", "n, n, n, 1, 1", "models"),
            (
                "events (model_ref, attempt_ref, rank, seq, time, kind, body, fingerprint)",
                "1 + n % :models, 1 + n % :models, 0, n, n, 'metrics', :body, ''",
                "events",
            ),
        ):
            rows = f"SELECT {row} FROM generate_series(1, CAST(:{count} AS integer)) n"
            connection.execute(text(f"INSERT INTO {table} {rows}"), numbers)
    with ThreadPoolExecutor(3) as threads:
        opened = list(threads.map(Database, [where] * 3))
    for database in opened:
        database.close()
    assert selected(where, "SELECT sum(count) FROM series") == [(5000,)]
    assert selected(where, "SELECT sum(count) FROM points") == [(5000,)]


def test_text_is_compared_by_code_points_whatever_the_database_does(new_database):
    """An index over text holds after the server's system was updated, and both databases sort alike."""
    where = new_database("LOCALE_PROVIDER icu ICU_LOCALE 'de' LOCALE 'C' TEMPLATE template0")
    Database(where).close()
    with connected(where) as connection:
        collated = "SELECT DISTINCT collation_name FROM information_schema.columns WHERE table_schema = 'public'"
        found = {name for (name,) in connection.execute(text(collated))}
        assert found == {None, "C"}
        for name in ("b", "A", "a", "ä", "B"):
            connection.execute(
                text("INSERT INTO projects (public_id, name, created_at) VALUES (:n, :n, 1)"), {"n": name}
            )
    assert selected(where, "SELECT name FROM projects ORDER BY name") == [("A",), ("B",), ("a",), ("b",), ("ä",)]

"""Two processes of one hub on PostgreSQL: whoever writes at once, nothing is lost, doubled or out of order."""

import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from hub_process import HubProcess
from hub_talk import Talk, attempt_event, metrics_event, new_id, problem
from rows import selected

from ddphub.server import audit
from ddphub.server.database import Database
from ddphub.server.principal import Principal

KEY = "k" * 42


@pytest.fixture(scope="module")
def hubs(new_database, tmp_path_factory):
    """Two processes of one hub; `database` is their database's URL."""
    url = new_database()
    folder = tmp_path_factory.mktemp("hubs")
    with (
        HubProcess(folder / "one", api_key=KEY, arguments=("--database-url", url)) as one,
        HubProcess(folder / "two", api_key=KEY, arguments=("--database-url", url)) as two,
    ):
        one.database_url = url
        yield one, two


def at_once(*calls):
    """Calls them all at the same moment; their results in order."""
    start = threading.Barrier(len(calls))

    def run(call):
        start.wait(30)
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(run, calls))


def talks(hubs):
    """The same model on both hubs."""
    one = Talk(hubs[0])
    other = Talk.__new__(Talk)
    other.__dict__.update(one.__dict__, hub=hubs[1], http=hubs[1].client())
    return one, other


def test_a_run_and_its_project_are_made_once(hubs):
    for _ in range(15):
        project, run_id = f"p-{secrets.token_hex(4)}", new_id()

        def create(hub, project=project, run_id=run_id):
            with hub.client() as http:
                body = {"project": project, "meta": {"name": "net"}, "tags": ["a", "b"]}
                return http.post(f"{hub.url}/v1/models", json=body, headers={"Idempotency-Key": run_id})

        answers = at_once(*[lambda hub=hub: create(hub) for hub in hubs * 4])
        assert {answer.status_code for answer in answers} == {200}, answers[0].text
        assert len({answer.json()["data"]["id"] for answer in answers}) == 1
        assert all(answer.json()["data"]["tags"] == ["a", "b"] for answer in answers)


def test_events_sent_to_two_hubs_at_once_are_stored_once_and_read_in_order(hubs):
    """Every rank sends each batch to both hubs, and someone reads along."""
    one, other = talks(hubs)
    attempts, ranks, batches, size = [new_id() for _ in range(3)], 4, 6, 25
    batch_of = {
        (rank, number): [
            metrics_event(attempts[seq % 3], seq, rank=rank, values={"loss": seq, f"rank{rank}/only": 1})
            for seq in range(number * size, (number + 1) * size)
        ]
        for rank in range(ranks)
        for number in range(batches)
    }
    read, done = [], threading.Event()

    def send(talk, rank):
        return sum(talk.accepted(*batch_of[rank, number])["accepted"] for number in range(batches))

    def follow():
        after = 0
        http = other.hub.client()
        while True:
            ended = done.is_set()
            page = http.get(other.url("/metrics"), params={"after": after, "limit": 40}).json()["data"]
            read.extend(page)
            if page:
                after = page[-1]["id"]
            elif ended:
                return

    reader = threading.Thread(target=follow)
    reader.start()
    both = [(talk, rank) for talk in (one, other) for rank in range(ranks)]
    accepted = at_once(*[lambda talk=talk, rank=rank: send(copy_of(talk), rank) for talk, rank in both])
    done.set()
    reader.join(60)
    total = ranks * batches * size
    assert sum(accepted) == total
    keys = [(event["attempt_id"], event["rank"], event["seq"]) for event in read]
    assert len(keys) == len(set(keys)) == total
    model = one.get()
    assert model["events"] == total
    assert sorted(attempt["number"] for attempt in model["attempts"]) == [1, 2, 3]
    found = {series["name"]: series["count"] for series in one.get("/series")["results"]}
    assert found == {"loss": total, **{f"rank{rank}/only": total // ranks for rank in range(ranks)}}
    rows = selected(
        hubs[0].database_url,
        "SELECT rank0, first, points.count FROM points JOIN series ON series.id = series_ref JOIN models ON"
        f" models.id = model_ref WHERE public_id = '{one.model_id}' AND series.name = 'loss' ORDER BY rank0, first",
    )
    for rank0, expected in ((True, total // ranks), (False, total - total // ranks)):
        at = 0
        for _, first, count in (row for row in rows if row[0] == rank0):
            assert first == at
            at += count
        assert at == expected


def copy_of(talk):
    """The same model for another thread."""
    made = Talk.__new__(Talk)
    made.__dict__.update(talk.__dict__, http=talk.hub.client())
    return made


def test_whatever_happens_to_a_model_at_once_is_answered(hubs):
    """Events, heartbeats, labels, stops, checkpoints and metrics of HUB v1 at both hubs: none of them fails."""
    one, other = talks(hubs)
    entry_id, entries = new_id(), []

    def events(talk):
        for seq in range(10):
            talk.accepted(
                attempt_event(talk.attempt_id, 2 * seq, "started"), metrics_event(talk.attempt_id, 2 * seq + 1)
            )

    def beats(talk):
        for body in [{"attempt_id": talk.attempt_id}, {}] * 5:
            assert talk.http.post(f"{talk.hub.url}/v1/agent/heartbeat/models/{talk.model_id}", json=body).ok

    def labels(talk):
        for number in range(10):
            assert talk.http.patch(talk.url(), json={"tags": ["x", str(number)], "config": {"n": number}}).ok

    def checkpoints(talk):
        begun = [talk.begin({"a": b"%d" % number}, f"{entry_id[:-1]}{number}")["id"] for number in range(5)]
        entries.append(tuple(begun))

    def hub_v1(talk):
        for epoch in range(10):
            answer = talk.http.post(talk.url(), json={"metrics": {str(epoch): f'{{"loss": {epoch}}}'}})
            assert answer.ok, answer.text

    at_once(
        *[
            lambda talk=talk, work=work: work(copy_of(talk))
            for talk in (one, other)
            for work in (events, beats, labels, checkpoints, hub_v1)
        ]
    )
    model = one.get()
    assert sorted(attempt["number"] for attempt in model["attempts"]) == [1, 2]
    # 20 events, 10 epochs of HUB v1 and the start of its attempt.
    assert model["events"] == 20 + 11
    assert (len(entries), len(set(entries))) == (2, 1)
    assert model["tags"] == ["9", "x"]


def test_a_model_that_is_deleted_while_events_come_is_gone_with_all_of_them(hubs):
    for hard in ("false", "true"):
        one, other = talks(hubs)
        one.accepted(metrics_event(one.attempt_id, 0))

        def send(talk, rank):
            events = [metrics_event(talk.attempt_id, seq, rank=rank) for seq in range(15)]
            return [talk.events(event).status_code for event in events]

        def delete(talk=one, hard=hard):
            time.sleep(0.05)
            with hubs[0].client() as http:
                return http.delete(talk.url(f"?hard={hard}")).status_code

        *sent, deleted = at_once(
            *[lambda talk=talk, rank=rank: send(copy_of(talk), rank) for talk in (one, other) for rank in (1, 2)],
            delete,
        )
        assert deleted == 200
        for statuses in sent:
            assert set(statuses) <= {200, 404}
            assert statuses == sorted(statuses)
        problem(one.http.get(one.url()), 404)
        if hard == "true":
            assert selected(hubs[0].database_url, f"SELECT id FROM models WHERE public_id = '{one.model_id}'") == []


def test_who_waits_for_each_other_is_told_to_try_again(hubs):
    """A deadlock, made by hand: the hub holds a model's row and wants one that we hold, and we want the model's."""
    talk = Talk(hubs[0])
    talk.accepted(attempt_event(talk.attempt_id, 0, "started"))
    with psycopg.connect(hubs[0].database_url) as connection, ThreadPoolExecutor(1) as thread:
        # Or PostgreSQL might end ours.
        connection.execute("SET deadlock_timeout = '1min'")
        of_model = "model_ref IN (SELECT id FROM models WHERE public_id = %s)"
        connection.execute(f"UPDATE attempts SET first_time = 1 WHERE {of_model}", [talk.model_id])
        sent = thread.submit(talk.events, attempt_event(talk.attempt_id, 1, "finished"))
        watched = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        while connection.execute(watched).fetchone() == (0,):
            time.sleep(0.02)
        connection.execute("UPDATE models SET notes = 'ours' WHERE public_id = %s", [talk.model_id])
        answer = sent.result(30)
    problem(answer, 503)
    assert answer.headers["retry-after"] == "2"
    assert talk.accepted(attempt_event(talk.attempt_id, 1, "finished"))["accepted"] == 1
    assert (talk.get()["notes"], talk.get()["state"]) == ("ours", "finished")


def test_connections_that_the_server_ended_cost_no_request(hubs):
    talk = Talk(hubs[0])
    talk.accepted(metrics_event(talk.attempt_id, 0))
    others = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with psycopg.connect(hubs[0].database_url) as connection:
        assert connection.execute(others).fetchall()
    assert talk.accepted(metrics_event(talk.attempt_id, 1))["accepted"] == 1
    assert talk.get()["events"] == 2


def test_records_of_the_audit_log_are_seen_in_the_order_of_their_numbers(hubs):
    """Who reads what comes after a number misses none that got a lower one and came later."""
    database, by = Database(hubs[0].database_url), Principal.of_the_hub("test")

    def add(what):
        with database.write() as session:
            audit.record(session, by, "backup", what)

    def seen():
        with database.read() as session:
            return [record["object"] for record in audit.read(session, 0, 1000) if record["action"] == "backup"]

    with ThreadPoolExecutor(1) as thread:
        with database.write() as session:
            audit.record(session, by, "backup", "first")
            session.flush()
            second = thread.submit(add, "second")
            while selected(hubs[0].database_url, "SELECT count(*) FROM pg_locks WHERE NOT granted") == [(0,)]:
                assert not second.done()
            assert seen() == []
        second.result(30)
    assert seen() == ["first", "second"]
    database.close()

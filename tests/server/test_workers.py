"""Several processes that serve one hub over PostgreSQL. The tests are about one hub, one after the other."""

import contextlib
import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest
import requests
from hub_process import HubProcess
from hub_talk import Talk, metrics_event, new_id
from postgres import Postgres, execute
from test_operations import figures

from ddphub.server.settings import ServerSettings

WORKERS = 2


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("postgres")
    for place in (folder, *folder.parents):
        if place.owner() == "root" and place != place.parent:
            place.chmod(place.stat().st_mode | 0o011)
    with Postgres(folder) as running:
        yield running


@pytest.fixture(scope="module")
def hub(tmp_path_factory, server):
    """A hub of workers."""
    url = server.create("hub")
    arguments = ("--workers", str(WORKERS), "--database-url", url, "--part-size", "65536", "--log-format", "json")
    with HubProcess(tmp_path_factory.mktemp("hub") / "data", api_key="k" * 42, arguments=arguments) as process:
        yield process


def workers_of(hub):
    """The processes that serve."""
    return {child.pid: child for child in psutil.Process(hub.pid).children()}


def served_by(hub):
    """The processes whose figures are told."""
    text = hub.client().get(f"{hub.url}/metrics").text
    return {int(labels.partition('"')[2][:-1]) for name, labels in figures(text) if name == "process_open_fds"}


def test_each_worker_serves_and_one_that_dies_is_replaced(hub):
    assert hub.said == [f"ddphub hub on {hub.url}"]
    workers = workers_of(hub)
    assert len(workers) == WORKERS
    assert served_by(hub) == set(workers)

    # Runs go on while one dies: nothing that was acknowledged is missing, nothing is doubled.
    talk = Talk(hub)
    attempts = [new_id() for _ in range(6)]
    acknowledged = dict.fromkeys(attempts, 0)
    done = threading.Event()

    def send(attempt_id):
        while not done.is_set():
            events = [metrics_event(attempt_id, acknowledged[attempt_id] + number) for number in range(5)]
            with contextlib.suppress(requests.ConnectionError), hub.client() as http:
                if http.post(talk.url("/events"), json=events).status_code == 200:
                    acknowledged[attempt_id] += 5

    senders = [threading.Thread(target=send, args=(attempt_id,)) for attempt_id in attempts]
    for sender in senders:
        sender.start()
    Talk.wait_until(lambda: min(acknowledged.values()) >= 20)
    killed = next(iter(workers))
    os.kill(killed, signal.SIGKILL)
    reached = dict(acknowledged)
    Talk.wait_until(lambda: all(acknowledged[one] > reached[one] + 20 for one in attempts))
    Talk.wait_until(lambda: len(workers_of(hub)) == WORKERS and killed not in workers_of(hub))
    Talk.wait_until(lambda: served_by(hub) == set(workers_of(hub)))
    done.set()
    for sender in senders:
        sender.join()
    found = figures(hub.client().get(f"{hub.url}/metrics").text)
    assert found["ddphub_events_total", 'outcome="stored"'] >= sum(acknowledged.values())
    for attempt_id, seqs in acknowledged.items():
        again = [metrics_event(attempt_id, seq) for seq in range(seqs)]
        for start in range(0, seqs, 1000):
            assert talk.accepted(*again[start : start + 1000])["accepted"] == 0
    text = hub.log.read_text()
    assert f"worker {killed} died with exit code -9; another starts in 0.5 s" in text

    assert "Traceback" not in text


def test_what_one_worker_is_told_the_others_know(hub):
    """A key that is revoked, a browser that signs out, and part URLs that another one signed."""
    talk = Talk(hub)
    made = talk.http.post(f"{hub.url}/v1/keys", json={"name": "temporary", "role": "reader"}).json()["data"]

    def statuses(**headers):
        return {requests.get(f"{hub.url}/v1/models", headers=headers).status_code for _ in range(12)}

    assert statuses(authorization=f"Bearer {made['key']}") == {200}
    assert talk.http.delete(f"{hub.url}/v1/keys/{made['id']}").status_code == 200
    assert statuses(authorization=f"Bearer {made['key']}") == {401}
    for number in range(4):
        talk.upload({"a": os.urandom(100_000), "b": bytes([number])})
    assert len(talk.get("/checkpoints")) == 4


def test_a_hub_without_its_database_is_not_ready_and_comes_back(hub, server):
    """Workers live on, requests are told to try again, and a worker that starts meanwhile waits for the database."""
    client = hub.client()
    server.stop()
    Talk.wait_until(lambda: requests.get(f"{hub.url}/readyz").status_code == 503)
    assert requests.get(f"{hub.url}/readyz").json()["parts"]["database"] == "failed"
    answer = client.get(f"{hub.url}/v1/models")
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert requests.get(f"{hub.url}/healthz").status_code == 200
    killed = next(iter(workers_of(hub)))
    os.kill(killed, signal.SIGKILL)
    Talk.wait_until(lambda: len(workers_of(hub)) == WORKERS and killed not in workers_of(hub))
    server.start()
    Talk.wait_until(lambda: {requests.get(f"{hub.url}/readyz").status_code for _ in range(6)} == {200})
    assert client.get(f"{hub.url}/v1/models").status_code == 200


def test_workers_end_with_their_parent_and_a_stop_ends_them_all(hub):
    workers = workers_of(hub)
    hub.kill()
    for worker in workers.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.wait(20)
    hub.start()
    assert hub.said == [f"ddphub hub on {hub.url}"]
    others = workers_of(hub)
    assert not set(others) & set(workers)
    assert hub.stop() == 0
    assert not any(psutil.pid_exists(pid) for pid in others)
    log = hub.log.read_text()
    assert "stopped with exit code" not in log
    assert "Fatal" not in log


def test_workers_that_cannot_begin_are_a_clear_failure(hub, server, tmp_path):
    command = [sys.executable, "-m", "ddphub.server", "--data", str(tmp_path / "data"), "--workers", "2"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (refused.returncode, "expected 1 with SQLite" in refused.stderr) == (2, True)
    assert not (tmp_path / "data").exists()
    if hub.is_running:
        hub.stop()
    execute(server.url("hub"), "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(RuntimeError, match="newer"):
        hub.start()


def test_settings_reach_a_worker_as_they_are(tmp_path):
    given = ServerSettings(data=tmp_path, api_key="k" * 42, trusted_proxies=("10.0.0.0/8",), rate_limit=2.5)
    assert ServerSettings.from_json(given.to_json()) == given

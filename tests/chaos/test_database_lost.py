"""PostgreSQL goes away under a hub whose runs go on: training notices nothing, and afterwards nothing is missing."""

import os
import signal
import time

import psutil
import pytest
from hub_process import KEY, HubProcess
from jobs import HubView, Job, wait_until
from postgres import started

STEPS, EPOCHS, RANKS = 600, 4, 2


@pytest.fixture
def server():
    """A server that waits for its disk: what was acknowledged outlives its crash."""
    with started(settings=()) as server:
        yield server


def test_a_run_goes_on_while_its_hubs_database_crashes_restarts_and_hangs(server, tmp_path):
    url = server.create("hub")
    with HubProcess(tmp_path / "hub", api_key=KEY, arguments=("--database-url", url)) as hub:
        view = HubView(hub)
        pid = hub.pid
        job = Job(tmp_path, "train.py", hub=hub, ranks=RANKS, steps=STEPS, epochs=EPOCHS, pause=0.02)
        try:
            wait_until(view.models, what="the run on the hub")
            for mode in ("immediate", "fast"):
                events = view.model()["events"]
                server.stop(mode)
                with hub.client() as http:
                    answer = http.get(f"{hub.url}/v1/models")
                    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
                    assert answer.headers["content-type"] == "application/problem+json"
                time.sleep(1.0)
                server.start()
                wait_until(lambda events=events: view.model()["events"] > events, what="events after the restart")
            backends = psutil.Process(server.pid).children()
            for number in (signal.SIGSTOP, signal.SIGCONT):
                for backend in backends:
                    os.kill(backend.pid, number)
                time.sleep(1.0)
            job.succeed()
        finally:
            job.end()
        attempt_ids = {attempt["attempt_id"] for attempt in view.model()["attempts"]}
        assert len(attempt_ids) == 1
        expected = [
            (attempt_id, rank, step) for attempt_id in attempt_ids for rank in range(RANKS) for step in range(STEPS)
        ]
        assert view.logged() == expected
        assert view.saved() == job.saved()
        assert view.model()["state"] == "finished"
        assert hub.pid == pid
        assert "Traceback" not in job.text
        assert "Traceback" not in hub.log.read_text()

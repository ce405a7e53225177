"""Jobs whose key is good for their run alone: it is all that a job needs, and a revoked one loses nothing."""

import time

import pytest
import requests
from jobs import ddphub, wait_until

RUN = "birds-7"


@pytest.fixture
def make_key(own_hub):
    """Makes keys for the project of the jobs; their facts and the key."""

    def make(**limits):
        body = {"name": "for a job", "project": "tests", **limits}
        answer = requests.post(f"{own_hub.url}/v1/keys", json=body, headers={"x-api-key": own_hub.key})
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    return make


def with_key(made):
    return {"DDPHUB_API_KEY": made["key"]}


def everything_arrived(job, view):
    """400 records of two ranks and 5 checkpoints, each once, with the bytes that were written."""
    assert len(view.logged()) == len(set(view.logged())) == 400
    assert view.saved() == job.saved()
    return True


def test_a_key_for_one_run_is_all_that_a_job_of_two_ranks_needs(job, view, own_hub, make_key):
    made = make_key(run_id=RUN)
    done = job(ranks=2, run_id=RUN, environment=with_key(made)).succeed()
    assert everything_arrived(done, view)
    assert view.model()["state"] == "finished"
    status = done.status()
    assert status["events"]["pending"] == status["checkpoints"]["pending"] == 0
    hub = {"DDPHUB_URL": own_hub.url, **with_key(made)}
    shown = ddphub("models", "list", "--json", environment=hub).stdout
    assert view.model()["id"] in shown
    pulled = done.folder / "pulled.pt"
    ddphub("pull", view.model()["id"], "-o", str(pulled), environment=hub)
    assert pulled.read_bytes() == view.download(view.checkpoints()[-1])
    refused = ddphub("models", "delete", view.model()["id"], "--yes", environment=hub, check=False)
    assert refused.returncode == 1
    assert "a key for one run" in refused.stderr


@pytest.mark.parametrize("limits", [{"run_id": RUN}, {}], ids=["its run", "its project"])
def test_an_offline_run_is_delivered_with_the_right_key_alone(job, view, own_hub, make_key, limits):
    done = job(ranks=2, run_id=RUN, mode="offline", environment=with_key(make_key(**limits))).succeed()
    assert view.models() == []
    hub = {"DDPHUB_URL": own_hub.url}
    for wrong in (make_key(project="others"), make_key(run_id="birds-8"), make_key(role="reader")):
        failed = ddphub("sync", str(done.runs), environment=hub | with_key(wrong), check=False)
        assert failed.returncode == 1, failed.stdout + failed.stderr
        assert view.models() == []
        assert done.status()["events"]["pending"] > 400
        assert done.status()["events"]["set_aside"] == 0
    ddphub("sync", str(done.runs), environment=hub | with_key(make_key(**limits)))
    assert everything_arrived(done, view)
    assert done.status()["events"]["pending"] == done.status()["checkpoints"]["pending"] == 0


def test_a_key_that_is_revoked_in_the_middle_stops_no_training_and_loses_nothing(job, view, own_hub, make_key):
    made = make_key(run_id=RUN)
    running = job(ranks=2, run_id=RUN, pause=0.05, finish_timeout=5, environment=with_key(made))
    wait_until(lambda: view.models() and view.checkpoints(), what="the first checkpoint")
    address = f"{own_hub.url}/v1/keys/{made['id']}"
    assert requests.delete(address, headers={"x-api-key": own_hub.key}).status_code == 200
    before = len(view.metrics())
    assert before < 400
    running.succeed()
    assert running.text.count("steps/s") == 2
    assert "this API key was revoked" in running.text
    left = running.status()
    assert left["events"]["pending"] > 0
    assert left["checkpoints"]["pending"] > 0
    assert len(view.metrics()) < 400
    hub = {"DDPHUB_URL": own_hub.url}
    still = ddphub("sync", str(running.runs), environment=hub | with_key(made), check=False)
    assert still.returncode == 1
    ddphub("sync", str(running.runs), environment=hub | with_key(make_key(run_id=RUN, expires_at=time.time() + 600)))
    assert everything_arrived(running, view)
    assert view.model()["state"] == "finished"

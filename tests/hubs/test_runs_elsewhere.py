"""Real jobs that report to the Platform and to HUB v1: live, over faults, killed and delivered by sync."""

import json
from types import SimpleNamespace

import pytest
from hub_v1_server import HubV1Server
from jobs import Job, ddphub, wait_until
from platform_server import PlatformServer

EPOCHS = 5


def place_of(service, server):
    """As `ddphub sync` is told the hub whose key it has."""
    return {"DDPHUB_URL": f"{service}+{server.url}", "DDPHUB_API_KEY": server.key}


@pytest.fixture
def start(tmp_path):
    """Starts jobs; they end with the test."""
    jobs = []

    def start(service, server, **options):
        hub = SimpleNamespace(url=f"{service}+{server.url}", key=server.key)
        jobs.append(Job(tmp_path, "train.py", hub=hub, **{"ranks": 2, "epochs": EPOCHS, **options}))
        return jobs[-1]

    yield start
    for job in jobs:
        job.end()


def saved(job):
    return [sha256 for _, sha256 in job.saved()]


def test_a_live_run_on_the_platform_over_faults(start):
    """Each epoch, checkpoint and lifecycle webhook once, in order, the end last; rank 1 shows nowhere."""
    with PlatformServer() as server:
        for status, what in ((503, "training_started"), (500, "epoch_end"), (403, "put"), (502, "training_complete")):
            server.fail(status, what)
        job = start("platform", server).succeed()
        assert [data["epoch"] for data in server.data("epoch_end")] == list(range(EPOCHS))
        assert all(data["metrics"]["rank"] == 0 for data in server.data("epoch_end"))
        names = server.names()
        assert (names[0], names[-1]) == ("training_started", "training_complete")
        assert (names.count("training_started"), names.count("training_complete")) == (1, 1)
        assert [upload.sha256 for upload in server.uploads if upload.sha256] == saved(job)
        assert names.count("checkpoint_saved") == EPOCHS
        assert "everything is delivered" in job.text
        assert f"{server.url}/u/p/t" in job.text


def test_a_live_run_on_hub_v1_over_faults(start):
    with HubV1Server() as server:
        for status, what in ((503, "create"), (500, "metrics"), (502, "upload")):
            server.fail(status, what)
        job = start("hub-v1", server).succeed()
        (model_id,) = server.models
        epochs = {int(epoch): json.loads(text) for epoch, text in server.metrics[model_id].items()}
        assert epochs == {epoch: {"loss": pytest.approx(1 / 40), "rank": 0} for epoch in range(EPOCHS)}
        assert [form.sha256 for form in server.forms] == saved(job)
        assert [dict(form.fields)["epoch"] for form in server.forms] == [str(epoch) for epoch in range(EPOCHS)]
        assert "everything is delivered" in job.text


@pytest.mark.parametrize("service", ["platform", "hub-v1"])
def test_a_killed_run_is_delivered_by_sync_and_nothing_twice(start, service):
    """The job dies whole; what it had journaled is not sent again, and what it had not arrives."""
    playing = PlatformServer() if service == "platform" else HubV1Server()
    with playing as server:
        job = start(service, server, pause=0.1)
        uploads = server.uploads if service == "platform" else server.forms
        wait_until(lambda: len(uploads) >= 2)
        job.end()
        done = saved(job)
        assert len(done) < EPOCHS
        for _ in range(2):
            ddphub("sync", str(job.runs), environment=place_of(service, server))
        shas = [upload.sha256 for upload in uploads if upload.sha256]
        assert list(dict.fromkeys(shas)) == done[: len(set(shas))]
        assert len(done) - 1 <= len(set(shas)) <= len(done), "at most the save that was cut off is missing"
        assert len(shas) - len(set(shas)) <= 1, "only what was under way may have come twice"
        if service == "platform":
            epochs = [data["epoch"] for data in server.data("epoch_end")]
            assert epochs == sorted(set(epochs))
            assert server.names().count("training_started") == 1
        else:
            assert len(server.created) == 1


def test_an_offline_run_is_delivered_by_sync_to_the_platform(start):
    with PlatformServer() as server:
        job = start("platform", server, mode="offline").succeed()
        assert not server.requests
        ddphub("sync", str(job.runs), environment=place_of("platform", server))
        assert server.names().count("training_complete") == 1
        assert server.names()[-1] == "training_complete"
        assert [data["epoch"] for data in server.data("epoch_end")] == list(range(EPOCHS))
        assert [upload.sha256 for upload in server.uploads] == saved(job)

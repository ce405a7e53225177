"""The client of our own hub, against a real one: finding models and checkpoints, and fetching what was sent."""

import hashlib
import os

import pytest
import requests
from faulty_proxy import FaultyProxy
from hub_process import HubProcess
from hub_v1_server import KEY as KEY_OF_V1
from hub_v1_server import HubV1Server
from run_events import Attempt, entry, registration

from ddphub.errors import HubModelGone, HubUnavailable
from ddphub.hubs import ddphub as module
from ddphub.hubs import download as downloads
from ddphub.hubs.ddphub import DdphubClient


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """One for all; each test has a project of its own."""
    with HubProcess(tmp_path_factory.mktemp("hub") / "hub", api_key=KEY_OF_V1) as process:
        yield process


@pytest.fixture
def client(hub):
    made = DdphubClient(hub.url, hub.key)
    yield made
    made.close()


@pytest.fixture
def attempt(client):
    """An attempt that the hub knows, of the model `model_id` in the project `project`."""
    known = Attempt()
    known.project = known.id
    known.model_id = client.register(registration(known, project=known.project))
    client.send_events(known.model_id, [known.state("started")])
    return known


def save(client, attempt, folder, kind, epoch, name="a.pt", content=b"weights"):
    """Uploads a checkpoint; its id."""
    entry_id, request, files = entry(folder, kind, name, content, epoch=epoch, attempt_id=attempt.id)
    sha256 = hashlib.sha256(content).hexdigest()
    request["files"][0] |= {"sha256": sha256, "parts": [sha256]}
    return client.upload(attempt.model_id, entry_id, request, files).checkpoint_id


def test_what_it_is(client):
    assert (client.is_idempotent, client.ends_last, client.memory) == (True, False, {})


def test_a_wanted_model_is_the_one_that_is_reported_to(client, attempt):
    assert (
        client.register(registration(project=attempt.project, run_id="another", wanted=attempt.model_id))
        == attempt.model_id
    )
    with pytest.raises(HubModelGone):
        client.register(registration(wanted="nosuchmodel"))


def test_where_a_person_looks(client, attempt, hub):
    url = client.url(attempt.model_id)
    assert url == f"{hub.url}/models/{attempt.model_id}"
    assert requests.get(url, timeout=10, proxies={"http": ""}).status_code == 200


def test_a_run_finds_its_model_and_no_other(client, attempt):
    other = client.register(registration(project=attempt.project, run_id="other"))
    assert other != attempt.model_id
    assert client.find_model(attempt.project, "run") == attempt.model_id
    assert client.find_model(attempt.project, "other") == other
    assert client.find_model(attempt.project, "never") is None
    assert client.find_model("no project", "run") is None


def test_a_hub_that_does_not_know_the_filter_misleads_no_run(client, attempt, hub):
    """An earlier hub lists every run of the project."""
    proxy = FaultyProxy(hub.url)

    def without_filter(handler):
        handler.path = handler.path.replace("run_id=", "x=")
        return False

    try:
        proxy.fault = without_filter
        client.register(registration(project=attempt.project, run_id="other"))
        through = DdphubClient(proxy.url, hub.key)
        assert through.find_model(attempt.project, "run") == attempt.model_id
        assert through.find_model(attempt.project, "never") is None
        through.close()
    finally:
        proxy.close()


@pytest.mark.parametrize("page", [1, 2, 3, 1000])
def test_the_newest_checkpoint_of_some_kinds_on_any_page(client, attempt, tmp_path, monkeypatch, page):
    monkeypatch.setattr(module, "_PAGE", page)
    assert client.newest_checkpoint(attempt.model_id, ("epoch",)) is None
    saved = [
        save(client, attempt, tmp_path, kind, epoch)
        for epoch, kind in enumerate(["epoch", "best", "epoch", "final", "best", "best"])
    ]
    for kinds, index in ((("epoch",), 2), (("best",), 5), (("final", "epoch"), 3), (("epoch", "best", "final"), 5)):
        newest = client.newest_checkpoint(attempt.model_id, kinds)
        assert (newest.checkpoint_id, newest.epoch) == (saved[index], index)


def test_a_checkpoint_comes_back_as_it_was_even_over_a_line_that_cuts(client, attempt, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "PAUSE", 0.01)
    content = os.urandom(3_000_000)
    save(client, attempt, tmp_path, "epoch", 1, "a b#ü.pt", content)
    proxy = FaultyProxy(hub.url)
    try:
        ranges = []

        def cut(handler):
            """Lets at most a million bytes of each answer through."""
            if "/files/" not in handler.path:
                return False
            ranges.append(handler.headers.get("range"))
            headers = {
                name: handler.headers[name] for name in ("x-api-key", "range", "if-range") if handler.headers[name]
            }
            answer = requests.get(hub.url + handler.path, headers=headers, timeout=30, proxies={"http": ""})
            handler.send_response(answer.status_code)
            for name in ("content-length", "content-range", "etag"):
                if name in answer.headers:
                    handler.send_header(name, answer.headers[name])
            handler.end_headers()
            handler.wfile.write(answer.content[:1_000_000])
            handler.close_connection = len(answer.content) > 1_000_000
            return True

        proxy.fault = cut
        through = DdphubClient(proxy.url, hub.key)
        newest = through.newest_checkpoint(attempt.model_id, ("epoch",))
        assert (newest.files[0].name, newest.files[0].size) == ("a b#ü.pt", 3_000_000)
        through.download(newest.files[0], tmp_path / "back")
        through.close()
    finally:
        proxy.close()
    assert (tmp_path / "back").read_bytes() == content
    assert ranges[0] is None
    assert all(ranges[1:])
    assert len(ranges) >= 3


def test_a_hub_of_another_kind_is_told_by_its_name():
    with HubV1Server() as server:
        client = DdphubClient(server.url, KEY_OF_V1)
        with pytest.raises(HubUnavailable, match=f"no ddphub hub.*hub-v1\\+{server.url}"):
            client.register(registration())
        client.close()

"""Reading a hub from a program: what comes back is what the ranks reported, page by page."""

import hashlib
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hub_process import KEY, HubProcess
from jobs import Job, wait_until

import ddphub
from ddphub.errors import HubModelGone, HubRejected, HubUnauthorized, HubUnavailable
from ddphub.hubs.ddphub import DdphubClient
from ddphub.reading import api

STEPS = 300


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A hub with a real training of 2 ranks, and what the ranks wrote down."""
    folder = tmp_path_factory.mktemp("trained")
    with HubProcess(folder / "hub", api_key=KEY) as process:
        job = Job(folder, "train.py", hub=process, ranks=2, steps=STEPS, epochs=3)
        try:
            yield process, job.succeed()
        finally:
            job.end()


@pytest.fixture
def small_pages(monkeypatch):
    """Pages so small that every list has several."""
    monkeypatch.setattr(api, "PAGE", 7)


@pytest.fixture
def model(trained):
    process, _ = trained
    with ddphub.Hub(process.url, process.key) as hub:
        (model,) = hub.models(project="tests")
        yield model


def start(hub, tmp_path, **settings):
    """A run of this process alone."""
    given = {"project": "tests", "name": "one", "hub": hub.url, "api_key": hub.key, "dir": tmp_path / "runs"}
    return ddphub.init(**{**given, "rate_limits": {"ckpt": 0, "metrics": 0.2}, **settings})


def test_a_model_tells_how_its_run_went(trained, model):
    process, _ = trained
    assert (model.name, model.project, model.state, model.stop_requested) == ("train", "tests", "finished", False)
    assert model.url == f"{process.url}/models/{model.id}"
    assert [(one.number, one.state, one.world_size) for one in model.attempts] == [(1, "finished", 2)]
    assert (model.progress.step, model.progress.epoch) == (STEPS - 1, 2)
    assert [(rank.rank, rank.health, rank.last_step) for rank in model.ranks()] == [
        (0, "done", STEPS - 1),
        (1, "done", STEPS - 1),
    ]
    assert list(model.ranks(attempt=1)) == list(model.ranks())
    with pytest.raises(HubModelGone):
        list(model.ranks(attempt=9))
    assert model.refreshed().to_dict() == model.to_dict()
    assert json.loads(json.dumps(model.to_dict()))["attempts"][0]["number"] == 1


def test_metrics_are_one_record_a_value(model, small_pages):
    records = [one for one in model.metrics() if not one["name"].startswith("system/")]
    assert {frozenset(one) for one in records} == {frozenset(api_fields())}
    logged = sorted((one["rank"], one["step"], one["name"]) for one in records)
    assert logged == sorted((rank, step, name) for rank in (0, 1) for step in range(STEPS) for name in ("loss", "rank"))
    (one,) = [one for one in records if (one["rank"], one["step"], one["name"]) == (1, 101, "loss")]
    assert (one["attempt"], one["epoch"], one["value"]) == (1, 1, 0.5)
    only = list(model.metrics("loss", rank=1))
    assert {(one["rank"], one["name"]) for one in only} == {(1, "loss")}
    assert len(only) == STEPS
    series = {one.name: one for one in model.series() if not one.name.startswith("system/")}
    assert {name: one.count for name, one in series.items()} == {"loss": 2 * STEPS, "rank": 2 * STEPS}
    values = series["loss"].least, series["loss"].greatest, series["loss"].latest
    assert values == pytest.approx((0.01, 1.0, 0.01))


def api_fields():
    return ddphub.reading.records.MetricRecord.__annotations__


def test_checkpoints_come_back_as_they_were_saved(trained, model, small_pages, tmp_path, monkeypatch):
    _, job = trained
    checkpoints = list(model.checkpoints())
    assert [(one.kind, one.epoch, one.name, one.attempt) for one in checkpoints] == [
        ("epoch", epoch, "last.pt", 1) for epoch in range(3)
    ]
    assert [one.metrics for one in checkpoints] == [{"accuracy": epoch / 10} for epoch in range(3)]
    assert list(model.checkpoints("best")) == []
    assert list(model.checkpoints("epoch", newest_first=True)) == checkpoints[::-1]
    saved = []
    for one in checkpoints:
        path = model.download(one, tmp_path / "all" / f"{one.epoch}.pt")
        saved.append((one.epoch, hashlib.sha256(path.read_bytes()).hexdigest()))
        assert path.stat().st_size == one.size
    assert saved == job.saved()
    newest = (tmp_path / "all" / "2.pt").read_bytes()
    monkeypatch.chdir(tmp_path)
    assert model.download().read_bytes() == newest
    assert model.download("epoch", "last.pt").read_bytes() == newest
    assert model.download(checkpoints[0].id, "last.pt").read_bytes() == (tmp_path / "all" / "0.pt").read_bytes()
    with pytest.raises(ddphub.SettingsError, match="is there already"):
        model.download()
    for which, told in (
        ("best", r"has no best checkpoint; it has: epoch \(3\)$"),
        ("nothing", "has no checkpoint nothing$"),
    ):
        with pytest.raises(HubModelGone, match=told):
            model.download(which)


def test_events_and_lines_come_in_their_order(own_hub, small_pages):
    http, attempt_id = own_hub.client(), "a" * 32
    model_id = http.post(f"{own_hub.url}/v1/models", json={}).json()["data"]["id"]
    shared = {"attempt_id": attempt_id, "rank": 3, "time": 1_700_000_000.5}
    console = {"kind": "console", "stream": "stderr", "left_out": 0, "lines": ["a", "", "b"]}
    events = [
        {"kind": "log", "level": "warning", "message": "first"},
        *({**console, "lines": [f"{number}"]} for number in range(20)),
        {"kind": "metrics", "step": 1, "epoch": None, "values": {"x": 1}},
        {**console, "stream": "stdout", "left_out": 7},
        {"kind": "log", "level": "info", "message": "last"},
    ]
    sent = [{**event, **shared, "seq": seq} for seq, event in enumerate(events)]
    answer = http.post(f"{own_hub.url}/v1/models/{model_id}/events", json=sent)
    assert answer.status_code == 200, answer.text
    model = ddphub.Hub(own_hub.url, own_hub.key).model(model_id)
    assert [event["kind"] for event in model.events()] == ["log", "log"]
    assert [event["message"] for event in model.events("log")] == ["first", "last"]
    assert len(list(model.events("console", rank=3))) == 21
    assert list(model.events("console", rank=0)) == list(model.log(rank=0)) == []
    lines = list(model.log())
    expected = [("warning", "first"), *(("stderr", f"{number}") for number in range(20))]
    expected += [("stdout", text) for text in ("(7 lines are missing here)", "a", "", "b")]
    expected += [("info", "last")]
    assert [(line["stream"], line["text"]) for line in lines] == expected
    assert {(line["attempt"], line["rank"], line["time"]) for line in lines} == {(1, 3, 1_700_000_000.5)}


def test_every_list_is_read_page_by_page(own_hub, tmp_path, small_pages):
    """None lost, none doubled, also when the reader deletes what it reads."""
    http = own_hub.client()
    for number in range(30):
        body = {"project": f"p{number % 2}", "meta": {"name": f"m{number}"}, "tags": [f"t{number % 3}", "all"]}
        assert http.post(f"{own_hub.url}/v1/models", json=body).status_code == 200
    hub = ddphub.Hub(own_hub.url, own_hub.key)
    assert [model.name for model in hub.models()] == [f"m{number}" for number in reversed(range(30))]
    assert len(list(hub.models(state="new"))) == len(list(hub.models(state=["new", "failed"], tag="all"))) == 30
    assert list(hub.models(state=("lost", "failed"))) == []
    assert [model.name for model in hub.models(project="p1", tag=["all", "t0"])] == ["m27", "m21", "m15", "m9", "m3"]
    assert [model.name for model in hub.models(search="M2")] == [
        f"m{n}" for n in (29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 2)
    ]
    run = start(own_hub, tmp_path)
    for epoch in range(20):
        (tmp_path / "last.pt").write_bytes(b"%d" % epoch)
        run.save_checkpoint(tmp_path / "last.pt", epoch=epoch)
    run.finish()
    model = hub.model(run.model_id)
    assert [one.epoch for one in model.checkpoints()] == list(range(20))
    for one in model.checkpoints():
        model.delete_checkpoint(one)
    assert list(model.checkpoints()) == []
    for hard in (False, True):
        for model in hub.models(tag=f"t{int(hard)}"):
            model.delete(hard=hard)
    assert {model.name for model in hub.models(project="p0")} == {f"m{n}" for n in range(2, 30, 6)}


def test_notes_tags_and_a_stop_reach_the_hub(own_hub, tmp_path):
    run = start(own_hub, tmp_path, config={"lr": 0.1, "deep": {"a": [1]}}, rate_limits={"heartbeat": 0.2})
    run.log({"loss": math.nan, "up": math.inf, "flag": True, "n": 3}, step=1)
    hub = ddphub.Hub(own_hub.url, own_hub.key)
    model = wait_until(lambda: next(hub.models(state="running"), None))
    assert (model.state, model.config, model.notes, model.tags) == ("running", run_config(), None, ())
    changed = model.set(notes="first\nsecond", tags=["b", "a", "b"])
    assert (changed.tags, changed.notes, model.refreshed().notes) == (("a", "b"), "first\nsecond", "first\nsecond")
    assert (changed.set(notes="").notes, changed.set(tags=()).tags) == (None, ())
    with pytest.raises(HubRejected, match="tags\\[0\\]"):
        model.set(tags=["a/b"])
    model.stop()
    wait_until(run.should_stop)
    assert model.refreshed().stop_requested
    run.finish()
    values = {one["name"]: one["value"] for one in model.metrics() if one["step"] == 1}
    assert math.isnan(values["loss"])
    assert {name: values[name] for name in ("up", "flag", "n")} == {"up": math.inf, "flag": 1.0, "n": 3.0}
    assert {type(value) for value in values.values()} == {float}


def run_config():
    return {"lr": 0.1, "deep": {"a": [1]}}


def test_a_run_that_repeats_an_entry_does_not_bring_a_deleted_checkpoint_back(own_hub, tmp_path):
    """Its journal lost the receipt: the bytes go once more to the hub that someone tidied up."""
    run = start(own_hub, tmp_path)
    (tmp_path / "last.pt").write_bytes(b"weights")
    run.save_checkpoint(tmp_path / "last.pt", epoch=0)
    run.finish()
    model = ddphub.Hub(own_hub.url, own_hub.key).model(run.model_id)
    (kept,) = own_hub.client().get(f"{own_hub.url}/v1/models/{model.id}/checkpoints").json()["data"]
    model.delete_checkpoint(kept["id"])
    with pytest.raises(HubModelGone):
        model.delete_checkpoint(kept["id"])
    digest = kept["files"][0]["sha256"]
    file = {"name": "last.pt", "size": 7, "sha256": digest, "parts": [digest]}
    request = {"attempt_id": kept["attempt_id"], "epoch": 0, "step": None, "kind": "epoch", "name": "last.pt"}
    client = DdphubClient(own_hub.url, own_hub.key)
    path = {"last.pt": tmp_path / "last.pt"}
    receipt = client.upload(model.id, kept["entry_id"], {**request, "metrics": {}, "files": [file]}, path)
    client.close()
    assert receipt.checkpoint_id == kept["id"]
    assert list(model.checkpoints()) == []
    assert list((own_hub.data_dir / "blobs").rglob(digest)) == []


def test_a_page_is_asked_for_again_while_the_hub_restarts(own_hub, small_pages):
    http = own_hub.client()
    for number in range(10):
        http.post(f"{own_hub.url}/v1/models", json={"meta": {"name": f"m{number}"}})
    models = ddphub.Hub(own_hub.url, own_hub.key).models()
    seen = [next(models).name]
    own_hub.kill()
    restart = threading.Timer(0.2, own_hub.start)
    restart.start()
    try:
        seen += [model.name for model in models]
    finally:
        restart.join()
    assert seen == [f"m{number}" for number in reversed(range(10))]
    own_hub.stop()
    with pytest.raises(HubUnavailable):
        next(ddphub.Hub(own_hub.url, own_hub.key).models())


def test_the_hub_and_its_key_are_found_as_by_init(own_hub, monkeypatch, tmp_path):
    with pytest.raises(ddphub.SettingsError, match=r"^no hub is named: pass --hub URL"):
        ddphub.Hub()
    monkeypatch.setenv("DDPHUB_URL", f"{own_hub.url}/")
    monkeypatch.setenv("DDPHUB_API_KEY", own_hub.key)
    assert list(ddphub.Hub().models()) == []
    assert repr(ddphub.Hub()) == f"Hub({own_hub.url!r})"
    assert own_hub.key not in repr(vars(ddphub.Hub(api_key=own_hub.key)).keys())
    with pytest.raises(HubUnauthorized, match="DDPHUB_API_KEY or run `ddphub login`"):
        next(ddphub.Hub(api_key="another").models())
    with monkeypatch.context() as bare:
        bare.delenv("DDPHUB_API_KEY")
        with pytest.raises(HubUnauthorized, match=f"wants a key, and none is set: .* --url {own_hub.url} "):
            next(ddphub.Hub().models())
    with pytest.raises(ddphub.SettingsError, match="printable") as raised:
        ddphub.Hub(api_key="not a key")
    assert "not a key" not in str(raised.value)
    with pytest.raises(HubModelGone, match="no such model"):
        ddphub.Hub().model("x" * 20)
    with pytest.raises(ddphub.SettingsError, match=r"open ddphub.Hub\('http://other.example'\)"):
        ddphub.Hub().model("http://other.example/models/" + "x" * 20)


@pytest.mark.parametrize("hub", ["platform", "hub-v1+http://127.0.0.1:1", "https://hub.ultralytics.com"])
def test_another_hub_cannot_be_read(hub):
    with pytest.raises(ddphub.SettingsError, match="only a hub of `ddphub serve`"):
        ddphub.Hub(hub, "k" * 42)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((404, {"message": "no"}), "is no hub of `ddphub serve`"),
        ((200, {"success": True, "data": {"hub": "another"}}), "is no hub of `ddphub serve`: it says"),
        ((200, {"success": True, "data": {"hub": "ddphub", "features": ["events"]}}), "is an older hub"),
        ((200, "<html>"), "makes no sense"),
    ],
)
def test_what_is_no_hub_is_named(answer, expected):
    status, content = answer

    class Other(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with (
                ddphub.Hub(f"http://127.0.0.1:{server.server_port}", "k") as hub,
                pytest.raises(HubUnavailable) as raised,
            ):
                next(hub.models())
        finally:
            server.shutdown()
            thread.join()
    assert expected in str(raised.value)

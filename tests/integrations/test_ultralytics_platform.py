"""Real Ultralytics trainers that report to a Platform played from recorded traffic."""

import json
import threading

import pytest
import trainers
from jobs import ddphub, wait_until
from platform_server import PlatformServer

EVERYTHING = {"metrics": 0.2, "ckpt": 0, "heartbeat": 300}


@pytest.fixture
def platform():
    """The service; it has refused nothing in the end."""
    with PlatformServer() as server:
        yield server


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A dataset."""
    return trainers.dataset(tmp_path_factory.mktemp("images"))


@pytest.fixture
def train(tmp_path, platform, data):
    """Starts trainings that report to the service; they end with the test."""
    trainers.needs("8.4.190")
    started = []

    def start(mode="torchrun", *, settings=None, key=platform.key, **options):
        settings = {"project": "birds", "name": "tiny", "hub": f"platform+{platform.url}", **(settings or {})}
        settings.setdefault("rate_limits", EVERYTHING)
        made = trainers.Training(
            tmp_path,
            "8.4.190",
            mode=mode,
            data=data,
            attach=json.dumps(settings),
            environment={"ULTRALYTICS_API_KEY": key},
            **{"epochs": 3, **options},
        )
        started.append(made)
        return made

    yield start
    for made in started:
        made.end()


def check_complete(platform, training, epochs):
    """Everything is there, in order, each once; `epochs` were trained."""
    names = platform.names()
    assert names[0] == "training_started"
    assert names[-1] == "training_complete"
    assert names.count("training_started") == names.count("training_complete") == 1
    assert [one["epoch"] for one in platform.data("epoch_end")] == [*range(epochs), epochs], "the last is the final one"
    first = platform.data("epoch_end")[0]
    assert first["modelInfo"]["parameters"] > 100_000
    assert {"train/box_loss", "val/box_loss", "metrics/mAP50-95(B)", "lr"} <= set(first["metrics"])
    staged = training.status()["checkpoints"]
    places = {one["modelPath"] for one in platform.data("checkpoint_saved")}
    assert staged["staged"] == staged["uploaded"] == names.count("checkpoint_saved") == len(places)
    written = training.written()
    # An answer that gave a place may have been lost: then another was asked for.
    came = [upload for upload in platform.uploads if f"gs://bucket/{upload.path}" in places]
    assert len(came) == len(places)
    assert all(upload.sha256 in written for upload in came), "bytes that the trainer never wrote"
    done = platform.data("training_complete")[0]
    assert done["classNames"] == ["red", "blue"]
    assert done["results"]["modelSize"] == platform.uploads[-1].size
    return done


@pytest.mark.parametrize("mode", ["torchrun", "single"])
def test_a_training_arrives_whole_and_in_order(mode, train, platform):
    training = train(mode).succeed()
    done = check_complete(platform, training, 3)
    assert len(platform.uploads) == platform.names().count("checkpoint_saved")
    (started,) = platform.events("training_started")
    assert (started["project"], started["name"]) == ("birds", "tiny")
    assert started["data"]["epochs"] == 3
    assert started["data"]["trainArgs"]["model"].endswith("yolo_tiny.yaml")
    assert platform.uploads[-1].filename == "best.pt"
    assert 0 <= done["results"]["bestEpoch"] <= 2
    assert platform.key not in training.text


def test_nothing_is_missing_after_ten_seconds_of_500(train, platform):
    """They begin after the first epoch, in the middle of everything."""
    training = train("single", epochs=6, slow=0.15)
    wait_until(lambda: platform.events("epoch_end"), what="the first epoch")
    platform.fail(500, times=float("inf"))
    threading.Timer(10, platform.heal).start()
    training.succeed()
    assert any(request.status == 500 for request in platform.requests)
    check_complete(platform, training, 6)


def test_cancelled_in_the_middle_of_an_epoch_ends_both_ranks_within_one(train, platform):
    training = train(epochs=50, slow=0.2)
    wait_until(lambda: platform.events("epoch_end"), what="the first epoch")
    platform.cancelled = True
    asked_in = [one["epoch"] for one in training.callbacks(0) if one["epoch"] is not None][-1]
    training.succeed()
    last = {rank: training.callbacks(rank)[-1]["epoch"] for rank in (0, 1)}
    # It is told with the answer to that epoch's report.
    assert last[0] == last[1] <= asked_in + 2
    check_complete(platform, training, last[0] + 1)


def test_a_failure_is_told_with_its_reason_and_a_resumed_run_goes_on_with_its_model(train, platform):
    failed = train("single", raise_at_epoch=1, settings={"run_id": "birds-1"})
    assert failed.wait() != 0
    (told,) = platform.data("training_failed")
    assert "planted failure in epoch 1" in told["error"]
    again = train("single", settings={"run_id": "birds-1"}, resume=failed.weights / "last.pt").succeed()
    started = platform.events("training_started")
    assert [one.get("modelId") for one in started] == [None, platform.events("epoch_end")[0]["modelId"]]
    assert len({one["modelId"] for one in platform.events() if "modelId" in one}) == 1
    assert [one["epoch"] for one in platform.data("epoch_end")] == [0, 1, 2, 3]
    assert platform.names()[-1] == "training_complete"
    assert again.status()["attempts"] == 2


def test_a_terminated_training_says_so(train, platform):
    training = train(epochs=50, slow=0.2)
    wait_until(lambda: platform.events("epoch_end"), what="the first epoch")
    training.process.terminate()
    assert training.wait() != 0
    (told,) = platform.data("training_failed")
    assert (told["code"], told["error"]) == ("preempted", "SIGTERM")


def test_a_wrong_key_costs_the_training_nothing_and_sync_delivers_with_the_right_one(train, platform):
    training = train("single", epochs=2, key="ul_another").succeed()
    assert platform.names() == []
    assert {request.status for request in platform.requests} == {401}
    environment = {"ULTRALYTICS_API_KEY": platform.key, "ULTRALYTICS_PLATFORM_URL": platform.url}
    ddphub("sync", str(training.runs), environment=environment)
    check_complete(platform, training, 2)


def test_a_run_that_only_sync_delivers(train, platform):
    """Offline, then `ddphub sync`: the same requests in the same order."""
    training = train("single", epochs=2, settings={"mode": "offline"}).succeed()
    assert platform.requests == []
    refused = ddphub("sync", str(training.runs), check=False, environment={"ULTRALYTICS_API_KEY": platform.key})
    assert refused.returncode != 0, "the environment names no such hub, so its key is not for it"
    assert all("authorization" not in request.headers for request in platform.requests)
    environment = {"ULTRALYTICS_API_KEY": platform.key, "ULTRALYTICS_PLATFORM_URL": platform.url}
    ddphub("sync", str(training.runs), environment=environment)
    check_complete(platform, training, 2)
    before = len(platform.requests)
    ddphub("sync", str(training.runs), environment=environment)
    assert len(platform.requests) == before

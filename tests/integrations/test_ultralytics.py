"""Real Ultralytics trainers, attached, and what the hub has of them afterwards."""

import contextlib
import hashlib
import io
import json
import os
import signal
import zipfile

import pytest
import trainers
from jobs import HubView, ddphub, wait_until
from platform_server import RecordingServer

TRAIN_LOSSES = {"train/box_loss", "train/cls_loss", "train/dfl_loss"}
EVALUATED = {"metrics/precision(B)", "metrics/recall(B)", "metrics/mAP50(B)", "metrics/mAP50-95(B)"}
VALIDATION_LOSSES = {"val/box_loss", "val/cls_loss", "val/dfl_loss"}
EVERY_CHECKPOINT = {"rate_limits": {"metrics": 0.2, "ckpt": 0, "heartbeat": 0.2}}


START = ["on_pretrain_routine_start", "on_pretrain_routine_end", "on_train_start"]
EPOCH = ["on_train_epoch_start", "on_train_epoch_end"]
VALIDATED = ["on_val_start", "on_val_end"]
SAVED = ["on_model_save", "on_fit_epoch_end"]


def order(epochs):
    """What 8.4.x calls on ranks 0 and 1; its validator calls the trainer's callbacks with itself."""
    owner = [*START, *epochs * [*EPOCH, *VALIDATED, *SAVED], *VALIDATED, "on_fit_epoch_end", "on_train_end", "teardown"]
    each = [*EPOCH, "on_val_start", "on_fit_epoch_end"]
    return owner, [*START[1:], *epochs * each, "on_val_start", "on_fit_epoch_end", "teardown"]


def old_order(epochs):
    """8.0.217: rank 0 alone validates, with callbacks of its own; every rank sees on_pretrain_routine_start."""
    owner = [*START, *epochs * [*EPOCH, *SAVED], "on_fit_epoch_end", "on_train_end", "teardown"]
    return owner, [*START, *epochs * [*EPOCH, "on_fit_epoch_end"], "teardown"]


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A dataset; trainers write a cache beside its labels, so its makers take turns."""
    return trainers.dataset(tmp_path_factory.mktemp("images"))


@pytest.fixture
def train(tmp_path, own_hub, data):
    """Starts trainings that report to the test's hub; they end with the test."""
    started = []

    def start(version="8.4.190", *, mode="torchrun", settings=None, **options):
        trainers.needs(version)
        settings = {"project": "birds", "name": "tiny", **EVERY_CHECKPOINT, **(settings or {})}
        options = {"hub": own_hub, "data": data, "attach": json.dumps(settings), "epochs": 3, **options}
        made = trainers.Training(tmp_path, version, mode=mode, **options)
        started.append(made)
        return made

    yield start
    for made in started:
        made.end()


def by_epoch(view, rank):
    """Values of one rank by epoch; an epoch that was reported twice fails."""
    found = {}
    for record in view.metrics():
        if record["rank"] == rank:
            assert record["epoch"] not in found, f"epoch {record['epoch']} twice"
            found[record["epoch"]] = record["values"]
    return found


def check_checkpoints(view, written, expected):
    """The hub's checkpoints are the expected (kind, epoch), each once, and byte for byte what the trainer wrote."""
    checkpoints = view.checkpoints()
    assert sorted((one["kind"], one["epoch"]) for one in checkpoints) == sorted(expected)
    for one in checkpoints:
        content = view.download(one)
        assert hashlib.sha256(content).hexdigest() == one["files"][0]["sha256"]
        assert one["files"][0]["sha256"] in written, f"{one['kind']} of epoch {one['epoch']} was never written so"
        assert zipfile.ZipFile(io.BytesIO(content)).testzip() is None


def check_one_run(view, training, ranks, epochs=3):
    """What any training that ended well leaves behind."""
    model = view.model()
    assert (model["state"], model["status"], model["project"]) == ("finished", "trained", "birds")
    (attempt,) = model["attempts"]
    assert attempt["world_size"] == ranks
    owner = by_epoch(view, 0)
    assert sorted(owner) == list(range(epochs + 1)), "the last is of the final evaluation"
    for epoch in range(epochs):
        assert owner[epoch].keys() >= TRAIN_LOSSES | EVALUATED | VALIDATION_LOSSES | {"fitness", "lr/pg0"}
        assert owner[epoch].keys() >= {"speed/images_per_s", "memory/rss"}
        assert ("model/parameters" in owner[epoch]) == (epoch == 0)
    assert owner[epochs].keys() >= {f"final/{name}" for name in EVALUATED}
    assert all(name.startswith("final/") for name in owner[epochs])
    for rank in range(1, ranks):
        assert sorted(by_epoch(view, rank)) == list(range(epochs))
    saves = [entry for entry in training.callbacks(0) if entry["event"] == "on_model_save"]
    bests = [entry["epoch"] for entry in saves if entry["is_best"]]
    expected = [("epoch", epoch) for epoch in range(epochs)] + [("best", epoch) for epoch in bests]
    check_checkpoints(view, training.written(), [*expected, ("final", epochs - 1)])


def at(callbacks, event, name):
    """What was seen at every call of one event."""
    return [entry[name] for entry in callbacks if entry["event"] == event]


def assert_two_ranks_trained_together(training):
    """Each rank has its own share of the images, and both have the one model."""
    callbacks = [training.callbacks(rank) for rank in (0, 1)]
    assert not {entry["pid"] for entry in callbacks[0]} & {entry["pid"] for entry in callbacks[1]}
    losses = [at(one, "on_train_epoch_end", "loss") for one in callbacks]
    assert all(first != second for first, second in zip(*losses, strict=True))
    weights = [at(one, "on_train_epoch_end", "weights") for one in callbacks]
    assert weights[0] == weights[1]
    assert len(set(weights[0])) == len(weights[0]), "the model has not learned"


def assert_rank_0_has_the_results(training):
    """Metrics, fitness and checkpoints are rank 0's."""
    first, second = training.callbacks(0), training.callbacks(1)
    assert all("metrics/mAP50-95(B)" in names for names in at(first, "on_fit_epoch_end", "metrics"))
    assert not any(at(second, "on_fit_epoch_end", "metrics"))
    assert None not in at(first, "on_fit_epoch_end", "fitness")
    assert set(at(second, "on_fit_epoch_end", "fitness")) == {None}
    assert len(training.written()) >= 4, "one of each epoch, and the two of the final evaluation"


@pytest.mark.parametrize("mode", ["torchrun", "launcher", "single"])
def test_one_run_however_the_training_is_started(mode, train, view):
    """One model, every epoch of every rank, last, best and final; the launching process is none of the ranks."""
    training = train(mode=mode).succeed()
    ranks = 1 if mode == "single" else 2
    check_one_run(view, training, ranks)
    if ranks == 2:
        owner, other = by_epoch(view, 0), by_epoch(view, 1)
        assert all(other[epoch].keys() >= TRAIN_LOSSES | {"speed/images_per_s", "memory/rss"} for epoch in other)
        assert all(owner[epoch]["train/box_loss"] != other[epoch]["train/box_loss"] for epoch in other), "its own"
        assert_two_ranks_trained_together(training)
        assert_rank_0_has_the_results(training)
        assert (training.events(0), training.events(1)) == order(3)
        assert at(training.callbacks(0), "on_fit_epoch_end", "epoch") == [0, 1, 2, 3]
    if mode == "launcher":
        assert training.process.pid not in at(training.callbacks(0), "on_train_start", "pid")
    assert training.text.count(f"/models/{view.model()['id']}") == 2, "said at the start and at the end, by one rank"


@pytest.mark.parametrize("version", ["8.4.114", "8.0.217"])
def test_older_trainers(version, train, view):
    """Their own hub callbacks, which would take our run for their session, stay out of it."""
    training = train(version, epochs=2).succeed()
    check_one_run(view, training, 2, epochs=2)
    expected = old_order(2) if version == "8.0.217" else order(2)
    assert (training.events(0), training.events(1)) == expected
    assert_two_ranks_trained_together(training)
    assert_rank_0_has_the_results(training)


def test_a_stop_on_the_hub_ends_all_ranks_at_one_epoch(train, view):
    """It comes in the middle of an epoch, where setting it on rank 0 alone would leave rank 1 in a collective."""
    training = train(epochs=50, slow=0.2)
    model_id = wait_until(view.models, what="the model")[0]
    wait_until(lambda: len(training.events(0)) and "on_fit_epoch_end" in training.events(0), what="an epoch")
    view.post(f"/v1/models/{model_id}/stop")
    asked_in = training.callbacks(0)[-1]["epoch"]
    training.succeed()
    last = {rank: training.callbacks(rank)[-1]["epoch"] for rank in (0, 1)}
    assert last[0] == last[1] <= asked_in + 2
    assert view.model()["state"] == "stopped"
    assert [one["epoch"] for one in view.checkpoints() if one["kind"] == "final"] == [last[0]]


@pytest.mark.parametrize(("mode", "rank"), [("single", 0), ("torchrun", 1)])
def test_an_exception_in_training_fails_the_run_with_its_traceback(mode, rank, train, view):
    training = train(mode=mode, raise_at_epoch=1, raise_on_rank=rank)
    assert training.wait() != 0
    (attempt,) = view.model()["attempts"]
    assert attempt["state"] == "failed"
    assert f"planted failure in epoch 1 on rank {rank}" in attempt["reason"]
    check_checkpoints(view, training.written(), [("epoch", 0), ("best", 0)])


def test_a_terminated_training_goes_on_as_the_same_run(train, view, tmp_path):
    """SIGTERM to torchrun; then again with the same run id, from the hub's checkpoint, as the local one is gone."""
    settings = {"run_id": "birds-7"}
    first = train(epochs=4, slow=0.2, settings=settings)
    wait_until(lambda: first.events(0).count("on_fit_epoch_end") >= 2, what="two epochs")
    first.process.send_signal(signal.SIGTERM)
    assert first.wait() != 0
    assert [attempt["state"] for attempt in view.model()["attempts"]] == ["preempted"]
    done = max(one["epoch"] for one in view.checkpoints() if one["kind"] == "epoch")
    (first.weights / "last.pt").unlink()
    second = train(epochs=4, settings=settings, resume_from=first.weights / "last.pt").succeed()
    assert [attempt["state"] for attempt in view.model()["attempts"]] == ["preempted", "finished"]
    newest = view.model()["attempts"][-1]["attempt_id"]
    for rank in (0, 1):
        epochs = [one["epoch"] for one in view.metrics() if (one["rank"], one["attempt_id"]) == (rank, newest)]
        assert epochs[0] == done + 1, "it began where the hub's checkpoint ends"
        assert 3 in epochs
    assert second.text.count("fetched last.pt") == 1, "one process fetched it"


MOMENTS = [(1, "on_fit_epoch_end")]
if os.environ.get("CHAOS_EXAMPLES"):
    EVERY = ("on_train_start", "on_train_epoch_end", "on_model_save", "on_fit_epoch_end", "on_train_end")
    MOMENTS = [(rank, event) for rank in (0, 1) for event in EVERY]


@pytest.mark.parametrize(("rank", "moment"), MOMENTS)
def test_a_killed_rank_leaves_one_model_and_whole_checkpoints(rank, moment, train, view):
    """Killed when rank 0 has come so far, and started again; with CHAOS_EXAMPLES set, at more moments."""
    settings = {"run_id": "birds-9"}
    first = train(epochs=4, slow=0.1, settings=settings)
    first.pid_of(rank)
    wait_until(lambda: moment in first.events(0), what=moment)
    with contextlib.suppress(ProcessLookupError):  # rank 1 may be done by then
        first.kill_rank(rank)
    if first.wait() != 0:
        stripped = "on_train_end" in first.events(0)  # a last.pt that ends a training is not to be resumed
        again = {} if stripped else {"resume_from": first.weights / "last.pt"}
        train(epochs=4, settings=settings, **again).succeed()
    model = view.model()
    assert model["status"] == "trained"
    logged = view.logged()
    assert len(set(logged)) == len(logged)
    checkpoints = view.checkpoints()
    keys = [(one["attempt_id"], one["kind"], one["epoch"]) for one in checkpoints]
    assert len(set(keys)) == len(keys)
    assert {one["epoch"] for one in checkpoints if one["kind"] == "final"} == {3}
    check_checkpoints(view, first.written(), [(one["kind"], one["epoch"]) for one in checkpoints])


def test_a_hub_that_is_down_costs_the_training_nothing_and_gets_all_of_it_later(train, own_hub, tmp_path):
    own_hub.stop()
    training = train(mode="single", epochs=2, settings={"finish_timeout": 1}).succeed()
    own_hub.start()
    assert training.status()["events"]["delivered"] == 0
    ddphub("sync", str(training.runs), hub=own_hub)
    check_one_run(HubView(own_hub), training, 1, epochs=2)


class UsageEndpoint(RecordingServer):
    """Takes whatever comes."""

    def about(self, request):
        return "usage"

    def answer(self, request, body):
        return 204, b""


def test_usage_is_counted_once_by_rank_0_where_the_user_says(train, tmp_path):
    with UsageEndpoint() as endpoint:
        environment = {"DDPHUB_USAGE_URL": f"{endpoint.url}/collect?api_secret=s3cret", "DO_NOT_TRACK": ""}
        training = train(epochs=1, environment=environment).succeed()
        (request,) = endpoint.requests
    (event,) = request.json["events"]
    assert event["name"] == "train"
    assert event["params"].items() >= {"task": "detect", "model": "custom", "version": "8.4.190"}.items()
    assert str(tmp_path) not in json.dumps(request.json)
    assert "s3cret" not in training.text


def test_early_stopping(train, view):
    """After as many epochs without progress as the trainer's patience it is over, on both ranks."""
    training = train(epochs=30, patience=1, best_so_far=2.0).succeed()
    epochs = sorted(by_epoch(view, 0))
    assert len(epochs) < 6
    assert sorted(by_epoch(view, 1)) == epochs[:-1], "the last is of the final evaluation"
    assert view.model()["status"] == "trained"
    assert training.events(0).count("on_train_end") == 1

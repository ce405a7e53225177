"""The ground that tests of the Ultralytics callbacks stand on: its real trainers, and what their callbacks see."""

import os
import subprocess
import sys

import pytest
import trainers

START = ["on_pretrain_routine_start", "on_pretrain_routine_end", "on_train_start"]
EPOCH = ["on_train_epoch_start", "on_train_epoch_end"]
VALIDATED = ["on_val_start", "on_val_end"]
SAVED = ["on_model_save", "on_fit_epoch_end"]

RANK_0 = [
    *START,
    *2 * [*EPOCH, *VALIDATED, *SAVED],
    *[*VALIDATED, "on_fit_epoch_end", "on_train_end", "teardown"],
]
RANK_1 = [
    *START[1:],
    *2 * [*EPOCH, "on_val_start", "on_fit_epoch_end"],
    *["on_val_start", "on_fit_epoch_end", "teardown"],
]
"""What 8.4.x calls in two epochs; its validator calls the trainer's callbacks with itself."""

OLD_RANK_0 = [*START, *2 * [*EPOCH, *SAVED], "on_fit_epoch_end", "on_train_end", "teardown"]
OLD_RANK_1 = [*START, *2 * [*EPOCH, "on_fit_epoch_end"], "teardown"]
"""8.0.217: rank 0 alone validates, with callbacks of its own; every rank sees on_pretrain_routine_start."""


@pytest.fixture
def train(tmp_path):
    """Starts trainings; they end with the test."""
    data = trainers.dataset(tmp_path / "data")
    started = []

    def start(version, mode, **options):
        trainers.needs(version)
        made = trainers.Training(tmp_path, version, mode=mode, data=data, **options)
        started.append(made)
        return made

    yield start
    for made in started:
        made.end()


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
    assert len(set(weights[0])) == 2, "the model has not learned"


def assert_rank_0_has_the_results(training):
    """Metrics, fitness and checkpoints are rank 0's."""
    first, second = training.callbacks(0), training.callbacks(1)
    assert all("metrics/mAP50-95(B)" in names for names in at(first, "on_fit_epoch_end", "metrics"))
    assert not any(at(second, "on_fit_epoch_end", "metrics"))
    assert None not in at(first, "on_fit_epoch_end", "fitness")
    assert set(at(second, "on_fit_epoch_end", "fitness")) == {None}
    assert len(training.written()) >= 4, "one of each epoch, and the two of the final evaluation"


def test_two_ranks_train_with_todays_trainer(train):
    """The trainer launches them itself, with the callbacks."""
    training = train("8.4.190", "launcher").succeed()
    assert training.events(0) == RANK_0
    assert training.events(1) == RANK_1
    assert training.process.pid not in at(training.callbacks(0), "on_train_start", "pid")
    assert at(training.callbacks(0), "on_fit_epoch_end", "epoch") == [0, 1, 2]
    assert_two_ranks_trained_together(training)
    assert_rank_0_has_the_results(training)


def test_two_ranks_train_with_an_old_trainer(train):
    training = train("8.0.217", "torchrun").succeed()
    assert training.events(0) == OLD_RANK_0
    assert training.events(1) == OLD_RANK_1
    assert at(training.callbacks(0), "on_fit_epoch_end", "epoch") == [0, 1, 1]
    assert_two_ranks_trained_together(training)
    assert_rank_0_has_the_results(training)


def test_an_older_trainer_launches_its_ranks_without_the_callbacks(train):
    """8.4.114 and older name only the trainer's class to the workers."""
    training = train("8.4.114", "launcher", epochs=1).succeed()
    assert "--nproc_per_node 2" in training.text
    assert (training.weights / "best.pt").exists()
    assert training.callbacks(0) == training.callbacks(1) == []


def test_a_trainers_process_has_a_real_nms_and_cannot_leave_this_machine(tmp_path):
    """8.4.190's own non-maximum suppression in Python is the reference."""
    trainers.needs("8.4.190")
    program = """if True:
        import socket, torch, torchvision
        from ultralytics.utils.nms import TorchNMS
        torch.manual_seed(0)
        for count in (0, 1, 300):
            corners = torch.rand(count, 2) * 64
            boxes = torch.cat([corners, corners + 1 + torch.rand(count, 2) * 40], 1)
            scores = torch.rand(count)
            kept = torchvision.ops.nms(boxes, scores, 0.5)
            assert kept.equal(TorchNMS.nms(boxes, scores, 0.5)), kept
            assert count < 300 or 1 < len(kept) < count
        try:
            socket.create_connection(("192.0.2.1", 80), timeout=30)
        except ConnectionRefusedError as refused:
            print(refused)
    """
    variables = {**os.environ, **trainers.environment("8.4.190", tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "may only connect to this machine" in done.stdout


def test_a_missing_trainer_skips_a_test_and_fails_it_in_ci(monkeypatch, tmp_path):
    monkeypatch.setattr(trainers, "_INSTALLED", tmp_path)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"8\.4\.190, which scripts/test installs"):
        trainers.needs("8.4.190")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="scripts/test installs"):
        trainers.needs("8.4.190")

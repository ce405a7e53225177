"""The callbacks by themselves: without a run, with a broken trainer, on their way to other processes."""

import logging
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import trainers

from ddphub.errors import SettingsError
from ddphub.integrations import ultralytics
from ddphub.integrations.ultralytics import Opening, attach, callbacks

NAMES = {
    *("on_pretrain_routine_end", "on_fit_epoch_end", "on_model_save", "on_train_end"),
    *("on_train_start", "on_val_start", "on_predict_start", "on_export_start"),
}
COUNTING = {"on_predict_start", "on_export_start", "on_train_start", "on_val_start"}
"""These count usage, run or not."""

KEY = "secret-key-that-must-not-travel"


class Model:
    """What `attach` asks of a model or a trainer."""

    def __init__(self):
        self.callbacks = {name: [] for name in (*callbacks, "on_val_end")}

    def add_callback(self, event, callback):
        self.callbacks[event].append(callback)


def test_they_travel_by_name():
    """An importable function of this module under the event's name; pickle stores no more than that."""
    assert set(callbacks) >= NAMES
    for name, callback in callbacks.items():
        assert getattr(ultralytics, name) is callback
        assert pickle.loads(pickle.dumps(callback)) is callback
        assert len(pickle.dumps(callback)) < 100


@pytest.mark.parametrize("name", [name for name in callbacks if name not in COUNTING])
@pytest.mark.parametrize("session", [{}, {"hub_session": None}, {"hub_session": object()}])
def test_without_a_run_nothing_is_asked_of_the_trainer(name, session, caplog):
    """What was asked in vain would be logged, as no callback raises."""
    caplog.set_level(logging.DEBUG, ultralytics.logger.name)
    callbacks[name](SimpleNamespace(**session))
    assert not caplog.records


@pytest.mark.parametrize("name", callbacks)
def test_a_trainer_of_another_make_ends_no_training(name, tmp_path, caplog):
    """Every attribute is missing: the callback says so once and goes on."""
    caplog.set_level(logging.DEBUG, ultralytics.logger.name)
    run = ultralytics.init(project="tests", dir=tmp_path, mode="offline")
    trainer = SimpleNamespace(hub_session=run)
    callbacks[name](trainer)
    callbacks[name](trainer)
    run.finish()
    said = [record.levelname for record in caplog.records if record.name == ultralytics.logger.name]
    assert said in ([], ["WARNING", "DEBUG"], ["DEBUG", "DEBUG"])
    assert said or name in {"on_pretrain_routine_end", "on_train_epoch_start", "teardown"}


def test_settings_fail_when_they_are_given():
    for wrong in ({"projct": "p"}, {"project": "a/b"}, {"rate_limits": {"x": 1}}, {"hub": "nowhere"}):
        with pytest.raises(SettingsError):
            attach(Model(), **wrong)


def test_attaching_again_replaces_the_settings(tmp_path):
    model = Model()
    model.add_callback("on_val_end", print)
    for project in ("first", "second"):
        attach(model, project=project, dir=tmp_path)
    assert [one.settings["project"] for one in model.callbacks["on_pretrain_routine_end"] if type(one) is Opening] == [
        "second"
    ]
    assert model.callbacks["on_fit_epoch_end"] == [callbacks["on_fit_epoch_end"]]
    assert model.callbacks["on_val_end"] == [print]


def test_the_key_is_not_part_of_what_travels(tmp_path):
    model = Model()
    attach(model, project="p", dir=tmp_path, api_key=KEY)
    (opening,) = [one for one in model.callbacks["on_pretrain_routine_end"] if type(one) is Opening]
    assert KEY.encode() not in pickle.dumps(opening)
    assert KEY not in repr(opening)
    assert pickle.loads(pickle.dumps(opening))._given()["api_key"] == KEY, "a launched worker inherits it"
    (variable,) = [name for name, value in os.environ.items() if value == KEY]
    assert not variable.startswith("DDPHUB_"), "no other run takes it for its own"
    del os.environ[variable]


def test_another_session_is_left_alone(tmp_path, caplog):
    theirs = object()
    trainer = SimpleNamespace(hub_session=theirs, callbacks={})
    Opening({"project": "p", "dir": tmp_path})(trainer)
    assert trainer.hub_session is theirs
    assert "has a hub session already" in caplog.text


def test_what_fails_only_now_ends_no_training(tmp_path, caplog):
    """The folder was a folder when the settings were checked."""
    (tmp_path / "runs").write_text("")
    trainer = SimpleNamespace(hub_session=None, callbacks={}, args=SimpleNamespace(project=None, name="t"), data=None)
    Opening({"project": "p", "dir": tmp_path / "runs"})(trainer)
    assert trainer.hub_session is None
    assert "does not report this training" in caplog.text


@pytest.mark.parametrize("version", ["8.4.190", "8.4.114", "8.0.217"])
def test_a_launcher_that_leaves_callbacks_behind_is_told_of(version, tmp_path):
    """Where there are two GPUs, and torchrun has not launched already."""
    trainers.needs(version)
    program = """if True:
        import torch, logging
        from ultralytics import YOLO
        from ddphub.integrations.ultralytics import attach
        torch.cuda.device_count = lambda: 2
        attach(YOLO("yolov8n.yaml"), project="p")
    """
    environment = {**os.environ, **trainers.environment(version, tmp_path), "DDPHUB_DIR": str(tmp_path)}
    for launched in ({}, {"LOCAL_RANK": "0"}):
        command = [sys.executable, "-c", program]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=150, env={**environment, **launched}, check=True
        )
        is_told = "does not take callbacks along" in done.stderr
        assert is_told == (version != "8.4.190" and not launched)

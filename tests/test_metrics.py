"""What a user gives as metrics: one bad value costs itself, is counted, and is spoken of once."""

import logging
import math

import numpy as np
import pytest
import torch

from ddphub import metrics as metrics_module
from ddphub.hubs.wire import MAX_METRIC_NAME
from ddphub.metrics import MetricReader


@pytest.fixture
def reader():
    return MetricReader()


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_numbers_are_kept(reader):
    """Of every kind, at the first call and on the quick path of later ones."""
    values = {"float": 0.5, "int": 3, "bool": True, "tensor": torch.tensor(1.5), "numpy": np.float32(2.5), "big": 2**63}
    expected = {"float": 0.5, "int": 3, "bool": True, "tensor": 1.5, "numpy": 2.5, "big": float(2**63)}
    for _ in range(3):
        kept = reader.read(values)
        assert kept == expected
        assert [type(value) for value in kept.values()] == [float, int, bool, float, float, float]
    assert reader.dropped == 0
    assert reader.good_names == set(values)


def test_a_name_that_was_good_does_not_make_every_value_good(reader):
    """The quick path looks at each value's type."""
    assert reader.read({"loss": 1.0}) == {"loss": 1.0}
    assert reader.read({"loss": "1.0"}) == {}
    assert reader.read({"loss": 2**70}) == {"loss": float(2**70)}
    assert reader.read({"loss": math.nan})["loss"] != 0
    assert reader.dropped == 1


def test_plain_values_are_checked_without_a_copy_once_their_names_are_known(reader):
    """New names, and ints beyond 64 bits, take the longer way."""
    values = {"loss": 0.5, "count": 3, "ok": True}
    assert reader.check(values) == values
    assert reader.check(values) is values
    assert reader.check({"loss": 2**70, "count": -(2**63)}) == {"loss": float(2**70), "count": -float(2**63)}
    assert reader.check({"loss": 1.0, "a\nb": 2.0, 7: 3.0}) == {"loss": 1.0}
    assert reader.check({"": 1.0}) == {}
    assert reader.dropped == 3


def test_a_bad_value_is_counted_each_time_and_warned_of_once_a_name(reader, caplog):
    """A loop of a million steps writes one line a name."""
    for _ in range(100):
        reader.read({"text": "x", "list": [1], "good": 1.0})
    assert reader.dropped == 200
    assert len(warnings(caplog)) == 2
    assert sorted(message.split("'")[1] for message in warnings(caplog)) == ["list", "text"]


BAD = {
    "none": None,
    "text": "1",
    "vector": torch.zeros(3),
    "complex": 1j,
    "huge": 10**400,
    "meta": torch.tensor(1.0, device="meta"),
    "class": torch.Tensor,
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_value_costs_none_of_those_beside_it(reader, bad):
    """Before it and behind it."""
    assert reader.read({"before": 1.0, "bad": bad, "behind": 2.0}) == {"before": 1.0, "behind": 2.0}
    assert reader.dropped == 1


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_value_costs_no_checkpoint(reader, bad):
    """Its metrics are read by a path of their own."""
    assert reader.read_for_wire({"before": 1.0, "bad": bad, "behind": 2.0}) == {"before": 1.0, "behind": 2.0}
    assert reader.dropped == 1


@pytest.mark.parametrize("metrics", [[0.5], "loss", 0.5], ids=repr)
def test_metrics_that_are_no_dict_cost_no_checkpoint(reader, metrics):
    """They are dropped and counted; the bytes are what matters."""
    assert reader.read_for_wire(metrics) == {}
    assert reader.dropped == 1


@pytest.mark.parametrize("name", ["", "x" * (MAX_METRIC_NAME + 1), "a\nb", "a\0", "a\ud800", 7, None, ("a", 1)])
def test_a_bad_name_is_dropped(reader, caplog, name):
    """The warning shows the beginning of it."""
    assert reader.read({name: 1.0, "good": 2.0}) == {"good": 2.0}
    assert reader.read_for_wire({name: 1.0, "good": 2.0}) == {"good": 2.0}
    assert reader.dropped == 2
    (message,) = warnings(caplog)
    assert len(message) < 300


@pytest.mark.parametrize("name", ["x" * MAX_METRIC_NAME, "train/loss", "metrics/mAP50(B)", "Verlust ü", "a b"])
def test_ordinary_names_are_kept(reader, name):
    """Up to the limit."""
    assert reader.read({name: 1.0}) == {name: 1.0}


def test_warnings_are_bounded(reader, caplog, monkeypatch):
    """Names that are made up anew at every step do not fill log or memory; counting goes on."""
    monkeypatch.setattr(metrics_module, "_MOST_WARNINGS", 10)
    for step in range(50):
        reader.read({f"bad-{step}": None})
    assert len(warnings(caplog)) == 10
    assert reader.dropped == 50


def test_good_names_are_bounded(reader):
    """The same for good names: a name a step is a slow leak, nothing worse."""
    for step in range(200_000):
        reader.read({f"loss-{step}": 1.0})
    assert len(reader.good_names) <= 100_000
    assert reader.read({"loss": 1.0, "loss-0": 2.0}) == {"loss": 1.0, "loss-0": 2.0}


def test_metrics_of_a_checkpoint_are_ready_for_json(reader):
    """Numbers that are not finite become their names; None is none."""
    values = {"nan": math.nan, "inf": torch.tensor(-math.inf), "n": np.int64(3), "yes": True}
    assert reader.read_for_wire(values) == {"nan": "NaN", "inf": "-Infinity", "n": 3, "yes": True}
    assert reader.read_for_wire(None) == {}


@pytest.mark.parametrize(
    ("value", "whole"),
    [(None, None), (0, 0), (7, 7), (-1, -1), (7.0, 7), (np.int64(7), 7), (torch.tensor(7), 7), (True, 1)],
)
def test_a_step_is_a_whole_number(reader, value, whole):
    """Of whatever type."""
    assert reader.whole("step", value) == whole
    assert type(reader.whole("step", value)) is type(whole)
    assert reader.dropped == 0


@pytest.mark.parametrize(
    "bad",
    [
        *("x", [1], object(), math.nan, math.inf, 1j, torch.zeros(2), torch.tensor(1, device="meta"), np.zeros(2)),
        *(2**63, -(2**63) - 1, 10**5000),
    ],
    ids=lambda value: str(value)[:20] if not isinstance(value, int) else "int beyond 64 bits",
)
def test_a_step_that_is_none_is_dropped(reader, caplog, bad):
    """With one warning; a number that 64 bits do not hold would be refused by every hub."""
    assert reader.whole("step", bad) is None
    assert reader.whole("step", bad) is None
    assert reader.dropped == 2
    assert len(warnings(caplog)) == 1

"""What pages compute by themselves: lines, bars, words, and which metric tells most."""

import math

import pytest

from ddphub.server.pages.best import best, better
from ddphub.server.pages.spark import HEIGHT, WIDTH, spark
from ddphub.server.pages.time_line import WIDTH as UNITS
from ddphub.server.pages.time_line import time_line
from ddphub.server.pages.visitor import safe_next
from ddphub.server.pages.words import bytes_, date, duration, figure, plain


def points(values):
    return [tuple(map(float, pair.split(","))) for pair in spark(values).split()]


def test_a_spark_spans_its_box_with_more_above_less():
    assert points([1, 3, 2]) == [(0, HEIGHT - 1), (WIDTH / 2, 1), (WIDTH, HEIGHT / 2)]
    assert [y for _, y in points([5, 5])] == [HEIGHT / 2] * 2
    assert spark([]) == spark([1]) == spark([1, math.nan]) == ""
    assert [x for x, _ in points([1, math.inf, 2])] == [0, WIDTH]
    assert [y for _, y in points([-1.7e308, 1.7e308])] == [HEIGHT - 1, 1]


def attempt(number, started_at, ended_at=None, heard_at=None):
    return {"number": number, "started_at": started_at, "ended_at": ended_at, "heard_at": heard_at}


def test_attempts_are_on_one_scale_from_the_first_start_to_the_last_end():
    first, second, third = time_line(
        [attempt(1, 0, 250), attempt(2, 500, None, 600), attempt(3, 750)], 1000, going_on=3
    )
    assert [(bar.x, bar.width) for bar in (first, second, third)] == [(0, 250), (500, 100), (750, 250)]
    assert [bar.ended for bar in (first, second, third)] == [250, 600, None]
    assert time_line([], 1000, going_on=None) == []


def test_an_attempt_that_says_nothing_of_its_times_has_a_place():
    bars = time_line([attempt(1, None), attempt(2, 100, 100), attempt(3, 5000, None, 5001)], 1000, going_on=None)
    assert all(0 <= bar.x <= bar.x + bar.width <= UNITS for bar in bars)
    assert all(bar.width > 0 and bar.seconds >= 0 for bar in bars)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("accuracy", True),
        ("metrics/mAP50-95(B)", True),
        ("train/loss", False),
        ("val/top-5", True),
        ("rmse", False),
        ("lr", None),
        ("accuracy/loss", False),
    ],
)
def test_a_metrics_name_tells_what_better_is(name, more):
    assert better(name) is more


def test_the_most_telling_metric_is_held_out_accuracy_then_held_out_loss():
    def of(*names):
        found = best([{"name": name, "least": 1.0, "greatest": 2.0} for name in names])
        return found and (found.name, found.value)

    assert of("train/loss", "val/loss", "metrics/mAP50", "metrics/mAP50-95", "train/accuracy") == (
        "metrics/mAP50-95",
        2,
    )
    assert of("train/loss", "train/accuracy", "val/loss") == ("val/loss", 1)
    assert of("train/loss", "train/accuracy") == ("train/accuracy", 2)
    assert of("lr", "system/score") is None
    assert best([{"name": "loss", "least": None, "greatest": None}]) is None


def test_sizes_and_times_are_in_units_that_people_use():
    assert [bytes_(size) for size in (None, 0, 1023, 1024, 1_500_000, 7e9)] == [
        "",
        "0 B",
        "1023 B",
        "1 KiB",
        "1.43 MiB",
        "6.52 GiB",
    ]
    assert [duration(seconds) for seconds in (None, 59.9, 61, 7500, 90_000)] == [
        "",
        "59 s",
        "1 min",
        "2 h 5 min",
        "1 d 1 h",
    ]
    names = ("system/cpu", "system/gpu_memory", "system/gpu_temperature", "system/gpu_power", "cpu")
    assert [figure(61.5, name) for name in names] == ["61.5 %", "62 B", "61.5 °C", "61.5 W", "61.5"]
    assert (figure(None, "system/cpu"), figure(7e9, "system/memory")) == ("", "6.52 GiB")
    assert date(1_700_000_000.4) == "2023-11-14 22:13:20 UTC"
    assert (plain(None), plain(1.23456789), plain(3), plain("x")) == ("", "1.23457", "3", "x")


@pytest.mark.parametrize("path", ["/", "/models/a?log_rank=1&x=%20", "/compare?models=a,b"])
def test_a_path_of_this_hub_is_a_place_to_go_to(path):
    assert safe_next(path) == path

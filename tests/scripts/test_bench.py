"""The benchmarks' own tools, and that the documents say what was measured."""

import json
import subprocess

import pytest
from benchmarks import publish, text
from benchmarks.figures import Aim, Figure, LeftOut, Outcome, alternate


def stored():
    return json.loads(publish.FIGURES.read_text())


def test_contestants_take_turns_and_the_warm_up_does_not_count():
    turns = []

    def contestant(name):
        def turn():
            turns.append(name)
            return {"p50": float(len(turns))}

        return turn

    samples = alternate({name: contestant(name) for name in "ab"}, rounds=2, warm_up=1, left_out={})

    assert turns == ["a", "b"] * 3
    assert samples == {"p50": {"a": [3.0, 5.0], "b": [4.0, 6.0]}}


def test_a_contestant_that_cannot_take_part_is_left_out_with_its_reason():
    def absent():
        raise LeftOut("no server for it")

    left_out = {}
    samples = alternate({"ddphub": lambda: {"s": 1.0}, "other": absent}, rounds=1, left_out=left_out)

    assert samples == {"s": {"ddphub": [1.0]}}
    assert left_out == {"other": "no server for it"}


def test_a_turn_that_fails_is_no_contestant_left_out():
    def broken():
        raise RuntimeError("the program ended with 1")

    with pytest.raises(RuntimeError, match="ended with 1"):
        alternate({"ddphub": broken}, rounds=1, left_out={})


def test_ratios_and_missed_aims_are_told():
    samples = {"ddphub": [2.0, 1.0, 3.0], "copy": [1.0, 1.0, 1.0], "other": [360.0, 180.0, 400.0]}
    outcome = Outcome([Figure("rank 0", "p50", "us", samples=samples, limit="copy", headline=True)])
    outcome.aims = [Aim("p50 of a call", 2.0, 1.5), Aim("steps beside the limit", 0.995, 0.99, at_least=True)]
    outcome.left_out["rsync"] = "it is not installed"

    told = text.report("log", {"about": "a call", **outcome.to_json()})

    assert "180 x ddphub, 360 x copy" in told
    assert "aim: p50 of a call: 2.00, at most 1.50: MISSED" in told
    assert "aim: steps beside the limit: 0.99, at least 0.99: reached" in told
    assert "left out: rsync: it is not installed" in told


def test_the_documents_hold_the_figures_that_were_measured():
    readme = publish.README.read_text()
    assert publish.with_table(readme, stored()) == readme
    assert publish.PAGE.read_text() == publish.page(stored())
    assert set(stored()) == set(text.ORDER)
    for name, picture in publish.PLOTS.items():
        assert (publish.FIGURES.parent / picture).read_bytes().startswith(b"\x89PNG"), name


def test_a_benchmark_runs_from_the_command_line(tmp_path):
    """All of them, with their contestants, run in CI after the tests: see scripts/test."""
    figures = tmp_path / "figures.json"
    options = ["--quick", "--installed", "--only", "log", "--json", str(figures), "--dir", str(tmp_path)]
    command = ["scripts/bench", *options]
    done = subprocess.run(command, cwd=publish.ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    measured = json.loads(figures.read_text())["log"]
    assert all(samples["ddphub"] for samples in (figure["samples"] for figure in measured["figures"]))
    assert "== log: " in done.stdout

"""A run of many ranks: its page shows all of it, and asks for little.

With `CHAOS_EXAMPLES` set it has 1,000 ranks and 1,000,000 points; scripts/measure_pages.py prints how long it takes.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from charts import Charts
from hub_process import KEY, HubProcess
from selenium.webdriver.common.keys import Keys

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
RANKS, STEPS = (1000, 1000) if os.environ.get("CHAOS_EXAMPLES") else (200, 300)
LOSS = "train/loss"
SPIKE_RANK, SPIKE = RANKS // 7, STEPS // 3
DIP_RANK, DIP = RANKS // 3, 2 * STEPS // 3


def value(rank, step):
    """What scripts/large_run.py reports."""
    return {(SPIKE_RANK, SPIKE): 9.0, (DIP_RANK, DIP): 0.0}.get((rank, step), 2 - step / STEPS + 0.5 * rank / RANKS)


def check_band(data, start, end):
    """Every step from `start` to `end` is there, with the greatest, the least and the mean value of all ranks."""
    rows = {x: [column[row] for column in data[1:]] for row, x in enumerate(data[0])}
    for step in range(start, end + 1):
        values = [value(rank, step) for rank in range(RANKS)]
        assert rows[step] == pytest.approx([max(values), min(values), sum(values) / RANKS]), f"step {step}"


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The hub, and the page of the run."""
    with HubProcess(tmp_path_factory.mktemp("large") / "hub", api_key=KEY) as hub:
        program = [sys.executable, SCRIPTS / "large_run.py", hub.url, f"--ranks={RANKS}", f"--steps={STEPS}"]
        environment = {**os.environ, "DDPHUB_API_KEY": KEY}
        model_id = subprocess.run(program, env=environment, check=True, capture_output=True, text=True).stdout.strip()
        yield hub, f"{hub.url}/models/{model_id}"


@pytest.mark.timeout(900)
def test_many_ranks_are_drawn_zoomed_and_panned_with_few_requests(browser, large):
    hub, page = large
    charts = Charts(browser)
    browser.sign_in(hub)
    browser.requested()
    before = len(browser.requested())
    browser.open(f"{page}?chart-show=band")
    band = charts.drawn(LOSS)
    browser.wait(lambda: len(browser.all("#tiles .tiles li")) == RANKS, what="a tile for each rank")
    assert len(browser.requested()) - before < 60
    assert len(charts.asked()) == 1
    assert len(band[0]) <= 602
    assert max(band[1]) == 9.0, "of all points the greatest"
    assert min(band[2]) == 0.0, "and the least"

    # A sixth of the steps, around the spike.
    charts.drag(LOSS, 1 / 4, 5 / 12)
    band = charts.until(LOSS, lambda data: set(range(SPIKE - 10, SPIKE + 10)) <= set(data[0]))
    start, end = charts.shown(LOSS)
    assert start < SPIKE < end
    check_band(band, round(start) + 1, round(end) - 1)
    for _ in range(4):
        charts.drag(LOSS, 0.95, 0.05, key=Keys.SHIFT)
    panned = charts.shown(LOSS)
    assert panned[0] == pytest.approx(start + 3.6 * (end - start), rel=0.05)
    band = charts.until(LOSS, lambda data: set(range(round(panned[0]) + 1, round(panned[1]))) <= set(data[0]))
    check_band(band, round(panned[0]) + 1, round(panned[1]) - 1)
    assert len(charts.asked()) < 25, "it asks while it moves, not for each move"

    charts.choose("show", "ranks")
    charts.choose("ranks", f"{SPIKE_RANK},{DIP_RANK}")
    charts.until(LOSS, lambda data: len(data) == 3)
    browser.one(f"{charts.of(LOSS)} .chart-reset").click()
    assert charts.until(LOSS, lambda data: 9.0 in data[1] and 0.0 in data[2])
    charts.choose("ranks", "0-63")
    lines = charts.until(LOSS, lambda data: len(data) == 65)
    assert all(any(y is not None for y in column) for column in lines[1:])
    assert browser.complaints() == []

"""People at the pages: a real Chromium, a real hub, real trainings."""

import hashlib
import os
import re
import signal
import subprocess
import sys

import pytest
from browser import hosts
from hub_process import KEY, HubProcess
from jobs import PROGRAMS, Job

CONSOLE = {"DDPHUB_CONSOLE": "rank0"}


@pytest.fixture
def hub(tmp_path):
    """One that takes six seconds without a step for too long."""
    with HubProcess(tmp_path / "hub", api_key=KEY, arguments=("--stall-s", "6")) as process:
        yield process


@pytest.fixture
def training(tmp_path, hub):
    """Four ranks that go in step."""
    started = Job(tmp_path, "watched.py", hub=hub, ranks=4, environment=CONSOLE)
    yield started
    started.end()


@pytest.fixture
def loners(tmp_path, hub, free_port):
    """Four ranks without an agent, none of which waits for another: their processes by rank."""
    started = []
    for rank in range(4):
        place = {"RANK": str(rank), "WORLD_SIZE": "4", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "4"}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port), "OMP_NUM_THREADS": "1"}
        place |= {"DDPHUB_URL": hub.url, "DDPHUB_API_KEY": hub.key, "DDPHUB_DIR": str(tmp_path / "runs")}
        command = [sys.executable, str(PROGRAMS / "watched.py"), "--out", str(tmp_path), "--alone", "1"]
        with (tmp_path / f"rank-{rank}.log").open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | place)
        started.append(process)
    yield started
    for process in started:
        process.kill()
        process.wait()


def open_the_only_model(browser, hub):
    """By its link on the models page, which shows it without being reloaded."""
    browser.sign_in(hub)
    browser.one("table.models th a").click()
    browser.wait(lambda: browser.text("#state"), what="the model's page")


def tile(browser, rank):
    """What the grid says of a rank."""
    return browser.run("return document.querySelectorAll('.tiles .tile')[arguments[0]]?.title ?? ''", rank)


def mark_page(browser):
    """Leaves a sign that a reload would take away; the function returned checks that it is still there."""
    browser.run("window.stayed = true")

    def check():
        assert browser.run("return window.stayed === true")

    return check


def test_a_training_is_watched_found_stalled_downloaded_from_and_stopped(browser, hub, training):
    open_the_only_model(browser, hub)
    not_reloaded = mark_page(browser)
    chart = "figure.chart[data-name='train/loss']"
    browser.look_at(chart)
    first = int(
        browser.wait(
            lambda: (
                browser.attribute(chart, "data-points") not in {None, "0"} and browser.attribute(chart, "data-points")
            ),
            what="a chart",
        )
    )
    browser.wait(lambda: int(browser.attribute(chart, "data-points")) >= first + 20, what="the chart to grow")
    browser.look_at("#log")
    browser.wait(lambda: "saved at step" in browser.text("#lines"), what="the console")
    assert "<b>&</b>" in browser.text("#lines")

    browser.look_at("#checkpoints")
    browser.one("#checkpoints a.download").click()
    saved = browser.wait(lambda: [one for one in browser.downloads.iterdir() if one.suffix == ".pt"], what="the file")
    shown = browser.attribute("#checkpoints tbody tr:last-child code[title]", "title")
    digests = browser.run("return [...document.querySelectorAll('#checkpoints code[title]')].map(one => one.title)")
    assert hashlib.sha256(saved[0].read_bytes()).hexdigest() in digests
    assert shown in digests

    def hint():
        """How the stop dialog shows that a run that hangs is not stopped so."""
        return browser.run("return getComputedStyle(document.querySelector('.if-stalled')).display")

    browser.look_at("#state")
    assert hint() == "none"
    pid = training.pid_of(2)
    os.kill(pid, signal.SIGSTOP)
    try:
        browser.wait(lambda: "stalled" in browser.text("#state"), timeout=120, what="the stall")
        browser.wait(lambda: re.search(r"rank 2\b.* step \d+", browser.text(".reason")), what="rank 2 to be named")
        browser.wait(lambda: re.search("stalled|silent", tile(browser, 2)), what="its tile to turn")
        assert hint() == "block"
    finally:
        os.kill(pid, signal.SIGCONT)
    browser.wait(lambda: "running" in browser.text("#state"), timeout=120, what="the run to go on")

    browser.one("[data-opens='stop-dialog']").click()
    browser.wait(lambda: browser.text("#stop-dialog[open] h2"), what="the question")
    browser.one("#stop-dialog .grave").click()
    browser.wait(lambda: "asked to stop" in browser.text("#status"), what="the page to say so")
    training.succeed()
    browser.wait(lambda: "stopped" in browser.text("#state"), what="the end")
    assert not browser.all("[data-opens='stop-dialog']")
    browser.look_at("#attempts")
    browser.wait(lambda: browser.text("#attempts .state").endswith("stopped"), what="the attempt's end")
    not_reloaded()
    assert hosts(browser.requested()) == {hub.url}
    assert browser.complaints() == []


def test_a_killed_rank_turns_while_the_others_go_on(browser, hub, loners, tmp_path):
    open_the_only_model(browser, hub)
    not_reloaded = mark_page(browser)
    browser.wait(lambda: all(": ok" in tile(browser, rank) for rank in range(4)), what="four good ranks")
    loners[3].kill()
    browser.wait(lambda: re.search("dead|silent", tile(browser, 3)), timeout=120, what="rank 3 to turn")
    browser.wait(lambda: all(": ok" in tile(browser, rank) for rank in range(3)), what="the others to go on")
    browser.look_at("#ranks")
    browser.wait(lambda: browser.text("#ranks tbody th") == "3", what="it to be the first of the table")
    browser.look_at("#state")
    browser.wait(lambda: "rank 3" in browser.text(".reason"), what="the model to name it")
    not_reloaded()

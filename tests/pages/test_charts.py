"""Charts, in a real Chromium against a real hub: what each choice draws, zoom, growth, and what goes wrong."""

import json
import math
import re
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from browser import PHONE, hosts
from charts import Charts
from hub_process import KEY, HubProcess
from sample_hub import Sender, Talk, new_id
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys

from ddphub.server import pages

START = 1_700_000_000.0
MODULES = {path.name for path in Path(pages.__file__).with_name("static").glob("charts/*.js")}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with HubProcess(tmp_path_factory.mktemp("charts") / "hub", api_key=KEY) as process:
        yield process


@pytest.fixture
def signed_in(browser, hub):
    browser.sign_in(hub)
    return browser


@pytest.fixture
def charts(signed_in):
    return Charts(signed_in)


def loss(step, rank=0, attempt=1):
    return 2.0 - step / 100 + rank / 10 + attempt / 1000


def address(talk):
    return f"{talk.hub.url}/models/{talk.model_id}"


def begin(talk, at=START, world_size=4):
    """An attempt that sends events."""
    sender = Sender(talk, new_id())
    sender.attempt("started", at, world_size=world_size)
    return sender


@pytest.fixture(scope="module")
def restarted(hub):
    """The page of a run of 4 ranks: steps 0 to 59, then again from 40 to 79 in another attempt."""
    talk = Talk(hub)
    for attempt, steps in ((1, range(60)), (2, range(40, 80))):
        begun = START + 200 * (attempt - 1)
        sender = begin(talk, begun)
        for step in steps:
            for rank in range(4):
                values = {"train/loss": loss(step, rank, attempt), "lr": 0.01 * (step - 20), "system/cpu": 50}
                sender.metrics(rank, step, step // 10, begun + step, values)
        if attempt == 2:
            sender.metrics(0, 80, 8, begun + 80, {"train/loss": "NaN", "odd": 1})
        sender.send()
    return address(talk)


def line(first, last, attempt, rank=0):
    """A line of `restarted`: x and y."""
    return list(range(first, last)), [loss(step, rank, attempt) for step in range(first, last)]


def columns(*lines):
    """What is drawn of lines at different x."""
    places = sorted({x for xs, _ in lines for x in xs})
    return [places, *([dict(zip(xs, ys, strict=True)).get(x) for x in places] for xs, ys in lines)]


FIRST, SECOND = line(0, 40, 1), line(40, 80, 2)
SECOND[0].append(80)
SECOND[1].append(None)
BOTH = columns(FIRST, SECOND)
"""Rank 0's lines of `restarted`: of overlapping attempts the newest one; the last value was not finite."""


def test_ranks_bands_and_older_attempts_are_drawn_as_chosen(charts, restarted):
    browser = charts.browser
    browser.open(restarted)
    assert charts.drawn("train/loss") == BOTH
    assert charts.text("train/loss", "note") == "1 value was not finite"
    assert charts.text("train/loss", "legend") == "not finite"
    groups = [one.text for one in browser.all(".chart-group > summary")]
    assert groups == ["general (2 charts)", "train (1 chart)", "system (1 chart)"]
    assert charts.state("system/cpu") == "waiting", "folded"
    assert charts.asked("system/cpu") == []

    charts.choose("older", True)
    data = charts.until("train/loss", lambda data: len(data) == 4)
    assert data == columns(FIRST, line(40, 60, 1), SECOND)
    script = "return document.querySelector(arguments[0]).chart.plot.uplot.series.map((one) => Boolean(one.dash))"
    assert browser.run(script, charts.of("train/loss")) == [False, False, True, False]
    charts.choose("older", False)

    charts.choose("show", "band")
    band = charts.until("train/loss", lambda data: len(data) == 7)
    high, low, mean = band[1:4]
    for step in (0, 17, 39):
        found = [column[band[0].index(step)] for column in (high, low, mean)]
        assert found == pytest.approx([loss(step, 3), loss(step, 0), loss(step, 1.5)])

    charts.choose("show", "ranks")
    charts.choose("ranks", "1,3")
    data = charts.until("train/loss", lambda data: len(data) == 5)
    drawn = [[x, y] for x, y in zip(data[0], data[1], strict=True) if y is not None]
    assert drawn == [list(point) for point in zip(*line(0, 40, 1, rank=1), strict=True)]
    assert "rank 1: " in charts.text("train/loss", "legend")
    assert "rank 3: " in charts.text("train/loss", "legend")
    charts.choose("ranks", "3-1")
    browser.wait(lambda: "lower to the higher" in browser.text(".chart-ranks-wrong"), what="what is wrong")
    assert charts.text("train/loss", "problem") == "", "it is said once"
    assert charts.data("train/loss") == data, "what was drawn stays"
    charts.choose("ranks", "0-99")
    browser.wait(lambda: "“mean, min to max”" in browser.text(".chart-ranks-wrong"), what="that these are too many")
    charts.choose("ranks", "3-4")
    browser.wait(lambda: browser.text(".chart-ranks-wrong") == "ranks are 0 to 3", what="which ranks there are")
    assert {"3-1", "0-99"}.isdisjoint(query.get("ranks") for query in charts.asked()), "what is wrong is not asked for"
    charts.choose("ranks", "2")
    charts.until("train/loss", lambda data: len(data) == 3)
    browser.wait(lambda: browser.text(".chart-ranks-wrong") == "", what="no more to be said")
    assert charts.text("train/loss", "problem") == ""


def test_x_smoothing_scale_and_search_are_as_chosen(charts, hub, restarted):
    browser = charts.browser
    browser.open(restarted)
    assert charts.drawn("train/loss") == BOTH
    charts.choose("x", "epoch")
    epochs = charts.until("train/loss", lambda data: max(data[0]) == 8)
    assert epochs[0] == sorted(epochs[0])
    assert [y for y in epochs[1] if y is not None] == FIRST[1], "several values of one epoch are as many points"
    charts.choose("x", "time")
    times = charts.until("train/loss", lambda data: data[0][0] == START)
    assert times[0] == [START + x for x in range(60)] + [START + 200 + x for x in range(40, 81)]
    charts.choose("x", "step")
    charts.until("train/loss", lambda data: data == BOTH)

    charts.choose("smooth", 0.5)
    raw, smooth = charts.until("train/loss", lambda data: len(data) == 5)[1:3]
    assert raw == BOTH[1]
    y = FIRST[1]
    assert smooth[0] == pytest.approx(y[0]), "not pulled towards 0"
    assert smooth[2] == pytest.approx((y[0] / 8 + y[1] / 4 + y[2] / 2) / (7 / 8))
    charts.choose("smooth", 0)

    charts.choose("log", True)
    data = charts.until("lr", lambda data: None in data[1][:21])
    assert [math.isclose(y, 0.01 * (x - 20)) for x, y in zip(*data[:2], strict=True) if y is not None] == [True] * 19
    assert "0 and below" in charts.text("lr", "note")
    assert charts.state("lr") == "drawn"

    charts.choose("find", "LOSS")
    browser.wait(
        lambda: [one.text for one in browser.all(".chart-group:not([hidden]) > summary")] == ["train (1 chart)"]
    )
    query = {"chart-log": ["1"], "chart-find": ["LOSS"]}
    browser.wait(lambda: parse_qs(urlsplit(browser.driver.current_url).query) == query)
    browser.open(f"{restarted}?chart-show=ranks&chart-ranks=1,3&chart-log=1&chart-find=loss")
    assert len(charts.drawn("train/loss")) == 5, "an address says what is shown"
    charts.choose("find", "nothing of this name")
    browser.wait(lambda: browser.text(".chart-unmatched:not([hidden])") == "No metric has this in its name.")
    assert [text for text in browser.complaints() if "422" not in text] == []
    assert hosts(browser.requested()) == {hub.url}


@pytest.fixture(scope="module")
def long(hub):
    """The page of a run of 6,000 steps with a spike at one of them."""
    talk = Talk(hub)
    sender = begin(talk)
    for step in range(6000):
        values = {"loss": 9.0 if step == 4321 else math.sin(step / 500)}
        if step % 100 == 0:
            values["val"] = step / 6000
        sender.metrics(0, step, None, START + step, values)
    sender.send()
    return address(talk)


def test_zoom_fetches_finer_data_for_all_charts(charts, long):
    browser = charts.browser
    browser.open(long)
    coarse = charts.drawn("loss")
    charts.drawn("val")
    assert 300 <= len(coarse[0]) <= 1202
    assert 9.0 in coarse[1], "a single spike is seen in whatever few points"
    assert charts.shown("loss") == [0, 5999]
    charts.mark("loss")

    charts.drag("loss", 0.7, 0.75)
    fine = charts.until("loss", lambda data: {4300, 4301, 4302} <= set(data[0]))
    start, end = charts.shown("loss")
    assert (start, end) == pytest.approx((4200, 4500), abs=60)
    within = {x: y for x, y in zip(*fine, strict=True) if start <= x <= end}
    assert set(within) == set(range(math.ceil(start), math.floor(end) + 1)), "every step"
    assert within[4321] == 9.0
    assert fine[0] == sorted(fine[0]), "the fine part lies within the coarse rest"
    assert (fine[0][0], fine[0][-1]) == (0, 5999)
    assert charts.shown("val") == [start, end], "a zoom in one is a zoom in all"
    assert all(query["from"] for query in charts.asked()[-2:])
    assert charts.is_marked("loss"), "nothing was drawn anew"
    browser.wait(lambda: "chart-from" in browser.driver.current_url)
    browser.driver.refresh()
    charts.drawn("loss")
    assert charts.shown("loss") == pytest.approx([start, end]), "an address says where"

    charts.drag("loss", 0.5, 0.9, key=Keys.SHIFT)
    assert charts.shown("loss") == pytest.approx([start - 0.4 * (end - start), end - 0.4 * (end - start)], abs=60)
    ActionChains(browser.driver).double_click(browser.one(f"{charts.of('loss')} .u-over")).perform()
    browser.wait(lambda: charts.shown("loss") == [0, 5999])
    browser.wait(lambda: any("/parts/" in url for url in browser.requested()))
    parts = [url for url in browser.requested() if "/parts/" in url]
    assert not [url for url in parts if "chart-" in url], "a zoom changes no other part of the page"
    browser.wait(lambda: "chart-from" not in browser.driver.current_url)

    charts.choose("together", False)
    charts.drag("loss", 0.2, 0.4)
    browser.wait(lambda: charts.shown("loss")[1] < 3000)
    assert charts.shown("val")[1] == 5900, "each by itself"


def test_a_chart_is_worked_by_keys(charts, long):
    browser = charts.browser
    browser.open(long)
    charts.drawn("val")

    def press(*keys):
        ActionChains(browser.driver).send_keys(*keys).perform()

    browser.run("document.querySelector(arguments[0]).focus()", charts.of("val"))
    press("++")
    browser.wait(lambda: charts.shown("val") == pytest.approx([2950 - 2950 * 0.49, 2950 + 2950 * 0.49], abs=60))
    start, end = charts.shown("val")
    press(Keys.ARROW_RIGHT)
    browser.wait(lambda: charts.shown("val")[0] > start)
    press("-", Keys.ARROW_LEFT)
    browser.wait(lambda: charts.shown("val")[1] - charts.shown("val")[0] > end - start + 100)
    reset = browser.one(f"{charts.of('val')} .chart-reset")
    assert reset.is_displayed()
    press("------")
    browser.wait(lambda: charts.shown("val") == [0, 5900])
    assert not reset.is_displayed(), "as far out as it goes is all there is"
    press("+", Keys.ESCAPE)
    browser.wait(lambda: charts.shown("val") == [0, 5900])
    ActionChains(browser.driver).key_down(Keys.SHIFT).send_keys(Keys.ARROW_RIGHT * 3).key_up(Keys.SHIFT).perform()
    spoken = f"{charts.of('val')} .chart-said"
    browser.wait(
        lambda: browser.run("return document.querySelector(arguments[0]).textContent", spoken) == "step 200: 0.03333"
    )
    assert charts.text("val", "legend").split() == ["step", "200:", "0.03333"]


def test_a_chart_grows_by_itself_and_keeps_its_zoom(charts, hub):
    browser = charts.browser
    talk = Talk(hub)
    browser.open(address(talk))
    assert "No metrics yet" in browser.text(".chart-none:not([hidden])")
    sender = begin(talk)
    for step in range(100):
        sender.metrics(0, step, None, START + step, {"loss": 1 / (step + 1)})
    sender.send()
    assert charts.drawn("loss")[0] == list(range(100))
    assert browser.text(".chart-none:not([hidden])") == ""
    charts.mark("loss")
    for step in range(100, 200):
        sender.metrics(0, step, None, START + step, {"loss": 1 / (step + 1)})
    sender.send()
    charts.until("loss", lambda data: len(data[0]) == 200)
    assert browser.attribute(charts.of("loss"), "data-points") == "200"
    assert charts.is_marked("loss"), "neither the page nor the canvas is a new one"

    charts.drag("loss", 0.25, 0.5)
    browser.wait(lambda: charts.shown("loss")[1] < 150)
    zoomed = charts.shown("loss")
    answered = "return performance.getEntriesByType('resource').some((one) => one.name.includes('&from='))"
    browser.wait(lambda: browser.run(answered))
    before = len(charts.asked("loss"))
    sender.metrics(
        0,
        75,
        None,
        START + 75,
        {"loss": 5.0},
    )
    sender.metrics(0, 300, None, START + 300, {"loss": 0.1, "new": 1})
    sender.send()
    charts.until("loss", lambda data: 5.0 in data[1])
    assert charts.shown("loss") == zoomed
    assert charts.is_marked("loss")
    charts.drawn("new")
    assert len(charts.asked("loss")) - before <= 3, "asked for when it has new points"
    browser.one(f"{charts.of('loss')} .chart-reset").click()
    browser.wait(lambda: charts.shown("loss") == [0, 300])

    browser.run("""
        Object.defineProperty(document, "hidden", {value: true, configurable: true});
        document.dispatchEvent(new Event("visibilitychange"));
    """)
    time.sleep(0.5)
    before = len([url for url in browser.requested() if "/series" in url])
    time.sleep(2.5)
    assert len([url for url in browser.requested() if "/series" in url]) == before, "nobody looks, nothing is asked"
    sender.metrics(0, 400, None, START + 400, {"loss": 0.1})
    sender.send()
    browser.run("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    browser.wait(lambda: charts.shown("loss") == [0, 400])


def test_values_that_are_hard_to_draw(charts, hub):
    """Huge, tiny, constant, single, and none that is finite."""
    browser = charts.browser
    talk = Talk(hub)
    sender = begin(talk)
    for step in range(5):
        values = {"huge": (-1) ** step * 1.7e308, "tiny": step * 1e-310, "constant": 7, "zero": 0, "nan": "NaN"}
        sender.metrics(0, step, None, START + step, values | ({} if step else {"single": -3.5}))
    sender.send()
    browser.open(address(talk))
    for log in (False, True):
        charts.choose("log", log)
        for name in ("huge", "tiny", "constant", "zero", "nan", "single"):
            assert charts.drawn(name)[0]
    assert charts.text("constant", "legend") == "7"
    assert charts.text("nan", "note") == "5 values were not finite"
    assert charts.text("huge", "legend") == "1.7e308"
    assert browser.complaints() == []


def imported(browser, name, script):
    """What an expression gives that uses the exports of one of the charts' modules as `it`."""
    where = f"document.querySelector('link[rel=modulepreload][href$=\"/{name}.js\"]').href"
    return browser.run(f"return import({where}).then((it) => {script})")


def test_numbers_lose_no_digit_that_counts(charts, restarted):
    browser = charts.browser
    browser.open(restarted)
    given = [1.414e-10, 2.5e-20, 1.5e20, 1e-10, 1.5e15, -2e-5, 2.0, 100, 0.0123, 1234.5]
    short = ["1.414e-10", "2.5e-20", "1.5e20", "1e-10", "1.5e15", "-2e-5", "2", "100", "0.0123", "1.234k"]
    assert imported(browser, "numbers", f"{json.dumps(given)}.map((one) => it.shortNumber(one))") == short
    marks = [[2e-10, 1e-10], [1e-20, 5e-21], [3e20, 1e20], [100, 50], [0.25, 0.05], [10, 2.5]]
    words = ["2e-10", "1e-20", "3e20", "100", "0.25", "10"]
    assert imported(browser, "numbers", f"{json.dumps(marks)}.map(([one, by]) => it.markNumber(one, by))") == words


def test_system_figures_have_units(charts, hub):
    browser = charts.browser
    talk = Talk(hub)
    sender = begin(talk)
    for step in range(5):
        values = {"system/cpu": 93.5, "system/gpu_memory": (4 + step / 4) * 2**30, "system/gpu_temperature": 61}
        sender.metrics(0, step, None, START + step, values | {"cpu": 93.5})
    sender.send()
    browser.open(address(talk))
    browser.one(".chart-group[data-prefix=system] summary").click()
    marks = "return document.querySelector(arguments[0]).chart.plot.uplot.axes[1]._values"
    for name, title, now, mark in (
        ("cpu", "cpu", "93.5", r"[\d.]+"),
        ("system/cpu", "system/cpu (%)", "93.5 %", r"[\d.]+ %"),
        ("system/gpu_temperature", "system/gpu_temperature (°C)", "61 °C", r"[\d.]+ °C"),
        ("system/gpu_memory", "system/gpu_memory", "5 GiB", r"[45](\.25|\.5|\.75)? GiB"),
    ):
        charts.drawn(name)
        assert (charts.text(name, "name"), charts.text(name, "legend")) == (title, now)
        written = [one for one in browser.run(marks, charts.of(name)) if one]
        assert len(written) > 1
        assert all(re.fullmatch(mark, one) for one in written), written
    cells = browser.run("return [...document.querySelectorAll('#summary details td')].map((one) => one.textContent)")
    assert {"93.5 %", "4 GiB", "5 GiB", "61 °C"} <= set(cells)


def test_every_module_is_asked_for_at_once(charts, restarted):
    browser = charts.browser
    browser.open(restarted)
    charts.drawn("train/loss")
    script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.href ?? one.src)"
    named = browser.run(script, 'link[rel="modulepreload"]') + browser.run(script, 'script[src$="charts/page.js"]')
    assert len(named) == len(MODULES)
    assert {url.rpartition("/")[2] for url in named} == MODULES
    loaded = [url for url in browser.requested() if "/charts/" in url]
    assert sorted(loaded) == sorted(named)


def test_a_theme_repaints(charts, restarted):
    browser = charts.browser

    def colours():
        script = """
            const {uplot} = document.querySelector(arguments[0]).chart.plot;
            const {data} = uplot.ctx.getImageData(0, 0, uplot.ctx.canvas.width, uplot.ctx.canvas.height);
            const found = new Map();
            for (let i = 0; i < data.length; i += 4) {
              const colour = [data[i], data[i + 1], data[i + 2]].join();
              if (data[i + 3] === 255) found.set(colour, (found.get(colour) ?? 0) + 1);
            }
            return [...found].sort((a, b) => b[1] - a[1]).slice(0, 5).map(([colour]) => colour);
        """
        return browser.run(script, charts.of("train/loss"))

    browser.open(restarted)
    charts.drawn("train/loss")
    light, dark = "11,98,176", "95,178,245"
    browser.wait(lambda: light in colours())
    browser.scheme("dark")
    browser.wait(lambda: dark in colours())
    browser.one("[data-theme-switch]").click()
    browser.wait(lambda: light in colours())
    browser.run("localStorage.clear()")


def test_models_are_compared_in_one_chart(charts, hub):
    browser = charts.browser
    talks = [Talk(hub), Talk(hub)]
    for number, talk in enumerate(talks):
        sender = begin(talk, START + 5000 * number)
        for step in range(50):
            values = {"loss": step + 100 * number, f"only/{number}": 1}
            for rank in range(2):
                sender.metrics(
                    rank, step, step // 10, START + 5000 * number + 2 * step, values | {"loss": values["loss"] + rank}
                )
        sender.send()
    browser.open(f"{hub.url}/compare?models={','.join(talk.model_id for talk in talks)}")
    steps = list(range(50))
    assert charts.drawn("loss") == [steps, steps, [step + 100 for step in steps]]
    for talk in talks:
        assert f"net ({talk.model_id[:6]})" in charts.text("loss", "legend"), "of the same name"
    assert not browser.one(charts.of("only/0")).is_displayed(), "one model alone has it"
    charts.choose("every", True)
    assert charts.drawn("only/1")[1] == [1] * 50
    charts.choose("show", "band")
    charts.until("loss", lambda data: data[1][:2] == [0.5, 1.5])
    charts.choose("show", "rank0")
    charts.choose("x", "time")
    data = charts.until("loss", lambda data: max(data[0]) == 98)
    assert data == [[2 * step for step in steps], steps, [step + 100 for step in steps]], "since each began"
    charts.drag("loss", 0.2, 0.6)
    browser.wait(lambda: charts.shown("loss")[1] < 90)
    browser.wait(lambda: [query for query in charts.asked("loss") if float(query.get("from", 0)) > START + 4000])
    charts.until("loss", lambda data: len(data[0]) == 50 and data[2].count(None) == 0)
    assert browser.complaints() == []


def test_many_metrics_are_asked_for_as_they_come_into_sight(charts, hub):
    browser = charts.browser
    talk = Talk(hub)
    sender = begin(talk)
    for step in range(3):
        sender.metrics(0, step, None, START + step, {f"m/{number}": number for number in range(300)})
    sender.send()
    browser.open(address(talk))
    charts.drawn("m/0")
    browser.wait(lambda: len(browser.all(".chart")) == 300)
    assert len(browser.all('.chart[data-state="waiting"]')) > 250
    browser.run("document.querySelector(arguments[0]).scrollIntoView()", charts.of("m/299"))
    assert charts.drawn("m/299")[1] == [299] * 3
    browser.wait(lambda: charts.data("m/0") is None, what="what is out of sight to be put away")
    assert len(charts.asked()) < 60


def test_a_hub_that_is_gone_for_a_while(charts, hub):
    browser = charts.browser
    talk = Talk(hub)
    sender = begin(talk)
    sender.metrics(0, 0, None, START, {"loss": 1})
    sender.send()
    browser.open(address(talk))
    charts.drawn("loss")
    hub.stop()
    browser.wait(lambda: "trying again" in browser.text(".chart-status"))
    assert charts.data("loss") == [[0], [1]], "what was drawn stays"
    hub.start()
    sender.metrics(0, 1, None, START + 1, {"loss": 2})
    sender.send()
    charts.until("loss", lambda data: data == [[0, 1], [1, 2]])
    browser.wait(lambda: browser.text(".chart-status") == "")


def test_a_phone_has_one_column_and_can_scroll_over_charts(charts, restarted):
    browser = charts.browser
    browser.resize(PHONE)
    browser.open(restarted)
    browser.run("arguments[0].scrollIntoView()", browser.one(charts.of("train/loss")))
    charts.drawn("train/loss")
    script = "return [document.documentElement.scrollWidth, innerWidth]"
    assert browser.run(script) == [PHONE[0], PHONE[0]]
    over = browser.one(f"{charts.of('train/loss')} .u-over")
    browser.run("arguments[0].scrollIntoView({block: 'center'})", over)
    place = browser.run(
        "const {x, y, width} = arguments[0].getBoundingClientRect(); return [x + width / 2, y + 60]", over
    )
    scrolled = browser.run("return scrollY")

    def touch(kind, *points):
        found = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        browser.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": found})

    x, y = place
    touch("touchStart", (x, y))
    for moved in range(10, 110, 10):
        touch("touchMove", (x, y - moved))
    touch("touchEnd")
    browser.wait(lambda: browser.run("return scrollY") > scrolled, what="the page to scroll under the finger")

    browser.run("arguments[0].scrollIntoView({block: 'center'})", over)
    touch("touchStart", (x - 20, y), (x + 20, y))
    for moved in range(10, 60, 10):
        touch("touchMove", (x - 20 - moved, y), (x + 20 + moved, y))
    touch("touchEnd")
    browser.wait(lambda: charts.shown("train/loss")[1] < 79, what="two fingers to zoom")
    start, _ = charts.shown("train/loss")
    touch("touchStart", (x, y))
    for moved in range(10, 60, 10):
        touch("touchMove", (x + moved, y))
    touch("touchEnd")
    browser.wait(lambda: charts.shown("train/loss")[0] < start, what="one finger to move")

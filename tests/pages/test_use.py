"""How the pages behave: without a network, while people type, when the hub is away, on a phone, by keyboard."""

import json
import subprocess
import sys
import time
from pathlib import Path

import needs
import pytest
import sample_hub
from browser import PHONE, WIDE
from hub_process import KEY, HubProcess
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

VISIT = Path(__file__).with_name("visit.py")

CONTRASTS = """
// The contrast (WCAG 2.2, 1.4.3) of every text that can be seen, where it is too low: what it says, and the ratio.
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
function rgba(colour) {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
  return [r, g, b, a / 255];
}
const over = (top, under) => [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3]));
function ground(element) {
  const layers = [];
  for (let e = element; e; e = e.parentElement) layers.push(rgba(getComputedStyle(e).backgroundColor));
  return layers.reverse().reduce((under, layer) => over(layer, under), [255, 255, 255]);
}
const part = value => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
const bad = [];
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const element = walk.currentNode.parentElement, text = walk.currentNode.data.trim();
  if (!text || !element.checkVisibility() || element.closest('.unseen, .skip, button:disabled, script')) continue;
  const under = ground(element), style = getComputedStyle(element);
  const [a, b] = [light(over(rgba(style.color), under)), light(under)];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5 && !style.backgroundImage.includes('gradient')) bad.push(`${text.slice(0, 40)}: ${ratio.toFixed(2)}`);
}
return bad;
"""

WIDER = """
return location.pathname + ' ' + [...document.querySelectorAll('main *, header *')]
  .filter(one => one.getBoundingClientRect().right > arguments[0] && !one.closest('.scroll, pre, .lines'))
  .slice(0, 3).map(one => one.outerHTML.slice(0, 150)).join(' ... ')
"""

SMALL = """
// What a finger may miss on the page of a phone: links in the middle of a text are as high as the text.
const worked = 'button, select, summary, textarea, input:not([type=checkbox], [type=hidden]), nav a, a.download';
return [...document.querySelectorAll(worked + ', label:has([type=checkbox])')]
  .filter(one => one.checkVisibility() && !one.closest('.skip') && one.getBoundingClientRect().height < 32)
  .map(one => one.outerHTML.slice(0, 150))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with HubProcess(tmp_path_factory.mktemp("hub") / "data", api_key=KEY) as process:
        reason = 'Traceback (most recent call last):\n  File "train.py", line 1\nValueError: no'
        sample_hub.ended(process, "digits", "cnn-failed", "failed", hours_ago=1, steps=60, reason=reason, tags=["a"])
        yield process


@pytest.fixture(scope="module")
def run(hub):
    """A run of four ranks; only the test sends more."""
    sender = sample_hub.going(hub, "digits", "cnn", tags=["a", "b"], notes="first")
    sender.talk.upload({"last.pt": b"x" * 1000}, part_size=8 * 1024 * 1024)
    sender.talk.upload({"a": b"x", "b/c": b"y"}, part_size=8 * 1024 * 1024, name="sharded")
    sender.console(time.time(), [f"line {number}" for number in range(150)])
    sender.send()
    return sender


@pytest.fixture(scope="module")
def hostile(hub):
    """The id of a model of which everything is as long and as odd as it may be."""
    name = f"<img src=x onerror=alert(1)>\u05d0\"'&{'W' * 128}"[:128]
    config = {"W" * 300: "V" * 3000, name: {name: [name] * 50}}
    talk = sample_hub.new_model(hub, name[::-1], name, config, tags=[name, name[:100]], notes=f"{name}\u202e\n" * 9)
    sender = sample_hub.Sender(talk, talk.attempt_id)
    now = time.time()
    sender.attempt("started", now - 60, world_size=2, host=name * 2)
    sender.rank(1, "joined", now - 59, host=name * 2)
    sender.metrics(0, 10**15, 10**12, now, {(name * 2)[:256]: 1e300, f"{name}/{name[:99]}": 1.0})
    sender.console(now, ["\u202e" + name * 5, "\x1b[31m red", "\t" * 50 + "x"], stream="stderr")
    sender.log(now, name * 9, level="warning")
    sender.rank(1, "lost", now, host=name * 2)
    sender.attempt("failed", now, host=name * 2, reason=f"Traceback (most recent call last):\n  {name * 9}\n{name * 2}")
    sender.send()
    files = {f"{name}/{name}": b"x", "b": b"y"}
    talk.upload(files, part_size=8 * 1024 * 1024, name=name, metrics={name: 1e300, "W" * 200: 2})
    talk.upload({name: b"x"}, part_size=8 * 1024 * 1024, name=name)
    return talk.model_id


@pytest.fixture
def page(browser, hub, run):
    """The model's page, open."""
    browser.sign_in(hub)
    browser.open(f"{hub.url}/models/{run.talk.model_id}")
    browser.wait(lambda: browser.run("return document.documentElement.dataset.live"), what="the scripts")
    return browser


def say(run, line):
    run.console(time.time(), [line])
    run.send()


def active(browser):
    """What has focus: its name, id or text."""
    script = "const e = document.activeElement; return e.name || e.id || e.textContent.trim()"
    return browser.run(script)


def test_without_a_network_every_page_works_and_asks_for_nothing_outside(tmp_path):
    needs.programs("chromium", "chromedriver", "ip")
    alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        needs.without("makes a network of its own: run it as root, in a container for instance")
    command = [*alone, sys.executable, str(VISIT), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["can_leave"] is False
    assert told["outside"] == []
    assert told["complaints"] == []
    assert "cnn-live" in told["seen"]["models"]
    assert "running" in told["seen"]["model"]
    assert "train/cls_loss" in told["seen"]["compare"]


def test_what_people_do_survives_a_refresh(page, run):
    page.run("document.querySelector('#notes-field').scrollIntoView({block: 'center'})")
    page.one("#notes-field").send_keys(" and mine")
    page.one("#configuration-section [data-finds]").send_keys("optim")
    assert page.text("#configuration").split("\n")[0].startswith("optimizer.")
    run.talk.http.patch(run.talk.url(), json={"notes": "theirs", "tags": ["c"]}).raise_for_status()
    time.sleep(6)  # two refreshes
    assert page.run("return document.querySelector('#notes-field').value") == "first and mine"
    page.one("#labels button").click()
    page.wait(lambda: page.text("#labels [role=status]") == "Saved.", what="the form to be sent")
    assert run.talk.get()["notes"] == "first and mine"
    run.talk.http.patch(run.talk.url(), json={"tags": ["d"]}).raise_for_status()
    page.wait(lambda: page.run("return document.querySelector('#tags-field').value") == "d", what="their tags")
    page.run("document.querySelector('#checkpoints').scrollIntoView({block: 'center'})")
    page.one("#checkpoints summary").click()
    run.talk.upload({"more.pt": b"z" * 1000}, part_size=8 * 1024 * 1024, name="more.pt")
    page.wait(lambda: "more.pt" in page.text("#checkpoints"), what="the new checkpoint")
    assert page.attribute("#checkpoints details", "open") is not None
    page.one("#checkpoints tbody tr:first-child [data-opens]").click()
    assert "more.pt" in page.text("#delete-dialog")
    page.one("#delete-dialog .grave").click()
    page.wait(lambda: "more.pt" not in page.text("#checkpoints"), what="the deletion")
    assert page.complaints() == []


def test_the_log_follows_its_end_until_someone_reads_further_up(page, run):
    def place():
        return page.run(
            "const e = document.querySelector('#lines'); return e.scrollHeight - e.scrollTop - e.clientHeight"
        )

    page.run("document.querySelector('#log').scrollIntoView()")
    say(run, "the end")
    page.wait(lambda: "the end" in page.text("#lines"), what="the line")
    page.wait(lambda: place() < 2, what="the end to be seen")
    page.run("document.querySelector('#lines').scrollTop = 100")
    page.wait(lambda: page.one("[data-to-end]").is_displayed(), what="the way back")
    say(run, "much later")
    time.sleep(5)  # two refreshes
    assert page.run("return document.querySelector('#lines').scrollTop") == 100
    assert "much later" not in page.text("#lines")
    page.one("[data-to-end]").click()
    page.wait(lambda: "much later" in page.text("#lines") and place() < 2, what="the end again")
    page.one("[name=log_stream]").send_keys("stderr")
    page.wait(lambda: "Nothing was printed" in page.text("#log"), what="the other stream")
    assert "log_stream=stderr" in page.driver.current_url


def test_the_list_follows_what_is_typed_and_keeps_what_was_chosen(browser, hub, run):
    browser.sign_in(hub)
    browser.open(f"{hub.url}/?project=digits")
    browser.wait(lambda: browser.run("return document.documentElement.dataset.live"), what="the scripts")
    for box in browser.all("#models input[type=checkbox]"):
        box.click()
    browser.one("[name=search]").send_keys("fail")
    browser.wait(lambda: len(browser.all("#models tbody tr")) == 1, what="one model")
    assert browser.driver.current_url.endswith("/?search=fail&project=digits")
    assert active(browser) == "search"
    browser.one("[name=search]").send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.DELETE)
    browser.wait(lambda: len(browser.all("#models tbody tr")) == 2, what="both models")
    browser.all("#models input[type=checkbox]:checked")[0].click()
    assert not browser.one("#models button").is_enabled(), "one alone is not compared"
    for box in browser.all("#models input[type=checkbox]:not(:checked)"):
        box.click()
    time.sleep(4)  # a refresh
    assert len(browser.all("#models input:checked")) == 2
    browser.one("#models button").click()
    browser.wait(lambda: browser.text("h1") == "Compare", what="the comparison")
    assert browser.run("return decodeURIComponent(location.search)").count(",") == 1
    browser.one("[data-shows-differences]").click()
    assert all("≠" in row.text for row in browser.all("#configurations tbody tr") if row.is_displayed())
    assert browser.complaints() == []


def test_an_open_page_outlives_its_hub_and_its_session(browser, tmp_path):
    with HubProcess(tmp_path / "data", api_key=KEY) as hub:
        run = sample_hub.going(hub, "digits", "cnn")
        browser.sign_in(hub)
        browser.open(f"{hub.url}/models/{run.talk.model_id}?log_stream=stdout")
        browser.wait(lambda: browser.run("return document.documentElement.dataset.live"), what="the scripts")
        browser.run("window.stayed = true")
        hub.stop()
        browser.wait(lambda: "not reachable" in browser.text("header"), what="the sign")
        hub.start()
        browser.wait(lambda: "not reachable" not in browser.text("header"), what="the sign to go")
        assert browser.run("return window.stayed") is True
        browser.driver.delete_all_cookies()
        browser.wait(lambda: browser.text("h1") == "Sign in", what="the form")
        browser.one("input[name=key]").send_keys(hub.key, Keys.ENTER)
        browser.wait(lambda: browser.text("h1") == "cnn", what="the page again")
        assert browser.driver.current_url.endswith("?log_stream=stdout")


def test_a_rank_that_says_nothing_alarms_more_than_those_that_wait_for_it(page):
    script = """
        const one = document.createElement("span");
        one.className = arguments[0];
        document.querySelector("#tiles").append(one);
        const {color, backgroundColor, backgroundImage} = getComputedStyle(one);
        return [color, backgroundColor, backgroundImage]
    """
    words = {name: page.run(script, f"state {name}")[0] for name in ("dead", "silent", "stalled", "slow")}
    assert words["silent"] == words["dead"] != words["stalled"] == words["slow"]
    tiles = {name: page.run(script, f"tile {name}")[1:] for name in ("dead", "silent", "stalled", "slow")}
    assert tiles["dead"][0] in tiles["silent"][1]
    assert tiles["slow"][0] in tiles["stalled"][1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_can_be_read_and_fit_a_phone(page, hub, run, hostile, scheme):
    page.scheme(scheme)
    both = f"{run.talk.model_id},{hostile}"
    for path in ("/", f"/models/{run.talk.model_id}", f"/models/{hostile}", f"/compare?models={both}", "/sign-in"):
        page.open(hub.url + path)
        page.run("for (const one of document.querySelectorAll('details')) one.open = true")
        if path.startswith("/models/"):
            page.run("document.querySelector('#charts-section').scrollIntoView()")
            page.wait(lambda: page.attribute("figure.chart", "data-state") == "drawn", what="a chart")
        for size in (WIDE, PHONE):
            page.resize(size)
            assert page.run("return document.documentElement.scrollWidth") <= size[0], page.run(WIDER, size[0])
        assert page.run(SMALL) == [], path
        assert page.run(CONTRASTS) == [], path
        ground = page.run("return getComputedStyle(document.documentElement).backgroundColor")
        assert (sum(map(int, ground.strip("rgb()").split(","))) > 382) == (scheme == "light")
    page.run("document.documentElement.style.setProperty('--text', 'gray')")
    assert page.run(CONTRASTS) != []
    assert page.complaints() == []


def test_a_chosen_theme_is_remembered_and_shown_from_the_first_paint(page, hub):
    button = page.one("[data-theme-switch]")
    assert button.text == "Theme: system"
    button.click()
    button.click()
    assert button.text == "Theme: dark"
    page.open(f"{hub.url}/compare")
    assert page.attribute("html", "data-theme") == "dark"
    page.one("[data-theme-switch]").click()
    assert page.attribute("html", "data-theme") is None


def test_everything_is_reached_by_keyboard(page):
    keys = ActionChains(page.driver)
    keys.send_keys(Keys.TAB).perform()
    assert active(page) == "Skip to the content"
    ActionChains(page.driver).send_keys(Keys.ENTER, Keys.TAB).perform()
    assert active(page) == "Models"
    page.run("document.querySelector('[data-opens=stop-dialog]').focus()")
    ActionChains(page.driver).send_keys(Keys.ENTER).perform()
    page.wait(lambda: page.all("#stop-dialog[open]"), what="the question")
    assert active(page) == "Let it run"
    ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
    page.wait(lambda: not page.all("#stop-dialog[open]"), what="the answer")
    assert active(page) == "Stop"
    focusable = "a[href], button, input, select, textarea, summary, [tabindex]"
    script = "return [...document.querySelectorAll(arguments[0])].filter(one => one.tabIndex < 0).map(one => one.id)"
    assert page.run(script, focusable) == ["main"]
    unnamed = """return [...document.querySelectorAll('button, a[href], input:not([type=hidden]), select, textarea')]
        .filter(one => one.checkVisibility() && !one.textContent.trim() && !one.ariaLabel && !one.labels?.length)
        .map(one => one.outerHTML)"""
    assert page.run(unnamed) == []

"""Prints what pages of a large run cost: how soon a chart is drawn, how it pans, what 20 pages cost the hub.

    python scripts/measure_pages.py --ranks 1000 --steps 1000

Starts a hub, reports the run to it over HTTP (minutes), and opens its page in a real Chromium. 20 windows of it would
keep a small machine busier than the hub does, so 20 open pages are 20 clients: each asks again and again, with its own
ETags, what one real page (its top in view) was seen to ask for beside the live run, at the same moments. Each figure is
of one run; they compare with each other alone.
"""

import argparse
import contextlib
import itertools
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psutil
import requests
from large_run import METRIC, SECONDS_A_STEP, LargeRun
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

WIDTH, HEIGHT = 1440, 1000
STEP_S: Final = 5.0
"""Every rank of the live run logs once in so many seconds."""

RECORDED_S: Final = 30.0
"""For so long a real page is watched to see what it asks for."""

# Runs before the page's own scripts.
WATCH: Final = """
    window.seen = {drawn: null, tasks: [], frames: [], asked: []};
    new PerformanceObserver((list) => seen.tasks.push(...list.getEntries().map((one) => one.duration)))
        .observe({type: "longtask", buffered: true});
    new PerformanceObserver((list) => {
        const fetched = list.getEntries().filter((one) => one.initiatorType === "fetch");
        seen.asked.push(...fetched.map((one) => [one.startTime / 1000, one.name]));
    }).observe({type: "resource", buffered: true});
    new MutationObserver(() => {
        if (seen.drawn === null && document.querySelector('.chart[data-state="drawn"]')) {
            requestAnimationFrame(() => setTimeout(() => { seen.drawn ??= performance.now(); }));
        }
    }).observe(document, {subtree: true, childList: true, attributes: true, attributeFilter: ["data-state"]});
    const frame = (at) => { seen.frames.push(at); requestAnimationFrame(frame); };
    requestAnimationFrame(frame);
"""

CANVAS: Final = f".chart[data-name='{METRIC}'] .u-over"


class Hub:
    """A hub on loopback.

    Args:
        data: its data directory.
    """

    def __init__(self, data: Path) -> None:
        self.key = secrets.token_hex(21)
        self._data = data
        self._process: subprocess.Popen[str] | None = None
        self.url = ""
        self.start()

    def start(self) -> None:
        """Start, on the port of the first start."""
        port = self.url.rpartition(":")[2] or "0"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ddphub.server", "--data", str(self._data), "--port", port],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "DDPHUB_API_KEY": self.key},
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().split()[-1]

    def stop(self) -> None:
        """Stop; what it held in memory is gone."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait()

    def cpu(self) -> float:
        """Seconds of CPU time until now."""
        assert self._process is not None
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def memory(self) -> float:
        """MiB in memory."""
        assert self._process is not None
        return float(psutil.Process(self._process.pid).memory_info().rss / 2**20)


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[webdriver.Chrome]:
    """A Chromium whose every page is watched."""
    options = Options()
    options.binary_location = shutil.which("chromium") or "chromium"
    quiet = ("background-networking", "component-update", "extensions", "sync", "gpu", "quic", "dev-shm-usage")
    for argument in (
        *(f"--disable-{name}" for name in quiet),
        "--headless=new",
        "--no-sandbox",
        "--no-first-run",
        "--no-proxy-server",
        f"--window-size={WIDTH},{HEIGHT}",
        f"--user-data-dir={folder}",
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_page_load_timeout(60)
    try:
        yield driver
    finally:
        driver.quit()


def watch(driver: webdriver.Chrome) -> None:
    """Watch the pages of this window from their first moment on."""
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})


def seen(driver: webdriver.Chrome) -> dict[str, Any]:
    """What was watched until now."""
    found: dict[str, Any] = driver.execute_script("return seen")
    return found


def open_page(driver: webdriver.Chrome, url: str) -> float:
    """Seconds from following a link to this page until its first chart is drawn."""
    driver.get(url)
    until = time.monotonic() + 60
    while (drawn := seen(driver)["drawn"]) is None:
        if time.monotonic() > until:
            raise TimeoutError(f"no chart was drawn on {url}")
        time.sleep(0.05)
    return float(drawn) / 1000


def pan(driver: webdriver.Chrome, seconds: float) -> tuple[float, float, int]:
    """Zoom in, then drag to and fro: (longest gap between frames in ms, longest task in ms, frames a second)."""
    driver.execute_script(
        "document.querySelector(arguments[0]).closest('.chart').scrollIntoView({block: 'center'})", CANVAS
    )
    over = driver.find_element(By.CSS_SELECTOR, CANVAS)
    box = over.rect
    scroll = driver.execute_script("return scrollY")
    y, left, width = box["y"] - scroll + box["height"] / 2, box["x"], box["width"]

    def mouse(kind: str, part: float, shift: int = 8) -> None:
        event = {"type": kind, "x": left + part * width, "y": y, "button": "left", "buttons": 1, "clickCount": 1}
        driver.execute_cdp_cmd("Input.dispatchMouseEvent", {**event, "modifiers": shift})

    mouse("mousePressed", 0.4, 0)
    for part in (0.45, 0.5, 0.55):
        mouse("mouseMoved", part, 0)
    mouse("mouseReleased", 0.55, 0)
    time.sleep(1)
    driver.execute_script("seen.tasks = []; seen.frames = []")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        mouse("mousePressed", 0.9)
        for part in range(90, 10, -2):
            mouse("mouseMoved", part / 100)
        for part in range(10, 90, 2):
            mouse("mouseMoved", part / 100)
        mouse("mouseReleased", 0.9)
    found = seen(driver)
    frames = found["frames"]
    gap = max(after - before for before, after in itertools.pairwise(frames))
    return gap, max(found["tasks"], default=0.0), round(len(frames) / seconds)


@contextlib.contextmanager
def live(run: LargeRun, first: int) -> Iterator[None]:
    """The run goes on: all ranks log a step every `STEP_S`."""
    over = threading.Event()

    def train() -> None:
        step = first
        while not over.wait(STEP_S):
            run.step(step)
            step += 1

    thread = threading.Thread(target=train)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def cores(hub: Hub, seconds: float) -> float:
    """Cores that the hub keeps busy."""
    before, start = hub.cpu(), time.monotonic()
    time.sleep(seconds)
    return (hub.cpu() - before) / (time.monotonic() - start)


def measure(hub: Hub, run: LargeRun, driver: webdriver.Chrome, pages: int, seconds: float) -> None:
    """Everything, on a hub that has the run."""
    page = f"{hub.url}/models/{run.model_id}"
    watch(driver)
    driver.get(f"{hub.url}/sign-in")
    driver.find_element(By.NAME, "key").send_keys(hub.key)
    driver.find_element(By.CSS_SELECTOR, "form button").click()
    WebDriverWait(driver, 30).until(lambda _: not driver.current_url.endswith("/sign-in"))
    for show, what in (("rank0", "rank 0"), ("band", "mean and band of all ranks")):
        hub.stop()
        hub.start()
        first = open_page(driver, f"{page}?chart-show={show}")
        again = min(open_page(driver, f"{page}?chart-show={show}") for _ in range(3))
        print(f"open, {what:28} {first:6.2f} s on a hub just started, {again:5.2f} s then")
    tiles = driver.execute_script("return document.querySelectorAll('#tiles .tiles li').length")
    print(f"tiles of ranks {tiles}; the hub holds {hub.memory():.0f} MiB")
    with live(run, run.steps):
        for show in ("rank0", "band", "ranks&chart-ranks=0-63"):
            open_page(driver, f"{page}?chart-show={show}")
            gap, task, rate = pan(driver, 6)
            print(
                f"pan, {show:22} longest gap between frames {gap:3.0f} ms, longest task {task:3.0f} ms, {rate} frames/s"
            )
        open_page(driver, f"{page}?chart-show=band")
        time.sleep(10)
        start = float(driver.execute_script("return performance.now() / 1000"))
        time.sleep(RECORDED_S)
        asked = [(at - start, url) for at, url in seen(driver)["asked"] if at > start]
        cookies = {one["name"]: one["value"] for one in driver.get_cookies()}
        driver.get("about:blank")
        alone = cores(hub, seconds)
        visits = [Visit(sorted(asked), cookies) for _ in range(pages)]
        time.sleep(10)
        before = sum(visit.count for visit in visits)
        busy = cores(hub, seconds)
        asking = (sum(visit.count for visit in visits) - before) / seconds
        for visit in visits:
            visit.close()
    print(f"live run, {run.ranks} ranks log every {STEP_S:g} s: {alone:.2f} cores of the hub")
    print(f"the same with {pages} open pages: {busy:.2f} cores of the hub, {asking:.0f} requests a second")


class Visit:
    """An open page, as the hub sees it.

    Args:
        asked: when the page asked for what, in seconds from a start.
        cookies: of who signed in.
    """

    def __init__(self, asked: list[tuple[float, str]], cookies: dict[str, str]) -> None:
        self.count = 0
        self._asked = asked
        self._cookies = cookies
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def close(self) -> None:
        """The page is closed."""
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        etags: dict[str, str] = {}
        # Not all pages at the same moment.
        start = time.monotonic() - random.random() * RECORDED_S
        with requests.Session() as http:
            http.trust_env = False
            http.cookies.update(self._cookies)
            while True:
                for at, url in self._asked:
                    wait = start + at - time.monotonic()
                    if wait > 0 and self._over.wait(wait):
                        return
                    # What was due before it began.
                    if wait < -1:
                        continue
                    answer = http.get(url, headers={"If-None-Match": etags.get(url, "")}, timeout=30)
                    etags[url] = answer.headers.get("ETag", "")
                    self.count += 1
                start += RECORDED_S


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--pages", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each share of CPU time is measured")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        hub = Hub(Path(folder) / "hub")
        try:
            begun = time.time() - SECONDS_A_STEP * arguments.steps
            run = LargeRun(hub.url, hub.key, arguments.ranks, arguments.steps, begun)
            start = time.monotonic()
            run.join()
            run.log(range(arguments.steps))
            taken = time.monotonic() - start
            points = arguments.ranks * arguments.steps
            print(f"{arguments.ranks} ranks, {points:,} points, taken in by the hub in {taken:.0f} s")
            with chromium(Path(folder) / "profile") as driver:
                measure(hub, run, driver, arguments.pages, arguments.seconds)
        finally:
            hub.stop()


if __name__ == "__main__":
    main()

"""A real Chromium, driven as a person would use it, and what it did meanwhile: requests, errors, violations."""

import base64
import json
import shutil
from pathlib import Path
from urllib.parse import urlsplit

from jobs import wait_until
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

WIDE, PHONE = (1440, 1000), (390, 844)
"""Widths and heights of a window, in CSS pixels."""

_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # root has none
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
    "--hide-scrollbars",
)


class Browser:
    """One window of a Chromium of its own.

    Args:
        folder: an empty folder: its profile, and `downloads`.
        arguments: more switches of Chromium.
    """

    def __init__(self, folder: Path, arguments: tuple[str, ...] = ()):
        self.downloads = folder / "downloads"
        self.downloads.mkdir(parents=True, exist_ok=True)
        options = Options()
        options.binary_location = shutil.which("chromium")
        for argument in (*_ARGUMENTS, *arguments, f"--user-data-dir={folder / 'profile'}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        options.add_experimental_option("prefs", {"download.default_directory": str(self.downloads)})
        self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        self.driver.set_page_load_timeout(90)
        self.driver.set_script_timeout(90)
        self._requested: list[str] = []
        self._complaints: list[str] = []

    def reset(self):
        """As a new window: nobody is signed in, nothing was asked for yet."""
        self.driver.get("about:blank")
        self.driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
        self.resize(WIDE)
        self.scheme("light")
        self._read_logs()
        self._requested.clear()
        self._complaints.clear()

    def close(self):
        """End Chromium."""
        self.driver.quit()

    def resize(self, size):
        """Set the page's own width and height, however small a window may get."""
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def scheme(self, name):
        """What the system prefers: `light` or `dark`."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def open(self, url):
        """Go to a page."""
        self.driver.get(url)

    def sign_in(self, hub):
        """Through the form; ends on the models page."""
        self.open(f"{hub.url}/sign-in")
        self.one("input[name=key]").send_keys(hub.key)
        self.one("form button").click()
        self.wait(lambda: urlsplit(self.driver.current_url).path == "/", what="signing in")

    def all(self, selector):
        """Every element that a CSS selector finds."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        """The first element that a CSS selector finds, waited for."""
        return self.wait(lambda: next(iter(self.all(selector)), None), what=selector)

    def text(self, selector="body"):
        """The visible text of the first element that a CSS selector finds; empty when there is none."""
        script = "return document.querySelector(arguments[0])?.innerText ?? ''"
        return self.driver.execute_script(script, selector)

    def attribute(self, selector, name):
        """An attribute of the first element that a CSS selector finds; None when there is none."""
        script = "return document.querySelector(arguments[0])?.getAttribute(arguments[1]) ?? null"
        return self.driver.execute_script(script, selector, name)

    def look_at(self, selector):
        """Scroll to the first element that a CSS selector finds: a page refreshes only what is in sight."""
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", self.one(selector))

    def run(self, script, *arguments):
        """What a script returns; for looking at the page, not for working it."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition, timeout=120.0, what="the condition"):
        """Asks again until `condition()` is true, also when a refresh took an element away; returns its value."""

        def now():
            try:
                return condition()
            except StaleElementReferenceException:
                return None

        return wait_until(now, timeout, what)

    def requested(self):
        """Every URL that was asked for since `reset`, of whatever kind."""
        self._read_logs()
        return list(self._requested)

    def complaints(self):
        """What Chromium complained of since `reset`: errors of scripts, refused content, requests that failed."""
        self._read_logs()
        return list(self._complaints)

    def screenshot(self, path, *, whole=True):
        """Write a PNG of the page, also of what lies below the window."""
        size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        width = self.run("return innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": size["height"], "scale": 1}
        options = {"captureBeyondViewport": True, "clip": clip} if whole else {}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", **options})
        path.write_bytes(base64.b64decode(shot["data"]))

    def _read_logs(self):
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self._requested.append(message["params"]["request"]["url"])
        for entry in self.driver.get_log("browser"):
            if entry["level"] in {"SEVERE", "WARNING"}:
                self._complaints.append(entry["message"])


def hosts(urls):
    """Scheme, host and port of each URL that leaves the browser."""
    return {
        f"{parts.scheme}://{parts.netloc}"
        for parts in map(urlsplit, urls)
        if parts.scheme not in {"data", "blob", "about"}
    }

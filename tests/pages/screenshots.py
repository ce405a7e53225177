"""Takes a picture of every page, light and dark, wide and on a phone, of a hub as a team's would look.

    python tests/pages/screenshots.py FOLDER

Those of the README are in scripts/screenshots: `readme-*.png` of FOLDER, looked at and copied.
Needs Chromium and chromedriver. Takes about a minute, as runs must be silent for that long to be lost.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sample_hub
from browser import PHONE, WIDE, Browser
from hub_process import KEY, HubProcess
from hub_talk import PART_SIZE

SILENCE_S = 32
ARGUMENTS = ("--part-size", str(PART_SIZE))


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        HubProcess(Path(scratch, "hub"), api_key=KEY, arguments=ARGUMENTS) as hub,
    ):
        browser = Browser(Path(scratch, "chromium"))
        try:
            pictures(browser, hub, folder)
        finally:
            browser.close()


def pictures(browser, hub, folder):
    browser.reset()
    browser.open(f"{hub.url}/sign-in")
    take(browser, folder, "sign-in")
    browser.sign_in(hub)
    take(browser, folder, "empty")
    sample_hub.fill(hub)
    sample_hub.going(hub, "detection", "yolo11m-coco")
    stalled = sample_hub.going(hub, "detection", "yolo11l-coco")
    with sample_hub.LiveRun(hub, beating=[stalled]) as live:
        time.sleep(SILENCE_S)
        browser.open(hub.url)
        take(browser, folder, "models")
        time.sleep(1)
        take_one(browser, folder / "readme-models.png", (1180, 700), "light")
        browser.open(f"{hub.url}/models/{live.talk.model_id}")
        time.sleep(5)
        take_one(browser, folder / "readme-model.png", (1180, 1180), "dark")
        browser.one("details:has(#delivery) summary").click()
        time.sleep(5)
        take(browser, folder, "model")
        browser.run("document.querySelector('#ranks-section').scrollIntoView()")
        take(browser, folder, "ranks", whole=False)
        browser.run("document.querySelector('#attempts-section').scrollIntoView()")
        take(browser, folder, "attempts", whole=False)
        browser.one("[data-opens=stop-dialog]").click()
        take(browser, folder, "stop", whole=False)
        browser.one("[data-closes]").click()
        browser.open(f"{hub.url}/models/{stalled.talk.model_id}")
        take(browser, folder, "stalled")
        found = browser.run("return fetch('/v1/models').then(answer => answer.json())")["data"]["results"]
        ids = {one["name"]: one["id"] for one in found}
        browser.open(f"{hub.url}/models/{ids['yolo11n-crowd']}")
        browser.one("details.traceback summary").click()
        take(browser, folder, "failed")
        browser.open(f"{hub.url}/compare?models={ids['yolo11n-coco']},{ids['yolo11s-coco']},{ids['yolo11n-crowd']}")
        time.sleep(3)
        take(browser, folder, "compare")
    print(f"requests to {sorted({url.split('/')[2] for url in browser.requested() if url.startswith('http')})}")
    for complaint in browser.complaints():
        print(f"complaint: {complaint}")


def take_one(browser, path, size, scheme):
    browser.resize(size)
    browser.scheme(scheme)
    time.sleep(1.5)
    browser.screenshot(path, whole=False)
    browser.resize(WIDE)
    browser.scheme("light")


def take(browser, folder, name, *, whole=True):
    for size, width in ((WIDE, "wide"), (PHONE, "phone")):
        for scheme in ("light", "dark"):
            browser.resize(size)
            browser.scheme(scheme)
            time.sleep(0.4)
            browser.screenshot(folder / f"{name}-{width}-{scheme}.png", whole=whole)
        overflow = browser.run("return document.documentElement.scrollWidth - innerWidth")
        if overflow > 0:
            print(f"{name} {width}: scrolls sideways by {overflow}")
    browser.resize(WIDE)
    browser.scheme("light")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

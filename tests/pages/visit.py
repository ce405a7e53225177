"""Starts a hub and a browser, looks at every page, and prints what was seen as JSON; run it without a network.

unshare --net sh -c 'ip link set lo up && python tests/pages/visit.py FOLDER'
"""

import json
import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import postgres
import sample_hub
from browser import Browser, hosts
from hub_process import KEY, HubProcess


def can_leave():
    """Whether any address but loopback can be reached."""
    with socket.socket() as probe:
        probe.settimeout(2)
        try:
            probe.connect(("192.0.2.1", 80))
        except OSError as error:
            return "unreachable" not in str(error)
    return True


def main(folder):
    # The run that goes on says no more, and a browser may take its time to start.
    os.environ.pop(postgres.SERVER, None)  # this network has no way to it
    with HubProcess(folder / "hub", api_key=KEY, arguments=("--heartbeat-s", "100", "--stall-s", "600")) as hub:
        sample_hub.ended(hub, "digits", "cnn", "failed", hours_ago=1, steps=60, reason="ValueError: no")
        sender = sample_hub.going(hub, "digits", "cnn-live")
        browser = Browser(folder / "chromium")
        try:
            browser.reset()
            browser.sign_in(hub)
            seen = {"models": browser.text("#models")}
            browser.open(f"{hub.url}/models/{sender.talk.model_id}")
            browser.wait(lambda: browser.attribute("figure.chart", "data-state") == "drawn", what="a chart")
            browser.wait(lambda: browser.run("return document.documentElement.dataset.live"), what="the scripts")
            seen["model"] = browser.text("main")
            browser.open(f"{hub.url}/compare?models={sender.talk.model_id}")
            browser.wait(lambda: browser.attribute("figure.chart", "data-state") == "drawn", what="a chart")
            seen["compare"] = browser.text("main")
            outside = sorted(hosts(browser.requested()) - {hub.url})
            told = {"seen": seen, "outside": outside, "complaints": browser.complaints(), "can_leave": can_leave()}
        finally:
            browser.close()
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

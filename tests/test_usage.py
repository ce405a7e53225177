"""Usage events against a real endpoint."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ddphub import usage
from ddphub.usage import MOST_QUEUED, Usage, installed_how


@pytest.fixture
def endpoint():
    """A server that keeps what it is sent; `url`, `received`."""
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((self.path, json.loads(body)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        server.received = received
        server.url = f"http://127.0.0.1:{server.server_port}/mp/collect?measurement_id=G-1&api_secret=s3cret"
        yield server
        server.shutdown()
        thread.join()


def test_events_go_to_the_endpoint_that_the_user_names(endpoint, monkeypatch):
    monkeypatch.setenv("DDPHUB_USAGE_URL", endpoint.url)
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    counted = Usage.from_environment()
    counted.put("train", task="detect", model="yolo11n.pt")
    counted._timer.join()
    ((path, content),) = endpoint.received
    assert path.endswith("measurement_id=G-1&api_secret=s3cret")
    (event,) = content["events"]
    assert event["name"] == "train"
    assert set(event["params"]) == {"task", "model", "ddphub", "python"}
    assert len(content["client_id"]) == 32


def test_one_request_a_minute_with_25_events_at_most(endpoint, monkeypatch):
    monkeypatch.setattr(usage, "PACE", 1.0)
    counted = Usage(endpoint.url)
    counted.put("train")
    counted._timer.join()
    for _ in range(MOST_QUEUED + 10):
        counted.put("val")
    assert len(endpoint.received) == 1, "the next one waits for its time"
    counted._timer.join()
    assert [len(content["events"]) for _, content in endpoint.received] == [1, MOST_QUEUED]


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"DDPHUB_USAGE_URL": ""},
        {"DDPHUB_USAGE_URL": "http://127.0.0.1:9/", "DO_NOT_TRACK": "1"},
        {"DDPHUB_USAGE_URL": "file:///tmp/x"},
    ],
)
def test_off_unless_asked_for(variables, monkeypatch):
    for name in ("DDPHUB_USAGE_URL", "DO_NOT_TRACK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    counted = Usage.from_environment()
    counted.put("train")
    assert (counted._queue, counted._timer) == ([], None)


def test_an_endpoint_that_is_down_costs_nothing_and_shows_no_secret():
    """The process neither waits for it at its end nor writes the URL anywhere."""
    program = """
import logging, time
logging.basicConfig(level=logging.DEBUG)
from ddphub.usage import Usage
counted = Usage("http://127.0.0.1:9/collect?api_secret=s3cret")
counted.put("train")
counted._timer.join()
counted.put("train")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=150, check=True)
    assert "usage events were not sent" in done.stderr
    assert "s3cret" not in done.stderr + done.stdout


def test_how_a_package_was_installed():
    assert installed_how("ddphub") == "local"
    assert installed_how("requests") == "pip"
    assert installed_how("no-such-package") == "other"

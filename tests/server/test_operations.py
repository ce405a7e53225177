"""What those who run a hub look at: health, figures, the log, request ids, and pages for what cannot be answered."""

import io
import json
import logging
import os
import re
import threading

import pytest
import requests
from hub_talk import Talk, metrics_event, problem

from ddphub.server.logs import HubLog

LINE = re.compile(r"^(?P<name>[a-z_]+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")


def figures(text):
    """{(name, the labels as they stand): value} of Prometheus' text format."""
    found = [LINE.match(line) for line in text.splitlines() if not line.startswith("#")]
    return {(one["name"], one["labels"] or ""): float(one["value"]) for one in found}


def log_of(hub):
    """What the hub logged; without what Python says of a hub that was forked."""
    return "".join(line for line in hub.log.read_text().splitlines(True) if "runpy" not in line)


def log_lines(hub, route=None):
    """The lines of a log in JSON: for a route, or all."""
    lines = [json.loads(line) for line in log_of(hub).splitlines()]
    return [line for line in lines if route is None or line.get("route") == route]


# Health --------------------------------------------------------------------------------------------------------------


def test_a_hub_whose_storage_is_gone_lives_and_is_not_ready(start_hub):
    hub = start_hub()
    assert requests.get(f"{hub.url}/readyz").json()["data"] == {"database": "ok", "storage": "ok", "hub": "ok"}
    (hub.data_dir / "blobs").rename(hub.data_dir / "elsewhere")
    Talk.wait_until(lambda: requests.get(f"{hub.url}/readyz").status_code == 503)
    answer = requests.get(f"{hub.url}/readyz")
    assert problem(answer, 503)["parts"] == {"database": "ok", "storage": "failed", "hub": "ok"}
    assert answer.headers["retry-after"] == "1"
    assert requests.get(f"{hub.url}/healthz").status_code == 200
    (hub.data_dir / "elsewhere").rename(hub.data_dir / "blobs")
    Talk.wait_until(lambda: requests.get(f"{hub.url}/readyz").status_code == 200)
    assert "not ready: the storage failed" in hub.log.read_text()


# Figures -------------------------------------------------------------------------------------------------------------


def test_figures_count_what_happened_and_are_for_who_may_read_all(start_hub):
    hub = start_hub()
    talk = Talk(hub)
    events = [metrics_event(talk.attempt_id, seq) for seq in range(3)]
    talk.accepted(*events)
    talk.accepted(*events[:1])
    talk.http.get(talk.url("/nothing"))
    assert requests.get(f"{hub.url}/metrics").status_code == 401
    answer = talk.http.get(f"{hub.url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found = figures(answer.text)
    assert found["ddphub_events_total", 'outcome="stored"'] == 3
    assert found["ddphub_events_total", 'outcome="known"'] == 1
    route = 'method="POST",route="/v1/models/{model_id}/events"'
    assert found["ddphub_requests_total", f'{route},status="200"'] == 2
    assert found["ddphub_request_seconds_count", route] == 2
    assert found["ddphub_requests_total", 'method="GET",route="unknown",status="404"'] == 1
    assert found["ddphub_requests_in_progress", ""] == 1
    assert found["ddphub_connections", ""] >= 1
    assert found["ddphub_received_bytes_total", ""] >= 3 * 100
    assert found["process_resident_memory_bytes", ""] > 1e6
    assert {"ddphub_checks", "ddphub_database_connections"} <= {name for name, _ in found}
    # Nothing that a client chose is in them: whoever can read figures reads no names.
    assert talk.project not in answer.text
    assert talk.model_id not in answer.text


@pytest.mark.parametrize(("fields", "status"), [({"role": "reader"}, 200), ({"role": "writer", "project": "p"}, 403)])
def test_a_key_for_one_project_reads_no_figures(hub, fields, status):
    made = hub.client().post(f"{hub.url}/v1/keys", json={"name": "prometheus", **fields})
    assert made.status_code == 200, made.text
    sent = {"authorization": f"Bearer {made.json()['data']['key']}"}
    assert requests.get(f"{hub.url}/metrics", headers=sent).status_code == status


def test_figures_are_open_where_the_settings_say_so(start_hub):
    hub = start_hub(arguments=("--metrics-open",))
    assert requests.get(f"{hub.url}/metrics").status_code == 200


# The log -------------------------------------------------------------------------------------------------------------


def test_each_request_has_a_line_with_its_id_and_without_secrets(start_hub):
    hub = start_hub(arguments=("--log-format", "json"))
    talk = Talk(hub)
    data = talk.begin({"a": b"abc"})
    talk.send_missing(data, {"a": b"abc"})
    talk.complete(data["id"])
    talk.http.get(talk.url("?token=in-the-query"), headers={"X-Request-Id": "from-the-proxy.1"})
    hub.stop()
    (line,) = [one for one in log_lines(hub, "/v1/models/{model_id}") if one["request_id"] == "from-the-proxy.1"]
    assert line["time"].endswith("Z")
    wanted = {"level": "info", "method": "GET", "status": 200, "client": "127.0.0.1", "who": "the settings' key"}
    assert wanted.items() <= line.items()
    assert line["ms"] > 0
    assert line["sent"] > 100
    (put,) = log_lines(hub, "/v1/parts/{checkpoint}/{file}/{number}")
    assert (put["received"], put["who"], put["status"]) == (3, None, 200)
    text = hub.log.read_text()
    for secret in (hub.key, "in-the-query", "signature", data["missing"][0]["parts"][0]["url"].partition("?")[2]):
        assert secret not in text


@pytest.mark.parametrize(
    ("given", "is_taken"),
    [("a-b.C_9", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("a%0aforged", False), ("", False)],
)
def test_a_sane_request_id_is_taken_and_another_one_made(hub, given, is_taken):
    answer = requests.get(f"{hub.url}/v1/models", headers={"X-Request-Id": given})
    said = answer.headers["x-request-id"]
    assert (said == given) == is_taken
    assert re.fullmatch("[A-Za-z0-9._-]{1,64}", said)
    assert problem(answer, 401)["request_id"] == said


def test_a_failure_is_logged_with_its_request_and_told_without_its_cause(start_hub):
    hub = start_hub(arguments=("--log-format", "json"))
    talk = Talk(hub)
    checkpoint_id = talk.upload({"a": b"abc"})
    (blob,) = [path for path in (hub.data_dir / "blobs").rglob("*") if path.is_file()]
    blob.unlink()
    answer = talk.download(checkpoint_id, "a", X_Request_Id="the-lost-one")
    assert blob.name not in problem(answer, 500)["detail"]
    hub.stop()
    (error,) = [line for line in log_lines(hub) if line["level"] == "error"]
    assert error["request_id"] == "the-lost-one"
    assert blob.name in json.dumps(error)


def test_only_what_matters_is_logged_where_the_level_says_so(start_hub):
    hub = start_hub(arguments=("--log-level", "error"))
    Talk(hub).accepted()
    hub.stop()
    # The PostgreSQL of tests does not wait for its disk, and is told off for that.
    assert [line for line in log_of(hub).splitlines() if "fsync=off" not in line] == []


def test_a_log_that_nobody_reads_holds_up_nothing(monkeypatch):
    """The writer's thread sits in a pipe that is full; what logs goes on, and says later what was dropped."""
    reader, writer = os.pipe()
    lines = []

    def read():
        with os.fdopen(reader) as pipe:
            lines.extend(pipe)

    reading = threading.Thread(target=read)
    with os.fdopen(writer, "w", buffering=1) as pipe:
        monkeypatch.setattr("sys.stderr", pipe)
        with HubLog("text", "info"):
            for number in range(15_000):
                logging.getLogger("test").info("line %d of this log\nand what follows", number)
            reading.start()
            Talk.wait_until(lambda: len(lines) > 19_000)
            logging.getLogger("test").info("the last one")
    reading.join()
    assert any(re.search(r"logs: \d+ lines of this log were dropped", line) for line in lines)
    assert "the last one" in lines[-1]
    assert {line[:4] for line in lines} == {lines[0][:4], "    "}


def test_no_text_changes_a_terminal_or_forges_a_line(monkeypatch):
    monkeypatch.setattr("sys.stderr", written := io.StringIO())
    forged = "a\r\x1b[2K2026-01-01 forged\u2028b\nc"
    with HubLog("text", "info"):
        logging.getLogger("test").error(forged, exc_info=ValueError(forged))
    lines = written.getvalue().splitlines()
    assert [line[:4] == "    " for line in lines] == [False] + [True] * (len(lines) - 1)
    assert not set(written.getvalue()) & set("\r\x1b\u2028")


# Pages ---------------------------------------------------------------------------------------------------------------


def test_a_browser_gets_a_page_for_what_cannot_be_answered(hub, browser, talk):
    html = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    for path, status, words in (
        ("/nothing/here", 404, "There is nothing here"),
        (f"/models/{talk.model_id}?log_rank=abc", 422, "This address cannot be understood"),
        ("/models/nothing", 404, "no such model"),
    ):
        answer = browser.get(hub.url + path, headers=html)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8"), path
        assert words in answer.text
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-request-id"]
    # Programs, and whatever is below /v1, get JSON.
    problem(browser.get(f"{hub.url}/nothing/here"), 404)
    problem(browser.get(f"{hub.url}/v1/nothing", headers=html), 404)


def test_a_page_can_be_asked_for_without_its_body(hub, browser, talk):
    for path in ("/", "/sign-in", f"/models/{talk.model_id}", "/compare"):
        whole, head = browser.get(hub.url + path), browser.head(hub.url + path)
        assert (head.status_code, head.text) == (200, ""), path
        assert head.headers["content-type"] == whole.headers["content-type"]

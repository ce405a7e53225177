"""docs/operations.md: its unit starts a hub, its proxy is believed, its numbers are the settings' own."""

import configparser
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import requests
from hub_talk import Talk
from test_operations import figures
from test_operations_tls import make_certificate

from ddphub.server.settings import ServerSettings

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "operations.md").read_text()
PROGRAM = (sys.executable, "-c", "from ddphub.cli import main; main()")


def block(language):
    """The document's block of code in a language."""
    return re.search(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)[1]


def test_the_unit_starts_a_hub_and_its_reload_and_stop_work(tmp_path):
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str
    # A line that ends in a backslash goes on.
    unit.read_string(block("ini").replace("\\\n", " "))
    service = unit["Service"]
    certificate, key = make_certificate(tmp_path)
    places = {
        "/opt/ddphub/bin/ddphub": None,
        "/var/lib/ddphub": tmp_path / "data",
        "/etc/ddphub/hub.pem": certificate,
        "/etc/ddphub/hub.key": key,
        "0.0.0.0": "127.0.0.1",
        "8765": "0",
    }
    program, *arguments = shlex.split(service["ExecStart"])
    assert places[program] is None
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            [*PROGRAM, *(str(places.get(one, one)) for one in arguments)],
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "DDPHUB_API_KEY": "k" * 42},
            text=True,
        ) as process,
    ):
        url = process.stdout.readline().removeprefix("ddphub hub on ").strip()
        assert requests.get(f"{url}/readyz", verify=certificate).status_code == 200
        assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
        process.send_signal(signal.SIGHUP)
        Talk.wait_until(lambda: "the certificate was loaded anew" in (tmp_path / "log").read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    defaults = ServerSettings(data=tmp_path)
    assert int(service["TimeoutStopSec"]) > defaults.drain_s + defaults.shutdown_s + 10


def test_what_the_proxy_sends_is_believed_by_the_hub_beside_it(start_hub):
    (arguments,) = re.findall(r"with `ddphub serve ([^`]+)`", TEXT)
    hub = start_hub(arguments=(*shlex.split(arguments), "--log-format", "json"))
    variables = {"$host": "hub.example.org", "$scheme": "https", "$remote_addr": "203.0.113.9", "$request_id": "id-1"}
    sent = dict(re.findall(r"proxy_set_header ([\w-]+) (\$\w+);", block("nginx")))
    headers = {name: variables[value] for name, value in sent.items()}
    assert headers.keys() >= {"Host", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"}
    origin = {"Origin": "https://hub.example.org"}
    answer = requests.post(
        f"{hub.url}/sign-in", data={"key": hub.key}, headers={**headers, **origin}, allow_redirects=False
    )
    assert (answer.status_code, answer.headers["x-request-id"]) == (303, "id-1")
    assert "; secure" in answer.headers["set-cookie"].lower()
    hub.stop()
    (line,) = [json.loads(line) for line in hub.log.read_text().splitlines() if '"id-1"' in line]
    assert line["client"] == "203.0.113.9"
    # The line in the document has the fields that lines have.
    assert list(json.loads(block("json"))) == list(line)


def test_every_figure_and_number_of_the_document_is_the_hubs(hub):
    Talk(hub).accepted()
    told = {name for name, _ in figures(hub.client().get(f"{hub.url}/metrics").text)}
    named = set(re.findall(r"`(ddphub_[a-z_]+)", TEXT))
    # A histogram has three, and what has not happened yet has none.
    assert {name for name in named if not name.endswith(("_refused_total", "_request_seconds"))} <= told
    assert "ddphub_request_seconds_count" in told
    defaults = ServerSettings(data=Path("unused"))
    for text in (
        f"`--rate-limit` {defaults.rate_limit:g}",
        f"`--max-requests` {defaults.max_requests}",
        f"`--max-connections` {defaults.max_connections:,}",
        f"`--receive-s` {defaults.receive_s:g}",
        f"`--shutdown-s` ({defaults.shutdown_s})",
        f"`--drain-s` ({defaults.drain_s:g})",
    ):
        assert text in TEXT.replace("\n", " ")


def test_every_option_in_the_document_is_one_of_the_program():
    helped = subprocess.run(
        [*PROGRAM, "serve", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200", "TERM": "dumb"},
    ).stdout
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT)) - {"--name", "--role"}
    assert named
    assert {one for one in named if one not in helped} == set()

"""`ddphub hub users|keys|audit` against a real hub: what they say, and their exit codes."""

import json
import re
import sys
import time
from pathlib import Path

import pytest
import requests
from hub_process import KEY, HubProcess

from ddphub.cli import main
from ddphub.server.throttle import MOST


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with HubProcess(tmp_path_factory.mktemp("hub") / "data", api_key=KEY) as process:
        yield process


@pytest.fixture
def run(hub, monkeypatch, capsys):
    """Runs `ddphub hub ...`; returns exit code, standard output and errors."""

    def call(*arguments, key=KEY, code=0):
        monkeypatch.setenv("DDPHUB_URL", hub.url)
        monkeypatch.setenv("DDPHUB_API_KEY", key)
        monkeypatch.setattr(sys, "argv", ["ddphub", "hub", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert (ended.value.code or 0) == code, said
        return said.out if code == 0 else said.err

    return call


def can(hub, key, method, path, body=None, **headers):
    answer = requests.request(method, f"{hub.url}/v1{path}", json=body, headers={"x-api-key": key, **headers})
    return answer.status_code


def test_from_a_user_to_a_key_for_one_run_and_back(hub, run):
    assert run("users", "add", "grace") == "added grace\n"
    assert run("users", "grant", "grace", "writer", "--project", "birds") == "grace: writer in birds\n"
    key = run("keys", "add", "--user", "grace", "--name", "laptop").strip()
    assert re.fullmatch("[A-Za-z0-9]{42}", key)
    made = json.loads(run("keys", "add", "--project", "birds", "--run-id", "r-7", "--expires", "7d", "--json", key=key))
    assert (made["user"], made["role"], made["project"], made["run_id"]) == ("grace", "writer", "birds", "r-7")
    assert made["name"] == "run r-7 of birds"
    assert 7 * 86400 - 60 < made["expires_at"] - time.time() <= 7 * 86400
    model = {"project": "birds", "meta": {"name": "net"}}
    assert can(hub, made["key"], "POST", "/models", model, **{"Idempotency-Key": "r-7"}) == 200
    assert can(hub, made["key"], "POST", "/models", model, **{"Idempotency-Key": "r-8"}) == 403
    table = run("keys", "list", key=key).splitlines()
    assert table[0].startswith("ID\tNAME")
    assert len(table) == 3
    assert [json.loads(line)["name"] for line in run("keys", "list", "--json", key=key).splitlines()] == [
        "laptop",
        "run r-7 of birds",
    ]
    assert "--yes" in run("keys", "revoke", made["id"], code=2)
    assert run("keys", "revoke", made["prefix"], "--yes", key=key) == f"revoked {made['id']}\n"
    assert can(hub, made["key"], "GET", "/capabilities") == 401
    assert "revoked" in run("keys", "list", "--every")
    assert run("users", "disable", "grace") == "grace: disabled\n"
    assert can(hub, key, "GET", "/capabilities") == 401
    assert run("users", "enable", "grace") == "grace: writer in birds\n"
    assert run("users", "grant", "grace", "reader") == "grace: reader in all projects, writer in birds\n"
    assert run("users", "ungrant", "grace", "--project", "birds") == "grace: reader in all projects\n"
    assert "grace\treader in all projects" in run("users", "list")
    assert run("users", "remove", "grace", "--yes") == "removed grace\n"
    assert can(hub, key, "GET", "/capabilities") == 401
    told = run("audit").splitlines()
    assert told[0].startswith("WHEN\tWHO\tWHAT")
    assert "user.remove\tgrace" in told[-1]
    records = [json.loads(line) for line in run("audit", "--after", "0", "--json").splitlines()]
    assert [one["action"] for one in records[:4]] == ["user.add", "user.change", "key.add", "key.add"]
    assert run("audit", "--limit", "1", "--json").strip() == json.dumps(records[-1])


def test_what_is_wrong_is_said_in_one_line(run):
    weak = run("keys", "add", "--role", "reader", "--no-user").strip()
    for code, words, arguments, key in (
        (2, "--project", ("keys", "add", "--run-id", "r"), KEY),
        (2, "not both", ("keys", "add", "--user", "x", "--no-user"), KEY),
        (2, "12h or 7d", ("keys", "add", "--expires", "tomorrow"), KEY),
        (2, "12h or 7d", ("keys", "add", "--expires", "0d"), KEY),
        (2, "one of reader", ("keys", "add", "--role", "owner"), KEY),
        (2, "--role", ("users", "add", "x", "--project", "p"), KEY),
        (1, "no user of this name", ("keys", "add", "--user", "nobody"), KEY),
        (1, "no user nobody", ("users", "enable", "nobody"), KEY),
        (1, "no key that begins", ("keys", "revoke", "nobody", "--yes"), KEY),
        (1, "hub's admin", ("users", "list"), weak),
        (1, "hub's admin", ("audit",), weak),
        (1, "made by users and admins", ("keys", "add"), weak),
        (1, "does not know the key", ("keys", "list"), "x" * 42),
    ):
        said = run(*arguments, key=key, code=code)
        assert words in said, said
        assert said.count("\n") == 1, said


def test_the_commands_of_the_documentation_run(run):
    text = (Path(__file__).parents[1] / "docs" / "people.md").read_text()
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert len(lines) == 10
    assert (MOST, "Ten different wrong keys" in text) == (10, True)
    for line in lines:
        command = line.removeprefix("export DDPHUB_API_KEY=$(").removesuffix(")").split()
        if command[:2] == ["ddphub", "hub"]:
            said = run(*command[2:])
            assert not line.startswith("export") or re.fullmatch("[A-Za-z0-9]{42}\n", said)
        else:
            # tests/distributed/test_limited_keys.py delivers runs with such keys.
            assert command == ["ddphub", "sync", "./.ddphub"]

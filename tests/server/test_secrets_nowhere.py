"""Keys, cookies, signatures and passwords are in no log, no file, no process's arguments and no backup."""

import contextlib
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import requests
from hub_process import HubProcess
from hub_talk import PART_SIZE, Talk, manifest
from jobs import PROGRAMS, ddphub
from s3 import ENVIRONMENT, SECRET_KEY, S3Server

from ddphub.hubs.ddphub import DdphubClient

SETTINGS_KEY = "s" + secrets.token_hex(20)
MIB = 1024 * 1024


class Secrets:
    """Secrets as the test meets them."""

    def __init__(self):
        self.known = {"the settings' key": SETTINGS_KEY}

    def add(self, what, text):
        self.known[what] = text
        return text

    def found_in(self, place, content):
        """Which of them are in some bytes, whole or without the letters by which people know a key."""
        return [
            f"{what} in {place}" for what, text in self.known.items() if text.encode()[6:26] in content or text in place
        ]

    def found_under(self, folder):
        """Which are in the files of a folder, or in their names."""
        return [
            one
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.is_symlink()
            for one in self.found_in(str(path), path.read_bytes())
        ]


def arguments_of(process):
    """What everyone on the machine sees of a process and of those that it started."""
    everyone = [process, *process.children(recursive=True)]
    return "\0".join(argument for one in everyone for argument in one.cmdline()).encode()


def use(hub, found, tmp_path):
    """Whatever there is that a secret is shown to, or made by, and goes wrong."""
    admin = hub.client()
    talk = Talk(hub)
    made = admin.post(f"{hub.url}/v1/keys", json={"name": "job", "role": "writer", "project": talk.project}).json()
    key = found.add("a key that the hub made", made["data"]["key"])
    added = ddphub("hub", "keys", "add", "--project", "p", "--role", "writer", "--json", hub=hub)
    found.add("a key of the command line", next(word for word in added.stdout.split('"') if len(word) == 42))
    wrong = found.add("a wrong key", secrets.token_hex(21))
    with requests.Session() as http:
        http.trust_env = False
        http.get(f"{hub.url}/v1/models", headers={"x-api-key": wrong})
        http.get(f"{hub.url}/v1/models?api_key={wrong}&key={wrong}", headers={"authorization": f"Bearer {wrong}"})
        http.get(f"{hub.url}/sign-in?next=/?key={wrong}")
        http.post(f"{hub.url}/sign-in", data={"key": wrong})
        http.post(f"{hub.url}/v1/users", json={"name": wrong[:7]}, headers={"x-api-key": key})
        http.post(f"{hub.url}/sign-in", data={"key": key})
        (cookie,) = http.cookies.values()
        found.add("a cookie", cookie.rpartition(".")[2])
        http.get(f"{hub.url}/")
        http.post(f"{hub.url}/keys", data={"name": "x", "role": "admin"})
        http.post(f"{hub.url}/sign-out")
    files = {"last.pt": secrets.token_bytes(5 * MIB + 100)}
    part_size = admin.get(f"{hub.url}/v1/capabilities").json()["data"]["part_size"]
    data = talk.begin(files, part_size=part_size)
    for file in data["missing"]:
        for part in file["parts"]:
            found.add(f"a part's signature {part['number']}", part["url"].partition("ignature=")[2].partition("&")[0])
            with requests.Session() as http:
                http.trust_env = False
                where = part["url"] if part["url"].startswith("http") else hub.url + part["url"]
                http.put(where, data=b"not it", headers=part.get("headers"))
    path = tmp_path / "last.pt"
    path.write_bytes(files["last.pt"])
    client = DdphubClient(hub.url, key)
    client.upload(talk.model_id, secrets.token_hex(16), manifest(files, talk.attempt_id, part_size), {path.name: path})
    client.close()
    run = subprocess.Popen(
        [sys.executable, str(PROGRAMS / "alone.py"), "--out", str(tmp_path), "--steps", "20"],
        env={**os.environ, "DDPHUB_URL": hub.url, "DDPHUB_API_KEY": SETTINGS_KEY, "DDPHUB_DIR": str(tmp_path / "runs")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    process, said = psutil.Process(run.pid), []
    while run.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            said += found.found_in("the run's arguments", arguments_of(process))
        time.sleep(0.2)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 0, output.decode()
    return said + found.found_in("the run's output", output) + found.found_under(tmp_path / "runs")


@pytest.mark.parametrize("storage", ["local", "s3"])
def test_no_secret_is_where_others_may_look(tmp_path, monkeypatch, storage):
    found = Secrets()
    assert found.found_in("here", f"x{SETTINGS_KEY}".encode()) == ["the settings' key in here"]
    monkeypatch.setenv("DDPHUB_CONSOLE", "all")
    arguments = ["--log-format", "json", "--log-level", "debug"]
    place = []
    server = None
    if storage == "s3":
        for name, value in ENVIRONMENT.items():
            monkeypatch.setenv(name, value)
        found.add("the storage's secret", SECRET_KEY)
        server = S3Server()
        place = ["--storage", server.storage()]
        arguments += ["--part-size", str(5 * MIB)]
    else:
        arguments += ["--part-size", str(PART_SIZE)]
    try:
        with HubProcess(tmp_path / "hub", SETTINGS_KEY, arguments=(*arguments, *place), cold=True) as hub:
            seen = found.found_in("the hub's arguments", arguments_of(psutil.Process(hub.pid)))
            seen += use(hub, found, tmp_path)
            for path in ("/metrics", "/v1/audit", "/v1/keys", "/v1/users", "/v1/models", "/v1/openapi.json"):
                seen += found.found_in(path, hub.client().get(hub.url + path).content)
            database = ["--database-url", hub.database] if not isinstance(hub.database, Path) else []
            told = ddphub("hub", "backup", str(tmp_path / "backups"), "--data", str(hub.data_dir), *database, *place)
            seen += found.found_in("the backup's words", (told.stdout + told.stderr).encode())
            hub.stop()
        log = hub.log.read_bytes()
    finally:
        if server is not None:
            server.__exit__(None, None, None)
    assert log.count(b"\n") > 20, "the log says what happened"
    seen += found.found_in("the hub's log", log)
    for folder in (hub.data_dir, tmp_path / "backups"):
        assert any(folder.iterdir())
        seen += found.found_under(folder)
    assert seen == []
    assert len(found.known) >= 7

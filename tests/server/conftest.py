"""One hub for the tests that only need some hub, and a model of their own for each test."""

import sys

import pytest
import requests
from hub_process import HubProcess
from hub_talk import PART_SIZE, Talk
from hub_v1_talk import V1
from s3 import ENVIRONMENT, S3Server

from ddphub import cli

KEY = "k" * 42


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """A hub with small parts."""
    data = tmp_path_factory.mktemp("hub") / "data"
    with HubProcess(data, api_key=KEY, arguments=("--part-size", str(PART_SIZE))) as process:
        yield process


@pytest.fixture
def talk(hub):
    """A new model in a new project."""
    return Talk(hub)


@pytest.fixture
def v1(hub):
    """A new model of a HUB v1 client."""
    return V1(hub)


@pytest.fixture
def browser(hub):
    """A browser whose user gave the key."""
    with requests.Session() as session:
        session.trust_env = False
        answer = session.post(f"{hub.url}/sign-in", data={"key": f" {hub.key} "}, allow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        yield session


@pytest.fixture
def start_hub(tmp_path):
    """Starts hubs of the test's own; they end with it."""
    started = []

    def start(name="data", api_key=KEY, arguments=("--part-size", str(PART_SIZE)), *, cold=False):
        process = HubProcess(tmp_path / name, api_key=api_key, arguments=arguments, cold=cold)
        started.append(process)
        return process

    yield start
    for process in started:
        process.__exit__(None, None, None)


@pytest.fixture(scope="session")
def s3_server():
    """An S3 server that checks what S3 checks."""
    with S3Server() as server:
        yield server


@pytest.fixture
def s3(s3_server, monkeypatch):
    """The same, with nothing going wrong yet; programs that a test starts have credentials for it."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    s3_server.control(rules=[], clear=True)
    return s3_server


@pytest.fixture
def program(capfd, monkeypatch):
    """Runs `ddphub ...` in this process; what it says. `code` is the exit code that is expected."""

    def run(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["ddphub", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = "".join(capfd.readouterr())
        assert (ended.value.code or 0) == code, said
        return said

    return run

"""What tests of the training side share: a real hub on loopback, and jobs that report to it."""

import os
import socket

import pytest
from hub_process import KEY, HubProcess
from jobs import QUIET, HubView, Job


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path):
    """Neither the developer's hub nor a launcher's ranks reach a test, and runs report what is asked of them only."""
    for name in list(os.environ):
        if name.startswith(("DDPHUB_", "_DDPHUB_", "SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def own_hub(tmp_path):
    """A hub of the test's own, which it may stop, kill and restart."""
    with HubProcess(tmp_path / "hub", api_key=KEY) as process:
        yield process


@pytest.fixture
def view(own_hub):
    """What that hub has."""
    return HubView(own_hub)


@pytest.fixture
def job(tmp_path, own_hub):
    """Makes jobs that report to the test's hub; they end with the test."""
    started = []

    def start(program="train.py", **options):
        made = Job(tmp_path, program, hub=own_hub, **options)
        started.append(made)
        return made

    yield start
    for made in started:
        made.end()


@pytest.fixture
def free_port():
    """A TCP port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]

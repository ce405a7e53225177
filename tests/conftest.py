"""What tests of the training side share: a real hub on loopback, and jobs that report to it."""

import contextlib
import os
import socket
from pathlib import Path

import postgres
import pytest
from hub_process import KEY, HubProcess
from jobs import QUIET, HubView, Job

CLOCKED = {"slurm", "pages"}
"""Folders whose tests have limits of time that are not theirs: SLURM's, and a browser's."""


def pytest_addoption(parser, pluginmanager):
    pluginmanager.register(postgres)
    parser.addoption(
        "--failed-to",
        type=Path,
        metavar="FILE",
        help="write down what failed: a line `clock TEST` or `other TEST` each",
    )


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name in CLOCKED:
            item.add_marker(pytest.mark.clock)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """A test with such limits goes first, with all that it starts, where others want the processor too."""
    if item.get_closest_marker("clock") is None:
        return (yield)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(PermissionError):  # only root may, as in CI
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    try:
        return (yield)
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)


def pytest_configure(config):
    path = config.getoption("--failed-to")
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Failed(path))


class _Failed:
    """Writes down each test that failed, for scripts/test.

    Args:
        path: an empty file.
    """

    def __init__(self, path):
        self._path = path

    def pytest_runtest_logreport(self, report):
        self._write("clock" if "clock" in report.keywords else "other", report)

    def pytest_collectreport(self, report):
        self._write("other", report)

    def _write(self, kind, report):
        if report.failed:
            with self._path.open("a") as file:
                file.write(f"{kind} {report.nodeid}\n")


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

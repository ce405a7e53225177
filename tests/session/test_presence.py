"""Whether a run directory is in use: by a process here, and, by the file's age, on another host."""

import json
import multiprocessing
import os
import time

import pytest

from ddphub.session import presence
from ddphub.session.presence import Presence, is_in_use


@pytest.fixture
def path(tmp_path):
    return tmp_path / "alive.json"


def test_in_use_from_start_to_stop(path):
    """And nothing is left."""
    assert not is_in_use(path)
    sign = Presence(path)
    sign.start()
    assert is_in_use(path)
    sign.stop()
    assert not is_in_use(path)
    assert not path.exists()


def test_a_killed_process_is_not_using_it(path):
    """Its file is still there, and fresh."""
    child = multiprocessing.get_context("spawn").Process(target=_start_and_wait, args=(path,))
    child.start()
    until = time.monotonic() + 60
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert is_in_use(path)
    child.kill()
    child.join()
    assert path.exists()
    assert not is_in_use(path)


def _start_and_wait(path):
    Presence(path).start()
    time.sleep(60)


def test_on_another_host_the_age_tells(path):
    """By the file system's clock."""
    sign = Presence(path)
    sign.start()
    content = json.loads(path.read_text())
    content["owner"]["host"] = "elsewhere"
    path.write_text(json.dumps(content))
    assert is_in_use(path)
    long_ago = time.time() - presence.LATE - 1
    os.utime(path, (long_ago, long_ago))
    assert not is_in_use(path)
    sign.stop()


def test_a_successors_sign_is_neither_renewed_nor_taken_away(path, monkeypatch):
    """A requeued job writes its own; the attempt that was thought dead ends later."""
    monkeypatch.setattr(presence, "BEAT", 0.02)
    first, second = Presence(path), Presence(path)
    first.start()
    monkeypatch.setattr(presence, "BEAT", 60.0)
    second.start()
    time.sleep(0.1)
    before = path.stat().st_mtime_ns
    time.sleep(0.2)
    assert path.stat().st_mtime_ns == before
    first.stop()
    assert is_in_use(path)
    second.stop()
    assert not path.exists()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"owner": 7}', "x" * 1000])
def test_a_damaged_sign_counts_by_its_age(path, content):
    path.write_text(content)
    assert is_in_use(path)
    os.utime(path, (1, 1))
    assert not is_in_use(path)


def test_a_disk_that_refuses_costs_only_the_sign(tmp_path):
    Presence(tmp_path / "missing" / "alive.json").start()
    Presence(tmp_path / "missing" / "alive.json").stop()

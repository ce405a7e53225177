"""A large checkpoint goes through a client of constant size, to each hub and back."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_v1_server import KEY, HubV1Server
from platform_server import PlatformServer

SIZE = 256 * 2**20
MOST = 32 * 2**20


@pytest.fixture
def large(tmp_path):
    """A file that is not all zeros, and its sha256."""
    path = tmp_path / "large.pt"
    block = os.urandom(2**20)
    with path.open("wb") as file:
        for _ in range(SIZE // 2**20):
            file.write(block)
    with path.open("rb") as file:
        return path, hashlib.file_digest(file, "sha256").hexdigest()


def grew(hub, key, path):
    """Bytes by which the sending process grew at most."""
    program = Path(__file__).with_name("memory_program.py")
    done = subprocess.run(
        [sys.executable, str(program), hub, key, str(path)], capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    growth = json.loads(done.stdout)["grew"]
    print(f"{hub.partition('+')[0]}: {growth / 2**20:.1f} MiB")
    return growth


def test_an_upload_to_the_platform(large):
    with PlatformServer() as server:
        assert grew(f"platform+{server.url}", server.key, large[0]) < MOST
        assert (server.uploads[-1].size, server.uploads[-1].sha256) == (SIZE, large[1])


def test_an_upload_to_hub_v1(large):
    with HubV1Server() as server:
        assert grew(f"hub-v1+{server.url}", KEY, large[0]) < MOST
        assert (server.forms[-1].size, server.forms[-1].sha256) == (SIZE, large[1])


def test_an_upload_to_our_own_hub_and_a_download(large, own_hub):
    assert grew(own_hub.url, own_hub.key, large[0]) < MOST
    with large[0].with_name("fetched").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == large[1]

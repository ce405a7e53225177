"""Downloads: whole and right, or not there; resumed after a cut, bounded in tries and memory, and without the key."""

import contextlib
import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ddphub.errors import HubModelGone, HubUnauthorized, HubUnavailable
from ddphub.hubs import download as downloads
from ddphub.hubs.client import RemoteFile
from ddphub.hubs.download import download
from ddphub.hubs.http import HubConnection

CONTENT = bytes(range(256)) * 4096
SIZE = len(CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Store:
    """Gives CONTENT from `/file`, as a hub does, with faults.

    Attributes:
        content: what it gives.
        etag: None for none.
        knows_ranges: whether it honours Range.
        cuts: after how many bytes it cuts each answer, in turn; then it cuts none.
        says_length: whether an answer says how long it is.
        status: another status for each answer, in turn.
        pause: seconds between two blocks of 64 KiB.
        seen: the Range header of each request, and whether the key came.
    """

    def __init__(self):
        self.content = CONTENT
        self.etag = f'"{SHA256}"'
        self.knows_ranges = self.says_length = True
        self.cuts, self.status, self.seen = [], [], []
        self.pause = 0.0
        self.over = threading.Event()
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                with contextlib.suppress(ConnectionError):
                    store.give(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,)).start()

    def give(self, handler):
        wanted = handler.headers.get("range")
        self.seen.append((wanted, "x-api-key" in handler.headers))
        handler.close_connection = True
        if self.status:
            handler.send_response(self.status.pop(0))
            handler.send_header("content-length", "0")
            handler.end_headers()
            return
        condition = handler.headers.get("if-range", self.etag)
        start = int(wanted[6:-1]) if wanted and self.knows_ranges and condition == self.etag else 0
        body = self.content[start:]
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("content-range", f"bytes {start}-{SIZE - 1}/{SIZE}")
        if self.etag:
            handler.send_header("etag", self.etag)
        if self.says_length:
            handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        cut = self.cuts.pop(0) if self.cuts else len(body)
        for begin in range(0, min(cut, len(body)), 65536):
            handler.wfile.write(body[begin : min(begin + 65536, cut)])
            handler.wfile.flush()
            self.over.wait(self.pause)

    def file(self, *, query="", size=SIZE, sha256=SHA256):
        return RemoteFile("a.pt", f"{self.url}/file{query}", size, sha256)


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSE", 0.01)
    giving = Store()
    yield giving
    giving.over.set()
    giving.server.shutdown()
    giving.server.server_close()


@pytest.fixture
def connection(store):
    opened = HubConnection(store.url, {"x-api-key": "secret"}, read_timeout=1.0)
    yield opened
    opened.close()


def is_alone(folder):
    """Nothing is there but the file, if that."""
    return {path.name for path in folder.iterdir()} <= {"a.pt"}


def test_a_file_arrives_whole(store, connection, tmp_path):
    download(connection, store.file(), tmp_path / "a.pt")
    assert (tmp_path / "a.pt").read_bytes() == CONTENT
    assert is_alone(tmp_path)
    assert store.seen == [(None, True)]


@pytest.mark.parametrize("size_and_sum", [{}, {"size": None, "sha256": None}])
def test_a_cut_download_goes_on_where_it_was(store, connection, tmp_path, size_and_sum):
    store.cuts = [300_000, 400_000]
    download(connection, store.file(**size_and_sum), tmp_path / "a.pt")
    assert (tmp_path / "a.pt").read_bytes() == CONTENT
    assert [wanted is not None for wanted, _ in store.seen] == [False, True, True]


@pytest.mark.parametrize("change", ["no ranges", "no tag", "another file"])
def test_a_cut_download_starts_over_when_the_rest_may_be_of_another_file(store, connection, tmp_path, change):
    store.cuts = [300_000]
    give = store.give

    def give_other(handler):
        give(handler)
        if change != "no ranges" and len(store.seen) == 1:
            store.content = CONTENT[::-1]
            store.etag = '"other"' if store.etag else None

    store.give = give_other
    store.knows_ranges = change != "no ranges"
    store.etag = None if change == "no tag" else store.etag
    download(connection, store.file(sha256=None), tmp_path / "a.pt")
    assert (tmp_path / "a.pt").read_bytes() == store.content


def test_a_download_that_is_cut_again_and_again_ends(store, connection, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "TRIES", 4)
    store.cuts = [10] * 100
    store.etag = None
    with pytest.raises(HubUnavailable):
        download(connection, store.file(sha256=None), tmp_path / "a.pt")
    assert len(store.seen) == 4
    assert is_alone(tmp_path)


@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"size": SIZE + 1, "sha256": None}])
def test_bytes_other_than_the_hub_told_are_thrown_away(store, connection, tmp_path, wrong):
    (tmp_path / "a.pt").write_bytes(b"as it was")
    with pytest.raises(HubUnavailable, match=r"sha256 differs|bytes came"):
        download(connection, store.file(**wrong), tmp_path / "a.pt")
    assert (tmp_path / "a.pt").read_bytes() == b"as it was"
    assert is_alone(tmp_path)


def test_bytes_of_no_told_length_are_not_taken_for_all(store, connection, tmp_path):
    store.says_length = False
    with pytest.raises(HubUnavailable, match="no length"):
        download(connection, store.file(size=None, sha256=None), tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())
    download(connection, store.file(), tmp_path / "a.pt")


def test_a_slow_download_that_gets_on_is_not_ended(store, connection, tmp_path):
    """It takes longer than the time that an answer may take, and no single read does."""
    store.pause = 0.1
    began = time.monotonic()
    download(connection, store.file(), tmp_path / "a.pt")
    assert time.monotonic() - began > 1.5
    assert len(store.seen) == 1


def test_a_download_that_stands_still_is_ended(store, connection, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "TRIES", 1)
    store.pause = 60.0
    with pytest.raises(HubUnavailable, match="timed out"):
        download(connection, store.file(), tmp_path / "a.pt")
    assert is_alone(tmp_path)


@pytest.mark.parametrize(
    ("status", "error"), [(401, HubUnauthorized), (404, HubModelGone), (503, HubUnavailable), (302, HubUnavailable)]
)
def test_a_hub_that_gives_nothing_is_asked_once(store, connection, tmp_path, status, error):
    store.status = [status]
    with pytest.raises(error):
        download(connection, store.file(), tmp_path / "a.pt")
    assert len(store.seen) == 1
    assert is_alone(tmp_path)


def test_the_key_goes_to_no_signed_url_and_to_no_other_host(store, tmp_path):
    own = HubConnection(store.url, {"x-api-key": "secret"})
    download(own, store.file(query="?Signature=zz"), tmp_path / "a.pt")
    other = HubConnection(store.url.replace("127.0.0.1", "localhost"), {"x-api-key": "secret"})
    download(other, store.file(), tmp_path / "a.pt")
    assert store.seen == [(None, False), (None, False)]
    store.status = [404]
    with pytest.raises(HubUnavailable):
        download(own, store.file(query="?Signature=zz"), tmp_path / "a.pt")
    own.close()
    other.close()


def test_a_disk_that_takes_nothing_is_said_as_such(store, connection, tmp_path):
    with pytest.raises(FileNotFoundError):
        download(connection, store.file(), tmp_path / "nowhere" / "a.pt")
    with pytest.raises(IsADirectoryError):
        (tmp_path / "a.pt").mkdir()
        download(connection, store.file(), tmp_path / "a.pt")
    assert is_alone(tmp_path)

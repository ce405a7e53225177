"""Parts on several connections at once: to a real hub, through a proxy that has few, and without threads."""

import hashlib
import itertools
import os
import threading
import time

import pytest
from faulty_proxy import FaultyProxy, answer
from hub_process import HubProcess
from run_events import Attempt, entry, registration

from ddphub.errors import HubRejected, HubUnavailable
from ddphub.hubs import ddphub as module
from ddphub.hubs.ddphub import DdphubClient
from ddphub.hubs.http import SignatureOver
from ddphub.hubs.parts import CONNECTIONS, PartSenders

PART = 16 * 1024
PARTS = 40


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with HubProcess(tmp_path_factory.mktemp("hub") / "hub", arguments=("--part-size", str(PART))) as process:
        yield process


@pytest.fixture
def proxy(hub):
    made = FaultyProxy(hub.url)
    yield made
    made.close()


@pytest.fixture
def client(proxy, hub):
    made = DdphubClient(proxy.url, hub.key)
    yield made
    made.close()


@pytest.fixture
def upload(client, tmp_path):
    """Sends a checkpoint of new bytes, and checks that the hub has it."""
    attempt = Attempt()
    attempt.project = attempt.id
    model_id = client.register(registration(attempt, project=attempt.project))
    client.send_events(model_id, [attempt.state("started")])

    def send(parts=PARTS):
        content = os.urandom(parts * PART - 7)
        entry_id, request, files = entry(tmp_path, "epoch", "a.pt", content, epoch=1, attempt_id=attempt.id)
        digests = [hashlib.sha256(content[at : at + PART]).hexdigest() for at in range(0, len(content), PART)]
        request["files"][0] |= {"sha256": hashlib.sha256(content).hexdigest(), "parts": digests}
        client.upload(model_id, entry_id, request, files)
        client.download(client.newest_checkpoint(model_id, ("epoch",)).files[0], tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == content

    return send


class Gate:
    """A fault that answers 503 to a part while `most` others are on their way; counts."""

    def __init__(self, most):
        self.most = most
        self.now = self.peak = self.refused = 0
        self._lock = threading.Lock()

    def __call__(self, handler):
        if handler.command != "PUT":
            return False
        with self._lock:
            if self.now == self.most:
                self.refused += 1
                return answer(503, Retry_After="0")(handler)
            self.now += 1
            self.peak = max(self.peak, self.now)
        time.sleep(0.02)
        with self._lock:
            self.now -= 1
        return False


def senders_alive():
    return [thread for thread in threading.enumerate() if thread.name == "ddphub-parts"]


def puts(proxy):
    return [path for method, path in proxy.seen if method == "PUT"]


def test_several_are_sent_at_once_each_of_them_once(upload, proxy, client):
    proxy.fault = gate = Gate(100)
    upload()
    assert 2 <= gate.peak <= CONNECTIONS
    assert len(puts(proxy)) == len(set(puts(proxy))) == PARTS
    assert senders_alive() == []
    assert len(client._connection._sessions) == 1


def test_a_proxy_with_few_connections_gets_fewer_and_all_arrive(upload, proxy, client, monkeypatch):
    monkeypatch.setattr(module, "PART_PAUSE", 0.01)
    proxy.fault = gate = Gate(1)
    upload()
    assert 1 <= gate.refused <= 2 * CONNECTIONS
    assert len(set(puts(proxy))) == PARTS
    assert client._senders.connections < CONNECTIONS
    proxy.fault = None
    for _ in range(CONNECTIONS):
        upload(1)
    assert client._senders.connections == CONNECTIONS


def test_no_connection_goes_on_while_the_hub_asks_to_wait(upload, proxy):
    """Retry-After of one is an answer to all."""
    began = []

    def fault(handler):
        if handler.command == "PUT":
            began.append(time.monotonic())
            if len(began) == 10:
                time.sleep(0.3)  # the others, too, have ended their part or begun their last one
                return answer(429, Retry_After="1")(handler)
        return False

    proxy.fault = fault
    upload()
    pauses = [after - before for before, after in itertools.pairwise(began)]
    assert max(pauses) >= 1


def test_what_the_hub_will_never_take_is_told_at_once(upload, proxy):
    bad = {}

    def fault(handler):
        if handler.command == "PUT" and len(puts(proxy)) > 5:
            bad.setdefault("path", handler.path.partition("?")[0])
            if handler.path.startswith(bad["path"] + "?"):
                return answer(422, b'{"detail": "no"}')(handler)
        return False

    proxy.fault = fault
    with pytest.raises(HubRejected, match="no"):
        upload()
    assert puts(proxy).count(bad["path"]) == 2
    assert senders_alive() == []
    assert len(puts(proxy)) < PARTS


def test_where_no_thread_can_be_started_parts_are_sent_one_by_one(upload, proxy, monkeypatch):
    """As in a process that ends."""
    proxy.fault = gate = Gate(100)
    start = threading.Thread.start

    def refuse(thread):
        if thread.name == "ddphub-parts":
            raise RuntimeError("can't create new thread at interpreter shutdown")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    upload()
    assert (gate.peak, len(puts(proxy))) == (1, PARTS)


def test_a_hub_that_is_gone_is_no_endless_wait(upload, proxy):
    proxy.fault = lambda handler: handler.command == "PUT" and answer(503)(handler)
    with pytest.raises(HubUnavailable, match="503"):
        upload()
    assert senders_alive() == []
    assert len(puts(proxy)) <= CONNECTIONS


# The senders by themselves.


def test_urls_that_have_expired_are_no_reason_for_fewer_connections():
    def send(part):
        if part:
            raise SignatureOver("403")

    senders = PartSenders(send, lambda: None)
    sent, error = senders.send([0, 1])
    assert (sent <= 1, type(error), senders.connections) == (True, SignatureOver, CONNECTIONS)


def test_the_longest_wait_counts_and_what_waiting_does_not_mend_comes_first():
    both = threading.Barrier(2, timeout=20)

    def send(error):
        both.wait()
        raise error

    errors = HubUnavailable("slow", 3.0), HubUnavailable("fast", 1.0)
    for pair in (errors, errors[::-1]):
        assert PartSenders(send, lambda: None).send(pair) == (0, errors[0])
    with pytest.raises(HubRejected):
        PartSenders(send, lambda: None).send([errors[0], HubRejected(422, "no")])


def test_who_is_interrupted_leaves_nobody_who_begins_another_part():
    begun, held = [], threading.Event()
    caller = threading.get_ident()

    def send(part):
        begun.append(part)
        if threading.get_ident() == caller:
            raise KeyboardInterrupt
        held.wait(20)

    with pytest.raises(KeyboardInterrupt):
        PartSenders(send, lambda: None).send(range(100))
    held.set()
    for thread in senders_alive():
        thread.join(20)
    assert len(begun) <= CONNECTIONS


def test_who_is_interrupted_while_it_starts_threads_leaves_nobody_either(monkeypatch):
    begun, held = [], threading.Event()
    start = threading.Thread.start

    def interrupted(thread):
        start(thread)
        raise KeyboardInterrupt

    def send(part):
        begun.append(part)
        held.wait(20)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        PartSenders(send, lambda: None).send(range(100))
    held.set()
    for thread in senders_alive():
        thread.join(20)
    assert len(begun) <= CONNECTIONS

"""What a broken wire between ranks and store may not do: leave a rank unanswered, or unacknowledged, for good."""

import json
import os
from datetime import timedelta
from pathlib import Path

import pytest
from jobs import wait_until
from torch.distributed import QueueEmptyError, TCPStore

from chaos.tcp_proxy import TcpProxy, WireFault
from ddphub.checksum import without_checksum
from ddphub.distributed import courier as courier_module
from ddphub.distributed import relay
from ddphub.distributed.collector import Collector
from ddphub.distributed.courier import Answer, Courier
from ddphub.distributed.outbox import Outbox
from ddphub.distributed.rendezvous import Rendezvous
from ddphub.distributed.topology import Topology
from ddphub.session.folder import RunFolder, RunInfo
from ddphub.session.spool import StraySpool

ATTEMPT = "a" * 32
NONCE = "b" * 32
HELLO = {"nonce": NONCE, "rank": 1, "host": "elsewhere", "pid": os.getpid(), "local_rank": 1, "node": 0}
KEYS = relay.Keys("ddphub/tests", 0)


class Kept:
    """Both ends' files, as lists."""

    def __init__(self):
        self.collected = []
        self.spilled = []

    def append_lines(self, lines):
        self.collected += [without_checksum(line.rstrip(b"\n")).decode() for line in lines]

    def sync(self):
        pass

    def write(self, _answer, _stream_id, batches):
        self.spilled += batches

    def adopt(self, answer, nonce):
        pass


@pytest.fixture
def kept():
    return Kept()


@pytest.fixture
def store():
    """The job's store, and this test's client of it."""
    made = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=10), wait_for_workers=False)
    made.set_timeout(timedelta(seconds=10))
    return made


@pytest.fixture
def wire(store):
    """Between both ends and the store."""
    made = TcpProxy(lambda: store.port)
    yield made
    made.close()


@pytest.fixture
def environ(wire):
    """The launcher's, with the proxy for the store."""
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(wire.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}


@pytest.fixture
def collect(environ, kept):
    """Starts rank 0's end; it ends with the test."""
    made = []

    def start():
        made.append(
            Collector(
                rendezvous=Rendezvous(Topology(0, 2), environ),
                keys=KEYS,
                attempt_id=ATTEMPT,
                run_id="run",
                folder=Path("/nowhere"),
                spool=kept,
                report=lambda _event: None,
                where=lambda: ("model", "url"),
                world_size=2,
            )
        )
        return made[-1]

    yield start
    for collector in made:
        collector.close(0.0)


@pytest.fixture
def courier(environ, kept):
    """Rank 1's end."""
    made = Courier(
        topology=Topology(1, 2), rendezvous=Rendezvous(Topology(1, 2), environ), keys=KEYS, spool=kept, about={}
    )
    yield made
    made.finish(dict, 0.0)


def pop(store, queue):
    """The next message, or None."""
    try:
        return store.queue_pop(queue, False)
    except QueueEmptyError:
        return None


def test_a_hello_that_died_with_its_reader_is_said_again(store, collect, courier, monkeypatch):
    """Rank 0's connection broke, or rank 0 did, after the store had given the hello away."""
    monkeypatch.setattr(courier_module, "ACK_LATE", 0.5)
    assert wait_until(lambda: pop(store, KEYS.hello), what="the hello")
    collect()
    assert wait_until(lambda: courier.answer, what="the answer").attempt_id == ATTEMPT


@pytest.mark.parametrize("found", ["by another hello", "by the break"])
def test_an_answer_that_got_lost_is_given_again(store, wire, collect, found):
    """`set` is not acknowledged by the store, so a connection that breaks may take it along."""
    answer, ack = KEYS.answer(NONCE), KEYS.ack(NONCE)
    store.queue_push(KEYS.hello, json.dumps(HELLO))
    collect()
    wait_until(lambda: store.check([answer, ack]), what="the answer")
    store.delete_key(answer)
    store.delete_key(ack)
    if found == "by the break":
        wire.set(WireFault("reset", times=1))
    else:
        store.queue_push(KEYS.hello, json.dumps(HELLO))
    wait_until(lambda: store.check([answer, ack]), what="the answer again")


def test_what_is_reported_while_a_signal_ends_the_run_is_kept(store, collect, courier, kept):
    """The script's main thread goes on until the last moment; the run has said its goodbye by then."""
    collect()
    outbox = Outbox(courier)
    wait_until(lambda: courier.answer, what="the answer")
    outbox.put({"time": 1.0, "kind": "metrics", "step": 1, "epoch": None, "values": {"loss": 1.0}})
    outbox.flush(10)
    courier.finish(dict, 10)
    outbox.put({"time": 2.0, "kind": "metrics", "step": 2, "epoch": None, "values": {"loss": 2.0}})
    outbox.close()
    texts = [*kept.collected, *kept.spilled]
    assert sorted(event["step"] for text in texts for event in json.loads(text)["events"]) == [1, 2]


@pytest.fixture
def folder(tmp_path):
    """Rank 0's run directory."""
    made = RunFolder(tmp_path / "runs" / "run")
    made.create()
    RunInfo("run", "chaos", "chaos", attempts=[ATTEMPT]).save(made.run_json)
    return made


BATCH = json.dumps({"attempt_id": NONCE, "rank": 1, "first": 0, "events": [{"kind": "log", "message": "hello"}]})


def test_a_run_directory_seen_by_two_paths_keeps_its_run_json(folder, tmp_path):
    """Rank 1 names the shared folder in its own way, as another mount or a link would have it."""
    (tmp_path / "other").symlink_to(tmp_path / "runs")
    spool = StraySpool(1, tmp_path / "other", lambda _nonce: RunInfo("run", "chaos", "chaos"))
    spool.write(None, NONCE, [BATCH])
    spool.adopt(Answer("run", ATTEMPT, folder.path), NONCE)
    spool.close()
    assert folder.run_json.exists()
    assert folder.rank_file(NONCE, 1).exists()

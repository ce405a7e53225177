"""Rank 0's end on a real store: what it writes down, in which order, and when it says so."""

import json
import os
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from jobs import wait_until
from torch.distributed import TCPStore

from ddphub.checksum import without_checksum
from ddphub.distributed import relay
from ddphub.distributed.collector import Collector
from ddphub.distributed.courier import Clock, Courier
from ddphub.distributed.rendezvous import Rendezvous
from ddphub.distributed.topology import Topology

ATTEMPT = "a" * 32
NONCE = "b" * 32
HELLO = json.dumps({"nonce": NONCE, "rank": 1, "host": "elsewhere", "pid": os.getpid(), "local_rank": 1, "node": 0})
KEYS = relay.Keys("ddphub/tests", 0)


class Disk:
    """Rank 0's spool file; fsync fails while `fails` is set."""

    def __init__(self):
        self.batches = []
        self.fails = threading.Event()

    def append_lines(self, lines):
        self.batches += [json.loads(without_checksum(line.rstrip(b"\n"))) for line in lines]

    def sync(self):
        if self.fails.is_set():
            raise OSError(5, "Input/output error")

    def write(self, _answer, _stream_id, batches):
        """A rank's own file."""

    @property
    def firsts(self):
        return [batch["first"] for batch in self.batches]


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
def store():
    return TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=10), wait_for_workers=False)


@pytest.fixture
def collect(store, disk):
    """Starts the collector, which finds on the store what was sent before."""
    made = []

    def start():
        environ = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        made.append(
            Collector(
                rendezvous=Rendezvous(Topology(0, 2), environ),
                keys=KEYS,
                attempt_id=ATTEMPT,
                run_id="run",
                folder=Path("/nowhere"),
                spool=disk,
                report=lambda _event: None,
                where=lambda: (None, None),
                world_size=2,
            )
        )

    yield start
    for collector in made:
        collector.close(0.0)


def batch(first, size=0):
    return relay.pack(ATTEMPT, 1, first, [f'{{"message":"{"x" * size}"}}']).to_message()


def held(store):
    text = store.compare_set(KEYS.ack(NONCE), "", "")
    return json.loads(text)["held"] if text else None


def test_what_came_twice_or_out_of_order_is_written_once_and_in_order(store, disk, collect):
    """A rank sent again while rank 0 was stopped; its first batches lie in a box, a larger one in the queue."""
    store.queue_push(KEYS.hello, HELLO)
    store.append(KEYS.box(ATTEMPT, 1), batch(0) + b"\n" + batch(1) + b"\n" + batch(0) + b"\n")
    store.queue_push(KEYS.queue(ATTEMPT), batch(2, 5000))
    collect()
    wait_until(lambda: held(store) == 2, what="the acknowledgement")
    assert disk.firsts == [0, 1, 2]


def test_nothing_is_acknowledged_before_it_is_on_disk(store, disk, collect):
    """Not even to a rank that says hello again; once the disk is well, what is sent again is."""
    disk.fails.set()
    store.queue_push(KEYS.hello, HELLO)
    store.queue_push(KEYS.queue(ATTEMPT), batch(0))
    collect()
    wait_until(lambda: disk.batches, what="the batch")
    store.delete_key(KEYS.answer(NONCE))
    store.queue_push(KEYS.hello, HELLO)
    wait_until(lambda: store.check([KEYS.answer(NONCE)]), what="another answer")
    assert held(store) == -1
    disk.fails.clear()
    store.queue_push(KEYS.queue(ATTEMPT), batch(0))
    wait_until(lambda: held(store) == 0, what="the acknowledgement")


def test_nonsense_takes_nothing_with_it(store, disk, collect):
    """Whatever a message holds, those around it are heeded, on the same connection."""
    store.queue_push(KEYS.hello, HELLO)
    nonsense = [b'{"type":"beat","rank":1,"nonce":[]}', b'{"type":"goodbye","rank":1,"nonce":{}}', b"\xff", b""]
    store.queue_push(KEYS.queue(ATTEMPT), b"\n".join([batch(0), *nonsense, batch(1)]))
    collect()
    wait_until(lambda: held(store) == 1, what="the acknowledgement")
    assert store.get(KEYS.attempts).decode().split(",").count(ATTEMPT) == 1


@pytest.fixture
def courier():
    """Makes couriers whose job has no store; they end with the test."""
    made = []

    def start(world_size):
        topology = Topology(1, world_size)
        made.append(Courier(topology=topology, rendezvous=Rendezvous(topology, {}), keys=KEYS, spool=Disk(), about={}))
        return made[-1]

    yield start
    for one in made:
        one.finish(dict, 0.0)


@pytest.mark.parametrize(("world_size", "pause"), [(2, 0.02), (4096, 0.2048)])
def test_a_large_world_asks_less_often(courier, world_size, pause):
    """All ranks end at one time, and rank 0 takes their goodbyes through the same store."""
    one, clock = courier(world_size), Clock()
    one._goodbye = dict
    assert one._next_ask(clock) - clock.asked == pytest.approx(pause)


class Sent:
    """A store that keeps what a courier sends."""

    def __init__(self):
        self.boxes, self.queues = [], []

    def append(self, key, value):
        self.boxes.append((key, value))

    def queue_push(self, key, value):
        self.queues.append((key, value))


def test_a_rank_that_is_not_acknowledged_leaves_the_boxes_alone(courier):
    """While rank 0 stands still they must not grow past what it can empty in one request."""
    one, store = courier(2), Sent()
    one._hold(['{"kind":"log"}'], 100.0)
    one._progress = 100.0
    assert one._push(store, 100.0)
    assert (len(store.boxes), store.queues) == (1, [])
    one._hold(['{"kind":"log"}'], 106.0)
    one._push(store, 106.0)
    assert len(store.boxes) == len(store.queues) == 1

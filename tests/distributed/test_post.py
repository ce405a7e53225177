"""Messages between the ranks and rank 0: all arrive, in boxes or by the queue, and nonsense is told from batches."""

import json
import threading
import time
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import TCPStore

from ddphub.distributed import post, relay
from ddphub.distributed.relay import Arrival

ATTEMPT = "a" * 32
KEYS = relay.Keys("ddphub/tests", 0)


@pytest.fixture(scope="module")
def server():
    return TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=10), wait_for_workers=False)


@pytest.fixture
def client(server):
    """Makes clients of one store."""
    return lambda: TCPStore("127.0.0.1", server.port, None, False, timedelta(seconds=10), wait_for_workers=False)


def take(inbox, *, room=2**20):
    messages = []
    is_empty = inbox.take(messages, room=room, deadline=time.monotonic() + 10)
    return messages, is_empty


def test_small_and_large_messages_arrive_once(client):
    """Those of many ranks share the boxes; several of one rank go together."""
    inbox, store = post.Inbox(client(), KEYS, ATTEMPT, 3), client()
    sent = []
    for rank in range(1, 100):
        messages = [b"%d small" % rank, b"%d large " % rank + b"x" * post.SMALL][: 1 + rank % 2]
        post.send(store, KEYS, ATTEMPT, rank % 3, messages)
        sent += messages
    post.send(store, KEYS, ATTEMPT, 1, [b"y" * post.BUNDLE, b"z" * post.BUNDLE, b"last"])
    sent += [b"y" * post.BUNDLE, b"z" * post.BUNDLE, b"last"]
    store.check(["any"])  # an answer: what was sent before is there
    messages, is_empty = take(inbox)
    assert is_empty
    assert sorted(messages) == sorted(sent)
    assert take(inbox) == ([], True)


def test_a_drain_leaves_what_has_no_room(client):
    inbox, store = post.Inbox(client(), KEYS, "b" * 32), client()
    for _ in range(5):
        post.send(store, KEYS, "b" * 32, 1, [b"x" * post.BUNDLE])
    store.check(["any"])
    messages, is_empty = take(inbox, room=post.BUNDLE + 1)
    assert (len(messages), is_empty) == (2, False)
    assert len(take(inbox)[0]) == 3


def test_a_box_that_grew_too_large_is_emptied(client):
    """Rank 0 stood still for long: the store would refuse a comparison of more than 8 MiB, now and for ever."""
    inbox, store = post.Inbox(client(), KEYS, "d" * 32), client()
    for _ in range(9):
        store.append(KEYS.box("d" * 32, 1), b"x" * (2**20 - 1) + b"\n")
    store.check(["any"])
    assert [len(message) for message in take(inbox)[0]] == [2**20 - 1] * 9
    post.send(store, KEYS, "d" * 32, 1, [b"next"])
    store.check(["any"])
    assert take(inbox) == ([b"next"], True)


def test_nothing_is_lost_or_doubled_while_ranks_append(client):
    """Rank 0 empties the box that four others write to without a pause."""
    inbox = post.Inbox(client(), KEYS, "c" * 32)

    def write(rank):
        store = client()
        for number in range(500):
            post.send(store, KEYS, "c" * 32, 1, [b"%d %d" % (rank, number)])
        store.check(["any"])

    threads = [threading.Thread(target=write, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    messages = []
    while any(thread.is_alive() for thread in threads):
        messages += take(inbox)[0]
    messages += take(inbox)[0]
    assert sorted(messages) == sorted(b"%d %d" % (rank, number) for rank in range(4) for number in range(500))


def test_a_batch_arrives_as_its_line():
    """Rank 0 appends the line as it is, and knows which events it holds."""
    batch = relay.pack(ATTEMPT, 7, 40, ['{"kind":"log","message":"Gr\\u00fc\\u00dfe"}', '{"kind":"log"}'])
    arrival = Arrival.read(batch.to_message())
    assert (arrival.attempt_id, arrival.rank, arrival.first, arrival.last) == (ATTEMPT, 7, 40, 41)
    assert arrival.line.endswith(b"\n")
    assert json.loads(arrival.line[9:]) == json.loads(batch.text)


@given(st.data())
def test_a_changed_batch_is_refused(data):
    """Whatever byte a wire changes, in the number of events too."""
    message = relay.pack(ATTEMPT, 7, 0, ['{"kind":"log"}', '{"kind":"log"}']).to_message()
    place = data.draw(st.integers(0, len(message) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != message[place]))
    assert Arrival.read(message[:place] + bytes([other]) + message[place + 1 :]) is None


@pytest.mark.parametrize(
    "message", [b"batch ", b"batch 00000000 0 00000000 {}", b"batch x y z", b"batch 1", b"{}", b"\xff"]
)
def test_nonsense_is_no_batch(message):
    assert Arrival.read(message) is None


@given(st.binary(max_size=200))
def test_any_bytes_can_be_read(data):
    assert Arrival.read(b"batch " + data) is None


@pytest.mark.parametrize(("world_size", "size"), [(2, 2**24), (64, 2**22), (1024, 2**18), (100_000, 2**18)])
def test_a_large_world_holds_less_for_each_rank(world_size, size):
    """So that the store of a stalled rank 0 stays small."""
    assert relay.window(world_size) == size

"""The post: how messages lie in the store on their way to rank 0, and how rank 0 takes many of them at a time.

Each message in a queue costs rank 0 a round trip to the store. Thousands of ranks that report an event a second would
keep a core busy with that alone. So small messages gather in a few boxes: keys to which ranks append lines. Rank 0
reads all boxes in one round trip, and empties one with `compare_set`, which does nothing when another line has come in
between: then it tries again with what is there. Large messages go through the queue, because a box of them would never
be found unchanged. Several of one sender's go together, because each call lets the interpreter's lock go, and getting
it back beside a busy training thread takes up to 5 ms. In both places a message is a line.
"""

import time
from collections.abc import Iterable
from typing import Final

from ddphub.distributed.relay import Keys
from ddphub.distributed.rendezvous import Store

BOXES: Final = 64
"""Boxes of an attempt; the ranks share them evenly."""

SMALL: Final = 4096
"""Bytes from which on a message goes through the queue."""

BUNDLE: Final = 192 * 1024
"""Bytes from which on a bundle of messages is sent."""

LARGEST: Final = 4 * 1024 * 1024
"""Bytes of a box past which it is not compared: torch's store closes a connection that sends it more than 8 MiB."""

TRIES: Final = 10
"""How often rank 0 tries to empty a box before it leaves that to the next time."""


def send(
    store: Store, keys: Keys, stream_id: str, rank: int, messages: Iterable[bytes], *, by_queue: bool = False
) -> None:
    """Sends messages to rank 0. The store does not acknowledge them. Any rank other than 0.

    Args:
        store: a client of the caller's own.
        keys: names of the relay's keys.
        stream_id: the attempt.
        rank: the sender.
        messages: each without a newline.
        by_queue: small ones, too.
    """
    bundle: list[bytes] = []
    size = 0
    for message in messages:
        bundle.append(message)
        size += len(message)
        if size >= BUNDLE:
            store.queue_push(keys.queue(stream_id), b"\n".join(bundle))
            bundle, size = [], 0
    if size >= SMALL or (bundle and by_queue):
        store.queue_push(keys.queue(stream_id), b"\n".join(bundle))
    elif bundle:
        store.append(keys.box(stream_id, rank % BOXES), b"\n".join(bundle) + b"\n")


class Inbox:
    """Rank 0's end: an attempt's queue and boxes.

    Args:
        store: rank 0's client.
        keys: names of the relay's keys.
        attempt_id: the attempt.
        boxes: how many of its boxes may be in use.
    """

    def __init__(self, store: Store, keys: Keys, attempt_id: str, boxes: int = BOXES) -> None:
        self._store = store
        self._queue = keys.queue(attempt_id)
        self._boxes = [keys.box(attempt_id, number) for number in range(min(boxes, BOXES))]
        for box in self._boxes:
            store.append(box, b"")  # `multi_get` waits for keys that are not there

    def take(self, messages: list[bytes], *, room: int, deadline: float) -> bool:
        """Appends the messages that wait, the queue's first; what it has taken is in `messages` whatever it raises.

        A message in the queue is behind the same sender's earlier ones in a box, which are read after it. So when
        the last message of a sender is sent through the queue, all that it sent before is taken with it or earlier.

        Args:
            messages: gets them.
            room: bytes; past them the rest of the queue is left there.
            deadline: by time.monotonic, likewise.

        Returns:
            Whether the queue is empty.

        Raises:
            RuntimeError: the store failed.
        """
        is_empty = self._take_queue(messages, room, deadline)
        for box, content in zip(self._boxes, self._store.multi_get(self._boxes), strict=True):
            self._empty(box, content, messages)
        return is_empty

    def _take_queue(self, messages: list[bytes], room: int, deadline: float) -> bool:
        while room > 0 and time.monotonic() < deadline:
            bundle = pop(self._store, self._queue)
            if bundle is None:
                return True
            messages += bundle.split(b"\n")
            room -= len(bundle)
        return False

    def _empty(self, box: str, content: bytes, messages: list[bytes]) -> None:
        for _ in range(TRIES):
            if not content:
                return
            if len(content) > LARGEST:
                # What came since it was read is lost, which its senders find unacknowledged and send again.
                self._store.set(box, "")
                found = b""
            else:
                found = self._store.compare_set(box, content, b"")
            if not found:
                messages += content.split(b"\n")[:-1]
                return
            content = found


def pop(store: Store, queue: str) -> bytes | None:
    """A queue's next message; None when it is empty.

    Raises:
        RuntimeError: the store failed.
    """
    from torch.distributed import QueueEmptyError  # noqa: PLC0415  # `import ddphub` must not import torch

    try:
        return store.queue_pop(queue, False)  # False: do not block
    except QueueEmptyError:
        return None

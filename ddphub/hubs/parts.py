"""Parts of a checkpoint on their way to a hub: several at once, over as many connections as the hub bears."""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Generic, TypeVar

from ddphub.errors import HubUnavailable
from ddphub.hubs.http import SignatureOver

CONNECTIONS: Final = 4
"""At most. Over 50 ms and with 1% of the packets lost, one connection gets 0.45 MiB/s of a line (TCP reno), four get
1.4; on a fast line the second one sends while the hub puts the part of the first on its disk."""

_Part = TypeVar("_Part")


class PartSenders(Generic[_Part]):
    """Sends parts by some threads, each over a connection of its own. One caller at a time.

    The calling thread is one of them, so that parts are sent where no thread can be started any more. After a failure
    no thread begins another part, and the next call uses half as many.

    Args:
        send: sends one part; raises as every call to a hub does.
        leave: called in each other thread when it ends: lets go what it has open.
    """

    def __init__(self, send: Callable[[_Part], None], leave: Callable[[], None]) -> None:
        self._send = send
        self._leave = leave
        self.connections = CONNECTIONS

    def send(self, parts: Iterable[_Part]) -> tuple[int, HubUnavailable | None]:
        """Sends parts, in about their order.

        Returns:
            How many arrived, and why not all of them: the parts that are left may be sent again.

        Raises:
            HubError: trying again would not help.
            OSError: a file cannot be read.
        """
        batch = _Batch(parts, self._send)
        try:
            helpers = self._start_helpers(batch)
            batch.work()
        finally:
            # Where this thread was interrupted nobody may go on: another deliverer may be the next.
            batch.is_over = True
        for helper in helpers:
            helper.join()
        error = batch.worst
        if error is None:
            self.connections = min(CONNECTIONS, self.connections + 1)
        elif not isinstance(error, HubUnavailable):
            raise error
        elif not isinstance(error, SignatureOver):
            self.connections = max(1, self.connections // 2)
        return batch.sent, error

    def _start_helpers(self, batch: "_Batch[_Part]") -> list[threading.Thread]:
        helpers: list[threading.Thread] = []
        for _ in range(min(self.connections, len(batch.waiting)) - 1):
            helper = threading.Thread(target=self._help, args=(batch,), name="ddphub-parts", daemon=True)
            try:
                helper.start()
            except RuntimeError:  # the interpreter ends, or the system has no more threads
                break
            helpers.append(helper)
        return helpers

    def _help(self, batch: "_Batch[_Part]") -> None:
        try:
            batch.work()
        finally:
            self._leave()


class _Batch(Generic[_Part]):
    """Parts to send, and what became of them; any thread.

    Attributes:
        waiting: the parts that nobody has begun.
        sent: how many arrived.
        is_over: no other one is begun.
        worst: why, where a part was not sent: what trying again does not help comes first, then the longest wait.
    """

    def __init__(self, parts: Iterable[_Part], send: Callable[[_Part], None]) -> None:
        self.waiting = deque(parts)
        self.sent = 0
        self.is_over = False
        self.worst: Exception | None = None
        self._send = send
        self._lock = threading.Lock()

    def work(self) -> None:
        """Sends one part after the other until none waits, or one has failed."""
        while not self.is_over:
            try:
                part = self.waiting.popleft()
            except IndexError:
                return
            try:
                self._send(part)
            except Exception as error:  # noqa: BLE001  # raised in the thread that called for it
                self._fail(error)
                return
            with self._lock:
                self.sent += 1

    def _fail(self, error: Exception) -> None:
        with self._lock:
            self.is_over = True
            if self.worst is None or _rank(error) > _rank(self.worst):
                self.worst = error


def _rank(error: Exception) -> float:
    return error.retry_after or 0.0 if isinstance(error, HubUnavailable) else float("inf")

"""Work that may never end, as on a file server that hangs, and is then left behind."""

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Pending(Generic[Result]):
    """Begins at once in a thread of its own, which does not keep the process from ending.

    Args:
        work: what to do.
    """

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work = work
        self._outcome: SimpleQueue[tuple[Result | None, BaseException | None]] = SimpleQueue()
        threading.Thread(target=self._run, name="ddphub-doctor", daemon=True).start()

    def result(self, until: float) -> Result:
        """What came of it; called once.

        Args:
            until: time.monotonic() up to which it is waited for.

        Raises:
            TimeoutError: it has not ended by then.
            BaseException: whatever the work raised.
        """
        try:
            value, error = self._outcome.get(timeout=max(0.0, until - time.monotonic()))
        except Empty:
            raise TimeoutError from None
        if error is not None:
            raise error
        return value  # type: ignore[return-value]  # None only where the work returns None

    def _run(self) -> None:
        try:
            self._outcome.put((self._work(), None))
        except BaseException as error:  # noqa: BLE001  # handed on to the caller of `result`
            self._outcome.put((None, error))

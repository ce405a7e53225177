"""Whether the hub can serve now: its database and its storage answer, and nobody has asked it to stop."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Final

GOOD_FOR_S: Final = 1.0
"""Whoever asks more often gets the same answer: nobody needs a key for it."""

ANSWER_S: Final = 3.0
"""Seconds that a part has to answer."""

_log = logging.getLogger(__name__)


class Readiness:
    """Asks the parts of a hub whether they answer. Event loop only.

    Attributes:
        is_stopping: the hub was asked to stop; set from a signal handler.

    Args:
        checks: by a part's name, what raises when it does not answer.
    """

    def __init__(self, checks: Mapping[str, Callable[[], object]]) -> None:
        self._checks = dict(checks)
        self._asked: dict[str, Future[object]] = {}
        self._looking: asyncio.Task[dict[str, str]] | None = None
        self._looked_at = float("-inf")
        self.is_stopping = False

    async def ask(self) -> dict[str, str]:
        """`ok` or what is wrong, by part. Waits for `ANSWER_S` at most."""
        is_old = time.monotonic() - self._looked_at > GOOD_FOR_S
        if self._looking is None or (is_old and self._looking.done()):
            self._looking = asyncio.create_task(self._look())
        # All who ask wait for one look, and it goes on when one of them goes away.
        found = await asyncio.shield(self._looking)
        return {**found, "hub": "stopping" if self.is_stopping else "ok"}

    async def _look(self) -> dict[str, str]:
        for name, check in self._checks.items():
            # One that still waits for its answer is not asked again.
            if name not in self._asked:
                self._asked[name] = _in_thread(check)
        asked = asyncio.gather(*map(asyncio.wrap_future, self._asked.values()), return_exceptions=True)
        await asyncio.wait([asked], timeout=ANSWER_S)
        found = {name: self._answer(name) for name in self._checks}
        self._looked_at = time.monotonic()
        return found

    def _answer(self, name: str) -> str:
        if not self._asked[name].done():
            _log.warning("not ready: the %s has not answered for %g s", name, ANSWER_S)
            return "no answer"
        error = self._asked.pop(name).exception()
        if error is None:
            return "ok"
        _log.warning("not ready: the %s failed: %s", name, str(error).partition("\n")[0] or type(error).__name__)
        return "failed"


def _in_thread(check: Callable[[], object]) -> Future[object]:
    """Calls it in a thread of its own: those that answer requests may all wait for the database.

    A daemon, so that a part that never answers does not keep the process from ending.
    """
    result: Future[object] = Future()

    def run() -> None:
        try:
            result.set_result(check())
        except Exception as error:  # noqa: BLE001  # whatever it is, the part does not answer
            result.set_exception(error)

    threading.Thread(target=run, name="readiness", daemon=True).start()
    return result

"""A thread that does one thing again and again, waits longer after failures, and can be told to finish.

This is the one layer of retries: exponential back-off with jitter, `Retry-After` honoured.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Final

from ddphub.errors import HubModelGone, HubRejected, HubUnauthorized, HubUnavailable

logger = logging.getLogger(__name__)

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
"""Seconds between two tries after the first failure, and at most where no shorter pause is asked for."""

REFUSED_PAUSE: Final = 120.0
"""Seconds until a hub that refused (wrong key, model gone) is asked again: someone may have mended it."""

LONGEST_RETRY_AFTER: Final = 600.0
"""Seconds that a Retry-After may make us wait."""

FINISHING_PACE: Final = 0.1
"""Seconds between two steps of a finishing loop."""

FINAL_TRIES: Final = 10
FINAL_TRIES_NEVER_REACHED: Final = 3
"""Consecutive failures after which a finishing loop leaves the rest on disk; fewer for a hub that never answered, or a
disk that refuses."""


class Backoff:
    """Pauses that double from FIRST_PAUSE to the longest, each shortened at random by up to half.

    Args:
        longest: seconds, asked each time.
    """

    def __init__(self, longest: Callable[[], float] = lambda: LONGEST_PAUSE) -> None:
        self._longest = longest
        self.failures = 0

    def next(self, retry_after: float | None = None) -> float:
        """Seconds to wait after one more failure."""
        self.failures += 1
        pause = min(self._longest(), FIRST_PAUSE * 2.0 ** min(self.failures - 1, 10))
        pause *= 1.0 - random.random() / 2  # noqa: S311  # jitter, so that a thousand runs do not come back at once
        if retry_after is not None:
            pause = max(pause, min(retry_after, LONGEST_RETRY_AFTER))
        return pause

    def reset(self) -> None:
        """After a success."""
        self.failures = 0


class Loop:
    """Runs `step` in a thread until it is told to finish and `step` says that nothing is left.

    Args:
        name: of the thread.
        step: does what there is to do; gets whether the loop is finishing; returns whether nothing is left.
            It may raise any HubError, OSError or JournalError.
        pace: seconds between two steps that succeeded, asked each time.
        reached: whether the hub has ever answered; by default whether a step has ever succeeded, which says nothing
            where a step may succeed without asking the hub.
        longest_pause: seconds at most between two tries after failures, asked each time; not of a finishing loop.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[bool], bool],
        pace: Callable[[], float],
        reached: Callable[[], bool] | None = None,
        longest_pause: Callable[[], float] = lambda: LONGEST_PAUSE,
    ) -> None:
        self._name = name
        self._step = step
        self._pace = pace
        self.succeeded = False
        self._reached = reached or (lambda: self.succeeded)
        self._wake = threading.Event()
        self._finishing = False
        self._aborted = False
        self._deadline = float("inf")
        # A finishing loop counts its tries: short pauses would leave a hub less time to come back.
        self._backoff = Backoff(lambda: LONGEST_PAUSE if self._finishing else longest_pause())
        self._warned: str | None = None
        self._disk_refused = False
        self.last_error: str | None = None
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def wake(self) -> None:
        """There is something to do: do not sit out the pace. A back-off is sat out."""
        if not self._backoff.failures:
            self._wake.set()

    def finish(self, deadline: float) -> None:
        """Asks the loop to end when nothing is left, at `deadline` (time.monotonic) at the latest; does not wait."""
        self._deadline = min(self._deadline, deadline)
        self._finishing = True
        self._wake.set()

    def hurry(self, deadline: float) -> None:
        """Ends a loop that is finishing at `deadline` (time.monotonic), if that is earlier."""
        self._deadline = min(self._deadline, deadline)
        self._wake.set()

    def abort(self) -> None:
        """Asks the loop to end before its next step; does not wait."""
        self._aborted = True
        self._wake.set()

    def join(self, timeout: float) -> bool:
        """Waits for the thread; whether it has ended."""
        self._thread.join(max(0.0, timeout))
        return not self._thread.is_alive()

    def _main(self) -> None:
        was_finishing = False
        while not self._aborted:
            finishing = self._finishing
            if finishing and not was_finishing:
                was_finishing = True
                self._backoff.reset()  # failures so far say little about a last effort
            pause = self._try_once(finishing)
            if pause is None or (self._finishing and time.monotonic() >= self._deadline):
                return
            # A loop told to finish tries once more at once, whatever it was waiting for.
            left = max(0.0, self._deadline - time.monotonic()) if self._finishing else pause
            self._wake.wait(min(pause, left))
            self._wake.clear()

    def _try_once(self, finishing: bool) -> float | None:
        """One step; the seconds to wait, or None when the loop is over."""
        try:
            nothing_left = self._step(finishing)
            pause = FINISHING_PACE if finishing else min(self._pace(), threading.TIMEOUT_MAX)
        except HubUnavailable as error:
            self._disk_refused = False
            self._fail(error, logging.INFO)
            pause = self._backoff.next(error.retry_after)
        except (HubUnauthorized, HubModelGone, HubRejected) as error:
            self._fail(error, logging.WARNING)
            self._backoff.next()
            if finishing:
                return None  # trying again within this job would change nothing
            pause = REFUSED_PAUSE
        except Exception as error:  # noqa: BLE001  # a thread that dies would take delivery with it, unheard
            self._disk_refused = isinstance(error, OSError)
            self._fail(error, logging.WARNING)
            pause = self._backoff.next()
        else:
            self.succeeded = True
            self.last_error = self._warned = None
            self._backoff.reset()
            return None if finishing and nothing_left else pause
        tries = FINAL_TRIES if self._reached() and not self._disk_refused else FINAL_TRIES_NEVER_REACHED
        return None if finishing and self._backoff.failures >= tries else pause

    def _fail(self, error: Exception, level: int) -> None:
        self.last_error = f"{error}"[:300] or type(error).__name__
        kind = type(error).__name__
        if self._warned != kind:  # once for a row of failures of one kind
            self._warned = kind
            logger.log(level, "%s: %s; nothing is lost, it stays on disk", self._name, self.last_error)

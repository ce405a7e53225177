"""Usage events: which mode, task and stock model was run, for those who count that at an endpoint of their own.

Off unless DDPHUB_USAGE_URL names the endpoint, and off where DO_NOT_TRACK is set (https://consoledonottrack.com). No
path, host name or argument is ever part of one. They are counted on a best effort: nothing waits for them, and what
cannot be sent is dropped.
"""

import logging
import os
import platform
import secrets
import threading
import time
from importlib import metadata
from typing import Any, Final
from urllib.parse import urlsplit

from ddphub import __version__
from ddphub.config import VARIABLES

logger = logging.getLogger(__name__)

MOST_QUEUED: Final = 25
"""Events that wait to be sent; more are dropped."""

PACE: Final = 60.0
"""Seconds at least between two requests."""


class Usage:
    """The usage events of one process. Rank 0 only; any thread.

    Args:
        url: the endpoint, or None: then nothing is kept.
    """

    def __init__(self, url: str | None) -> None:
        self._url = url
        self._client_id = secrets.token_hex(16)
        self._queue: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._sent = float("-inf")
        self._timer: threading.Timer | None = None

    @classmethod
    def from_environment(cls) -> "Usage":
        """What DDPHUB_USAGE_URL and DO_NOT_TRACK say."""
        url = os.environ.get(VARIABLES["usage_url"])
        if not url or os.environ.get("DO_NOT_TRACK", "0") not in {"", "0", "false"}:
            return cls(None)
        if urlsplit(url).scheme not in {"http", "https"}:
            logger.warning("%s is no http or https URL: no usage event is sent", VARIABLES["usage_url"])
            return cls(None)
        return cls(url)

    def put(self, mode: str, **params: str) -> None:
        """Adds an event; it is sent at once, or when the last request is a minute old. Takes microseconds.

        Args:
            mode: the event's name: train, val, predict, export.
            params: what is counted.
        """
        if self._url is None:
            return
        about = {"ddphub": __version__, "python": ".".join(platform.python_version_tuple()[:2])}
        with self._lock:
            if len(self._queue) < MOST_QUEUED:
                self._queue.append({"name": mode, "params": {**params, **about}})
            if self._timer is None:
                self._timer = threading.Timer(max(0.0, self._sent + PACE - time.monotonic()), self._send)
                self._timer.daemon = True
                self._timer.start()

    def _send(self) -> None:
        with self._lock:
            events, self._queue = self._queue, []
            self._sent, self._timer = time.monotonic(), None
        try:
            from ddphub.hubs.usage import post_usage  # noqa: PLC0415  # requests, only where it is used

            post_usage(self._url or "", self._client_id, events)
        except Exception as error:  # noqa: BLE001  # whatever it is, nobody waits for it
            logger.debug("usage events were not sent: %s", type(error).__name__)  # its text may hold the URL


def installed_how(package: str) -> str:
    """`pip`, `git`, `local` (a folder or file) or `other`."""
    try:
        origin = metadata.distribution(package).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return "other"
    if origin is None:
        return "pip"
    return "git" if '"vcs_info"' in origin else "local"

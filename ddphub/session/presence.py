"""alive.json: whether a process has a run directory in use.

`{"owner": <host, pid, start>, "id": <random>}`, written by rank 0 at `init` (or by another rank for a directory of its
own), renewed every BEAT seconds, deleted at `finish`. A process on this host is looked up; of one on another host the
file's age tells. It decides what `ddphub sync` cleans up and how long `--watch` follows; delivery's promises do not
hang on it.
"""

import contextlib
import logging
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from ddphub import names
from ddphub.checkpoints.disk import read_json, write_json
from ddphub.checkpoints.owner import Owner

logger = logging.getLogger(__name__)

BEAT: Final = 10.0
"""Seconds between two renewals."""

LATE: Final = 60.0
"""Seconds without a renewal after which a process on another host counts as gone."""


class Presence:
    """Says that this process has a run directory in use. Rank 0, or a rank with a directory of its own.

    Args:
        path: the run's alive.json.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._id = names.new_hex_id()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._main, name="ddphub-presence", daemon=True)

    def start(self) -> None:
        """Writes the file and starts the thread that renews it; a disk that refuses costs only the sign."""
        try:
            write_json(self._path, {"owner": Owner.current().to_json(), "id": self._id})
            self._thread.start()
        except (OSError, RuntimeError) as error:  # RuntimeError: the interpreter is ending and starts no thread
            logger.info("%s cannot be kept (%s): ddphub sync cannot tell that the run lives", self._path, error)

    def stop(self) -> None:
        """Takes the sign away, if it is still this process's."""
        self._ended.set()
        with contextlib.suppress(OSError, ValueError):
            if read_json(self._path).get("id") == self._id:
                self._path.unlink()

    def _main(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError, ValueError):
                # A requeued job has its own sign here: an attempt that was thought dead must not renew it.
                if read_json(self._path).get("id") == self._id:
                    os.utime(self._path)


def is_in_use(path: Path) -> bool:
    """Whether the process that wrote this alive.json lives, as far as can be told. Any process, any host."""
    try:
        state = Owner.from_json(read_json(path).get("owner")).state()
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        state = "unknown"
    if state != "unknown":
        return state == "alive"
    try:
        # By the file system's clock, which need not be this host's.
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            return os.fstat(probe.fileno()).st_mtime - path.stat().st_mtime < LATE
    except OSError:
        return path.exists()


class Sign:
    """Whether a run directory is in use, for a process that asks again and again.

    A look reads one small file and makes none: a process on another host is alive while its file's time goes on.

    Args:
        path: the run's alive.json.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: int | None = None
        self._since = float("-inf")

    def is_in_use(self) -> bool:
        """As `is_in_use`, by what the looks before saw."""
        try:
            # Opened, because a file server's client may remember a file's time for a minute until then.
            owner = read_json(self._path).get("owner")
            seen = self._path.stat().st_mtime_ns
            state = Owner.from_json(owner).state()
        except FileNotFoundError:
            self._seen = None
            return False
        except (OSError, ValueError):
            return is_in_use(self._path)
        if state != "unknown":
            return state == "alive"
        if seen != self._seen:
            is_fresh = self._seen is not None or is_in_use(self._path)
            self._seen, self._since = seen, time.monotonic() if is_fresh else float("-inf")
        return time.monotonic() - self._since < LATE

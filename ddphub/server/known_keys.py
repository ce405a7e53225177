"""What a process of the hub remembers of keys, so that the database is not asked the same many times a second."""

import mmap
import os
import secrets
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Final

from ddphub.server.principal import Principal

HELD_S: Final = 1.0
"""Seconds for which a process may not know what one on another machine changed; those of one machine know at once."""

_MOST: Final = 10_000
_SHARED: Final = 16


class RecentKeys:
    """The keys that addresses sent lately, of one kind. Any thread."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, sent: object) -> bool:
        return sent in self._known

    def add(self, sent: tuple[str, bytes]) -> bool:
        """Remember it; whether it was not known."""
        with self._lock:
            is_new = sent not in self._known
            self._known[sent] = None
            self._known.move_to_end(sent)
            if len(self._known) > _MOST:
                self._known.popitem(last=False)
        return is_new


class Holders:
    """Who holds which key, as the database said in the last second. Any thread.

    The processes that serve one data directory share a few bytes, which whoever changes a key or a user replaces by
    others: what was remembered before is good no longer.

    Args:
        shared: the file with these bytes; made when it is not there.
    """

    def __init__(self, shared: Path) -> None:
        self._known: OrderedDict[bytes, tuple[float, bytes, Principal]] = OrderedDict()
        self._lock = threading.Lock()
        file = os.open(shared, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(file, _SHARED)
            self._shared = mmap.mmap(file, _SHARED)
        finally:
            os.close(file)

    @property
    def changes(self) -> bytes:
        """What is other bytes after each change."""
        return self._shared[:_SHARED]

    def get(self, tag: bytes) -> Principal | None:
        """Who holds a key; None when the database must be asked."""
        until, changes, holder = self._known.get(tag, (0.0, b"", None))
        if holder is None or until <= time.monotonic() or changes != self.changes:
            return None
        has_expired = holder.expires_at is not None and holder.expires_at <= time.time()
        return None if has_expired else holder

    def put(self, tag: bytes, holder: Principal, changes: bytes) -> None:
        """Remember who holds a key.

        Args:
            tag: what stands for the key.
            holder: what the database said.
            changes: as `changes` was before the database was asked: what was read before a change is good no longer.
        """
        with self._lock:
            self._known[tag] = time.monotonic() + HELD_S, changes, holder
            self._known.move_to_end(tag)
            if len(self._known) > _MOST:
                self._known.popitem(last=False)

    def forget(self) -> None:
        """A key or a user has changed, here."""
        self._shared[:_SHARED] = secrets.token_bytes(_SHARED)

"""What lies beside committed entries, each read once: an entry never changes."""

import os
from pathlib import Path

from ddphub.checkpoints.digest import read_digest
from ddphub.checkpoints.entry import Entry
from ddphub.checkpoints.layout import DIGEST, RECORD
from ddphub.names import is_hex_id

_Stamp = tuple[int, int, int, int]
"""What changes with a file's content: inode, size, mtime, ctime."""


class Records:
    """The records in one staging area. Any thread, while others add and remove.

    Args:
        folder: the staging area.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, tuple[_Stamp, Entry]] = {}
        self._sealed: dict[str, _Stamp] = {}

    def read(self, *, again: bool = True) -> tuple[list[Entry], dict[str, str]]:
        """The entries, and what is wrong with those whose record does not say what it should, by id.

        Args:
            again: whether records that were read before are looked at, and read again when someone changed them.
                A save does not wait for a look at each of a thousand.
        """
        entries: list[Entry] = []
        broken: dict[str, str] = {}
        read = self._read
        still_there: dict[str, tuple[_Stamp, Entry]] = {}
        for name in self._names():
            known = read.get(name)
            path = f"{self._folder}/{name}/{RECORD}"
            try:
                if known is None or (again and known[0] != _stamp(path)):
                    # The stamp first: what is written in between is read again the next time.
                    known = _stamp(path), Entry.read(self._folder / name)
                still_there[name] = known
                entries.append(known[1])
            except (OSError, ValueError) as problem:
                # Removed meanwhile is not broken.
                if (self._folder / name).exists():
                    broken[name] = str(problem)
        self._read = still_there
        return entries, broken

    def is_sealed(self, entry: Entry) -> bool:
        """Whether an entry's digest is there and is one of this entry; read once, unless someone changed it."""
        try:
            stamp = _stamp(f"{entry.folder}/{DIGEST}")
        except OSError:
            return False
        if self._sealed.get(entry.entry_id) != stamp:
            if read_digest(entry) is None:
                return False
            self._sealed = {name: seen for name, seen in self._sealed.items() if name in self._read}
            self._sealed[entry.entry_id] = stamp
        return True

    def _names(self) -> list[str]:
        try:
            return sorted(filter(is_hex_id, os.listdir(self._folder)))  # noqa: PTH208  # names, not paths
        except (FileNotFoundError, NotADirectoryError):
            return []


def _stamp(path: str) -> _Stamp:
    found = os.stat(path)  # noqa: PTH116  # once an entry: a Path costs more than the call
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

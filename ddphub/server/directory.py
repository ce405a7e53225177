"""The hub's data directory, and who may use it.

```
<data>/                                      0700, files 0600
  hub.lock                                   flock: the one hub that serves this directory; holds the directory's id
  hub.db, hub.db-wal, hub.db-shm             the database
  secret                                     signs URLs and browser sessions
  keys.changes                               tells the processes of the hub that keys changed, see known_keys
  incoming/<random>                          bytes that still arrive or are being joined; emptied at start
  uploads/<checkpoint id>/<file>             a file that arrives: each part is copied to its place in it
  uploads/<checkpoint id>/<file>-<part>      empty: this part arrived whole and right, and is synced
  uploads/<checkpoint id>/<file>-<part>.some first bytes of a part whose request ended early
  blobs/<project id>/<sha256[:2]>/<sha256>   files of committed checkpoints
  damaged/                                   what `ddphub hub verify --repair` put aside, see mending
```

A file outside `incoming` and `uploads` is complete: it was written there, synced, and renamed or linked into its place.
"""

import fcntl
import os
import re
import secrets
from pathlib import Path
from typing import Final

from ddphub.errors import SettingsError

SECRET_BYTES: Final = 32

_NODE_DIGITS: Final = 12


class DataDirectory:
    """The directory, locked for this process.

    Args:
        root: where it is; made when it is not there.
        is_first: lock it, and empty `incoming`. Else another process of this hub did, and holds the lock as long as
            this one lives.

    Attributes:
        node: an id of this directory, 12 hex digits, made at the first start.

    Raises:
        SettingsError: when it holds something else, cannot be used, or another hub serves it.
    """

    def __init__(self, root: Path, *, is_first: bool = True) -> None:
        self.root = root.absolute()
        self.database = self.root / "hub.db"
        self.incoming = self.root / "incoming"
        self.uploads = self.root / "uploads"
        self.blobs = self.root / "blobs"
        try:
            if not is_first:
                self._lock = os.open(self.root / "hub.lock", os.O_RDONLY)
                self.node = os.pread(self._lock, _NODE_DIGITS, 0).decode()
                return
            self._lock = self._take()
            self.node = self._name()
            for folder in (self.root, self.incoming, self.uploads, self.blobs):
                folder.mkdir(mode=0o700, exist_ok=True)
                folder.chmod(0o700)
            for leftover in self.incoming.iterdir():
                leftover.unlink()
        except OSError as error:
            raise SettingsError("data", str(root), "server settings", f"cannot be used: {error}") from error

    def _take(self) -> int:
        lock_file = self.root / "hub.lock"
        if not self.root.exists():
            self.root.mkdir(mode=0o700, parents=True)
        elif not lock_file.exists() and any(self.root.iterdir()):
            expected = "expected an empty directory or one that a hub made; this one holds other files"
            raise SettingsError("data", str(self.root), "server settings", expected)
        lock = os.open(lock_file, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            expected = "another hub serves this directory; stop it first or choose another directory"
            raise SettingsError("data", str(self.root), "server settings", expected) from error
        return lock

    def _name(self) -> str:
        name = os.pread(self._lock, _NODE_DIGITS, 0).decode("ascii", "replace")
        if re.fullmatch(f"[0-9a-f]{{{_NODE_DIGITS}}}", name) is None:
            name = secrets.token_hex(_NODE_DIGITS // 2)
            os.pwrite(self._lock, name.encode(), 0)
        return name

    @property
    def lock_file(self) -> int:
        """Descriptor of the lock: a process that inherits it keeps the lock when this one ends."""
        return self._lock

    def open_database(self) -> Path:
        """The file of SQLite, made at the first start.

        Raises:
            SettingsError: a hub served this directory, and its rows are not here.
        """
        if not self.database.exists():
            if (self.root / "secret").exists():
                expected = "this directory's hub has its database elsewhere, or lost it: name it, or restore a backup"
                raise SettingsError("database_url", None, "server settings", expected)
            # SQLite gives its -wal and -shm files the mode of the database file.
            os.close(create_private(self.database))
        return self.database

    def secret(self) -> bytes:
        """The key that signs; made at the first start.

        Returns:
            32 bytes.
        """
        path = self.root / "secret"
        if not path.exists():
            made = self.new_incoming()
            write_synced(made, secrets.token_bytes(SECRET_BYTES))
            made.replace(path)
            sync_folder(self.root)
        return path.read_bytes()

    def new_incoming(self) -> Path:
        """A path in `incoming` that nothing uses."""
        return self.incoming / secrets.token_hex(16)

    def close(self) -> None:
        """Let another hub have the directory."""
        os.close(self._lock)


def create_private(path: Path) -> int:
    """Create a file that only its owner may read.

    Returns:
        A descriptor open for reading and writing; the caller closes it.
    """
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)


def write_synced(path: Path, content: bytes) -> None:
    """Create a private file whose bytes are on disk when this returns."""
    with os.fdopen(create_private(path), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Put a folder's entries on disk: a rename is not durable before that."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

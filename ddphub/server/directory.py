"""The hub's data directory, and who may use it.

```
<data>/                                      0700, files 0600
  hub.lock                                   flock: the one process that serves this directory
  hub.db, hub.db-wal, hub.db-shm             the database
  secret                                     signs URLs and browser sessions
  incoming/<random>                          bytes that still arrive or are being joined; emptied at start
  uploads/<checkpoint id>/<file>-<part>      parts that arrived whole and right
  blobs/<project id>/<sha256[:2]>/<sha256>   files of committed checkpoints
```

A file outside `incoming` is complete: it was written there, synced, and renamed into its place.
"""

import fcntl
import os
import secrets
from pathlib import Path
from typing import Final

from ddphub.errors import SettingsError

SECRET_BYTES: Final = 32


class DataDirectory:
    """The directory, locked for this process.

    Args:
        root: where it is; made when it is not there.

    Raises:
        SettingsError: when it holds something else, cannot be used, or another hub serves it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.database = self.root / "hub.db"
        self.incoming = self.root / "incoming"
        self.uploads = self.root / "uploads"
        self.blobs = self.root / "blobs"
        try:
            self._lock = self._take()
            for folder in (self.root, self.incoming, self.uploads, self.blobs):
                folder.mkdir(mode=0o700, exist_ok=True)
                folder.chmod(0o700)
            for leftover in self.incoming.iterdir():
                leftover.unlink()
            # SQLite gives its -wal and -shm files the mode of the database file.
            os.close(os.open(self.database, os.O_CREAT | os.O_RDWR, 0o600))
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
        A descriptor open for writing; the caller closes it.
    """
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)


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

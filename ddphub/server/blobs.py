"""Checkpoint bytes on disk: parts as they arrive, blobs once they are whole.

The layout is drawn in `directory`. Nothing here knows the database; a blob counts once the database says so.
"""

import contextlib
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from ddphub.server.directory import DataDirectory, create_private, sync_folder

CHUNK: Final = 1024 * 1024
"""Bytes in memory at a time."""


class WrongBytes(Exception):
    """A file's bytes do not have the sha256 that was announced.

    Args:
        damaged: whether a part changed on disk, so that sending it again helps; else the parts are the announced ones,
            and it is the announcement that is wrong.
    """

    def __init__(self, *, damaged: bool) -> None:
        super().__init__(damaged)
        self.damaged = damaged


class Interrupted(Exception):
    """The hub is stopping."""


class Blobs:
    """The parts and blobs of one hub.

    Args:
        directory: the hub's data directory.
    """

    def __init__(self, directory: DataDirectory) -> None:
        self._directory = directory
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Let every `join` that runs raise `Interrupted`."""
        self._stopping.set()

    def new_file(self) -> "IncomingFile":
        """A file for bytes that arrive: those of a part, or a whole file's."""
        return IncomingFile(self._directory.new_incoming())

    # Parts ----------------------------------------------------------------------------------------------------------

    def open_upload(self, checkpoint: str) -> None:
        """Make room for a checkpoint's parts; a part is only kept while that room is there."""
        self._upload(checkpoint).mkdir(mode=0o700, exist_ok=True)

    def keep_part(self, part: "IncomingFile", checkpoint: str, file: int, number: int) -> bool:
        """Sync a part's bytes and put them in their place.

        Returns:
            False when the checkpoint takes no more parts: it was committed meanwhile.
        """
        part.sync()
        try:
            part.path.replace(self._upload(checkpoint) / f"{file}-{number}")
        except FileNotFoundError:
            return False
        return True

    def parts(self, checkpoint: str) -> set[tuple[int, int]]:
        """The parts that have arrived: (file number, part number)."""
        arrived = set()
        with contextlib.suppress(FileNotFoundError), os.scandir(self._upload(checkpoint)) as entries:
            for entry in entries:
                file, _, number = entry.name.partition("-")
                arrived.add((int(file), int(number)))
        return arrived

    def close_upload(self, checkpoint: str) -> None:
        """Forget a checkpoint's parts and take no more."""
        # A part that arrives at this moment may keep the folder; the next start removes it.
        shutil.rmtree(self._upload(checkpoint), ignore_errors=True)

    def uploads(self) -> list[str]:
        """The checkpoints that have room for parts."""
        return [entry.name for entry in self._directory.uploads.iterdir()]

    def _upload(self, checkpoint: str) -> Path:
        return self._directory.uploads / checkpoint

    # Blobs ----------------------------------------------------------------------------------------------------------

    def path(self, project: str, sha256: str) -> Path:
        """Where a project's blob is, or will be."""
        return self._directory.blobs / project / sha256[:2] / sha256

    def join(self, checkpoint: str, file: int, parts: Sequence[str], project: str, sha256: str) -> None:
        """Make a blob of the parts of one file; its bytes are safe on disk when this returns.

        Args:
            checkpoint: the checkpoint's id.
            file: the file's number.
            parts: the sha256 of each of its parts.
            project: the id of the project that the blob is for.
            sha256: what the whole file must have.

        Raises:
            WrongBytes: when it has another one; the parts to blame are dropped and can be sent again.
            Interrupted: when the hub is stopping.
        """
        sources = [self._upload(checkpoint) / f"{file}-{number}" for number in range(len(parts))]
        made = self._directory.new_incoming()
        try:
            if self._copy(sources, made) != sha256:
                raise self._blame(sources, parts)
            self._place(made, project, sha256)
        finally:
            made.unlink(missing_ok=True)

    def keep(self, file: "IncomingFile", project: str) -> None:
        """Make a blob of a whole file that was synced."""
        self._place(file.path, project, file.sha256)

    def _place(self, made: Path, project: str, sha256: str) -> None:
        place = self.path(project, sha256)
        for folder in (place.parent.parent, place.parent):
            if not folder.exists():
                folder.mkdir(mode=0o700, exist_ok=True)
                sync_folder(folder.parent)
        made.replace(place)
        sync_folder(place.parent)

    def _copy(self, sources: Sequence[Path], target: Path) -> str:
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(CHUNK))
        with os.fdopen(create_private(target), "wb", buffering=0) as output:
            for source in sources:
                with source.open("rb", buffering=0) as input_file:
                    while count := input_file.readinto(buffer):
                        if self._stopping.is_set():
                            raise Interrupted
                        digest.update(buffer[:count])
                        _write_all(output.fileno(), buffer[:count])
            os.fsync(output.fileno())
        return digest.hexdigest()

    def _blame(self, sources: Sequence[Path], parts: Sequence[str]) -> WrongBytes:
        damaged = []
        for source, sha256 in zip(sources, parts, strict=True):
            with source.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    damaged.append(source)
        for source in damaged or sources:
            source.unlink(missing_ok=True)
        return WrongBytes(damaged=bool(damaged))

    def holds(self, project: str, sha256: str, size: int) -> bool:
        """Whether a blob's file is there with its size."""
        try:
            return self.path(project, sha256).stat().st_size == size
        except FileNotFoundError:
            return False

    def stored(self) -> Iterator[tuple[str, list[str]]]:
        """The blobs on disk: a project's id and the sha256 of some of its blobs, all of them in the end."""
        for project in self._directory.blobs.iterdir():
            for folder in project.iterdir():
                yield project.name, [entry.name for entry in folder.iterdir()]

    def remove(self, project: str, sha256: str) -> None:
        """Remove a blob that no commit vouches for."""
        self.path(project, sha256).unlink(missing_ok=True)


class IncomingFile:
    """Bytes while they arrive; not safe for two threads at once.

    Args:
        path: a new file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._digest = hashlib.sha256()
        self._file = create_private(path)

    def write(self, chunk: bytes | bytearray) -> None:
        """Add bytes."""
        self._digest.update(chunk)
        _write_all(self._file, memoryview(chunk))
        self.size += len(chunk)

    @property
    def sha256(self) -> str:
        """Of the bytes so far, as hex."""
        return self._digest.hexdigest()

    def sync(self) -> None:
        """Put the bytes on disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Remove the file, unless it was kept."""
        os.close(self._file)
        self.path.unlink(missing_ok=True)


def _write_all(file: int, content: memoryview) -> None:
    while content:
        content = content[os.write(file, content) :]


def read_chunks(file: BinaryIO, length: int) -> Iterator[bytes]:
    """The next `length` bytes of an open file, in chunks; closes it at the end."""
    with file:
        while length > 0 and (chunk := file.read(min(CHUNK, length))):
            length -= len(chunk)
            yield chunk

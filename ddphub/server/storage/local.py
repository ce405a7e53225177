"""A local directory as storage. The layout is drawn in `directory`; parts come through the hub, to signed URLs."""

import contextlib
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from ddphub.hubs.wire import PartUrl
from ddphub.server.directory import DataDirectory, sync_folder
from ddphub.server.problems import Problem
from ddphub.server.signing import Part, Signer
from ddphub.server.storage.incoming import CHUNK, IncomingFile, read_chunks, remove_stale
from ddphub.server.storage.interface import (
    ABANDONED_S,
    STALE_S,
    ArrivingFile,
    Interrupted,
    Place,
    Prepared,
    StoredBlob,
    Wanted,
    WrongBytes,
)

_SOME: Final = 500
"""How many names one query asks for."""


class LocalStorage:
    """A `Storage` in the hub's data directory.

    Args:
        directory: the hub's data directory.
        signer: signs the URLs of parts.
    """

    reuses_places = True

    def __init__(self, directory: DataDirectory, signer: Signer) -> None:
        self._directory = directory
        self._signer = signer
        self._stopping = threading.Event()

    def check(self) -> None:
        """See `Storage`."""
        try:
            self._directory.blobs.stat()
        except OSError as error:
            raise Problem(503, "the hub's directory cannot be read") from error

    def stop(self) -> None:
        """See `Storage`."""
        self._stopping.set()

    def close(self) -> None:
        """See `Storage`."""

    # Parts ----------------------------------------------------------------------------------------------------------

    def arrived(self, files: Sequence[ArrivingFile]) -> Mapping[int, set[int] | None]:
        """See `Storage`."""
        if not files:
            return {}
        folder = self._upload(files[0].checkpoint)
        found: dict[int, set[int] | None] = {file.number: set() for file in files}
        try:
            entries = os.scandir(folder)
        except FileNotFoundError:
            return dict.fromkeys(found)
        with entries:
            for entry in entries:
                number, _, part = entry.name.partition("-")
                parts = found.get(int(number))
                # A hub of an earlier version kept a part's bytes in the file of its name: such a part is sent again.
                with contextlib.suppress(FileNotFoundError):  # forgotten meanwhile
                    if parts is not None and part.isdigit() and not entry.stat().st_size:
                        parts.add(int(part))
        return found

    def begin(self, files: Sequence[ArrivingFile]) -> Mapping[int, Place]:
        """See `Storage`: a part is only kept while its checkpoint's folder is there."""
        for checkpoint in {file.checkpoint for file in files}:
            self._upload(checkpoint).mkdir(mode=0o700, exist_ok=True)
        return {}

    def part_url(self, file: ArrivingFile, number: int) -> PartUrl:
        """See `Storage`."""
        part = Part(
            checkpoint=file.checkpoint,
            file=file.number,
            number=number,
            start=number * file.part_size,
            size=file.part_bytes(number),
            sha256=file.parts[number],
        )
        told: PartUrl = {"number": number, "url": self._signer.part_url(part)}
        with contextlib.suppress(FileNotFoundError):
            told["received"] = self._some(part).stat().st_size
        return told

    def new_part(self, part: Part, received: int) -> IncomingFile:
        """A file for a part that arrives.

        Args:
            part: the part.
            received: how many bytes of it a request before has left here, which ended early.

        Raises:
            Problem: 409 when so many are not here.
        """
        if not received:
            return self.new_file()
        path = self._directory.new_incoming()
        try:
            # Whoever asks first has them.
            self._some(part).replace(path)
            if path.stat().st_size >= received:
                return IncomingFile(path, received)
            path.unlink()
        except FileNotFoundError:
            pass
        raise Problem(409, f"{received} bytes of this part are not here: ask for the missing parts again")

    def keep_some(self, incoming: IncomingFile, part: Part) -> None:
        """Keep the first bytes of a part whose request ended early; the next one need not send them again.

        Nothing is promised of them: when all are there, the part's digest tells.
        """
        some = self._some(part)
        with contextlib.suppress(FileNotFoundError):  # the checkpoint takes no more parts
            if incoming.size > (some.stat().st_size if some.exists() else 0):
                incoming.path.replace(some)

    def _some(self, part: Part) -> Path:
        return self._upload(part.checkpoint) / f"{part.file}-{part.number}.some"

    def keep_part(self, incoming: IncomingFile, part: Part) -> bool:
        """Put a part's bytes, which were checked, in their place in its file, and sync them.

        So nothing but what was announced is ever written there, whoever sends the same part at the same time.

        Returns:
            False when the checkpoint takes no more parts: it was committed meanwhile.
        """
        folder = self._upload(part.checkpoint)
        name = folder / f"{part.file}-{part.number}"
        try:
            if name.exists() and not name.stat().st_size:
                return True
            file = os.open(folder / str(part.file), os.O_CREAT | os.O_RDWR, 0o600)
            try:
                incoming.copy_to(file, part.start)
                os.fdatasync(file)
            finally:
                os.close(file)
            os.close(os.open(name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600))
        except FileNotFoundError:
            return False
        return True

    def assemble(self, file: ArrivingFile) -> Prepared:
        """See `Storage`; the parts to blame for wrong bytes are dropped and can be sent again."""
        path = self._upload(file.checkpoint) / str(file.number)
        if not file.parts and path.parent.exists():
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        try:
            is_right = self._digest(path) == (file.sha256, file.size)
        except FileNotFoundError:
            _drop_parts(path, range(len(file.parts)))
            raise
        if not is_right:
            raise _blame(path, file)
        blob = StoredBlob(project=file.project, sha256=file.sha256, size=file.size)
        return Prepared(blob=blob, path=path, is_arrived=True)

    def _digest(self, path: Path) -> tuple[str, int]:
        digest, size = hashlib.sha256(), 0
        buffer = memoryview(bytearray(CHUNK))
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                if self._stopping.is_set():
                    raise Interrupted
                digest.update(buffer[:count])
                size += count
            os.fsync(file.fileno())
        return digest.hexdigest(), size

    def forget(self, checkpoint: str, files: Sequence[ArrivingFile]) -> None:  # noqa: ARG002  # one folder has them all
        """See `Storage`."""
        # A part that arrives at this moment may keep the folder; the next sweep removes it.
        shutil.rmtree(self._upload(checkpoint), ignore_errors=True)

    def _upload(self, checkpoint: str) -> Path:
        return self._directory.uploads / checkpoint

    # Files that come whole ------------------------------------------------------------------------------------------

    def new_file(self) -> IncomingFile:
        """See `Storage`."""
        return IncomingFile(self._directory.new_incoming())

    def adopt(self, file: IncomingFile, project: str) -> Prepared:
        """See `Storage`."""
        return Prepared(blob=StoredBlob(project=project, sha256=file.sha256, size=file.size), path=file.path)

    def prepare(self, blob: StoredBlob, chunks: Iterable[bytes]) -> Prepared:
        """See `Storage`."""
        made = self.new_file()
        is_right = False
        try:
            for chunk in chunks:
                made.write(chunk)
            made.sync()
            is_right = (made.sha256, made.size) == (blob.sha256, blob.size)
        finally:
            made.close(keep=is_right)
        if not is_right:
            raise WrongBytes(damaged=False)
        return self.adopt(made, blob.project)

    # Blobs ----------------------------------------------------------------------------------------------------------

    def place(self, prepared: Sequence[Prepared]) -> None:
        """See `Storage`."""
        changed = set()
        for one in prepared:
            place = self.path(one.blob)
            for folder in (place.parent.parent, place.parent):
                if not folder.exists():
                    folder.mkdir(mode=0o700, exist_ok=True)
                    sync_folder(folder.parent)
            assert one.path is not None  # noqa: S101  # it was prepared here
            if one.is_arrived:
                self._link(one.path, place)
            else:
                one.path.replace(place)
            changed.add(place.parent)
        for folder in changed:
            sync_folder(folder)

    def _link(self, path: Path, place: Path) -> None:
        """Gives bytes a second name: until the commit is written down they stay where the next try looks for them."""
        os.utime(path)  # that is when a blob came, see `stored`; its parts may be days old
        made = self._directory.new_incoming()
        try:
            made.hardlink_to(path)
        except FileNotFoundError:
            raise
        except OSError:  # a file system without links
            path.replace(place)
            return
        made.replace(place)
        made.unlink(missing_ok=True)  # it is still there where both were the same file already

    def drop(self, prepared: Sequence[Prepared]) -> None:
        """See `Storage`."""
        for one in prepared:
            assert one.path is not None  # noqa: S101  # it was prepared here
            if not one.is_arrived:
                one.path.unlink(missing_ok=True)

    def held(self, blobs: Sequence[StoredBlob]) -> set[str]:
        """See `Storage`."""
        return {blob.sha256 for blob in blobs if self._holds(blob)}

    def _holds(self, blob: StoredBlob) -> bool:
        try:
            return self.path(blob).stat().st_size == blob.size
        except FileNotFoundError:
            return False

    def read(self, blob: StoredBlob, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See `Storage`."""
        file = self.path(blob).open("rb")
        file.seek(start)
        return read_chunks(file, (blob.size if end is None else end) - start)

    def download_url(self, blob: StoredBlob, name: str) -> str | None:  # noqa: ARG002  # as every storage is asked
        """See `Storage`: only the hub reads its directory."""
        return None

    def path(self, blob: StoredBlob) -> Path:
        """See `Storage`."""
        return self._directory.blobs / blob.project / blob.sha256[:2] / blob.sha256

    def remove(self, blobs: Sequence[StoredBlob]) -> None:
        """See `Storage`."""
        for blob in blobs:
            self.path(blob).unlink(missing_ok=True)

    def stored(self) -> Iterator[tuple[StoredBlob, float]]:
        """See `Storage`."""
        for project in self._directory.blobs.iterdir():
            for folder in project.iterdir():
                for path in folder.iterdir():
                    with contextlib.suppress(FileNotFoundError):
                        told = path.stat()
                        blob = StoredBlob(project=project.name, sha256=path.name, size=told.st_size)
                        yield blob, told.st_mtime

    def sweep(self, wanted: Wanted) -> None:
        """See `Storage`."""
        now = time.time()
        remove_stale(self._directory.incoming, now - STALE_S)
        uploads = [path.name for path in self._directory.uploads.iterdir()]
        for start in range(0, len(uploads), _SOME):
            some = uploads[start : start + _SOME]
            needed = wanted.checkpoints(some)
            for checkpoint in some:
                if checkpoint not in needed or _age(self._upload(checkpoint), now) > ABANDONED_S:
                    self.forget(checkpoint, [])


def _age(path: Path, now: float) -> float:
    """Seconds since a folder's entries changed; of one that is gone, none."""
    try:
        return now - path.stat().st_mtime
    except FileNotFoundError:
        return 0


def _blame(path: Path, file: ArrivingFile) -> WrongBytes:
    damaged = []
    with path.open("rb") as content:
        for number, sha256 in enumerate(file.parts):
            digest = hashlib.sha256()
            content.seek(number * file.part_size)
            left = file.part_bytes(number)
            while left and (chunk := content.read(min(CHUNK, left))):
                digest.update(chunk)
                left -= len(chunk)
            if digest.hexdigest() != sha256:
                damaged.append(number)
    # A file that is too long has every part, and more.
    if not damaged and path.stat().st_size != file.size:
        os.truncate(path, file.size)
        damaged = list(range(len(file.parts)))
    _drop_parts(path, damaged or range(len(file.parts)))
    return WrongBytes(damaged=bool(damaged))


def _drop_parts(path: Path, numbers: Iterable[int]) -> None:
    for number in numbers:
        path.with_name(f"{path.name}-{number}").unlink(missing_ok=True)

"""What the hub asks of a storage, and the words that both sides use."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from ddphub.hubs.wire import PartUrl
from ddphub.server.storage.incoming import IncomingFile

STALE_S: Final = 24 * 3600.0
"""Seconds after which nobody is at bytes that no row names."""

ABANDONED_S: Final = 30 * 24 * 3600.0
"""Seconds after which parts of a checkpoint that never became whole are removed; its sender is asked for them again."""


class WrongBytes(Exception):
    """A file's bytes do not have the sha256 that was announced.

    Args:
        damaged: whether a part changed in the storage, so that sending it again helps; else the parts are the announced
            ones, and it is the announcement that is wrong.
    """

    def __init__(self, *, damaged: bool) -> None:
        super().__init__(damaged)
        self.damaged = damaged


class Interrupted(Exception):
    """The hub is stopping."""


@dataclass(frozen=True, kw_only=True)
class StoredBlob:
    """The bytes of one content of one project.

    Args:
        project: the project's id.
        sha256: of the bytes, as hex.
        size: how many.
        location: where an object storage has them; None in a local directory, which finds them by their sha256.
    """

    project: str
    sha256: str
    size: int
    location: str | None = None


@dataclass(frozen=True, kw_only=True)
class ArrivingFile:
    """A file of a checkpoint whose bytes the project does not have.

    Args:
        checkpoint: the checkpoint's id.
        project: the project's id.
        number: the file's number in its checkpoint, from 0.
        name: a relative POSIX path, unique in its checkpoint.
        size: bytes.
        sha256: of the whole file, as hex.
        part_size: bytes of a part; the last one is shorter.
        parts: the sha256 of each part.
        location: where it arrives, as `begin` gave it.
        upload_id: the upload by which it arrives there, as `begin` gave it.
    """

    checkpoint: str
    project: str
    number: int
    name: str
    size: int
    sha256: str
    part_size: int
    parts: tuple[str, ...]
    location: str | None = None
    upload_id: str | None = None

    def part_bytes(self, number: int) -> int:
        """Bytes of part `number`."""
        return min(self.part_size, self.size - number * self.part_size)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a file arrives, for its row: see `ArrivingFile`."""

    location: str
    upload_id: str | None

    def of(self, file: ArrivingFile) -> ArrivingFile:
        """The file, with this place."""
        return replace(file, location=self.location, upload_id=self.upload_id)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Bytes that were checked and are safe; they become a blob by `place` and a row.

    Args:
        blob: what they will be.
        path: the file that has them until then, in a local directory.
        is_arrived: whether they are a checkpoint's file in the place that its row names: what was not committed now may
            be by the next try.
    """

    blob: StoredBlob
    path: Path | None = None
    is_arrived: bool = False


class Storage(Protocol):
    """Keeps bytes for one hub. Any thread, any number of processes.

    A blob is named by a row of the database; where a call finds none of its bytes it raises FileNotFoundError. A
    storage that does not answer is a `Problem` 503.
    """

    reuses_places: bool
    """Whether bytes that are removed and bytes that are placed later may have the same place, so that a removal must
    exclude commits: both hold the project's lock."""

    def check(self) -> None:
        """Find out whether the storage answers.

        Raises:
            Problem: 503.
        """

    def stop(self) -> None:
        """Let every `assemble` that runs raise `Interrupted`."""

    def close(self) -> None:
        """Close what is open; nothing is asked any more."""

    # Files that arrive in parts -------------------------------------------------------------------------------------

    def arrived(self, files: Sequence[ArrivingFile]) -> Mapping[int, set[int] | None]:
        """The parts that are there, by the file's number; None for a file that needs `begin` first."""

    def begin(self, files: Sequence[ArrivingFile]) -> Mapping[int, Place]:
        """Make room for files; what is returned is for their rows.

        Raises:
            Problem: 422 when a file cannot arrive in such parts.
        """

    def part_url(self, file: ArrivingFile, number: int) -> PartUrl:
        """What lets its holder send one part, until it expires."""

    def assemble(self, file: ArrivingFile) -> Prepared:
        """Make one of a file's parts, and read it again.

        Raises:
            WrongBytes: when it has another sha256.
            Interrupted: when the hub is stopping.
            FileNotFoundError: when parts are gone.
        """

    def forget(self, checkpoint: str, files: Sequence[ArrivingFile]) -> None:
        """Take no more parts of a checkpoint, and remove what came of its files.

        Args:
            checkpoint: the checkpoint's id.
            files: those of its files that had room, and whose place is no blob's.
        """

    # Files that come whole ------------------------------------------------------------------------------------------

    def new_file(self) -> IncomingFile:
        """A file of this machine for bytes that arrive here."""

    def adopt(self, file: IncomingFile, project: str) -> Prepared:
        """Take a whole file over that was synced.

        Args:
            file: where it came; closed by the caller when all is done.
            project: the id of the project that the blob is for.
        """

    def prepare(self, blob: StoredBlob, chunks: Iterable[bytes]) -> Prepared:
        """Take bytes in, in pieces of any size; `blob.location` is not looked at.

        Raises:
            WrongBytes: when they are not those of `blob`; nothing is kept.
        """

    # Blobs ----------------------------------------------------------------------------------------------------------

    def place(self, prepared: Sequence[Prepared]) -> None:
        """Put bytes in their place; inside the transaction that writes their rows, which holds the project's lock."""

    def drop(self, prepared: Sequence[Prepared]) -> None:
        """Remove bytes that were not placed, but those that the next try may find where they are."""

    def held(self, blobs: Sequence[StoredBlob]) -> set[str]:
        """The sha256 of those blobs whose bytes are there with their size."""

    def read(self, blob: StoredBlob, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes of a blob from `start` up to `end`, or all, in pieces of at most CHUNK."""

    def download_url(self, blob: StoredBlob, name: str) -> str | None:
        """A URL of short life at which the storage itself gives a blob out; None when only the hub can.

        Args:
            blob: the blob.
            name: what a browser shall name its file.
        """

    def path(self, blob: StoredBlob) -> Path | None:
        """The file that has a blob's bytes, there or not; None when it is none of this machine's."""

    def remove(self, blobs: Sequence[StoredBlob]) -> None:
        """Remove blobs that no row names."""

    def stored(self) -> Iterator[tuple[StoredBlob, float]]:
        """Every blob that is there, with a row or not, and when it came, in seconds since the epoch."""

    def sweep(self, wanted: "Wanted") -> None:
        """Remove uploads and halves that nothing needs any more; never what another process may be at.

        Args:
            wanted: tells which uploads the database knows.
        """


class Wanted(Protocol):
    """What the database says of uploads that a storage found."""

    def checkpoints(self, ids: Sequence[str]) -> set[str]:
        """Which of these checkpoints still arrive."""

    def upload_ids(self) -> set[str]:
        """The uploads of all files that still arrive."""

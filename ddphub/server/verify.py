"""Looking at all that a hub keeps: whether every byte is as it was sent, and the tables agree with each other.

| finding | what it means | severe |
| --- | --- | --- |
| missing | a complete checkpoint needs bytes that are not there, or cannot be read | yes |
| damaged | bytes are there, and are not those that were sent | yes |
| database | the database itself, or a count in it, is wrong | yes |
| unreferenced | bytes that no checkpoint needs: a hub removes them by itself, once nobody can be at them | no |

It works beside hubs that serve: it changes nothing, nobody waits for it, and what is added or deleted meanwhile is no
finding. Memory does not grow with what there is.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal

from sqlalchemy import Select, case, exists, func, not_, select, text
from sqlalchemy.orm import InstrumentedAttribute

from ddphub.server.backups.making import find_blob
from ddphub.server.database import Database
from ddphub.server.storage.interface import Storage, StoredBlob
from ddphub.server.tables import Blob, Checkpoint, CheckpointFile, Event, Model, Points, Project, Series

GRACE_S: Final = 3600.0
"""Seconds for which bytes without a row may be those of a checkpoint that is just being committed."""

_THREADS: Final = 4
_SOME: Final = 500
_MODELS: Final = 10
"""Models whose events one transaction counts."""
_NAMED: Final = 3
"""Checkpoints that a finding names."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        kind: see the table above.
        what: a sentence for people.
        blob: the bytes that it is about, where it is about some.
    """

    kind: Literal["missing", "damaged", "database", "unreferenced"]
    what: str
    blob: StoredBlob | None = None

    @property
    def is_severe(self) -> bool:
        """Whether something is lost or wrong."""
        return self.kind != "unreferenced"


class Verification:
    """One look at all that a hub keeps.

    Args:
        database: the hub's.
        storage: the hub's.
        progress: is told how many blobs and bytes were read.

    Attributes:
        blobs: that were read.
        bytes: of those.
        models: whose counts were compared.
    """

    def __init__(
        self, database: Database, storage: Storage, progress: Callable[[int, int], None] = lambda _blobs, _bytes: None
    ) -> None:
        self._database = database
        self._storage = storage
        self._progress = progress
        self.blobs = 0
        self.bytes = 0
        self.models = 0

    def findings(self) -> Iterator[Finding]:
        """All that is found; it is looked at while it is asked for."""
        yield from self._pages_and_keys()
        yield from self._counts()
        yield from self._needed()
        yield from self._read_all()
        yield from self._unneeded()
        yield from self._without_row()

    def _pages_and_keys(self) -> Iterator[Finding]:
        """What the database says of itself; PostgreSQL checks its pages as it reads them."""
        with self._database.snapshot() as connection:
            if connection.dialect.name != "sqlite":
                return
            for (said,) in connection.execute(text("PRAGMA integrity_check(20)")):
                if said != "ok":
                    yield Finding(kind="database", what=f"SQLite says: {said}")
            for table, row, parent, _ in islice(connection.execute(text("PRAGMA foreign_key_check")), 20):
                what = f"row {row} of {table} names a row of {parent} that is not there"
                yield Finding(kind="database", what=what)

    def _counts(self) -> Iterator[Finding]:
        """Counts that are kept beside what they count."""
        events = select(func.count()).where(Event.model_ref == Model.id).scalar_subquery()
        # A model that is being deleted loses its rows some at a time.
        models = select(Model.id, Model.public_id, Model.events, events).where(Model.deleted_at.is_(None))
        for _, model, said, found in self._pages(models, Model.id, _MODELS):
            self.models += 1
            if said != found:
                yield Finding(kind="database", what=f"the model {model} has {found} events and counts {said}")
        of_series = Points.series_ref == Series.id
        count = func.coalesce(func.sum(Points.count), 0)
        rank0 = func.coalesce(func.sum(case((Points.rank0, Points.count), else_=0)), 0)
        series = (
            select(
                Series.id,
                Model.public_id,
                Series.name,
                Series.count,
                Series.rank0_count,
                select(count).where(of_series).scalar_subquery(),
                select(rank0).where(of_series).scalar_subquery(),
            )
            .join(Model, Model.id == Series.model_ref)
            .where(Model.deleted_at.is_(None))
        )
        for _, model, name, *said_and_found in self._pages(series, Series.id, _SOME):
            said, found = said_and_found[:2], [int(number) for number in said_and_found[2:]]
            if said != found:
                what = f"the metric {name!a} of the model {model} has {found[0]} points and counts {said[0]}"
                yield Finding(kind="database", what=what)

    def _needed(self) -> Iterator[Finding]:
        """Files of complete checkpoints without a blob."""
        files = (
            select(
                CheckpointFile.id,
                CheckpointFile.name,
                CheckpointFile.sha256,
                CheckpointFile.size,
                Checkpoint.public_id,
                Model.public_id,
                Project.public_id,
            )
            .join(Checkpoint, Checkpoint.id == CheckpointFile.checkpoint_ref)
            .join(Model, Model.id == Checkpoint.model_ref)
            .join(Project, Project.id == Model.project_ref)
            .where(Checkpoint.committed_at.is_not(None))
            .where(
                not_(
                    exists().where(
                        Blob.project_ref == Model.project_ref,
                        Blob.sha256 == CheckpointFile.sha256,
                        Blob.size == CheckpointFile.size,
                    )
                )
            )
        )
        for _, name, sha256, size, checkpoint, model, project in self._pages(files, CheckpointFile.id, _SOME):
            what = f"{name!a} of the checkpoint {checkpoint} of the model {model} has no bytes ({sha256})"
            yield Finding(kind="missing", what=what, blob=StoredBlob(project=project, sha256=sha256, size=size))

    def _read_all(self) -> Iterator[Finding]:
        """The bytes of every blob, in the order in which they came."""
        rows = select(Blob.id, Project.public_id, Blob.sha256, Blob.size, Blob.location).join(
            Project, Project.id == Blob.project_ref
        )
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="ddphub-verify") as threads:
            pages = self._pages(rows, Blob.id, _SOME)
            while some := list(islice(pages, _SOME)):
                blobs = [
                    StoredBlob(project=project, sha256=sha256, size=size, location=location)
                    for _, project, sha256, size, location in some
                ]
                for blob, wrong in zip(blobs, threads.map(self._look_at, blobs), strict=True):
                    self.blobs += 1
                    self.bytes += blob.size
                    self._progress(self.blobs, self.bytes)
                    if wrong is not None:
                        yield wrong

    def _look_at(self, blob: StoredBlob) -> Finding | None:
        if wrong_bytes(self._storage, blob) is None:
            return None
        # Deleted since its row was read, or even sent again to another place.
        now = find_blob(self._database, blob)
        if now is None or (wrong := wrong_bytes(self._storage, now)) is None:
            return None
        what = f"the bytes {blob.sha256} of the project {blob.project} are {wrong}{self._needed_by(blob)}"
        # What cannot be read may be whole on a disk that is away: it is not set aside.
        return Finding(kind="damaged" if wrong.startswith("damaged") else "missing", what=what, blob=now)

    def _needed_by(self, blob: StoredBlob) -> str:
        with self._database.read() as session:
            found = session.execute(
                select(Checkpoint.public_id, Model.public_id)
                .join(CheckpointFile, CheckpointFile.checkpoint_ref == Checkpoint.id)
                .join(Model, Model.id == Checkpoint.model_ref)
                .join(Project, Project.id == Model.project_ref)
                .where(Project.public_id == blob.project, CheckpointFile.sha256 == blob.sha256)
                .limit(_NAMED + 1)
            ).all()
        named = [f"the checkpoint {checkpoint} of the model {model}" for checkpoint, model in found[:_NAMED]]
        more = ["others"] if len(found) > _NAMED else []
        return f", needed by {', '.join([*named, *more])}" if named else ""

    def _unneeded(self) -> Iterator[Finding]:
        """Blobs that no checkpoint needs, complete or not."""
        needed = exists().where(
            CheckpointFile.sha256 == Blob.sha256,
            CheckpointFile.checkpoint_ref == Checkpoint.id,
            Checkpoint.model_ref == Model.id,
            Model.project_ref == Blob.project_ref,
        )
        rows = (
            select(Blob.id, Project.public_id, Blob.sha256, Blob.size, Blob.location)
            .join(Project, Project.id == Blob.project_ref)
            .where(not_(needed))
        )
        for _, project, sha256, size, location in self._pages(rows, Blob.id, _SOME):
            blob = StoredBlob(project=project, sha256=sha256, size=size, location=location)
            what = f"the bytes {sha256} of the project {project} ({size} bytes) are needed by no checkpoint"
            yield Finding(kind="unreferenced", what=what, blob=blob)

    def _without_row(self) -> Iterator[Finding]:
        """Bytes in the storage that no row names."""
        since = time.time() - GRACE_S
        stored = (blob for blob, came_at in self._storage.stored() if came_at < since)
        while some := list(islice(stored, _SOME)):
            with self._database.read() as session:
                known = {
                    (project, sha256, location)
                    for project, sha256, location in session.execute(
                        select(Project.public_id, Blob.sha256, Blob.location)
                        .join(Project, Project.id == Blob.project_ref)
                        .where(Blob.sha256.in_({blob.sha256 for blob in some}))
                    )
                }
            for blob in some:
                if (blob.project, blob.sha256, blob.location) not in known:
                    where = blob.location or f"{blob.project}/{blob.sha256}"
                    what = f"the storage has {where} ({blob.size} bytes), which no row names"
                    yield Finding(kind="unreferenced", what=what, blob=blob)

    def _pages(
        self, statement: Select[*tuple[Any, ...]], number: InstrumentedAttribute[int], size: int
    ) -> Iterator[Any]:
        """The rows of a statement whose first column is `number`, some in one transaction."""
        last = -1
        while True:
            with self._database.read() as session:
                rows = session.execute(statement.where(number > last).order_by(number).limit(size)).all()
            yield from rows
            if len(rows) < size:
                return
            last = rows[-1][0]


_NOT_THERE: Final = "not there"


def wrong_bytes(storage: Storage, blob: StoredBlob) -> str | None:
    """Why a blob's bytes are not those that were sent; None when they are."""
    digest, size = hashlib.sha256(), 0
    try:
        for chunk in storage.read(blob):
            digest.update(chunk)
            size += len(chunk)
        path = storage.path(blob)
        if path is not None:
            size = path.stat().st_size  # who reads a blob stops where it should end
    except FileNotFoundError:
        return _NOT_THERE
    except OSError as error:
        return f"unreadable: {error.strerror or error}"
    if size != blob.size:
        return f"damaged: {size} bytes are there of {blob.size}"
    return None if digest.hexdigest() == blob.sha256 else "damaged: they have another digest"

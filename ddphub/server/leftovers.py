"""Bytes that nothing needs any more: what deletions and crashes leave.

Rows go first: a crash between them and their bytes leaves bytes that `sweep` finds later.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, islice
from typing import Any, Final, TypeVar

from sqlalchemy import Select, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from ddphub.server.blob_rows import batches, lock_project, unvouched
from ddphub.server.database import Database
from ddphub.server.problems import Problem
from ddphub.server.storage.interface import STALE_S, ArrivingFile, Prepared, Storage, StoredBlob
from ddphub.server.tables import Checkpoint, CheckpointFile, Project

_SOME: Final = 1000

_log = logging.getLogger(__name__)
_One = TypeVar("_One")


class Leftovers:
    """Removes bytes that no row names.

    Args:
        database: the hub's database.
        storage: where the bytes are.
    """

    def __init__(self, database: Database, storage: Storage) -> None:
        self._database = database
        self._storage = storage

    def remove(self, blobs: Iterable[StoredBlob]) -> None:
        """Remove those of these bytes that no row names, in any number.

        A storage that does not answer keeps them until they are swept: what they are left of is done.
        """
        with _left_for_later():
            self._remove(blobs)

    def _remove(self, blobs: Iterable[StoredBlob]) -> None:
        for project_id, of_project in groupby(blobs, lambda blob: blob.project):
            for some in _in_lists(of_project):
                if self._storage.reuses_places:
                    with self._database.write() as session:
                        project = _project(session, project_id)
                        if project is not None:
                            lock_project(session, project.id)
                        self._storage.remove(unvouched(session, project, some))
                else:
                    with self._database.read() as session:
                        unused = unvouched(session, _project(session, project_id), some)
                    self._storage.remove(unused)

    def forget(self, checkpoint_id: str, files: Sequence[ArrivingFile]) -> None:
        """Remove what came of a checkpoint that takes no more parts, or of some of its files.

        Args:
            checkpoint_id: the checkpoint's id.
            files: those of its files that had room; the place of one may have become a blob's, and stays.

        As with `remove`, a storage that does not answer keeps them until they are swept.
        """
        named = {
            file.location: StoredBlob(project=file.project, sha256=file.sha256, size=file.size, location=file.location)
            for file in files
        }
        with self._database.read() as session:
            project = _project(session, files[0].project) if files else None
            unused = {blob.location for blob in unvouched(session, project, list(named.values()))}
        with _left_for_later():
            self._storage.forget(checkpoint_id, [file for file in files if file.location in unused])

    def drop(self, prepared: Sequence[Prepared]) -> None:
        """See `Storage.drop`; one that does not answer keeps them until they are swept."""
        with _left_for_later():
            self._storage.drop(prepared)

    def sweep(self) -> None:
        """Look for what crashes left, and remove it. Safe beside everything else that the hub's processes do.

        Raises:
            Problem: 503 when the storage does not answer.
        """
        # First this, then what is stored, then the blobs' rows: a commit meanwhile is seen in one of them.
        arriving = self._arriving_locations()
        too_young = time.time() - STALE_S
        self._remove(
            blob
            for blob, came in self._storage.stored()
            # Where places are used again, the project's lock tells whether someone is at it; elsewhere only time does.
            if self._storage.reuses_places or (came < too_young and blob.location not in arriving)
        )
        self._storage.sweep(self)

    def _arriving_locations(self) -> set[str | None]:
        with self._database.read() as session:
            return set(session.scalars(_of_arriving(CheckpointFile.location)))

    # What the storage asks while it sweeps --------------------------------------------------------------------------

    def checkpoints(self, ids: Sequence[str]) -> set[str]:
        """See `Wanted`."""
        arriving = select(Checkpoint.public_id).where(Checkpoint.committed_at.is_(None))
        with self._database.read() as session:
            return {
                one for some in batches(ids) for one in session.scalars(arriving.where(Checkpoint.public_id.in_(some)))
            }

    def upload_ids(self) -> set[str]:
        """See `Wanted`."""
        with self._database.read() as session:
            return {one for one in session.scalars(_of_arriving(CheckpointFile.upload_id)) if one is not None}


@contextmanager
def _left_for_later() -> Iterator[None]:
    try:
        yield
    except Problem as problem:
        _log.warning("bytes that nothing needs are left for the next sweep: %s", problem.detail)


def _project(session: Session, project_id: str) -> Project | None:
    return session.scalar(select(Project).where(Project.public_id == project_id))


def _of_arriving(column: InstrumentedAttribute[str | None]) -> Select[Any]:
    return (
        select(column)
        .join(Checkpoint, Checkpoint.id == CheckpointFile.checkpoint_ref)
        .where(Checkpoint.committed_at.is_(None), column.is_not(None))
    )


def _in_lists(values: Iterable[_One]) -> Iterator[list[_One]]:
    iterator = iter(values)
    while some := list(islice(iterator, _SOME)):
        yield some

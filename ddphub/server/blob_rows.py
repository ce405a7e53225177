"""Which bytes a project has: the rows of its blobs, written and read under the project's lock.

Whoever writes or removes such a row, or announces a checkpoint that may rely on one, holds that lock: on PostgreSQL
transactions run side by side, and a statement after the lock sees what its last holder committed. A model is locked
before its project, see postgresql.py. On SQLite the one writer's lock does it all.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from ddphub.server.database import locked
from ddphub.server.storage.interface import StoredBlob
from ddphub.server.tables import Blob, Checkpoint, CheckpointFile, Model, Project

_SOME: Final = 5000
"""How many values one query names."""


def lock_project(session: Session, project_ref: int) -> Project:
    """Wait until this transaction alone may change a project's blobs.

    Rows that name the project as theirs can be written meanwhile: a commit stalls no events of other runs.
    """
    return session.scalars(locked(session, select(Project).where(Project.id == project_ref))).one()


def project_of(session: Session, checkpoint: Checkpoint) -> Project:
    """The project of a checkpoint's model."""
    return session.scalars(
        select(Project).join(Model, Model.project_ref == Project.id).where(Model.id == checkpoint.model_ref)
    ).one()


def blobs_of_files(session: Session, project: Project, files: Sequence[CheckpointFile]) -> list[StoredBlob]:
    """The bytes of each file of a committed checkpoint, whether or not a row vouches for them."""
    known = blobs_of(session, project, [file.sha256 for file in files])
    return [
        known.get(file.sha256) or StoredBlob(project=project.public_id, sha256=file.sha256, size=file.size)
        for file in files
    ]


def blobs_of(session: Session, project: Project, digests: Iterable[str]) -> dict[str, StoredBlob]:
    """Those of the project's blobs that have one of these sha256, by it."""
    found: dict[str, StoredBlob] = {}
    for some in batches(digests):
        chosen = select(Blob.sha256, Blob.size, Blob.location)
        for sha256, size, location in session.execute(
            chosen.where(Blob.project_ref == project.id, Blob.sha256.in_(some))
        ):
            found[sha256] = StoredBlob(project=project.public_id, sha256=sha256, size=size, location=location)
    return found


def vouch(session: Session, project: Project, blobs: Sequence[StoredBlob], now: float) -> list[StoredBlob]:
    """Write the rows of bytes that are safe.

    Args:
        session: a write session that holds the project's lock.
        project: whose they are.
        blobs: each content once.
        now: seconds since the epoch.

    Returns:
        What the project had instead of some of them, in another place: nothing names it any more.
    """
    known = blobs_of(session, project, [blob.sha256 for blob in blobs])
    new = [
        {
            "project_ref": project.id,
            "sha256": blob.sha256,
            "size": blob.size,
            "created_at": now,
            "location": blob.location,
        }
        for blob in blobs
        if blob.sha256 not in known
    ]
    if new:
        session.connection().execute(insert(Blob), new)
    replaced = []
    for blob in blobs:
        before = known.get(blob.sha256)
        if before is not None and before.location != blob.location:
            one = update(Blob).where(Blob.project_ref == project.id, Blob.sha256 == blob.sha256)
            session.connection().execute(one.values(location=blob.location))
            replaced.append(before)
    return replaced


def unvouched(session: Session, project: Project | None, blobs: Sequence[StoredBlob]) -> list[StoredBlob]:
    """Those bytes of one project that no row names: in a session that holds its lock, where places are used again."""
    known = {} if project is None else blobs_of(session, project, [blob.sha256 for blob in blobs])
    return [blob for blob in blobs if blob.sha256 not in known or known[blob.sha256].location != blob.location]


def batches(values: Iterable[str], size: int = _SOME) -> Iterator[list[str]]:
    """Values in lists that a query may name."""
    listed = list(values)
    return (listed[start : start + size] for start in range(0, len(listed), size))

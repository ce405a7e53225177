"""What of a checkpoint has arrived, and what is asked for: its rows and the storage, put side by side.

The storage is asked outside of transactions: it may be far away.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from ddphub.hubs.wire import MAX_MISSING, CheckpointAnswer, MissingFile
from ddphub.server.blob_rows import blobs_of, lock_project, project_of
from ddphub.server.database import Database, locked
from ddphub.server.leases import is_held
from ddphub.server.leftovers import Leftovers
from ddphub.server.problems import Problem
from ddphub.server.storage.interface import ArrivingFile, Storage, StoredBlob
from ddphub.server.tables import Checkpoint, CheckpointFile, DeletedCheckpoint, Model, Project

_TURNS: Final = 4
"""How often room is made for files of one checkpoint before a request gives up."""


class Deleted(Problem):
    """A checkpoint that is no longer there.

    Args:
        was_committed: whether someone deleted it alone, which only a committed one can be.
    """

    def __init__(self, *, was_committed: bool) -> None:
        super().__init__(404, "the checkpoint was deleted" if was_committed else "the checkpoint went with its model")
        self.was_committed = was_committed


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look at a checkpoint.

    Args:
        state: `receiving`, `checking` or `committed`.
        failure: why it can never be committed; None when it can.
        wanted: the files whose bytes the project does not hold; each content once.
        held: the bytes that it holds.
        missing: the parts to send.
    """

    state: str
    failure: str | None = None
    wanted: Sequence[ArrivingFile] = ()
    held: Sequence[StoredBlob] = ()
    missing: Sequence[MissingFile] = ()

    def answer(self, checkpoint_id: str) -> CheckpointAnswer:
        """What the client is told."""
        return {"id": checkpoint_id, "state": self.state, "missing": list(self.missing)}


class Arrivals:
    """Looks at checkpoints, and makes room for what is to come.

    Args:
        database: the hub's database.
        storage: where the bytes go.
        leftovers: removes what came too late.
    """

    def __init__(self, database: Database, storage: Storage, leftovers: Leftovers) -> None:
        self._database = database
        self._storage = storage
        self._leftovers = leftovers

    def look(self, checkpoint_id: str) -> Look:
        """See what has arrived of a checkpoint; whatever is missing has a place to go to.

        Raises:
            Deleted: when it is no longer there.
            Problem: 503 when the storage does not answer.
        """
        for _ in range(_TURNS):
            with self._database.read() as session:
                checkpoint = find_announced(session, checkpoint_id)
                state = state_of(checkpoint)
                if state != "receiving" or checkpoint.failure is not None:
                    return Look(state=state, failure=checkpoint.failure)
                project = project_of(session, checkpoint)
                files = arriving_files(session, checkpoint, project)
                known = list(blobs_of(session, project, [file.sha256 for file in files]).values())
            held = self._storage.held(known)
            wanted = [file for file in files if file.sha256 not in held]
            arrived = self._storage.arrived(wanted)
            homeless = [file for file in wanted if arrived[file.number] is None]
            if homeless:
                self._begin(checkpoint_id, homeless)
                continue
            missing = self._missing(wanted, arrived)
            if missing and self._is_committed(checkpoint_id):
                return Look(state="committed")
            return Look(
                state=state,
                wanted=wanted,
                held=[blob for blob in known if blob.sha256 in held],
                missing=missing,
            )
        raise Problem(503, "the storage loses what is begun there: try again", headers={"retry-after": "10"})

    def _is_committed(self, checkpoint_id: str) -> bool:
        """A commit since the first look removed the parts: they are missing only if there was none."""
        with self._database.read() as session:
            return find_announced(session, checkpoint_id).committed_at is not None

    def _missing(self, wanted: Sequence[ArrivingFile], arrived: Mapping[int, set[int] | None]) -> list[MissingFile]:
        missing: list[MissingFile] = []
        room = MAX_MISSING
        for file in wanted:
            there = arrived[file.number] or set()
            numbers = [number for number in range(len(file.parts)) if number not in there][:room]
            room -= len(numbers)
            if numbers:
                missing.append(
                    {"name": file.name, "parts": [self._storage.part_url(file, number) for number in numbers]}
                )
        return missing

    def _begin(self, checkpoint_id: str, files: Sequence[ArrivingFile]) -> None:
        places = self._storage.begin(files)
        begun = [places[file.number].of(file) for file in files if file.number in places]
        # Begun twice at the same time, or too late: the first one stays.
        superfluous = []
        try:
            with self._database.write() as session:
                checkpoint, _ = lock_checkpoint(session, checkpoint_id)
                rows = {row.number: row for row in files_of(session, checkpoint)}
                before = {file.number: file.location for file in files}
                changes = []
                for file in begun:
                    row = rows[file.number]
                    if checkpoint.committed_at is None and row.location == before[file.number]:
                        changes.append({"id": row.id, "location": file.location, "upload_id": file.upload_id})
                    else:
                        superfluous.append(file)
                if changes:
                    session.execute(update(CheckpointFile), changes)
                is_over = checkpoint.committed_at is not None
        except Deleted:
            self._leftovers.forget(checkpoint_id, begun)
            raise
        if superfluous or is_over:
            self._leftovers.forget(checkpoint_id, superfluous)


def lock_checkpoint(session: Session, checkpoint_id: str) -> tuple[Checkpoint, Project]:
    """A checkpoint and its project as they are, until the transaction ends; its model is locked, too.

    Raises:
        Deleted: when it is no longer there.
    """
    place = session.execute(
        select(Model.id, Model.project_ref)
        .join(Checkpoint, Checkpoint.model_ref == Model.id)
        .where(Checkpoint.public_id == checkpoint_id)
    ).one_or_none()
    if place is not None:
        model_ref, project_ref = place
        session.scalars(locked(session, select(Model).where(Model.id == model_ref))).one_or_none()
        project = lock_project(session, project_ref)
        return find_announced(session, checkpoint_id), project
    raise _deleted(session, checkpoint_id)


def find_announced(session: Session, checkpoint_id: str) -> Checkpoint:
    """A checkpoint that was announced and not deleted.

    Raises:
        Deleted: when it is no longer there.
    """
    checkpoint = session.scalar(select(Checkpoint).where(Checkpoint.public_id == checkpoint_id))
    if checkpoint is None:
        raise _deleted(session, checkpoint_id)
    return checkpoint


def _deleted(session: Session, checkpoint_id: str) -> Deleted:
    key = select(DeletedCheckpoint.id).where(DeletedCheckpoint.public_id == checkpoint_id)
    return Deleted(was_committed=session.scalar(key) is not None)


def state_of(checkpoint: Checkpoint) -> str:
    """`receiving`, `checking` or `committed`."""
    if checkpoint.committed_at is not None:
        return "committed"
    return "checking" if is_held(checkpoint) else "receiving"


def files_of(session: Session, checkpoint: Checkpoint) -> list[CheckpointFile]:
    """The files of a checkpoint, in their order."""
    return list(
        session.scalars(
            select(CheckpointFile).where(CheckpointFile.checkpoint_ref == checkpoint.id).order_by(CheckpointFile.number)
        )
    )


def arriving_files(session: Session, checkpoint: Checkpoint, project: Project) -> list[ArrivingFile]:
    """The files that a checkpoint announces, in their order; each content once."""
    rows = {row.sha256: row for row in reversed(files_of(session, checkpoint))}
    return [
        ArrivingFile(
            checkpoint=checkpoint.public_id,
            project=project.public_id,
            number=row.number,
            name=row.name,
            size=row.size,
            sha256=row.sha256,
            part_size=checkpoint.part_size,
            parts=tuple(json.loads(row.parts)),
            location=row.location,
            upload_id=row.upload_id,
        )
        for row in sorted(rows.values(), key=lambda row: row.number)
    ]

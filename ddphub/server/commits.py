"""Checkpoints from their first request to their commit.

```
receiving --complete, every part is there--> checking --bytes are right--> committed
    ^                                           |
    '------- bytes are wrong, or the hub ended -'
```

All of it is in the database: `committed_at`, and a lease while a process of the hub is `checking`, see leases.py. A
commit is one transaction, after the bytes are safe: a crash leaves the whole checkpoint or none of it.

A checkpoint that someone deleted stays `committed` to the run that sent it: when its journal lost the receipt, the run
repeats the entry, is given the first answer, and the bytes that it still has do not bring the checkpoint back.
"""

import json
import logging
import secrets
import string
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from ddphub.hubs.wire import MAX_MISSING, CheckpointAnswer
from ddphub.server.arrivals import (
    Arrivals,
    Deleted,
    Look,
    arriving_files,
    files_of,
    find_announced,
    lock_checkpoint,
    state_of,
)
from ddphub.server.attempts import known_attempts
from ddphub.server.blob_rows import blobs_of, lock_project, vouch
from ddphub.server.database import Database
from ddphub.server.leases import Leases
from ddphub.server.leftovers import Leftovers
from ddphub.server.manifests import Manifest
from ddphub.server.problems import Problem
from ddphub.server.storage.interface import ArrivingFile, Interrupted, Prepared, Storage, WrongBytes
from ddphub.server.tables import Checkpoint, CheckpointFile, DeletedCheckpoint, Model, Project

_ALPHABET: Final = string.ascii_letters + string.digits
_TURNS: Final = 4
_log = logging.getLogger(__name__)


def new_public_id() -> str:
    """20 random letters and digits, as HUB v1's ids have."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(20))


class Commits:
    """Takes checkpoints in, each entry once.

    Args:
        database: the hub's database.
        storage: where the bytes go.
        leftovers: removes what is no longer needed.
        leases: those of this process.
        part_size: bytes of a part of new checkpoints.
        inline_check_bytes: with more bytes to check, `complete` answers first and a thread checks.
    """

    def __init__(
        self,
        database: Database,
        storage: Storage,
        leftovers: Leftovers,
        leases: Leases,
        *,
        part_size: int,
        inline_check_bytes: int,
    ) -> None:
        self._database = database
        self._storage = storage
        self._leftovers = leftovers
        self._leases = leases
        self._part_size = part_size
        self._inline_check_bytes = inline_check_bytes
        self._arrivals = Arrivals(database, storage, leftovers)
        self._checkers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="ddphub-check")

    def create(self, session: Session, model: Model, manifest: Manifest) -> str:
        """Announce a checkpoint, or find the one that this entry announced; `state` makes room for its parts.

        Args:
            session: a write session that has locked the model.
            model: the run's model.
            manifest: a checked manifest.

        Returns:
            The checkpoint's id.

        Raises:
            Problem: 422 when the entry is known with another manifest, its parts have another size, or its bytes were
                found to contradict it.
        """
        checkpoint = session.scalar(
            select(Checkpoint).where(Checkpoint.model_ref == model.id, Checkpoint.entry_id == manifest.entry_id)
        )
        known = checkpoint or deleted_entry(session, model, manifest.entry_id)
        if known is not None and known.fingerprint != manifest.fingerprint:
            raise Problem(422, f"the entry {manifest.entry_id} is known with another manifest")
        if isinstance(known, DeletedCheckpoint):
            return known.public_id
        if checkpoint is None:
            manifest.check_parts(self._part_size)
            checkpoint = self._insert(session, model, manifest)
        elif checkpoint.failure is not None:
            # A client that was told 202 comes back here; without this it would send the same bytes for ever.
            raise Problem(422, checkpoint.failure)
        return checkpoint.public_id

    def _insert(self, session: Session, model: Model, manifest: Manifest) -> Checkpoint:
        # From here on no deletion takes bytes that this one announces.
        lock_project(session, model.project_ref)
        now = time.time()
        attempt = known_attempts(session, model, {manifest.attempt_id: now}, now)[manifest.attempt_id]
        checkpoint = Checkpoint(
            public_id=new_public_id(),
            model_ref=model.id,
            attempt_ref=attempt.id,
            entry_id=manifest.entry_id,
            epoch=manifest.epoch,
            step=manifest.step,
            kind=manifest.kind,
            name=manifest.name,
            metrics=json.dumps(manifest.metrics),
            part_size=self._part_size,
            fingerprint=manifest.fingerprint,
            created_at=now,
        )
        session.add(checkpoint)
        session.flush()
        rows = [
            {
                "checkpoint_ref": checkpoint.id,
                "number": number,
                "name": file.name,
                "size": file.size,
                "sha256": file.sha256,
                "parts": json.dumps(file.parts),
            }
            for number, file in enumerate(manifest.files)
        ]
        session.connection().execute(insert(CheckpointFile), rows)
        return checkpoint

    def state(self, checkpoint_id: str) -> CheckpointAnswer:
        """What is known of a checkpoint, and a new URL for each part that is missing.

        Raises:
            Problem: 404 when it was deleted with its model.
        """
        try:
            return self._arrivals.look(checkpoint_id).answer(checkpoint_id)
        except Deleted as deleted:
            if deleted.was_committed:
                return _done(checkpoint_id)
            raise

    def complete(self, checkpoint_id: str) -> CheckpointAnswer:
        """Commit a checkpoint whose parts are all there; a repeat finds it committed.

        Args:
            checkpoint_id: the checkpoint's id.

        Returns:
            Its state: `checking` when a thread goes on, or another request is at it.

        Raises:
            Problem: 409 with the missing parts; 422 when a file does not have its sha256; 404 when the checkpoint was
                deleted with its model.
        """
        try:
            return self._complete(checkpoint_id)
        except Deleted as deleted:
            if deleted.was_committed:
                return _done(checkpoint_id)
            raise

    def _complete(self, checkpoint_id: str) -> CheckpointAnswer:
        for _ in range(_TURNS):
            look = self._arrivals.look(checkpoint_id)
            answer = look.answer(checkpoint_id)
            if look.state != "receiving":
                return answer
            if look.failure is not None:
                raise Problem(422, look.failure)
            if look.missing:
                count = sum(len(file["parts"]) for file in look.missing)
                detail = (
                    f"{count} parts{' or more' * (count == MAX_MISSING)} have not arrived: send them, then complete"
                )
                raise Problem(409, detail, members={"missing": answer["missing"]})
            if self._take(checkpoint_id, look):
                break
        else:
            raise Problem(503, "the checkpoint changes while it is looked at: complete again")
        if sum(file.size for file in look.wanted) > self._inline_check_bytes:
            self._checkers.submit(self._check_in_thread, checkpoint_id, look.wanted)
            return {**answer, "state": "checking"}
        try:
            self._check(checkpoint_id, look.wanted)
        except Interrupted:
            raise Problem(503, "the hub is stopping: complete again when it is back") from None
        return {**answer, "state": "committed"}

    def _take(self, checkpoint_id: str, look: Look) -> bool:
        """Begin to check, unless the checkpoint or what it relies on changed since that look."""
        with self._database.write() as session:
            checkpoint, project = lock_checkpoint(session, checkpoint_id)
            if state_of(checkpoint) != "receiving":
                return False
            # What is there under this lock stays: a deletion spares what an announced checkpoint names.
            there = blobs_of(session, project, [blob.sha256 for blob in look.held])
            if any(there.get(blob.sha256) != blob for blob in look.held):
                return False
            self._leases.take(checkpoint)
        # From now on: its turn to be checked may come late.
        self._leases.hold(checkpoint_id)
        return True

    def _check_in_thread(self, checkpoint_id: str, wanted: Sequence[ArrivingFile]) -> None:
        try:
            self._check(checkpoint_id, wanted)
        except (Problem, Interrupted) as error:
            _log.warning("a checkpoint was not committed: %s", getattr(error, "detail", "the hub is stopping"))
        except Exception:  # noqa: BLE001  # a thread's end: whatever it was, the log has it and the hub goes on
            _log.exception("a checkpoint could not be checked; it can be completed again")

    def _check(self, checkpoint_id: str, wanted: Sequence[ArrivingFile]) -> None:
        prepared: list[Prepared] = []
        try:
            with self._leases.kept(checkpoint_id):
                for file in wanted:
                    prepared.append(self._assemble(checkpoint_id, file))  # noqa: PERF401  # an error drops those before
                over = self._commit(checkpoint_id, prepared)
        except Deleted:
            self._leftovers.forget(checkpoint_id, wanted)
            raise
        finally:
            self._leftovers.drop(prepared)
        self._leftovers.forget(checkpoint_id, over)

    def _assemble(self, checkpoint_id: str, file: ArrivingFile) -> Prepared:
        try:
            return self._storage.assemble(file)
        except FileNotFoundError as error:
            with self._database.read() as session:
                find_announced(session, checkpoint_id)
            raise Problem(409, f"parts of {file.name!a} are gone here: send them again") from error
        except WrongBytes as error:
            if error.damaged:
                self._begin_anew(checkpoint_id, file)
                raise Problem(409, f"parts of {file.name!a} were damaged here: send them again") from None
            # What was announced contradicts itself: this entry can never be committed.
            failure = f"the parts of {file.name!a} do not make the sha256 that was announced for it"
            self._fail(checkpoint_id, failure)
            raise Problem(422, failure) from None

    def _begin_anew(self, checkpoint_id: str, file: ArrivingFile) -> None:
        """Let a file arrive again, in another place; unless another process goes on with it."""
        if file.location is None:
            return  # it has no place of its own, and the parts to blame are gone
        with self._database.write() as session:
            checkpoint, _ = lock_checkpoint(session, checkpoint_id)
            if checkpoint.committed_at is not None or checkpoint.checking_by != self._leases.holder:
                return
            for row in files_of(session, checkpoint):
                if row.number == file.number:
                    row.location = row.upload_id = None
        self._leftovers.forget(checkpoint_id, [file])

    def _fail(self, checkpoint_id: str, failure: str) -> None:
        """Write down that a checkpoint can never be committed, and take no more of it."""
        with self._database.write() as session:
            checkpoint, project = lock_checkpoint(session, checkpoint_id)
            if checkpoint.committed_at is not None or checkpoint.checking_by != self._leases.holder:
                return
            checkpoint.failure = failure
            had_room = _give_up_rooms(session, checkpoint, project)
        self._leftovers.forget(checkpoint_id, had_room)

    def _commit(self, checkpoint_id: str, prepared: list[Prepared]) -> list[ArrivingFile]:
        """Write down that a checkpoint is there; what was placed is taken out of `prepared`.

        Returns:
            Its files that had room, which they no longer need.
        """
        replaced = []
        with self._database.write() as session:
            checkpoint, project = lock_checkpoint(session, checkpoint_id)
            had_room = _give_up_rooms(session, checkpoint, project)
            if checkpoint.committed_at is None:
                now = time.time()
                self._storage.place(prepared)
                replaced = vouch(session, project, [one.blob for one in prepared], now)
                checkpoint.committed_at = now
                checkpoint.checking_by = checkpoint.checking_until = None
                prepared.clear()
        self._leftovers.remove(replaced)
        return had_room

    def close(self) -> None:
        """Let checks that run end early; they begin anew when the client completes again."""
        self._storage.stop()
        self._checkers.shutdown(wait=True, cancel_futures=True)
        self._leases.close()


def _give_up_rooms(session: Session, checkpoint: Checkpoint, project: Project) -> list[ArrivingFile]:
    """The files of a checkpoint that have a place to arrive at; their rows name none any more."""
    had_room = [file for file in arriving_files(session, checkpoint, project) if file.location is not None]
    for row in files_of(session, checkpoint):
        row.location = row.upload_id = None
    return had_room


def deleted_entry(session: Session, model: Model, entry_id: str) -> DeletedCheckpoint | None:
    """What is kept of the checkpoint that an entry came to and someone deleted."""
    return session.scalar(
        select(DeletedCheckpoint).where(DeletedCheckpoint.model_ref == model.id, DeletedCheckpoint.entry_id == entry_id)
    )


def _done(checkpoint_id: str) -> CheckpointAnswer:
    return {"id": checkpoint_id, "state": "committed", "missing": []}

"""Checkpoints from their first request to their commit.

```
receiving --complete, every part is there--> checking --bytes are right--> committed
    ^                                           |
    '------- bytes are wrong, or the hub ended -'
```

`committed` is in the database; `checking` is known to the process that checks, so it cannot outlive it. A commit is one
transaction, after the bytes are safe on disk: a crash leaves the whole checkpoint or none of it.

A checkpoint that someone deleted stays `committed` to the run that sent it: when its journal lost the receipt, the run
repeats the entry, is given the first answer, and the bytes that it still has do not bring the checkpoint back.
"""

import json
import logging
import secrets
import string
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from sqlalchemy import select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import Session

from ddphub.hubs.wire import MAX_FILES, CheckpointAnswer, MissingFile
from ddphub.server.attempts import known_attempts
from ddphub.server.blobs import Blobs, Interrupted, WrongBytes
from ddphub.server.database import Database
from ddphub.server.manifests import Manifest, ManifestFile
from ddphub.server.problems import Problem
from ddphub.server.signing import Part, Signer
from ddphub.server.tables import Blob, Checkpoint, CheckpointFile, DeletedCheckpoint, Model, Project

_ALPHABET: Final = string.ascii_letters + string.digits
_log = logging.getLogger(__name__)


def new_public_id() -> str:
    """20 random letters and digits, as HUB v1's ids have."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(20))


class Deleted(Problem):
    """A checkpoint that is no longer there.

    Args:
        was_committed: whether someone deleted it alone, which only a committed one can be.
    """

    def __init__(self, *, was_committed: bool) -> None:
        super().__init__(404, "the checkpoint was deleted" if was_committed else "the checkpoint went with its model")
        self.was_committed = was_committed


class Commits:
    """Takes checkpoints in, each entry once.

    Args:
        database: the hub's database.
        blobs: where the bytes go.
        signer: signs the part URLs.
        part_size: bytes of a part of new checkpoints.
        inline_check_bytes: with more bytes to check, `complete` answers first and a thread checks.
    """

    def __init__(
        self, database: Database, blobs: Blobs, signer: Signer, *, part_size: int, inline_check_bytes: int
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._signer = signer
        self._part_size = part_size
        self._inline_check_bytes = inline_check_bytes
        self._checkers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="ddphub-check")
        # Both change under the database's writer lock, or by the one thread that checks the checkpoint.
        # By id, not by number: the database gives a deleted checkpoint's number again.
        self._checking: dict[str, set[tuple[str, str]]] = {}  # what is joined for it: (project's id, sha256)
        self._failures: dict[str, str] = {}
        self._recover()

    def _recover(self) -> None:
        # Put in their place just before the hub ended and never committed, or deleted with bytes still to remove.
        for project_id, digests in self._blobs.stored():
            self.remove_unvouched(project_id, digests)
        with self._database.read() as session:
            wanted = set(session.scalars(select(Checkpoint.public_id).where(Checkpoint.committed_at.is_(None))))
        for leftover in set(self._blobs.uploads()) - wanted:
            self._blobs.close_upload(leftover)
        for checkpoint_id in wanted:
            self._blobs.open_upload(checkpoint_id)

    def create(self, session: Session, model: Model, manifest: Manifest) -> CheckpointAnswer:
        """Begin a checkpoint, or find the one that this entry began.

        Args:
            session: a write session.
            model: the run's model.
            manifest: a checked manifest.

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
            return _done(known.public_id)
        if checkpoint is None:
            manifest.check_parts(self._part_size)
            checkpoint = self._insert(session, model, manifest)
        elif failure := self._failures.get(checkpoint.public_id):
            # A client that was told 202 comes back here; without this it would send the same bytes for ever.
            raise Problem(422, failure)
        return self.answer(session, checkpoint)

    def _insert(self, session: Session, model: Model, manifest: Manifest) -> Checkpoint:
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
        # Before the commit: a part is refused while this is not there.
        self._blobs.open_upload(checkpoint.public_id)
        return checkpoint

    def state(self, checkpoint_id: str) -> CheckpointAnswer:
        """What is known of a checkpoint.

        Raises:
            Problem: 404 when it was deleted with its model.
        """
        try:
            with self._database.read() as session:
                answer = self.answer(session, _find(session, checkpoint_id))
            if answer["missing"]:
                # A commit after that read removes the parts: they are missing only if it is still not committed now.
                with self._database.read() as session:
                    if _find(session, checkpoint_id).committed_at is not None:
                        return _done(checkpoint_id)
        except Deleted as deleted:
            if deleted.was_committed:
                return _done(checkpoint_id)
            raise
        return answer

    def answer(self, session: Session, checkpoint: Checkpoint) -> CheckpointAnswer:
        """What the client is told: the state, and a new URL for each part that is missing."""
        state = self.state_of(checkpoint)
        missing = self._missing(session, checkpoint) if state == "receiving" else []
        return {"id": checkpoint.public_id, "state": state, "missing": missing}

    def state_of(self, checkpoint: Checkpoint) -> str:
        """`receiving`, `checking` or `committed`."""
        if checkpoint.committed_at is not None:
            return "committed"
        return "checking" if checkpoint.public_id in self._checking else "receiving"

    def _missing(self, session: Session, checkpoint: Checkpoint) -> list[MissingFile]:
        arrived = self._blobs.parts(checkpoint.public_id)
        missing: list[MissingFile] = []
        for index, file in self._wanted(session, checkpoint):
            parts = [
                Part(
                    checkpoint=checkpoint.public_id,
                    file=index,
                    number=number,
                    size=file.part_bytes(number, checkpoint.part_size),
                    sha256=sha256,
                )
                for number, sha256 in enumerate(file.parts)
                if (index, number) not in arrived
            ]
            if parts:
                urls = [self._signer.part_url(part) for part in parts]
                missing.append(
                    {
                        "name": file.name,
                        "parts": [{"number": part.number, "url": url} for part, url in zip(parts, urls, strict=True)],
                    }
                )
        return missing

    def _wanted(self, session: Session, checkpoint: Checkpoint) -> list[tuple[int, ManifestFile]]:
        """The files whose bytes the project does not hold, with their numbers; each content once."""
        project = _project_of(session, checkpoint)
        files = {row.sha256: row for row in reversed(_files_of(session, checkpoint))}
        held = {
            sha256
            for sha256 in _vouched_among(session, project, list(files))
            if self._blobs.holds(project.public_id, sha256, files[sha256].size)
        }
        wanted = sorted((row for row in files.values() if row.sha256 not in held), key=lambda row: row.number)
        return [
            (
                row.number,
                ManifestFile(name=row.name, size=row.size, sha256=row.sha256, parts=tuple(json.loads(row.parts))),
            )
            for row in wanted
        ]

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
        with self._database.write() as session:
            checkpoint = _find(session, checkpoint_id)
            answer = self.answer(session, checkpoint)
            if answer["state"] != "receiving":
                return answer
            if answer["missing"]:
                if failure := self._failures.get(checkpoint_id):
                    raise Problem(422, failure)
                count = sum(len(file["parts"]) for file in answer["missing"])
                detail = f"{count} parts have not arrived: send them, then complete"
                raise Problem(409, detail, members={"missing": answer["missing"]})
            wanted = self._wanted(session, checkpoint)
            project = _project_of(session, checkpoint)
            self._checking[checkpoint_id] = {(project.public_id, file.sha256) for _, file in wanted}
        if sum(file.size for _, file in wanted) > self._inline_check_bytes:
            self._checkers.submit(self._check_in_thread, checkpoint_id, wanted)
            return {**answer, "state": "checking"}
        try:
            self._check(checkpoint_id, wanted)
        except Interrupted:
            raise Problem(503, "the hub is stopping: complete again when it is back") from None
        return {**answer, "state": "committed"}

    def _check_in_thread(self, checkpoint_id: str, wanted: list[tuple[int, ManifestFile]]) -> None:
        try:
            self._check(checkpoint_id, wanted)
        except (Problem, Interrupted) as error:
            _log.warning("a checkpoint was not committed: %s", getattr(error, "detail", "the hub is stopping"))
        except Exception:  # noqa: BLE001  # a thread's end: whatever it was, the log has it and the hub goes on
            _log.exception("a checkpoint could not be checked; it can be completed again")

    def _check(self, checkpoint_id: str, wanted: list[tuple[int, ManifestFile]]) -> None:
        self._failures.pop(checkpoint_id, None)
        try:
            with self._database.read() as session:
                checkpoint = _find(session, checkpoint_id)
                project = _project_of(session, checkpoint)
            for number, file in wanted:
                self._join(checkpoint_id, number, file, project)
            self._commit(checkpoint_id, project, [file for _, file in wanted])
        except Deleted:
            for project_id, sha256 in self._checking.pop(checkpoint_id):
                self.remove_unvouched(project_id, [sha256])
            raise
        finally:
            self._checking.pop(checkpoint_id, None)
        self._blobs.close_upload(checkpoint_id)

    def _join(self, checkpoint_id: str, number: int, file: ManifestFile, project: Project) -> None:
        try:
            self._blobs.join(checkpoint_id, number, file.parts, project.public_id, file.sha256)
        except FileNotFoundError:
            with self._database.read() as session:
                _find(session, checkpoint_id)
            raise
        except WrongBytes as error:
            if error.damaged:
                raise Problem(409, f"parts of {file.name!a} were damaged here: send them again") from None
            # What was announced contradicts itself: this entry can never be committed.
            failure = f"the parts of {file.name!a} do not make the sha256 that was announced for it"
            self._failures[checkpoint_id] = failure
            raise Problem(422, failure) from None

    def _commit(self, checkpoint_id: str, project: Project, files: list[ManifestFile]) -> None:
        now = time.time()
        rows = [
            {"project_ref": project.id, "sha256": file.sha256, "size": file.size, "created_at": now} for file in files
        ]
        with self._database.write() as session:
            _find(session, checkpoint_id).committed_at = now
            if rows:
                session.connection().execute(insert(Blob).on_conflict_do_nothing(), rows)

    def remove_unvouched(self, project_id: str, digests: list[str]) -> None:
        """Remove those blobs that no commit vouches for, and that no check puts in their place at this moment."""
        for start in range(0, len(digests), MAX_FILES):
            some = digests[start : start + MAX_FILES]  # as many as a query may name
            with self._database.write() as session:
                project = session.scalar(select(Project).where(Project.public_id == project_id))
                needed = set() if project is None else set(_vouched_among(session, project, some))
                for joined in list(self._checking.values()):
                    needed |= {sha256 for of_project, sha256 in joined if of_project == project_id}
                for sha256 in some:
                    if sha256 not in needed:
                        self._blobs.remove(project_id, sha256)

    def forget(self, checkpoint_ids: Iterable[str]) -> None:
        """Drop what is held for checkpoints that were deleted."""
        for checkpoint_id in checkpoint_ids:
            self._failures.pop(checkpoint_id, None)
            self._blobs.close_upload(checkpoint_id)

    def close(self) -> None:
        """Let checks that run end early; they begin anew when the client completes again."""
        self._blobs.stop()
        self._checkers.shutdown(wait=True, cancel_futures=True)


def _find(session: Session, checkpoint_id: str) -> Checkpoint:
    checkpoint = session.scalar(select(Checkpoint).where(Checkpoint.public_id == checkpoint_id))
    if checkpoint is None:
        deleted = select(DeletedCheckpoint.id).where(DeletedCheckpoint.public_id == checkpoint_id)
        raise Deleted(was_committed=session.scalar(deleted) is not None)
    return checkpoint


def deleted_entry(session: Session, model: Model, entry_id: str) -> DeletedCheckpoint | None:
    """What is kept of the checkpoint that an entry came to and someone deleted."""
    return session.scalar(
        select(DeletedCheckpoint).where(DeletedCheckpoint.model_ref == model.id, DeletedCheckpoint.entry_id == entry_id)
    )


def _done(checkpoint_id: str) -> CheckpointAnswer:
    return {"id": checkpoint_id, "state": "committed", "missing": []}


def _project_of(session: Session, checkpoint: Checkpoint) -> Project:
    return session.scalars(
        select(Project).join(Model, Model.project_ref == Project.id).where(Model.id == checkpoint.model_ref)
    ).one()


def _files_of(session: Session, checkpoint: Checkpoint) -> list[CheckpointFile]:
    return list(
        session.scalars(
            select(CheckpointFile).where(CheckpointFile.checkpoint_ref == checkpoint.id).order_by(CheckpointFile.number)
        )
    )


def _vouched_among(session: Session, project: Project, digests: list[str]) -> list[str]:
    found = session.scalars(select(Blob.sha256).where(Blob.project_ref == project.id, Blob.sha256.in_(digests)))
    return list(found)

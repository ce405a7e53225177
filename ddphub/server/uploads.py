"""Checkpoints that come whole in one request, as HUB v1 clients send them."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from ddphub import events
from ddphub.server import hub_v1
from ddphub.server.blob_rows import blobs_of, lock_project, vouch
from ddphub.server.commits import deleted_entry, new_public_id
from ddphub.server.database import Database
from ddphub.server.leftovers import Leftovers
from ddphub.server.problems import Problem
from ddphub.server.storage.incoming import IncomingFile
from ddphub.server.storage.interface import Prepared, Storage, StoredBlob
from ddphub.server.tables import Checkpoint, CheckpointFile, Model, Project

LAST: Final = "last.pt"
BEST: Final = "best.pt"
"""The only names that the files of HUB v1 have; clients choose what to load by them."""

is_last: Final = (Checkpoint.kind == "epoch") | (Checkpoint.name == LAST)
"""Which checkpoints a training can be resumed from: what HUB v1 clients call best so far is its last one too."""

_EPOCH: Final = re.compile("[0-9]{1,18}")


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What a form says of the file in it. `type` is HUB v1's, `kind` ours."""

    type: str
    kind: str
    name: str
    epoch: int
    metrics: dict[str, events.Scalar]


def check_upload(fields: Mapping[str, str]) -> Upload:
    """The upload of a form; fields that HUB v1 does not know are left alone.

    Raises:
        Problem: 422 that names the field and what is expected.
    """
    kind, epoch = fields.get("type"), fields.get("epoch", "")
    if kind not in {"epoch", "final"}:
        raise Problem(422, "type: expected epoch or final")
    if not _EPOCH.fullmatch(epoch):
        raise Problem(422, "epoch: expected an integer of 0 or more")
    if kind == "final":
        metrics = {"map": _number("map", fields["map"])} if "map" in fields else {}
        return Upload(type=kind, kind="final", name=BEST, epoch=int(epoch), metrics=metrics)
    best = fields.get("isBest", "False")
    if best not in {"True", "False"}:
        raise Problem(422, "isBest: expected True or False")
    return Upload(type=kind, kind="best" if best == "True" else "epoch", name=LAST, epoch=int(epoch), metrics={})


def _number(name: str, text: str) -> events.Scalar:
    try:
        return events.encode_scalar(float(text))
    except ValueError as error:
        raise Problem(422, f"{name}: expected a number") from error


class Uploads:
    """Takes whole files in, each once.

    Args:
        database: the hub's database.
        storage: where the bytes go.
        leftovers: removes what is no longer needed.
        part_size: what the rows say of the files' parts; they came in none.
    """

    def __init__(self, database: Database, storage: Storage, leftovers: Leftovers, *, part_size: int) -> None:
        self._database = database
        self._storage = storage
        self._leftovers = leftovers
        self._part_size = part_size

    def take(self, find: Callable[[Session], Model], upload: Upload, file: IncomingFile) -> str:
        """Commit a file as a checkpoint; the same bytes for the same type and epoch are the same checkpoint.

        One that someone deleted stays deleted.

        Args:
            find: finds the run's model, in any session; in one that writes it locks the model.
            upload: what the form says.
            file: the bytes, synced.

        Returns:
            The checkpoint's id.
        """
        checkpoint_id = self._take(find, upload, file, even_if_held=False)
        if checkpoint_id is None:
            # What the project had went while nobody relied on it.
            checkpoint_id = self._take(find, upload, file, even_if_held=True)
        assert checkpoint_id is not None  # noqa: S101  # only bytes that were not sent can be missing
        return checkpoint_id

    def _take(
        self, find: Callable[[Session], Model], upload: Upload, file: IncomingFile, *, even_if_held: bool
    ) -> str | None:
        """See `take`; None when the bytes were not sent and are needed."""
        with self._database.read() as session:
            project = session.get_one(Project, find(session).project_ref)
            known = blobs_of(session, project, [file.sha256])
        prepared: list[Prepared] = []
        if even_if_held or not self._storage.held(list(known.values())):
            prepared.append(self._storage.adopt(file, project.public_id))
        replaced: list[StoredBlob] = []
        try:
            with self._database.write() as session:
                model = find(session)
                project = lock_project(session, model.project_ref)
                if not prepared and blobs_of(session, project, [file.sha256]) != known:
                    return None
                checkpoint_id, is_needed = self._record(session, model, upload, file)
                if is_needed and prepared:
                    self._storage.place(prepared)
                    replaced = vouch(session, project, [one.blob for one in prepared], time.time())
                    prepared.clear()
        finally:
            self._leftovers.drop(prepared)
        self._leftovers.remove(replaced)
        return checkpoint_id

    def _record(self, session: Session, model: Model, upload: Upload, file: IncomingFile) -> tuple[str, bool]:
        """Write what the upload says; the checkpoint's id, and whether its bytes are needed."""
        now = time.time()
        attempt = hub_v1.report(session, model, [], now)
        identity = f"hub v1 {upload.type} {upload.epoch} {file.sha256}".encode()
        fingerprint = hashlib.sha256(identity).digest()
        entry_id = fingerprint.hex()[:32]
        checkpoint = session.scalar(
            select(Checkpoint).where(Checkpoint.model_ref == model.id, Checkpoint.entry_id == entry_id)
        )
        deleted = deleted_entry(session, model, entry_id)
        if checkpoint is None and deleted is None:
            checkpoint = Checkpoint(
                public_id=new_public_id(),
                model_ref=model.id,
                attempt_ref=attempt.id,
                entry_id=entry_id,
                epoch=upload.epoch,
                step=upload.epoch,
                kind=upload.kind,
                name=upload.name,
                metrics=json.dumps(upload.metrics),
                part_size=self._part_size,
                fingerprint=fingerprint,
                created_at=now,
                committed_at=now,
            )
            session.add(checkpoint)
            session.flush()
            session.add(
                CheckpointFile(
                    checkpoint_ref=checkpoint.id,
                    number=0,
                    name=upload.name,
                    size=file.size,
                    sha256=file.sha256,
                    parts="[]",
                )
            )
        if upload.type == "final":
            hub_v1.finish(session, model, attempt, now)
        if checkpoint is None:
            assert deleted is not None  # noqa: S101  # or it would have been made
            return deleted.public_id, False
        return checkpoint.public_id, True

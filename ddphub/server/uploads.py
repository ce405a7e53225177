"""Checkpoints that come whole in one request, as HUB v1 clients send them."""

import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import Session

from ddphub import events
from ddphub.server import hub_v1
from ddphub.server.blobs import Blobs, IncomingFile
from ddphub.server.commits import deleted_entry, new_public_id
from ddphub.server.problems import Problem
from ddphub.server.tables import Blob, Checkpoint, CheckpointFile, Model, Project

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
        blobs: where the bytes go.
        part_size: what the rows say of the files' parts; they came in none.
    """

    def __init__(self, blobs: Blobs, *, part_size: int) -> None:
        self._blobs = blobs
        self._part_size = part_size

    def take(self, session: Session, model: Model, upload: Upload, file: IncomingFile) -> str:
        """Commit a file as a checkpoint; the same bytes for the same type and epoch are the same checkpoint.

        One that someone deleted stays deleted.

        Args:
            session: a write session.
            model: the run's model.
            upload: what the form says.
            file: the bytes, synced.

        Returns:
            The checkpoint's id.
        """
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
            return deleted.public_id
        self._keep(session, model, file, now)
        return checkpoint.public_id

    def _keep(self, session: Session, model: Model, file: IncomingFile, now: float) -> None:
        project = session.get_one(Project, model.project_ref)
        vouched = session.scalar(select(Blob).where(Blob.project_ref == project.id, Blob.sha256 == file.sha256))
        if vouched is None:
            row = {"project_ref": project.id, "sha256": file.sha256, "size": file.size, "created_at": now}
            session.connection().execute(insert(Blob), row)
        elif self._blobs.holds(project.public_id, file.sha256, file.size):
            return
        # Inside the transaction, where nobody removes what no commit vouches for yet.
        self._blobs.keep(file, project.public_id)

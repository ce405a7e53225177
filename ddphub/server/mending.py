"""Mending what a verification found: bytes that are missing or damaged.

A backup that has them gives them back. Without one, damaged bytes are set aside: they are kept in the data directory's
`damaged` folder and their row goes. Nothing else heals a checkpoint; but as long as the hub took the damaged bytes for
good ones, a run that saves the same content again would be told that its bytes are there already.
"""

import os
from collections.abc import Sequence
from typing import Final, Literal

from sqlalchemy import delete, select

from ddphub.server.backups.folder import BackupFolder
from ddphub.server.beside import Kept
from ddphub.server.blob_rows import lock_project, vouch
from ddphub.server.directory import create_private, sync_folder
from ddphub.server.leftovers import Leftovers
from ddphub.server.storage.incoming import CHUNK
from ddphub.server.storage.interface import StoredBlob, WrongBytes
from ddphub.server.tables import Blob, Project
from ddphub.server.verify import Finding, wrong_bytes

DAMAGED: Final = "damaged"
"""The folder of a data directory that bytes are set aside in."""

Outcome = Literal["mended", "set aside", "left"]


def mend(kept: Kept, finding: Finding, backups: Sequence[BackupFolder], now: float) -> Outcome:
    """Do what can be done about a finding.

    Args:
        kept: what the hub keeps.
        finding: what was found.
        backups: where the bytes may be.
        now: seconds since the epoch.
    """
    blob = finding.blob
    if blob is None or not finding.is_severe:
        return "left"
    if any(_put_back(kept, blob, folder, now) for folder in backups):
        return "mended"
    if finding.kind != "damaged":
        return "left"
    return "set aside" if _set_aside(kept, blob) else "left"


def _put_back(kept: Kept, blob: StoredBlob, folder: BackupFolder, now: float) -> bool:
    try:
        with folder.blob(blob.sha256).open("rb") as file:
            prepared = kept.storage.prepare(blob, iter(lambda: file.read(CHUNK), b""))
    except (FileNotFoundError, WrongBytes):
        return False
    with kept.database.write() as session:
        number = session.scalars(select(Project.id).where(Project.public_id == blob.project)).one()
        vouch(session, lock_project(session, number), [prepared.blob], now)
        kept.storage.place([prepared])
    return True


def _set_aside(kept: Kept, blob: StoredBlob) -> bool:
    """Set damaged bytes aside; False when they are right by now: somebody mended them, or the disk is well again."""
    folder = kept.directory.root / DAMAGED
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{blob.project}-{blob.sha256}"
    path.unlink(missing_ok=True)
    with os.fdopen(create_private(path), "wb") as file:
        for chunk in kept.storage.read(blob):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if wrong_bytes(kept.storage, blob) is None:
        path.unlink()
        return False
    sync_folder(folder)
    with kept.database.write() as session:
        number = session.scalars(select(Project.id).where(Project.public_id == blob.project)).one()
        lock_project(session, number)
        own = (Blob.project_ref == number, Blob.sha256 == blob.sha256)
        is_same = Blob.location.is_(None) if blob.location is None else Blob.location == blob.location
        session.connection().execute(delete(Blob).where(*own, is_same))
    Leftovers(kept.database, kept.storage).remove([blob])
    return True

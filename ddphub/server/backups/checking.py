"""Reading backups again: whether all that they name is there, and as it was written."""

import hashlib
from collections.abc import Iterator

from ddphub.errors import BackupError
from ddphub.server.backups.folder import Backup, BackupFolder
from ddphub.server.backups.making import blobs_of
from ddphub.server.backups.table_files import read_rows


def problems_of(folder: BackupFolder, backups: list[Backup]) -> Iterator[str]:
    """What is wrong with backups, in sentences; each blob is read once.

    Args:
        folder: that they are in.
        backups: which.
    """
    wrong: dict[str, str | None] = {}
    for backup in backups:
        manifest = backup.manifest
        if _sha256(backup, "secret") != manifest.secret:
            yield f"{backup.secret} is not the file that the manifest names"
        try:
            for name, told in manifest.tables.items():
                for _ in read_rows(backup.table(name), told):
                    pass
            absent = {*manifest.deleted, *manifest.damaged}
            for blobs in blobs_of(backup):
                for blob in blobs:
                    if (blob.project, blob.sha256) in absent:
                        continue
                    if blob.sha256 not in wrong:
                        wrong[blob.sha256] = _wrong_blob(folder, blob.sha256)
                    if (why := wrong[blob.sha256]) is not None:
                        yield f"{backup.path}: {folder.blob(blob.sha256)} {why}"
        except (BackupError, OSError) as error:
            yield str(error)


def _sha256(backup: Backup, name: str) -> str | None:
    try:
        return hashlib.sha256((backup.path / name).read_bytes()).hexdigest()
    except OSError:
        return None


def _wrong_blob(folder: BackupFolder, sha256: str) -> str | None:
    try:
        with folder.blob(sha256).open("rb") as file:
            is_right = hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except FileNotFoundError:
        return "is missing"
    return None if is_right else "is damaged"

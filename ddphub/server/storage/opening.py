"""Which storage a hub has, as its settings say."""

import logging

from sqlalchemy import select

from ddphub.errors import SettingsError
from ddphub.server.database import Database
from ddphub.server.directory import DataDirectory
from ddphub.server.problems import Problem
from ddphub.server.settings import ServerSettings
from ddphub.server.signing import Signer
from ddphub.server.storage.address import S3Address
from ddphub.server.storage.interface import Storage
from ddphub.server.storage.local import LocalStorage
from ddphub.server.tables import Blob

_SOURCE = "server settings"

_log = logging.getLogger(__name__)


def open_storage(settings: ServerSettings, directory: DataDirectory, signer: Signer) -> Storage:
    """The storage for a hub's checkpoints.

    One that does not answer is no error: what a hub takes beside checkpoints does not need it.

    Raises:
        SettingsError: when there is no such bucket.
    """
    if settings.storage is None:
        return LocalStorage(directory, signer)
    # boto3 takes half a second to import, and a hub with a local directory does not need it.
    from ddphub.server.storage.s3 import S3Storage  # noqa: PLC0415
    from ddphub.server.storage.s3_client import Gone  # noqa: PLC0415

    address = S3Address.parse(settings.storage, _SOURCE)
    storage = S3Storage(directory, address, settings.url_lifetime_s)
    try:
        storage.bucket.check()
    except Gone:
        storage.close()
        raise SettingsError("storage", str(address), _SOURCE, "there is no such bucket: make it first") from None
    except Problem as problem:
        _log.warning("%s: %s", address, problem.detail)
    return storage


def check_same_storage(database: Database, storage: Storage) -> None:
    """Check that the database's blobs are in a storage of this kind: one of the other would not find them.

    Raises:
        SettingsError: when they are not.
    """
    is_local = storage.reuses_places
    strange = Blob.location.is_not(None) if is_local else Blob.location.is_(None)
    with database.read() as session:
        if session.scalar(select(Blob.id).where(strange).limit(1)) is None:
            return
    have, want = ("an object storage", "None") if is_local else ("the data directory", "the object storage")
    expected = f"this hub's checkpoints are in {have}: name that, or move them with `ddphub hub backup` and `restore`"
    raise SettingsError("storage", want, _SOURCE, expected)

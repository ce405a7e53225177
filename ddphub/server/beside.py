"""What a hub keeps, opened by a program that is not that hub: beside it while it serves, or while nothing does."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ddphub.errors import SettingsError
from ddphub.server.database import Database
from ddphub.server.directory import DataDirectory
from ddphub.server.settings import ServerSettings
from ddphub.server.signing import Signer
from ddphub.server.storage.interface import Storage
from ddphub.server.storage.opening import check_same_storage, open_storage


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a hub keeps, and where."""

    directory: DataDirectory
    database: Database
    storage: Storage


@contextmanager
def beside(settings: ServerSettings) -> Iterator[Kept]:
    """Open what a hub keeps; nothing is locked, made, changed or cleaned up.

    Args:
        settings: those of the hub that say where it keeps what.

    Raises:
        SettingsError: it is not there, or a hub of another version made it.
    """
    directory = DataDirectory(settings.data, is_first=False)
    try:
        missing = [directory.root / "secret"]
        if settings.database_url is None:
            missing.append(directory.database)
        for path in missing:
            if not path.exists():
                expected = f"expected the data directory of a hub; it has no {path.name}"
                raise SettingsError("data", str(settings.data), "server settings", expected)
        database = Database(settings.database_url or directory.database, migrates=False)
        try:
            storage = open_storage(settings, directory, Signer(directory.secret(), settings.url_lifetime_s))
            try:
                check_same_storage(database, storage)
                yield Kept(directory=directory, database=database, storage=storage)
            finally:
                storage.close()
        finally:
            database.close()
    finally:
        directory.close()

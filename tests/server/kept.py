"""What a hub keeps, for tests that back it up, restore it and look at all of it."""

from contextlib import contextmanager

import postgres

from ddphub.server.backups.folder import BackupFolder
from ddphub.server.backups.making import make_backup
from ddphub.server.backups.restoring import restore
from ddphub.server.beside import beside
from ddphub.server.settings import ServerSettings
from ddphub.server.verify import Verification


def settings_of(hub):
    """Where a hub of a test keeps what."""
    return place(hub.data_dir)


def place(data, **settings):
    """Where a new hub is to keep what; the database where `pytest --database` says, or as given."""
    return ServerSettings(data=data, **{"database_url": postgres.database_of(data, empty=True), **settings})


def back_up(hub, path, change=None):
    """Back a hub up beside it; `change` gives what is kept as the backup shall see it."""
    folder = BackupFolder(path)
    with beside(settings_of(hub)) as kept, folder.locked():
        storage = change(kept.storage) if change else kept.storage
        return make_backup(folder, kept.database, storage, kept.directory.secret())


def restored(path, settings, name=None, **options):
    """Restore a backup."""
    folder = BackupFolder(path)
    return restore(settings, folder, folder.find(name), **options)


def findings(settings):
    """What a verification finds: (kind, sentence) of each finding."""
    with beside(settings) as kept:
        return [(one.kind, one.what) for one in Verification(kept.database, kept.storage).findings()]


@contextmanager
def written(path):
    """The bytes of a file, to be changed and put back."""
    content = bytearray(path.read_bytes())
    yield content
    path.chmod(0o600)
    path.write_bytes(content)

"""What tests of a storage do beside a hub, and as a node that sends to it."""

from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import requests

from ddphub.server import beside as beside_module
from ddphub.server import leftovers
from ddphub.server.leftovers import Leftovers
from ddphub.server.settings import ServerSettings
from ddphub.server.storage import local, s3

MIB = 1024 * 1024


def put(part, content, **headers):
    """What a node sends for one part."""
    with requests.Session() as http:
        http.trust_env = False
        return http.put(part["url"], data=content, headers={**part["headers"], **headers})


@contextmanager
def beside(hub, storage=None):
    """What a hub keeps, as another process of it has it."""
    url = hub.database if isinstance(hub.database, str) else None
    settings = ServerSettings(data=hub.data_dir, database_url=url, storage=storage)
    with beside_module.beside(settings) as kept:
        try:
            yield SimpleNamespace(
                database=kept.database, storage=kept.storage, leftovers=Leftovers(kept.database, kept.storage)
            )
        finally:
            kept.storage.close()


def swept(hub, storage=None):
    """Removes what nothing needs, as if all of it were old."""
    with all_is_old(), beside(hub, storage) as kept:
        kept.leftovers.sweep()


@contextmanager
def all_is_old():
    """Nothing is too young."""
    with (
        mock.patch.object(leftovers, "STALE_S", -3600.0),
        mock.patch.object(local, "STALE_S", -3600.0),
        mock.patch.object(s3, "STALE_S", -3600.0),
    ):
        yield

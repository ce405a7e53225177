"""The hub: its parts, wired in one place."""

import time
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Final, cast

from anyio import CapacityLimiter
from fastapi import Depends, Request

from ddphub.server.charts import Charts
from ddphub.server.commits import Commits
from ddphub.server.database import Database
from ddphub.server.directory import DataDirectory
from ddphub.server.keys import Keys
from ddphub.server.leases import Leases
from ddphub.server.leftovers import Leftovers
from ddphub.server.meters import Meters
from ddphub.server.readiness import Readiness
from ddphub.server.sessions import Sessions
from ddphub.server.settings import ServerSettings
from ddphub.server.signing import Signer
from ddphub.server.states import Patience
from ddphub.server.storage.interface import Storage
from ddphub.server.storage.opening import check_same_storage, open_storage
from ddphub.server.throttle import Throttle
from ddphub.server.uploads import Uploads

STORING: Final = 8
"""Requests that store events at once. More would only hold threads while they wait to write, and whoever reads a page,
beats or sends a checkpoint would wait for a thread behind all of them."""


MOST_WAITING: Final = 200
"""Of those that wait. A client waits a minute (`hubs.ddphub.READ_TIMEOUT`) and then sends the same again, so a hub with
more in its queue than it can store by then would be busy with what nobody waits for. Who is told to come back brings
more at once, and a few large batches cost less than many small ones."""


@dataclass(frozen=True, kw_only=True)
class Hub:
    """What request handlers need; one for each process."""

    settings: ServerSettings
    directory: DataDirectory
    database: Database
    signer: Signer
    keys: Keys
    sessions: Sessions
    storage: Storage
    leftovers: Leftovers
    commits: Commits
    uploads: Uploads
    charts: Charts
    patience: Patience
    meters: Meters
    readiness: Readiness
    storing: CapacityLimiter

    @classmethod
    def open(cls, settings: ServerSettings, *, first: bool = True) -> "Hub":
        """Lock the data directory, bring the database up to date, and clean up after a crash.

        Args:
            settings: the hub's settings.
            first: do all that. Else this is one more process of a hub whose first one did, and outlives it.

        Raises:
            SettingsError: when the directory cannot be used.
        """
        directory = DataDirectory(settings.data, is_first=first)
        database = Database(settings.database_url or directory.open_database(), migrates=first)
        signer = Signer(directory.secret(), settings.url_lifetime_s)
        keys = Keys(database, signer, Throttle(database), settings.api_key, directory.root / "keys.changes")
        storage = open_storage(settings, directory, signer)
        leftovers = Leftovers(database, storage)
        leases = Leases(database, directory.node)
        check_same_storage(database, storage)
        if first:
            leases.end_of_the_dead()
        if first and storage.reuses_places:
            leftovers.sweep()  # of an object storage it takes long, and is left to the daily one
        meters = Meters()
        meters.watch("ddphub_checks", "Checkpoints whose bytes are being checked.", leases.__len__)
        for state, number in (("used", 0), ("idle", 1)):
            count = partial(lambda number: database.connections()[number], number)
            meters.watch("ddphub_database_connections", "Connections to the database.", count, state=state)
        return cls(
            settings=settings,
            directory=directory,
            database=database,
            signer=signer,
            keys=keys,
            sessions=Sessions(database, signer, keys, settings.session_lifetime_s),
            storage=storage,
            leftovers=leftovers,
            commits=Commits(
                database,
                storage,
                leftovers,
                leases,
                part_size=settings.part_size,
                inline_check_bytes=settings.inline_check_bytes,
            ),
            uploads=Uploads(database, storage, leftovers, part_size=settings.part_size),
            charts=Charts(),
            patience=settings.patience(up_since=time.time()),
            meters=meters,
            readiness=Readiness({"database": database.check, "storage": storage.check}),
            storing=CapacityLimiter(STORING),
        )

    def close(self) -> None:
        """End what runs.

        The directory stays locked until the process ends: a request that was cut short may still have a thread that
        writes, and what it makes is no leftover for the next hub to remove.
        """
        self.commits.close()
        self.storage.close()
        self.database.close()


async def _hub_of(request: Request) -> Hub:
    return cast("Hub", request.app.state.hub)


HubDep = Annotated[Hub, Depends(_hub_of)]
"""A handler's parameter: the hub."""

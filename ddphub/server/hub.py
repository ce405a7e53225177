"""The hub: its parts, wired in one place."""

import time
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from ddphub.server.auth import Keys
from ddphub.server.blobs import Blobs
from ddphub.server.charts import Charts
from ddphub.server.commits import Commits
from ddphub.server.database import Database
from ddphub.server.directory import DataDirectory
from ddphub.server.settings import ServerSettings
from ddphub.server.signing import Signer
from ddphub.server.states import Patience
from ddphub.server.uploads import Uploads


@dataclass(frozen=True, kw_only=True)
class Hub:
    """What request handlers need; one for each process."""

    settings: ServerSettings
    directory: DataDirectory
    database: Database
    signer: Signer
    keys: Keys
    blobs: Blobs
    commits: Commits
    uploads: Uploads
    charts: Charts
    patience: Patience

    @classmethod
    def open(cls, settings: ServerSettings) -> "Hub":
        """Lock the data directory, bring the database up to date, and clean up after a crash.

        Raises:
            SettingsError: when the directory cannot be used.
        """
        directory = DataDirectory(settings.data)
        database = Database(directory.database)
        signer = Signer(directory.secret(), settings.url_lifetime_s)
        blobs = Blobs(directory)
        return cls(
            settings=settings,
            directory=directory,
            database=database,
            signer=signer,
            keys=Keys(database, signer, settings.api_key, settings.session_lifetime_s),
            blobs=blobs,
            commits=Commits(
                database,
                blobs,
                signer,
                part_size=settings.part_size,
                inline_check_bytes=settings.inline_check_bytes,
            ),
            uploads=Uploads(blobs, part_size=settings.part_size),
            charts=Charts(),
            patience=settings.patience(up_since=time.time()),
        )

    def close(self) -> None:
        """End what runs and let another process have the directory."""
        self.commits.close()
        self.database.close()
        self.directory.close()


async def _hub_of(request: Request) -> Hub:
    return cast("Hub", request.app.state.hub)


HubDep = Annotated[Hub, Depends(_hub_of)]
"""A handler's parameter: the hub."""

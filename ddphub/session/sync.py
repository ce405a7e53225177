"""Delivering a run directory without its run: what `ddphub sync` does, with the same `Delivery` as a live run."""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ddphub.checkpoints.staging import StagingArea
from ddphub.errors import HubError, HubUnavailable, StagingError
from ddphub.hubs.client import HubClient
from ddphub.session.delivery import Delivery
from ddphub.session.folder import RunFolder, RunInfo
from ddphub.session.loop import Backoff

logger = logging.getLogger(__name__)

TRIES: Final = 5
"""Consecutive failures of the hub after which sync gives up; the rest stays for the next call."""


@dataclass(frozen=True)
class Outcome:
    """What one sync of one run came to.

    Attributes:
        done: whether this call left nothing to send.
        repaired: sentences about what a crash had left and is mended.
        error: why it is not done.
    """

    done: bool
    repaired: list[str]
    error: str | None = None


def find_runs(path: Path) -> Iterator[RunFolder]:
    """The run at `path`, or the runs below it, sorted by name."""
    if (path / "run.json").is_file():
        yield RunFolder(path.absolute())
        return
    for run_json in sorted(path.glob("*/run.json")):
        yield RunFolder(run_json.parent.absolute())


def sync_run(
    folder: RunFolder,
    client: HubClient,
    *,
    hub: str,
    retry_aside: bool = False,
    progress: Callable[[str, int], None] = lambda _kind, _count: None,
) -> Outcome:
    """Delivers one run directory. Any machine that sees it; at most one deliverer at a time does anything.

    Args:
        folder: the run directory.
        client: the hub.
        hub: its URL, recorded in run.json.
        retry_aside: try again what was set aside.
        progress: called with "events" or "checkpoints" and how many are done now.

    Raises:
        FileNotFoundError: it is no run directory.
        JournalError: run.json does not say what it should.
    """
    info = RunInfo.load(folder.run_json)
    if info.hub != hub:
        info.hub, info.model_id = hub, None
    staging = StagingArea(folder.staging)
    delivery = Delivery(folder=folder, info=info, staging=staging, client=client, progress=progress)
    if not delivery.acquire():
        return Outcome(False, [], "another process delivers it at this moment")
    try:
        repaired = staging.recover()
        if retry_aside:
            delivery.retry_aside()
        _drain(delivery)
        return Outcome(True, repaired)
    except (StagingError, OSError, HubError) as error:
        return Outcome(False, [], str(error))
    finally:
        delivery.release()


def _drain(delivery: Delivery) -> None:
    """Sends everything; waits between tries as a live run does.

    Raises:
        HubError: the hub refuses, or did not answer TRIES times in a row.
    """
    backoff = Backoff()
    while True:
        try:
            if not delivery.registered:
                delivery.register()
            if delivery.send_events() and delivery.send_checkpoints(flush=True):
                return
        except HubUnavailable as error:
            pause = backoff.next(error.retry_after)
            if backoff.failures >= TRIES:
                raise
            logger.info("%s; trying again in %.0f s", error, pause)
            threading.Event().wait(pause)
        else:
            backoff.reset()

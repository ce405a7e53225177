"""Delivering a run directory without its run: what `ddphub sync` does, with the same `Delivery` as a live run."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ddphub.checkpoints.staging import StagingArea
from ddphub.errors import HubError, HubUnavailable, StagingError
from ddphub.hubs.client import HubClient
from ddphub.session import presence
from ddphub.session.delivery import Delivery
from ddphub.session.folder import KEEP_DAYS, UNANSWERED, RunFolder, RunInfo
from ddphub.session.leftovers import remove_replacements
from ddphub.session.lines import close_last_line
from ddphub.session.loop import Backoff

logger = logging.getLogger(__name__)

TRIES: Final = 5
"""Consecutive failures of the hub after which sync gives up; the rest stays for the next call."""


OTHER_SYNC_STUCK: Final = 10.0
"""Seconds without a line in the journal after which a sync no longer waits for the one that has the lock."""


@dataclass(frozen=True)
class Outcome:
    """What one sync of one run came to.

    Attributes:
        done: whether this call left nothing to send.
        repaired: sentences about what a crash had left and is mended, and about what was pruned.
        error: why it is not done.
    """

    done: bool
    repaired: list[str]
    error: str | None = None


def find_runs(path: Path) -> Iterator[RunFolder]:
    """The run at `path`, or the runs below it, sorted by name."""
    # Whatever has that name: one that cannot be read is told of, not overlooked.
    if os.path.lexists(path / "run.json"):
        yield RunFolder(path.absolute())
        return
    for folder in sorted(path.glob("*/")):
        if os.path.lexists(folder / "run.json"):
            yield RunFolder(folder.absolute())


def sync_run(
    folder: RunFolder,
    client: HubClient | None,
    *,
    hub: str | None,
    retry_aside: bool = False,
    keep_days: float = KEEP_DAYS,
    progress: Callable[[str, int], None] = lambda _kind, _count: None,
) -> Outcome:
    """Delivers one run directory. Any machine that sees it; at most one deliverer at a time does anything.

    What a living process owns is not touched: its copies under way, its files' last lines, and a directory that its
    rank may still hand over to the run it belongs to.

    Args:
        folder: the run directory.
        client: the hub; None only repairs and prunes, for a run of which nothing is left to send.
        hub: its URL.
        retry_aside: try again what was set aside.
        keep_days: a spool file of an ended run that is delivered whole and older than this is deleted.
        progress: called with "events" or "checkpoints" and how many are done now.

    Raises:
        FileNotFoundError: it is no run directory.
        JournalError: run.json does not say what it should.
    """
    info = RunInfo.load(folder.run_json)
    in_use = presence.is_in_use(folder.alive)
    if in_use and info.run_id.startswith(UNANSWERED):
        return Outcome(False, [], "its rank is alive and waits to be told which run it belongs to")
    staging = StagingArea(folder.staging)
    delivery = Delivery(folder=folder, info=info, staging=staging, client=client, hub=hub, progress=progress)
    repaired: list[str] = []
    try:
        if not _acquire(delivery, folder, in_use=in_use):
            return Outcome(False, [], "another process delivers it at this moment")
        if not folder.run_json.exists():
            return Outcome(True, ["it was handed over to the run that it belongs to"])
        repaired += staging.recover()
        delivery.clean_up()
        if not in_use:
            repaired += [*_close_last_lines(folder), *remove_replacements(folder)]
        if retry_aside:
            delivery.retry_aside()
        if client is not None:
            _drain(delivery)
        if not in_use:
            repaired += delivery.prune(before=time.time() - keep_days * 86400)
        return Outcome(True, repaired)
    except (StagingError, OSError, HubError) as error:
        return Outcome(False, repaired, str(error))
    finally:
        delivery.release()


def _acquire(delivery: Delivery, folder: RunFolder, *, in_use: bool) -> bool:
    """Takes session.lock; beside another sync, which ends some day, waits as long as that one gets on."""
    longest = delivery.patience if in_use else max(delivery.patience, OTHER_SYNC_STUCK)
    size, since = -1, time.monotonic()
    while not delivery.acquire():
        longest = max(longest, delivery.patience)  # known once the lock has been tried
        now = folder.journal.stat().st_size if folder.journal.exists() else 0
        if now != size:
            size, since = now, time.monotonic()
        elif time.monotonic() - since >= longest:
            return False
        time.sleep(0.0 if in_use and not longest else 0.5)
    return True


def _close_last_lines(folder: RunFolder) -> list[str]:
    """Ends partial last lines, which killed processes left: as damaged lines they stay, and are named."""
    closed = []
    for path in folder.spool_files():
        with contextlib.suppress(OSError):  # one that cannot be read is named by the report
            # Another rank may outlive rank 0, and be in the middle of that line.
            is_still = time.time() - path.stat().st_mtime > presence.LATE
            if is_still and (size := close_last_line(path)):
                closed.append(f"closed a partial last line of {size} bytes in {path}")
    return closed


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
            has_sent_events = delivery.send_events()
            if delivery.send_checkpoints(flush=True) and has_sent_events:
                return
        except HubUnavailable as error:
            pause = backoff.next(error.retry_after)
            if backoff.failures >= TRIES:
                raise
            logger.info("%s; trying again in %.0f s", error, pause)
            threading.Event().wait(pause)
        else:
            backoff.reset()

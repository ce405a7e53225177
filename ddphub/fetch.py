"""Fetching a run's newest checkpoint from its hub, once for all processes that see the folder."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ddphub.config import Settings
from ddphub.distributed.slurm import SlurmJob
from ddphub.errors import HubError
from ddphub.hubs.client import HubClient
from ddphub.session.lock import SessionLock
from ddphub.tell import tell

logger = logging.getLogger(__name__)

LONGEST_WAIT: Final = 3600.0
"""Seconds that a process waits for the one that fetches."""


def fetch_newest(settings: Settings, target: Path, *, kinds: Sequence[str]) -> bool:
    """Fetches the newest checkpoint of a run to `target`. Any rank: who comes second finds the file, or nothing new.

    Args:
        settings: the hub, its key, and which run: `model`, or `project` with `run_id` (in a SLURM job, its id).
        target: where the file goes; replaced when it is whole.
        kinds: which kinds of checkpoint will do; of those of one epoch the first.

    Returns:
        Whether `target` is there now. Not so where the hub has none, or cannot be asked: a warning says why.
    """
    if settings.hub is None or settings.mode != "online":
        return False
    before = _state(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = SessionLock(target.with_name(f".{target.name}.lock"))
        until = time.monotonic() + LONGEST_WAIT
        while not lock.acquire() and time.monotonic() < until:
            time.sleep(0.1)
        try:
            if _state(target) != before:
                return True
            from ddphub.hubs.connect import connect  # noqa: PLC0415  # requests, only where it is used

            client = connect(settings.hub, settings.api_key)
            try:
                return _fetch(client, settings, target, kinds)
            finally:
                client.close()
        finally:
            lock.release()
    except (HubError, OSError) as error:
        logger.warning("no checkpoint could be fetched from %s: %s", settings.hub, error)
        return False


def _fetch(client: HubClient, settings: Settings, target: Path, kinds: Sequence[str]) -> bool:
    run_id = settings.run_id
    if run_id is None and (job := SlurmJob.detect()) is not None:
        run_id = job.run_id(settings.project, settings.name, 0)
    model_id = settings.model or (client.find_model(settings.project, run_id) if run_id else None)
    found = [client.newest_checkpoint(model_id, (kind,)) for kind in kinds] if model_id else []
    candidates = [one for one in found if one is not None]
    if not candidates:
        return False
    newest = max(candidates, key=lambda one: -1 if one.epoch is None else one.epoch)  # the first of equals
    if len(newest.files) != 1:
        logger.warning("checkpoint %s is a folder of %d files, expected one file", newest.name, len(newest.files))
        return False
    client.download(newest.files[0], target)
    tell([f"fetched {newest.name} of epoch {newest.epoch} from {settings.hub}"])
    return True


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns

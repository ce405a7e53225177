"""The newest complete checkpoint of a run, for a loop that resumes: from the staging area, else from the hub.

```
<run>/latest/
  <id>/                   one checkpoint, whole or not there; id: its entry's, or the hub's
  <attempt_id>-<n>.json   {"path": what rank 0 found for the attempt's n-th call, or null}: the other ranks wait for it
```

The copies are the loop's own: delivery deletes what waits in the staging area, and a trainer may write its files anew.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from ddphub.checkpoints.disk import make_private, remove_tree, write_json
from ddphub.checkpoints.snapshot import snapshot
from ddphub.checkpoints.staging import Entry, StagingArea
from ddphub.errors import HubError, StagingError
from ddphub.hubs.client import HubClient, RemoteCheckpoint
from ddphub.names import new_hex_id

logger = logging.getLogger(__name__)

LONGEST_WAIT: Final = 3600.0
"""Seconds that a rank waits for rank 0 to have found, and fetched, the newest checkpoint."""

TRIES: Final = 2
"""An entry that delivery deletes while it is copied is on the hub when it is looked for again."""


def find_latest(
    folder: Path, staging: StagingArea, kinds: Sequence[str], ask: Callable[[], tuple[HubClient, str] | None]
) -> Path | None:
    """Finds the newest checkpoint and makes a copy for the loop. Rank 0, or a rank that does not see rank 0's files.

    Args:
        folder: `<run>/latest`.
        staging: the staging area, whose entries the hub does not have yet.
        kinds: which kinds of checkpoint will do.
        ask: the hub and its id of the model; None without a hub. Its client is closed afterwards.

    Returns:
        A file, or a folder for a checkpoint of several files; None where there is no checkpoint.

    Raises:
        StagingError, OSError: it cannot be copied.
    """
    for _ in range(TRIES):
        local = max((entry for entry in staging.entries() if entry.slot.kind in kinds), key=_age_of_entry, default=None)
        try:
            asked = ask()
        except HubError as error:
            logger.warning("the hub cannot be asked for a newer checkpoint: %s", error)
            asked = None
        try:
            remote = _newest_of_hub(asked, kinds)
            if remote is not None and asked is not None and (local is None or _age(remote) > _age_of_entry(local)[:2]):
                return _fetched(asked[0], remote, folder)
        finally:
            if asked is not None:
                asked[0].close()
        if local is None:
            return None
        with suppress(StagingError, FileNotFoundError):
            return _copied(local, folder)
    raise StagingError(f"the newest checkpoint could not be copied to {folder}")


def download_checkpoint(client: HubClient, checkpoint: RemoteCheckpoint, target: Path) -> None:
    """Fetches a checkpoint's files into a folder, which appears when all of them are there.

    Raises:
        HubError: a file did not come.
        OSError: it cannot be written.
    """
    making = target.with_name(f".{target.name}.{new_hex_id()}")
    try:
        for file in checkpoint.files:
            place = making / file.name
            make_private(place.parent)
            client.download(file, place)
        making.rename(target)
    finally:
        remove_tree(making)


def tell_ranks(folder: Path, attempt_id: str, number: int, path: Path | None) -> None:
    """Leaves rank 0's finding for the other ranks; what earlier attempts left goes. Rank 0."""
    make_private(folder)
    if number == 0:
        kept = path and path.relative_to(folder).parts[0]
        for old in folder.iterdir():
            if old.name != kept:
                remove_tree(old) if old.is_dir() else old.unlink(missing_ok=True)
    write_json(folder / _answer_name(attempt_id, number), {"path": str(path) if path else None})


def await_latest(folder: Path, attempt_id: str, number: int, is_alone: Callable[[], bool]) -> Path | None:
    """What rank 0 found. Another rank that sees rank 0's files.

    Args:
        folder: `<run>/latest`.
        attempt_id: the attempt.
        number: how many calls came before this one.
        is_alone: whether rank 0 is known to be gone.

    Raises:
        StagingError: rank 0 left no answer.
    """
    answer = folder / _answer_name(attempt_id, number)
    until = time.monotonic() + LONGEST_WAIT
    while time.monotonic() < until:
        with suppress(FileNotFoundError, ValueError):
            path = json.loads(answer.read_text())["path"]
            return Path(path) if path else None
        if is_alone():
            break
        time.sleep(0.1)
    raise StagingError("rank 0 has not said which checkpoint is the newest")


def _answer_name(attempt_id: str, number: int) -> str:
    return f"{attempt_id}-{number}.json"


def _age(checkpoint: RemoteCheckpoint) -> tuple[int, int]:
    return _known(checkpoint.epoch), _known(checkpoint.step)


def _age_of_entry(entry: Entry) -> tuple[int, int, float]:
    return _known(entry.slot.epoch), _known(entry.slot.step), entry.created


def _known(number: int | None) -> int:
    return -1 if number is None else number


def _newest_of_hub(asked: tuple[HubClient, str] | None, kinds: Sequence[str]) -> RemoteCheckpoint | None:
    if asked is None:
        return None
    client, model_id = asked
    try:
        return client.newest_checkpoint(model_id, kinds)
    except HubError as error:
        logger.warning("the hub does not say which checkpoint is the newest: %s", error)
        return None


def _fetched(client: HubClient, checkpoint: RemoteCheckpoint, folder: Path) -> Path:
    target = folder / checkpoint.checkpoint_id
    if not target.exists():
        make_private(folder)
        try:
            download_checkpoint(client, checkpoint, target)
        except HubError as error:
            raise StagingError(f"the newest checkpoint could not be fetched: {error}") from error
    return target if len(checkpoint.files) > 1 else target / checkpoint.files[0].name


def _copied(entry: Entry, folder: Path) -> Path:
    target = folder / entry.entry_id
    if not target.exists():
        make_private(folder)
        making = target.with_name(f".{target.name}.{new_hex_id()}")
        try:
            copied = snapshot(entry.folder / "files", making)
            if [(file.name, file.size) for file in copied] != sorted((file.name, file.size) for file in entry.files):
                raise StagingError(f"{entry.folder} is not what was staged")
            making.rename(target)
        finally:
            remove_tree(making)
    return target if len(entry.files) > 1 else target / entry.files[0].name

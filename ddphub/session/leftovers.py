"""What killed processes leave beside the data: files that were to replace others, and folders of no run.

A process that lives may be about to use what looks the same, so only what has not changed for a minute goes.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ddphub.session import presence
from ddphub.session.folder import UNANSWERED, RunFolder

_REPLACEMENTS: Final = (".run-*", ".*.tmp", "delivered.new", "staging/.*.tmp", "staging/*/.*.tmp")
"""Names of files under which `RunInfo.save`, `write_json` and `Journal.compact` write before they rename."""


def remove_replacements(folder: RunFolder) -> list[str]:
    """Removes files that were to replace others; returns sentences that say so.

    Raises:
        OSError: one cannot be removed.
    """
    found = [path for pattern in _REPLACEMENTS for path in folder.path.glob(pattern)]
    removed = []
    for path in found:
        if _is_old(path):
            path.unlink(missing_ok=True)
            removed.append(f"removed {path}, which a killed process did not finish")
    return removed


def remove_empty_folders(place: Path) -> Iterator[str]:
    """Removes folders of unanswered ranks that hold no run: made and never used, or handed over and not yet removed.

    Yields:
        Sentences that say so.
    """
    for path in sorted(place.glob(f"{UNANSWERED}*")):
        folder = RunFolder(path)
        if folder.run_json.exists() or folder.spool_files() or not _is_old(path) or presence.is_in_use(folder.alive):
            continue
        with contextlib.suppress(OSError):  # what else is in it is not ours, and keeps it
            remove_replacements(folder)
            folder.alive.unlink(missing_ok=True)
            folder.session_lock.unlink(missing_ok=True)
            if folder.spool.exists():
                folder.spool.rmdir()
            path.rmdir()
            yield f"removed {path}, which held nothing"


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.lstat().st_mtime > presence.LATE
    except OSError:
        return False

"""stop.json: the hub's wish that an attempt stops, for a run that does not hear the hub itself.

`{"attempt_id": ..., "time": <seconds since the epoch>}`, written by `ddphub sync --watch`, read every second by the
session of that attempt. It stays there: a later attempt is not meant by it.
"""

import time
from pathlib import Path

from ddphub.checkpoints.disk import read_json, write_json


def ask(path: Path, attempt_id: str) -> None:
    """Asks an attempt to stop. Whoever hears the hub.

    Raises:
        OSError: the file cannot be written.
    """
    write_json(path, {"attempt_id": attempt_id, "time": time.time()})


def is_asked(path: Path, attempt_id: str) -> bool:
    """Whether the attempt is asked to stop. Rank 0; where there is no file it costs one failed open."""
    try:
        return read_json(path).get("attempt_id") == attempt_id
    except (OSError, ValueError):
        return False

"""The run directory: its layout, and run.json.

```
<root>/<run_id>/                 root: DDPHUB_DIR, default ./.ddphub ; modes 0700 / 0600
  run.json                       project, name, hub, attempts; written by rank 0 before the first step; no secret
  run.lock                       around a change of run.json, by starts of one run id at the same moment
  alive.json                     see session/presence.py
  stop.json                      see session/stop.py
  session.lock                   FileLock: who may deliver and delete (rank 0 of one attempt, or one `ddphub sync`)
  delivered.jsonl                the delivery journal: model id, spool offsets, receipts; only under session.lock
  spool/
    <attempt_id>-relay.jsonl     written by rank 0 only
    <attempt_id or nonce>-rank<k>.jsonl   written by rank k only, when the relay could not take it
  staging/                       see checkpoints/staging.py
  latest/                        see latest.py
```
"""

import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from ddphub import names
from ddphub.errors import JournalError
from ddphub.files import read_regular

KEEP_DAYS: Final = 7.0
"""Days after its last change that a delivered spool file of an ended run is kept."""

UNANSWERED: Final = "unanswered-"
"""Run ids that begin so hold events of a rank that rank 0 has not answered; it moves them once it is."""


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run's directory."""

    path: Path

    @property
    def run_json(self) -> Path:
        """What the run is."""
        return self.path / "run.json"

    @property
    def alive(self) -> Path:
        """Whether a process has the directory in use."""
        return self.path / "alive.json"

    @property
    def stop(self) -> Path:
        """The hub's wish that an attempt stops."""
        return self.path / "stop.json"

    @property
    def run_lock(self) -> Path:
        """Held while run.json is read and written."""
        return self.path / "run.lock"

    @property
    def session_lock(self) -> Path:
        """Its holder alone delivers, journals and deletes."""
        return self.path / "session.lock"

    @property
    def journal(self) -> Path:
        """The delivery journal."""
        return self.path / "delivered.jsonl"

    @property
    def spool(self) -> Path:
        """Event files."""
        return self.path / "spool"

    @property
    def staging(self) -> Path:
        """Checkpoints that wait."""
        return self.path / "staging"

    @property
    def latest(self) -> Path:
        """Copies of checkpoints for loops that resume, see latest.py."""
        return self.path / "latest"

    def relay_file(self, attempt_id: str) -> Path:
        """Events that reached rank 0 in this attempt."""
        return self.spool / f"{attempt_id}-relay.jsonl"

    def rank_file(self, stream_id: str, rank: int) -> Path:
        """Events that the relay could not take from this rank; `stream_id` is an attempt id or a nonce."""
        return self.spool / f"{stream_id}-rank{rank}.jsonl"

    def spool_files(self) -> list[Path]:
        """Every event file, sorted by name."""
        return sorted(self.spool.glob("*.jsonl"))

    def create(self) -> None:
        """Makes the folder, 0700."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)


@dataclass
class RunInfo:
    """The content of run.json: what delivers this run from any machine, and no secret. Rank 0 alone writes it.

    Attributes:
        run_id: the run.
        project: the project's name.
        name: the model's name.
        hub: the hub, see `ddphub.address`; None when the run was made without one.
        config: the user's configuration.
        attempts: attempt ids in order of their start on this directory.
        world_size: of the newest attempt.
        restart_count: SLURM's, of the newest attempt; None outside SLURM.
        created: seconds since the epoch.
        model: the hub's id of an existing model that the run was told to report to.
        environment: what rank 0's process says of itself, of the newest attempt: host, os, python, cpus.
    """

    run_id: str
    project: str
    name: str
    hub: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    attempts: list[str] = field(default_factory=list)
    world_size: int = 1
    restart_count: int | None = None
    created: float = field(default_factory=time.time)
    model: str | None = None
    environment: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> "RunInfo":
        """Reads run.json.

        Raises:
            FileNotFoundError: when there is none.
            JournalError: when it does not say what it should; names the file and the field.
        """
        try:
            content = json.loads(read_regular(path))
        except (ValueError, RecursionError) as error:
            raise JournalError(f"{path}: not JSON ({error})") from error
        if not isinstance(content, dict):
            raise JournalError(f"{path}: expected a JSON object")
        content = {"model": None, "environment": {}, **content}  # which earlier versions did not write
        wrong = (
            _wrong("run_id", names.wrong_run_id(content.get("run_id")))
            or _wrong("project", names.wrong_name(content.get("project")))
            or _wrong("name", names.wrong_name(content.get("name")))
            or _wrong_type(content, "hub", str | None)
            or _wrong_type(content, "model", str | None)
            or _wrong_type(content, "config", dict)
            or _wrong_type(content, "environment", dict)
            or _wrong_type(content, "attempts", list)
            or _wrong_type(content, "world_size", int)
            or _wrong_type(content, "restart_count", int | None)
            or _wrong_type(content, "created", int | float)
            or _wrong("attempts", None if all(map(names.is_hex_id, content["attempts"])) else "expected hex ids")
        )
        if wrong:
            raise JournalError(f"{path}: {wrong}")
        return cls(**{name: content[name] for name in cls.__dataclass_fields__})

    def save(self, path: Path) -> None:
        """Writes run.json, 0600: a reader finds the old one or the new one.

        Raises:
            OSError: when it cannot be written.
        """
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".run-", delete=False) as file:  # made 0600
            try:
                json.dump(asdict(self), file, indent=1)
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise


def _wrong(field_name: str, reason: str | None) -> str | None:
    return f"{field_name}: {reason}" if reason else None


def _wrong_type(content: dict[str, Any], field_name: str, expected: Any) -> str | None:  # noqa: ANN401  # a type or union
    value = content.get(field_name)
    if field_name not in content or not isinstance(value, expected) or isinstance(value, bool):
        return f"{field_name}: expected {expected}, got {str(value)[:60]!r}"
    return None

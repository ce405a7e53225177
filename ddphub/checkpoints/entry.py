"""What a checkpoint is while it waits: its slot, its files, and the record `checkpoint.json` that names them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from ddphub.checkpoints.disk import read_json
from ddphub.checkpoints.layout import FILES, RECORD
from ddphub.errors import StagingError
from ddphub.events import encode_scalar, fingerprint, to_json
from ddphub.names import is_hex_id, wrong_file_name


@dataclass(frozen=True)
class Slot:
    """What a save is for: one slot is staged once, however often and by whomever it is called.

    Attributes:
        attempt_id: the attempt that saves, 32 hex digits.
        kind: "epoch", "best", "final".
        epoch: epoch of the save, or None.
        step: step of the save, or None.
        name: name of the checkpoint, such as "last.pt"; one path component.
    """

    attempt_id: str
    kind: str
    epoch: int | None
    step: int | None
    name: str

    @property
    def key(self) -> str:
        """sha256 (hex) of the slot's canonical JSON."""
        return fingerprint(asdict(self))

    def wrong(self) -> str | None:
        """Why this is no slot; None when it is one."""
        if not is_hex_id(self.attempt_id):
            return f"attempt_id={self.attempt_id!r}: expected 32 hex digits"
        if (problem := wrong_file_name(self.kind)) or "/" in self.kind:
            return f"kind={self.kind!r}: {problem or 'must be one word'}"
        for field in ("epoch", "step"):
            value = getattr(self, field)
            if value is not None and type(value) is not int:
                return f"{field}={value!r}: expected an int or None"
        if (problem := wrong_file_name(self.name)) or "/" in self.name:
            return f"name={self.name!r}: {problem or 'must be one path component'}"
        return None

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The slot that `asdict` made.

        Raises:
            ValueError: it is something else.
        """
        fields = {"attempt_id", "kind", "epoch", "step", "name"}
        if not isinstance(value, dict) or set(value) != fields:
            raise ValueError(f"slot: expected an object of {', '.join(sorted(fields))}")
        slot = cls(**value)
        if problem := slot.wrong():
            raise ValueError(f"slot: {problem}")
        return slot


@dataclass(frozen=True)
class StagedFile:
    """One file of a checkpoint: relative POSIX path, bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class Entry:
    """A committed checkpoint; it never changes.

    Attributes:
        entry_id: its identity on this side and on the hub, 32 hex digits.
        slot: what it was saved for.
        metrics: as JSON carries them (`events.encode_scalar`: "NaN" for a NaN).
        created: when it was committed, seconds since the epoch (UTC).
        files: at least one, ordered by name.
        folder: where it lies.
    """

    entry_id: str
    slot: Slot
    metrics: dict[str, Any]
    created: float
    files: tuple[StagedFile, ...]
    folder: Path

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def file_path(self, name: str) -> Path:
        """Where the file of that name lies. Any process.

        Raises:
            KeyError: the entry has no such file.
        """
        if all(file.name != name for file in self.files):
            raise KeyError(name)
        return self.folder / FILES / name

    def to_json(self) -> dict[str, Any]:
        """The content of `checkpoint.json`."""
        return {
            "entry_id": self.entry_id,
            "slot": asdict(self.slot),
            "metrics": self.metrics,
            "created": self.created,
            "files": [asdict(file) for file in self.files],
        }

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The entry in a folder. Any process.

        Raises:
            OSError: there is none, or it cannot be read.
            ValueError: its record does not say what it should.
        """
        record = read_json(folder / RECORD)
        created, metrics, files = record.get("created"), record.get("metrics"), record.get("files")
        if record.get("entry_id") != folder.name:
            raise ValueError(f"entry_id: expected {folder.name}")
        if isinstance(created, bool) or not isinstance(created, int | float) or not 0 <= created < 1e12:
            raise ValueError("created: expected seconds since the epoch")
        if not isinstance(metrics, dict):
            raise ValueError("metrics: expected an object")  # noqa: TRY004 - callers catch one error for bad content
        if not isinstance(files, list) or not files:
            raise ValueError("files: expected at least one")
        return cls(
            entry_id=folder.name,
            slot=Slot.from_json(record.get("slot")),
            metrics=metrics,
            created=created,
            files=tuple(_staged_file(file) for file in files),
            folder=folder,
        )


def _staged_file(value: object) -> StagedFile:
    if not isinstance(value, dict) or set(value) != {"name", "size"}:
        raise ValueError("files: expected objects of name and size")
    name, size = value["name"], value["size"]
    if problem := wrong_file_name(name):
        raise ValueError(f"files: name={name!r}: {problem}")
    if type(size) is not int or size < 0:
        raise ValueError(f"files: size={size!r}: expected bytes")
    return StagedFile(name=name, size=size)


def wire_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `metrics` as JSON carries them.

    Raises:
        StagingError: JSON cannot carry them.
    """
    try:
        encoded = {key: encode_scalar(value) for key, value in metrics.items()}
        copy: dict[str, Any] = json.loads(to_json(encoded))
    except (TypeError, ValueError) as problem:
        raise StagingError(f"metrics={metrics!r:.200}: expected numbers by name ({problem})") from problem
    return copy

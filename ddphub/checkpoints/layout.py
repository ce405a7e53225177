"""Where everything lies in a staging area; the folder tree is drawn in `staging`."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

RECORD: Final = "checkpoint.json"
DIGEST: Final = "digest.json"
OWNER: Final = "owner.json"
FILES: Final = "files"
SCRATCH: Final = "scratch"
REMOVING: Final = ".removing-"


@dataclass(frozen=True)
class Layout:
    """The paths of the staging area in the folder `root`."""

    root: Path

    @cached_property
    def lock(self) -> Path:
        """The lock file; never deleted."""
        return self.root / "staging.lock"

    @cached_property
    def slots(self) -> Path:
        """The folder of the slots' records."""
        return self.root / "slots"

    @cached_property
    def arrivals(self) -> Path:
        """The folder of what is not committed, or not any more."""
        return self.root / "incoming"

    def slot(self, key: str) -> Path:
        """A slot's record."""
        return self.slots / f"{key}.json"

    def entry(self, entry_id: str) -> Path:
        """A committed entry."""
        return self.root / entry_id

    def incoming(self, entry_id: str) -> Path:
        """An entry that is being copied."""
        return self.arrivals / entry_id

    def removing(self, entry_id: str) -> Path:
        """An entry or copy that is being deleted."""
        return self.arrivals / (REMOVING + entry_id)

"""Where checkpoints wait, immutable, until the hub has them.

```
staging/
  staging.lock                 FileLock: short, around claim and commit; never held while copying; never deleted
  slots/<key of slot>.json     {"entry_id", "slot", "owner": {"host", "pid", "started"}}; stays after the entry is
                               delivered or dropped, so a repeat of the slot is known for ever
  incoming/<entry_id>/         being copied: owner.json {"owner", "slot", "reserved": bytes}, then files/ or scratch/
  incoming/.removing-<id>/     being deleted; whoever finds it may finish that
  <entry_id>/                  committed, immutable
    checkpoint.json            {"entry_id", "slot", "metrics", "created", "files": [{"name", "size"}]}
    files/<...>                the bytes
    owner.json                 who staged it
    digest.json                after sealing: {"part_size", "files": [{"name", "size", "sha256", "parts"}]}
```

A process may be killed between any two operations. What makes that safe is their order: owner.json, then the slot,
then the bytes, then checkpoint.json, then one rename that commits. So every claim names its process, a slot is
taken only by an entry, by a copy whose process lives, or by an entry that is gone because it was delivered or
dropped; and to undo a claim the slot goes first.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddphub.checkpoints.claims import Claims, PendingClaim
from ddphub.checkpoints.digest import Digest, FileDigest, check_sizes, read_digest, write_digest
from ddphub.checkpoints.disk import (
    disk_errors,
    keep_private,
    list_names,
    make_private,
    remove_tree,
    tree_size,
    write_json,
)
from ddphub.checkpoints.entry import Entry, Slot, StagedFile, wire_metrics
from ddphub.checkpoints.layout import FILES, RECORD, SCRATCH, Layout
from ddphub.checkpoints.records import Records
from ddphub.checkpoints.snapshot import find_files, is_written, settle, snapshot
from ddphub.errors import StagingError
from ddphub.names import is_hex_id

__all__ = [
    "Digest",
    "Entry",
    "FileDigest",
    "PendingClaim",
    "PendingEntry",
    "Slot",
    "Staged",
    "StagedFile",
    "StagingArea",
]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Staged:
    """What a call of `stage` came to.

    Attributes:
        entry_id: the slot's entry.
        entry: the entry; None when it is not there yet (another thread or process is copying it) or no more (it was
            delivered or dropped).
        new: whether this call staged it.
    """

    entry_id: str
    entry: Entry | None
    new: bool


@dataclass
class PendingEntry:
    """A checkpoint that its writer writes straight into the staging area.

    Attributes:
        path: write one file, or make a folder, here.
        entry_id: the slot's entry.
        new: whether this block stages it; False when the slot was taken, and after a block that wrote nothing.
        entry: the entry, once the block has ended; as in `Staged`.
    """

    path: Path
    entry_id: str
    new: bool
    entry: Entry | None = None


class StagingArea:
    """The staging area of one run. Any process, any thread; nothing is created before the first save.

    Args:
        folder: `<run>/staging`.
        budget: bytes that may wait here, or None for any number.
        make_room: called, without any lock held, with the slot of a save that does not fit and the bytes that must
            go; it may remove entries. Afterwards the save is refused only if it still does not fit.
    """

    def __init__(
        self, folder: Path, *, budget: int | None = None, make_room: Callable[[Slot, int], None] | None = None
    ) -> None:
        # Absolute: a training script may change its working directory.
        self.folder = Path(folder).absolute()
        self._budget = budget
        self._make_room = make_room
        self._layout = Layout(self.folder)
        self._claims = Claims(self._layout)
        self._records = Records(self.folder)
        self._warned: set[str] = set()

    def stage(self, slot: Slot, source: Path, metrics: Mapping[str, Any]) -> Staged:
        """Copy a checkpoint; complete when the call returns. The writing rank, after the writer has closed it.

        Args:
            slot: what it is saved for; the second call for a slot finds what the first one staged.
            source: a file, which keeps its name, or a folder of files.
            metrics: numbers by name.

        Raises:
            StagingError: it could not be staged; the slot is free again.
        """
        source = Path(source)
        wire = wire_metrics(metrics)
        with disk_errors(f"could not stage {source}"):
            size = _size_if_there(source)
            entry_id, new = self._claim(slot, size)
            if not new:
                return Staged(entry_id, self._committed(entry_id), new=False)
            with self._claims.released_on_error(entry_id):
                self._fit(slot, size)
                files = snapshot(source, self._layout.incoming(entry_id) / FILES)
                return Staged(entry_id, self._commit(entry_id, slot, wire, files), new=True)

    @contextmanager
    def write(self, slot: Slot, metrics: Mapping[str, Any]) -> Iterator[PendingEntry]:
        """Give a path to write a checkpoint to: no copy, nothing to tear. The writing rank.

        It is committed when the block ends, and forgotten, with the slot free again, when the block raises or wrote
        nothing. When the slot is taken the path is thrown away: the block need not know.

        Raises:
            StagingError: on entering, no path could be had; on leaving, what was written could not be committed.
        """
        wire = wire_metrics(metrics)
        with disk_errors(f"could not stage {slot.name}"):
            entry_id, new = self._claim(slot)
            # Taken: the bytes go to a claim on no slot, which is never committed.
            own_id = entry_id if new else self._claims.claim_scratch()
        with self._claims.released_on_error(own_id):
            with disk_errors(f"could not stage {slot.name}"):
                folder = self._layout.incoming(own_id) / SCRATCH
                make_private(folder)
            pending = PendingEntry(path=folder / slot.name, entry_id=entry_id, new=new)
            yield pending
            with disk_errors(f"could not stage {slot.name}"):
                if new and is_written(pending.path):
                    pending.entry = self._commit_written(entry_id, slot, wire, pending.path)
                else:
                    pending.new = False
                    self._claims.release(own_id)
        if not new:
            pending.entry = self._committed(entry_id)

    def entries(self) -> list[Entry]:
        """The committed entries, oldest first. Any process, while others add and remove."""
        entries, broken = self._records.read()
        for entry_id, problem in broken.items():
            if entry_id not in self._warned:
                self._warned.add(entry_id)
                _logger.warning("%s is set aside: %s", self.folder / entry_id, problem)
        return sorted(entries, key=lambda entry: (entry.created, entry.entry_id))

    def broken(self) -> list[str]:
        """The ids of entries whose record does not say what it should; they are never deleted. Any process."""
        return sorted(self._records.read()[1])

    def digest(self, entry: Entry) -> Digest | None:
        """The entry's digest, or None before it is sealed. Any process."""
        return read_digest(entry)

    def is_sealed(self, entry: Entry) -> bool:
        """Whether the entry has a digest, which is read once: who asks every second hardly waits. Any process."""
        return self._records.is_sealed(entry)

    def seal(self, entry: Entry, part_size: int) -> Digest:
        """Bring an entry to the disk and compute its digest, once; a later call finds it. Any process.

        Args:
            entry: a committed entry.
            part_size: bytes of a part, at least 1. Another one than before: the bytes are read again, and must be
                the same.

        Raises:
            StagingError: the entry is gone, or its bytes changed since it was staged.
            OSError: the disk does not answer at this moment; the entry stays as it is.
        """
        if part_size < 1:
            raise StagingError(f"part_size={part_size}: expected at least 1 byte")
        former = self.digest(entry)
        try:
            # A file that lost bytes since would hold up every entry behind it: the hub never gets what it asks for.
            check_sizes(entry)
            if former is not None and former.part_size == part_size:
                return former
            # The slot's record first: what is sealed may be delivered, and then the slot must stay known.
            self._claims.sync(entry.slot)
            return write_digest(entry, part_size, former)
        except (FileNotFoundError, NotADirectoryError) as problem:
            raise StagingError(
                f"could not seal the staged checkpoint {entry.entry_id} ({entry.slot.name}): {problem.filename} is gone"
            ) from problem

    def remove(self, entry_id: str) -> int:
        """Delete an entry that was delivered or dropped; its slot stays taken. Holder of session.lock only.

        No reader sees half an entry. Repeating it does nothing more.

        Returns:
            Bytes of its files, as `used` counted them; 0 when there was no such entry.

        Raises:
            StagingError: the entry could not be deleted.
        """
        if not is_hex_id(entry_id):
            raise StagingError(f"entry_id={entry_id!r}: expected 32 hex digits")
        with disk_errors(f"could not remove the staged checkpoint {entry_id}"):
            return self._claims.discard(entry_id)

    def used(self) -> int:
        """Bytes staged: committed, being copied (with what the copy has yet to write), being deleted. Any process."""
        return self._used(again=True)

    def recover(self) -> list[str]:
        """Clean up behind processes that died; what living ones and other hosts do stays. Any process.

        Returns:
            What was done, as sentences.

        Raises:
            StagingError: something could not be deleted.
        """
        with disk_errors(f"could not clean up {self.folder}"):
            return self._claims.recover()

    def pending_claims(self) -> list[PendingClaim]:
        """The checkpoints being copied, and whether their processes live. Any process."""
        return self._claims.pending()

    def _claim(self, slot: Slot, size: int = 0) -> tuple[str, bool]:
        if problem := slot.wrong():
            raise StagingError(f"slot {problem}")
        return self._claims.claim(slot, size, self._find_committed)

    def _used(self, *, again: bool) -> int:
        entries, broken = self._records.read(again=again)
        return (
            sum(entry.size for entry in entries)
            + sum(tree_size(self.folder / entry_id) for entry_id in broken)
            + self._claims.used()
        )

    def _find_committed(self, slot: Slot) -> str | None:
        return next((entry.entry_id for entry in self._records.read()[0] if entry.slot == slot), None)

    def _fit(self, slot: Slot, size: int) -> None:
        """Make sure that a claim of `size` bytes, already counted by `used`, is within the budget."""
        budget = self._budget
        if budget is None:
            return
        over = size - budget if size > budget else self._used(again=False) - budget
        if over > 0 and size <= budget:
            self.recover()
            over = self.used() - budget
            if over > 0 and self._make_room is not None:
                self._make_room(slot, over)
                over = self.used() - budget
        if over > 0:
            raise StagingError(
                f"the checkpoint of {size} bytes does not fit: the byte budget is {budget}, {over} bytes too much "
                f"would wait in {self.folder}; deliver what is there, or set a larger budget"
            )

    def _commit(self, entry_id: str, slot: Slot, metrics: dict[str, Any], files: list[StagedFile]) -> Entry:
        incoming = self._layout.incoming(entry_id)
        with self._claims.holding(entry_id, slot):
            entry = Entry(
                entry_id=entry_id,
                slot=slot,
                metrics=metrics,
                created=self._now(),
                files=tuple(files),
                folder=self.folder / entry_id,
            )
            write_json(incoming / RECORD, entry.to_json())
            incoming.rename(entry.folder)
        return entry

    def _commit_written(self, entry_id: str, slot: Slot, metrics: dict[str, Any], path: Path) -> Entry:
        found = find_files(path)
        target = self._layout.incoming(entry_id) / FILES
        if all(file.plain for file in found) and not path.is_symlink():
            # Away from the name that others know before anything is checked: from here on only who has a file open
            # already can write it, and whoever closes it is done with it.
            if path.is_dir():
                path.rename(target)
            else:
                make_private(target)
                path.rename(target / slot.name)
            keep_private(target)
            files = settle(target)
        else:
            # Someone else has a name for these bytes, so they are not ours to keep.
            files = snapshot(path, target)
        scratch = path.parent
        if names := list_names(scratch):
            if left := [name for name in names if name != path.name]:
                _logger.warning("only what is at %s is staged; %s beside it is not", path, ", ".join(left))
            remove_tree(scratch)
        else:
            scratch.rmdir()
        self._fit(slot, sum(file.size for file in files))
        return self._commit(entry_id, slot, metrics, files)

    def _now(self) -> float:
        """The time, later than that of every entry here: a clock set back must not make the newest an old one."""
        return max([time.time(), *(entry.created + 1e-6 for entry in self._records.read(again=False)[0])])

    def _committed(self, entry_id: str) -> Entry | None:
        try:
            return Entry.read(self.folder / entry_id)
        except (OSError, ValueError):
            return None


def _size_if_there(source: Path) -> int:
    """Bytes of a checkpoint; 0 where it cannot be copied, which the copy will say if it comes to that."""
    try:
        return sum(file.size for file in find_files(source))
    except StagingError:
        return 0

"""Who stages which slot: one claim for a slot, whose process can be told alive from dead.

The layout is drawn in `staging`.
"""

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from ddphub.checkpoints.disk import (
    list_names,
    make_private,
    read_json,
    remove_tree,
    sync_file,
    sync_folder,
    tree_size,
    write_json,
)
from ddphub.checkpoints.entry import Slot
from ddphub.checkpoints.layout import FILES, OWNER, REMOVING, SCRATCH, Layout
from ddphub.checkpoints.owner import Owner, State
from ddphub.errors import StagingError
from ddphub.names import is_hex_id, new_hex_id

LOCK_TIMEOUT: Final = 10.0
"""Seconds to wait for `staging.lock`; it is held for a few file operations at a time."""

_NO_FLOCK: Final = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL})
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PendingClaim:
    """A checkpoint being copied, or what a dead process left of one.

    Attributes:
        entry_id: its entry, not committed.
        slot: what it is saved for; None for a scratch copy, or when the record is unreadable.
        owner: whose it is; None when the record is unreadable.
        state: whether that process lives.
        size: bytes there, or announced.
    """

    entry_id: str
    slot: Slot | None
    owner: Owner | None
    state: State
    size: int


class Claims:
    """The claims of a staging area. Any process, any thread; what may race is done under `staging.lock`."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._has_home = layout.root.parent.exists()
        self._unreleased: set[str] = set()  # own claims that the disk did not let go of

    def claim(self, slot: Slot, size: int, find_committed: Callable[[Slot], str | None]) -> tuple[str, bool]:
        """Claim a slot, or find who has it.

        Args:
            slot: the slot.
            size: bytes that are about to be copied: others count them from now on.
            find_committed: the committed entry of a slot, asked only when the slot's record is unreadable.

        Returns:
            The slot's entry id, and whether the claim is new.
        """
        entry_id, abandoned = new_hex_id(), None
        # A slot that stayed with a save that failed would be taken as long as this process lives.
        for unreleased in list(self._unreleased):
            self.release(unreleased)
            self._unreleased.discard(unreleased)
        with self.released_on_error(entry_id):
            with self._locked():
                held = self._read_slot(slot, find_committed)
                if held is not None:
                    if self._record(held).state != "dead":
                        return held, False
                    abandoned = held
                self._open(entry_id, slot, size)
                self._write_slot(slot, entry_id)
            if abandoned is not None:
                # Whatever stays is taken care of by `recover`: no slot leads to it any more.
                with suppress(OSError):
                    self._hide(abandoned)
                    remove_tree(self._layout.removing(abandoned))
        return entry_id, True

    def claim_scratch(self) -> str:
        """A place in `incoming/` that no slot leads to."""
        entry_id = new_hex_id()
        with self.released_on_error(entry_id), self._locked():
            self._open(entry_id, None, 0)
        return entry_id

    @contextmanager
    def holding(self, entry_id: str, slot: Slot) -> Iterator[None]:
        """Hold `staging.lock` while the claim's entry is committed.

        Raises:
            StagingError: the claim is no longer this one's.
        """
        with self._locked():
            if self._slot_entry(self._layout.slot(slot.key)) != entry_id:
                raise StagingError(f"the claim on {slot.name} was taken over: another process took this one for dead")
            yield

    def release(self, entry_id: str) -> None:
        """Undo the calling process's own claim: the slot is free, the bytes are gone. Nothing if committed."""
        if not self._layout.incoming(entry_id).exists():
            return
        # Nobody else touches the claim of a living process, so a lock that cannot be had does not matter.
        with self._locked(required=False):
            self._retract(entry_id)
        remove_tree(self._layout.removing(entry_id))

    @contextmanager
    def released_on_error(self, entry_id: str) -> Iterator[None]:
        """Release a claim when the block raises."""
        try:
            yield
        except BaseException:
            try:
                self.release(entry_id)
            except (OSError, StagingError) as problem:
                # The first problem matters more; the next claim tries again, and `recover` once this process is gone.
                self._unreleased.add(entry_id)
                _logger.warning("could not clean up %s: %s", self._layout.incoming(entry_id), problem)
            raise

    def discard(self, entry_id: str) -> int:
        """Delete a committed entry, or finish that; the bytes of its files."""
        folder, removing = self._layout.entry(entry_id), self._layout.removing(entry_id)
        size = tree_size(folder / FILES) or tree_size(removing / FILES)
        with suppress(FileNotFoundError):
            folder.rename(removing)
        remove_tree(removing)
        return size

    def recover(self) -> list[str]:
        """Undo the claims of dead processes, and finish what was being deleted; sentences that say so."""
        done: list[str] = []
        arrivals = self._layout.arrivals
        if not arrivals.exists():
            return done
        half_removed = [name for name in list_names(arrivals) if name.startswith(REMOVING)]
        dead: list[str] = []
        with self._locked():
            for entry_id in filter(is_hex_id, list_names(arrivals)):
                # A claim and its owner.json are made under the lock: without one, its process was killed between.
                nameless = not (arrivals / entry_id / OWNER).exists()
                if nameless or self._record(entry_id).state == "dead":
                    self._retract(entry_id)
                    dead.append(entry_id)
            for name in list_names(self._layout.slots):
                if name.endswith(".tmp"):
                    (self._layout.slots / name).unlink(missing_ok=True)
        for entry_id in dead:
            remove_tree(self._layout.removing(entry_id))
            done.append(f"removed the unfinished copy {entry_id}, whose process is gone")
        for name in half_removed:
            remove_tree(arrivals / name)
            done.append(f"finished the removal of {name.removeprefix(REMOVING)}")
        return done

    def pending(self) -> list[PendingClaim]:
        """What lies in `incoming/`, ordered by entry id."""
        return [self._pending(entry_id) for entry_id in filter(is_hex_id, list_names(self._layout.arrivals))]

    def used(self) -> int:
        """Bytes in `incoming/`, with those announced and not yet there."""
        used = 0
        for name in list_names(self._layout.arrivals):
            if is_hex_id(name):
                used += max(self._read_owner(name)[2], self._written(name))
            elif name.startswith(REMOVING):
                used += tree_size(self._layout.arrivals / name)
        return used

    def sync(self, slot: Slot) -> None:
        """Bring a slot's record to the disk."""
        with suppress(FileNotFoundError):
            sync_file(self._layout.slot(slot.key))
            sync_folder(self._layout.slots)
        sync_folder(self._layout.root)

    def _record(self, entry_id: str) -> PendingClaim:
        """What a claim's record says; its size is what it announces."""
        owner, slot, reserved = self._read_owner(entry_id)
        return PendingClaim(entry_id, slot, owner, "unknown" if owner is None else owner.state(), reserved)

    def _read_owner(self, entry_id: str) -> tuple[Owner | None, Slot | None, int]:
        """A claim's owner, its slot and the bytes that it announces, as far as its record says."""
        owner: Owner | None = None
        slot: Slot | None = None
        reserved = 0
        with suppress(OSError, ValueError):
            record = read_json(self._layout.incoming(entry_id) / OWNER)
            owner = Owner.from_json(record.get("owner"))
            slot = None if record.get("slot") is None else Slot.from_json(record["slot"])
            reserved = record["reserved"] if type(record.get("reserved")) is int else 0
        return owner, slot, reserved

    def _written(self, entry_id: str) -> int:
        folder = self._layout.incoming(entry_id)
        return tree_size(folder / FILES) + tree_size(folder / SCRATCH)

    def _pending(self, entry_id: str) -> PendingClaim:
        record = self._record(entry_id)
        return replace(record, size=max(record.size, self._written(entry_id)))

    def _open(self, entry_id: str, slot: Slot | None, reserved: int) -> None:
        make_private(self._layout.incoming(entry_id))
        record = {
            "owner": Owner.current().to_json(),
            "slot": None if slot is None else asdict(slot),
            "reserved": reserved,
        }
        write_json(self._layout.incoming(entry_id) / OWNER, record)

    def _write_slot(self, slot: Slot, entry_id: str) -> None:
        record = {"entry_id": entry_id, "slot": asdict(slot), "owner": Owner.current().to_json()}
        write_json(self._layout.slot(slot.key), record)

    def _read_slot(self, slot: Slot, find_committed: Callable[[Slot], str | None]) -> str | None:
        """The entry id that a slot's record names; None when the slot is free."""
        path = self._layout.slot(slot.key)
        if not path.exists():
            return None
        if (entry_id := self._slot_entry(path)) is not None:
            return entry_id
        # A power cut can do that before the entry is sealed, hence before it can have been delivered.
        _logger.warning("%s is unreadable and made again", path)
        entry_id = find_committed(slot) or next(
            (claim.entry_id for claim in self.pending() if claim.slot == slot), None
        )
        if entry_id is None:
            path.unlink(missing_ok=True)
        else:
            self._write_slot(slot, entry_id)
        return entry_id

    def _slot_entry(self, path: Path) -> str | None:
        """The entry id in a slot's record; None when there is no record or it is unreadable."""
        try:
            entry_id = read_json(path).get("entry_id")
        except (FileNotFoundError, ValueError):
            return None
        return entry_id if is_hex_id(entry_id) else None

    def _retract(self, entry_id: str) -> None:
        """Free the slot that leads to a claim, then take the claim out of sight. Under the lock."""
        slot = self._record(entry_id).slot
        names = list_names(self._layout.slots) if slot is None else [self._layout.slot(slot.key).name]
        for name in names:
            path = self._layout.slots / name
            if name.endswith(".json") and self._slot_entry(path) == entry_id:
                path.unlink(missing_ok=True)
        self._hide(entry_id)

    def _hide(self, entry_id: str) -> None:
        """Take a claim out of sight, if it is still there."""
        with suppress(FileNotFoundError):
            self._layout.incoming(entry_id).rename(self._layout.removing(entry_id))

    @contextmanager
    def _locked(self, *, required: bool = True) -> Iterator[None]:
        """Hold `staging.lock`, bounded.

        Raises:
            StagingError: it cannot be had in time, and `required`.
            OSError: the area cannot be made, or its run directory has gone.
        """
        if self._has_home:
            # Not made again: where a file system has gone away, its mount point is an empty folder, and what is
            # staged there would be hidden as soon as the file system is back.
            self._layout.root.parent.stat()
        for folder in (self._layout.root, self._layout.slots, self._layout.arrivals):
            make_private(folder)
        # One object a hold: two threads sharing one would both be let in. Our own loop: a fork waits for a thread
        # that is inside a slow acquire.
        lock = FileLock(self._layout.lock, mode=0o600, thread_local=False, fallback_to_soft=False)
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                lock.acquire(timeout=0)
                break
            except Timeout:
                if time.monotonic() < deadline:
                    threading.Event().wait(0.005)
                    continue
                if not required:
                    break
                raise StagingError(
                    f"{self._layout.lock} was held for more than {LOCK_TIMEOUT:.0f} s by another process: see which "
                    "one with `lsof`, and end it if it hangs"
                ) from None
            except OSError as problem:
                if problem.errno not in _NO_FLOCK:
                    raise
                # The lock is a hint: one rank stages a slot, and the hub knows entries by id.
                _logger.debug("%s: no flock on this file system, going on without", self._layout.lock)
                break
        try:
            yield
        finally:
            if lock.is_locked:
                lock.release()

"""Spool files: where events are on disk before anything is sent.

`OwnSpool` is rank 0's carrier: its own events go straight to the attempt's file. `StraySpool` is where another rank
writes what the relay could not take.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from ddphub.distributed import relay
from ddphub.distributed.courier import Answer
from ddphub.errors import JournalError
from ddphub.session.folder import RunFolder, RunInfo
from ddphub.session.lines import LineWriter, PartlyWrittenError
from ddphub.session.lock import SessionLock
from ddphub.session.presence import Presence

logger = logging.getLogger(__name__)

MEMORY: Final = 4 * 1024 * 1024
"""Bytes of rank 0's own events that wait for a disk that takes no more."""


class OwnSpool:
    """Rank 0's carrier: numbers its events and appends them to the attempt's spool file.

    Args:
        attempt_id: this attempt.
        writer: the file, shared with the collector.
    """

    def __init__(self, attempt_id: str, writer: LineWriter) -> None:
        self._attempt_id = attempt_id
        self._writer = writer
        self._next_seq = 0
        self._waiting: list[str] = []
        self._refused = False
        self._lock = threading.Lock()
        self.dropped = 0

    def carry(self, events: Sequence[str]) -> None:
        """Appends events; while the disk refuses them they wait in memory, up to MEMORY bytes."""
        with self._lock:
            self._waiting.extend(events)
            if not self._waiting:
                return
            batches = []
            first = self._next_seq
            for group in relay.split(self._waiting):
                batch = relay.pack(self._attempt_id, 0, first, group)
                first = batch.last + 1
                batches.append(batch)
            try:
                self._writer.append(batch.text for batch in batches)
                self._advance(first)
                self._writer.sync()
                self._refused = False
            except PartlyWrittenError as error:
                self._advance(batches[error.lines].first)
                self._keep(error)
            except OSError as error:
                self._keep(error)

    def _advance(self, next_seq: int) -> None:
        """Forgets the waiting events before `next_seq`; an event keeps its number for ever."""
        del self._waiting[: next_seq - self._next_seq]
        self._next_seq = next_seq

    @property
    def unwritten(self) -> int:
        """Events that the disk has not taken."""
        return len(self._waiting)

    def _keep(self, error: OSError) -> None:
        if not self._refused:
            self._refused = True
            logger.warning("events wait in memory: %s cannot be written (%s)", self._writer.path, error)
        size = sum(map(len, self._waiting))
        kept = 0
        while size > MEMORY:
            size -= len(self._waiting[kept])
            kept += 1
        if kept:
            self._advance(self._next_seq + kept)
            self.dropped += kept
            logger.warning("%d events were dropped: the disk takes no more", kept)


class StraySpool:
    """A rank's own spool file, for what the relay cannot take. Any rank other than 0.

    Args:
        rank: this rank.
        root: this rank's own root, for when rank 0's folder is not visible here.
        fallback: the run as far as this rank knows it, without an answer of rank 0.
    """

    def __init__(self, rank: int, root: Path, fallback: Callable[[str], RunInfo]) -> None:
        self._rank = rank
        self._root = root
        self._fallback = fallback
        self._writers: dict[Path, LineWriter] = {}
        self._presence: Presence | None = None
        self.left_in: Path | None = None

    def write(self, answer: Answer | None, stream_id: str, batches: Sequence[str]) -> None:
        """Appends batches of a stream and waits until they are on disk.

        Raises:
            OSError: the disk does not take them.
        """
        folder = self.folder(answer, stream_id)
        path = folder.rank_file(stream_id, self._rank)
        writer = self._writers.setdefault(path, LineWriter(path))
        writer.append(batches)
        writer.sync()
        self.left_in = folder.path

    def adopt(self, answer: Answer, nonce: str) -> None:
        """Moves what was written under the nonce to the run that rank 0 has named.

        A rename, so a crash leaves the events in one place; they keep the nonce for an attempt id. What `ddphub sync`
        has begun to deliver stays a run of its own, or it would be delivered twice.

        Raises:
            OSError: it cannot be moved; it stays where it is, as a run of its own.
        """
        unanswered = RunFolder(self._root / self._fallback(nonce).run_id)
        stray = unanswered.rank_file(nonce, self._rank)
        target = self.folder(answer, nonce)
        if not stray.exists() or target.path.samefile(unanswered.path):  # the same by two mounts, perhaps
            return
        lock = SessionLock(unanswered.session_lock)
        if not lock.acquire():
            return
        try:
            if unanswered.journal.exists():
                return
            target.spool.mkdir(parents=True, exist_ok=True, mode=0o700)
            stray.rename(target.rank_file(nonce, self._rank))
            self._writers.pop(stray).close()
            self.left_in = target.path
            unanswered.run_json.unlink()
        finally:
            lock.release()
        self._leave()
        with contextlib.suppress(OSError):  # an empty folder without run.json is no run
            # Who waits for this lock looks for run.json once it has it.
            unanswered.session_lock.unlink()
            unanswered.spool.rmdir()
            unanswered.path.rmdir()

    def close(self) -> None:
        """At the end of the run: what this rank left on disk is no longer in use."""
        self._leave()

    def _leave(self) -> None:
        if self._presence is not None:
            self._presence.stop()
            self._presence = None

    def folder(self, answer: Answer | None, stream_id: str) -> RunFolder:
        """The run directory that this rank can write: rank 0's if it is visible here, else one of its own.

        run.json names the attempts that wrote it, so a folder of the same path on another file system is told apart.

        Raises:
            OSError: a folder of its own cannot be made.
        """
        if answer is not None:
            shared = RunFolder(answer.folder)
            try:
                if answer.attempt_id in RunInfo.load(shared.run_json).attempts:
                    return shared
            except (OSError, JournalError):
                pass  # not visible here
        info = self._fallback(stream_id)
        if answer is not None:
            info.run_id = answer.run_id
            info.attempts = [answer.attempt_id]
        own = RunFolder(self._root / info.run_id)
        if not own.run_json.exists():
            own.create()
            self._presence = Presence(own.alive)
            self._presence.start()
            info.save(own.run_json)
        return own

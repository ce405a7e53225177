"""Delivery: drains the spool and the staging area to the hub. The only code that sends what a run made.

A live run drives it from threads of rank 0, `ddphub sync` from a terminal; there is no second path. Its caller holds
session.lock. Everything it sends may be sent again without harm, so it may be killed between any two lines.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from ddphub.checkpoints.disk import NO_ROOM
from ddphub.checkpoints.staging import Digest, Entry, StagingArea
from ddphub.errors import HubRejected, HubUnavailable, StagingError
from ddphub.events import OF_ITSELF, Event, expand
from ddphub.hubs import wire
from ddphub.hubs.client import HubClient, Receipt, Registration
from ddphub.session.folder import RunFolder, RunInfo
from ddphub.session.journal import Delivered, Journal, read_journal
from ddphub.session.lines import read_lines
from ddphub.session.lock import SessionLock
from ddphub.session.tally import Tally

logger = logging.getLogger(__name__)

REQUEST_BYTES: Final = wire.MAX_JSON_BODY // 2
"""Bytes of events in one request, about; far under what the hub takes."""

_ABOUT_THE_CONTENT: Final = frozenset({400, 413, 422})
"""Statuses that speak of what was sent; another 4xx speaks of the request (a wrong URL, a proxy)."""

MANY_REFUSED: Final = 20
"""Refused events of one request after which the hub's sanity is checked before more are tried."""


class Delivery:
    """Sends one run's events and checkpoints. Holder of session.lock only: rank 0 of one attempt, or one `sync`.

    `send_events` and `send_checkpoints` may run in two threads at once.

    Args:
        folder: the run directory.
        info: content of its run.json.
        staging: its staging area.
        client: the hub; None for an offline run, which only makes room.
        hub: the hub's URL: what the journal knows of another hub's model does not count.
        ckpt_interval: seconds at least between two uploads of a kind; 0 sends every entry.
        progress: called with "events" or "checkpoints" and how many are done now.
    """

    def __init__(
        self,
        *,
        folder: RunFolder,
        info: RunInfo,
        staging: StagingArea,
        client: HubClient | None,
        hub: str | None,
        ckpt_interval: float = 0.0,
        progress: Callable[[str, int], None] = lambda _kind, _count: None,
    ) -> None:
        self._folder = folder
        self._info = info
        self._staging = staging
        self._offline_or_client = client
        self._hub = hub
        self._model_id: str | None = None
        self._url: str | None = None
        self._ckpt_interval = ckpt_interval
        self._progress = progress
        self._lock = SessionLock(folder.session_lock)
        self._journal: Journal | None = None
        self._journal_lock = threading.RLock()
        self._last_upload: dict[str, float] = {}  # kind -> when, by time.monotonic
        self._clocks_started = float("-inf")
        self._outdated: set[str] = set()  # entries that were superseded when a newer one was sent
        self._making_room = threading.Lock()
        self._uploading: str | None = None
        self._retrying = False
        self.registered = False
        self.stop_requested = False

    @property
    def _client(self) -> HubClient:
        if self._offline_or_client is None:
            raise HubUnavailable("the run is offline")
        return self._offline_or_client

    @property
    def model_id(self) -> str | None:
        """The hub's id; None until the run is registered, or known from an earlier attempt."""
        return self._model_id

    @property
    def url(self) -> str | None:
        """Where a person looks at the run; None until there is a model."""
        return self._url

    @property
    def patience(self) -> float:
        """See `SessionLock.patience`."""
        return self._lock.patience

    def acquire(self) -> bool:
        """Takes session.lock without waiting, and reads the journal after having it, never before.

        Raises:
            OSError: the directory cannot be written.
        """
        with self._journal_lock:
            if self._journal is not None:
                return True
            if not self._lock.acquire():
                return False
            self._journal = Journal(self._folder.journal)
            state = self._journal.state
            if state.model is not None and state.model[0] == self._hub:
                self._model_id, self._url = state.model[1], state.url
            return True

    def release(self) -> None:
        """Lets session.lock go."""
        with self._journal_lock:
            if self._journal is not None:
                self._journal.close()
                self._journal = None
            self._lock.release()

    def register(self) -> None:
        """Makes or finds the model and journals its id; every other call comes after it."""
        info, client = self._info, self._client
        registration = Registration(
            info.run_id,
            info.project,
            info.name,
            info.config,
            attempts=tuple(info.attempts),
            environment=info.environment,
            wanted=info.model,
            known=self._model_id,
            memory=self._state().memory if self._model_id else {},
        )
        self._remember(client.register(registration))
        if not client.is_idempotent:
            for path in self._spool_files():
                for events, _ in self._readable(path, delivered=True):
                    aside = self._state().aside_events
                    client.recall([event for event in events if _key(path, event) not in aside])
        self.registered = True

    def _remember(self, model_id: str) -> None:
        """Journals what the client knows of the model, if it is news."""
        client = self._client
        model_id = client.memory.get("model_id", model_id)
        url, memory = client.url(model_id), dict(client.memory)
        state = self._state()
        if self._hub is not None and ((self._hub, model_id), url, memory) != (state.model, state.url, state.memory):
            where = {"hub": self._hub, "model_id": model_id, "url": url}
            self._record({"record": "model", **where, "memory": memory})
        self._model_id, self._url = model_id, url

    def retry_aside(self) -> None:
        """Gives what was set aside another try."""
        # A hub that cannot tell a repeat must not get the whole file again.
        self._retrying = self._offline_or_client is not None and not self._offline_or_client.is_idempotent
        self._record({"record": "retry", "again": not self._retrying})

    def _send_aside_again(self) -> None:
        """Sends the events that were set aside, one by one."""
        for path in self._spool_files():
            for events, _ in self._readable(path, delivered=True):
                for event in events:
                    if _key(path, event) not in self._state().aside_events:
                        continue
                    refused: list[tuple[Event, HubRejected]] = []
                    self._send_some([event], refused)
                    if not refused:
                        key = {name: event[name] for name in ("attempt_id", "rank", "seq")}
                        self._record({"record": "retried_event", "spool": path.name, **key})
        self._retrying = False

    def prune(self, before: float) -> list[str]:
        """Deletes spool files that are delivered whole, and shortens the journal. Only when the run has ended.

        Args:
            before: seconds since the epoch; a file that changed later is kept.

        Returns:
            What was done, as sentences.

        Raises:
            OSError: a file cannot be read or deleted, or the journal not be written.
        """
        done = []
        state = self._state()
        with_asides = {spool for spool, *_ in state.aside_events}
        for path in self._folder.spool_files():
            if path.lstat().st_mtime > before or path.name in with_asides:
                continue
            tally = Tally()
            waiting = tally.add_file(path, state.offsets.get(path.name, 0))
            if tally.damaged:
                continue  # someone may want to look at it
            if path.name not in state.pruned:
                if waiting:
                    continue
                self._record(tally.to_pruned().to_record(path.name), durable=True)
            elif not tally.is_within(state.pruned[path.name]):
                continue  # a rank that outlived the first deletion has written on
            path.unlink()
            done.append(f"deleted {path.name}: it is delivered")
        if done and self._journal is not None:
            self._journal.compact()
        return done

    # Events.

    def send_events(self) -> bool:
        """Sends what the spool holds beyond the journal; returns whether every complete line is done.

        It is not while an attempt's end has to wait for checkpoints, see `HubClient.ends_last`.

        Raises:
            HubError: the hub did not take them; they stay.
            OSError: the journal cannot be written.
        """
        if self._retrying:
            self._send_aside_again()
        for path in self._spool_files():
            for requests_events, end in self._readable(path):
                refused: list[tuple[Event, HubRejected]] = []
                now = self._before_end(requests_events)
                self._send_some(requests_events[:now], refused)
                self._remember(self._model())
                if now < len(requests_events):
                    return False  # the whole line is sent again, which the client knows
                for event, _ in refused:
                    again: list[tuple[Event, HubRejected]] = []
                    self._send_some([event], again)  # it may have been the hub, which others found mended
                    if again:
                        self._check_sanity(again[0][1])
                        self._set_event_aside(path, *again[0])
                self._record({"record": "offset", "spool": path.name, "offset": end})
                self._progress("events", len(requests_events))
        return True

    def _before_end(self, events: list[Event]) -> int:
        """How many of the events may be sent before the checkpoints that wait: an attempt's end waits for its own."""
        if self._client.ends_last:
            waiting = {entry.slot.attempt_id for entry in self._waiting()}
            for index, event in enumerate(events):
                is_end = event.get("kind") == "attempt" and event.get("state") in OF_ITSELF
                if is_end and event["attempt_id"] in waiting:
                    return index
        return len(events)

    def _readable(self, path: Path, *, delivered: bool = False) -> Iterator[tuple[list[Event], int]]:
        """`_unsent`; a file that cannot be read stays for the report to name, and holds up no other."""
        requests = self._unsent(path, delivered=delivered)
        while True:
            try:
                request = next(requests)
            except StopIteration:
                return
            except OSError as error:
                logger.warning("%s cannot be read, what it holds is not delivered: %s", path, error)
                return
            yield request

    def _spool_files(self) -> list[Path]:
        """Attempts in order of their start, so that the hub numbers them so; streams without an attempt last."""
        order = {attempt_id: index for index, attempt_id in enumerate(self._info.attempts)}
        files = self._folder.spool_files()
        return sorted(files, key=lambda path: (order.get(path.name[:32], len(order)), "-relay" not in path.name))

    def _unsent(self, path: Path, *, delivered: bool) -> Iterator[tuple[list[Event], int]]:
        """(events, offset behind them) of one request each, from the journal's offset to the last complete line.

        With `delivered`, those before the journal's offset instead.
        """
        events: list[Event] = []
        size = 0
        until = self._state().offsets.get(path.name, 0)
        start = offset = 0 if delivered else until
        for line in read_lines(path, offset):
            if delivered and line.end > until:
                break
            if line.record is None and not delivered:
                logger.warning("%s: the line at byte %d is damaged and skipped; it stays there", path, line.start)
            batch = _expanded(path, line.record)
            if events and (len(events) + len(batch) > wire.MAX_BATCH_EVENTS or size > REQUEST_BYTES):
                yield events, offset
                events, size = [], 0
            events += batch
            offset = line.end
            size += line.end - line.start
        if offset != start:
            yield events, offset

    def _send_some(self, events: list[Event], refused: list[tuple[Event, HubRejected]]) -> None:
        """Sends events; one that the hub will never take is found by halving and added to `refused`."""
        if not events:
            return
        try:
            answer = self._client.send_events(self._model(), events)
        except HubRejected as error:
            if error.status not in _ABOUT_THE_CONTENT:
                raise
            if len(events) > 1:
                half = len(events) // 2
                self._send_some(events[:half], refused)
                self._send_some(events[half:], refused)
                return
            refused.append((events[0], error))
            if len(refused) == MANY_REFUSED:
                self._check_sanity(error)
            return
        if answer.accepted + answer.duplicates != len(events):
            raise HubUnavailable(f"the hub counts {answer.accepted} + {answer.duplicates} of {len(events)} events")
        # The hub's word to an earlier attempt, whose leftovers these are, is none to this one.
        newest = self._info.attempts[-1:]
        if answer.stop and any(event["attempt_id"] in newest for event in events):
            self.stop_requested = True

    def _check_sanity(self, error: HubRejected) -> None:
        """Tells events that are wrong from a hub (or a proxy before it) that refuses whatever comes: a batch of none.

        Raises:
            HubUnavailable: it refuses that too.
        """
        try:
            self._client.send_events(self._model(), [])
        except HubRejected:
            raise HubUnavailable(f"the hub refuses every event; nothing is set aside: {error}") from None

    def _set_event_aside(self, path: Path, event: Event, error: HubRejected) -> None:
        key = {name: event[name] for name in ("attempt_id", "rank", "seq")}
        self._record({"record": "aside_event", "spool": path.name, **key, "reason": str(error)[:300]})
        logger.warning("an event is set aside in %s, the hub will not take it: %s %s", path, key, error)

    # Checkpoints.

    def send_checkpoints(self, *, flush: bool) -> bool:
        """Sends the entries whose turn it is; returns whether none is left to send.

        Args:
            flush: at the end of a run: the rate limit no longer holds anything back.

        Raises:
            HubError: the hub did not take an entry; it stays.
            OSError: the journal cannot be written.
        """
        self.clean_up()
        waiting = self._waiting()
        superseded = _superseded(waiting, self._outdated) if self._ckpt_interval > 0 else []
        limited = self._limited()
        why = f"the rate limit of {self._ckpt_interval:g} s"
        self._drop([entry for entry in superseded if entry.slot.kind in limited], why)
        unreadable: OSError | None = None
        for entry in waiting:
            if entry in superseded or (entry.slot.kind in limited and not flush):
                continue
            try:
                self._send_entry(entry)
            except OSError as error:
                # Tried again at the next call; until then it holds up no other entry.
                unreadable = error
                continue
            if entry.slot.kind != "final":
                self._last_upload[entry.slot.kind] = time.monotonic()
                self._outdated |= {older.entry_id for older in superseded if older.slot.kind == entry.slot.kind}
        if unreadable is not None:
            raise unreadable
        if flush:
            self._drop(superseded, why)
        return not self._waiting()

    def start_clocks(self) -> None:
        """From now on the first upload of each kind, too, waits for the rate limit."""
        self._clocks_started = time.monotonic()

    def _limited(self) -> set[str]:
        """The kinds whose rate limit holds back uploads; finals have none."""
        now = time.monotonic()
        last = {kind: self._last_upload.get(kind, self._clocks_started) for kind in wire.KINDS if kind != "final"}
        return {kind for kind, sent in last.items() if now - sent < self._ckpt_interval}

    def make_room(self, needed: int, *, for_final: bool) -> None:
        """Frees at least `needed` bytes if it may: superseded entries first, then the oldest unsent epoch entries.

        Called by a save that does not fit the byte budget. Without session.lock nothing is dropped: its holder may be
        sending just that entry.

        Args:
            needed: bytes.
            for_final: the save is a final checkpoint, for which best entries may go too.
        """
        with self._making_room:
            self._make_room(needed, for_final=for_final)

    def _make_room(self, needed: int, *, for_final: bool) -> None:
        held = self._journal is not None
        if not self.acquire():
            return
        try:
            waiting = self._waiting()
            superseded = _superseded(waiting, self._outdated)
            epochs = [entry for entry in waiting if entry.slot.kind == "epoch" and entry not in superseded]
            bests = [entry for entry in waiting if entry.slot.kind == "best" and entry not in superseded]
            for entry in [*superseded, *epochs, *(bests if for_final else [])]:
                if needed <= 0:
                    return
                if self._drop([entry], "the byte budget"):
                    needed -= entry.size
        finally:
            if not held:
                self.release()

    def _waiting(self) -> list[Entry]:
        state = self._state()
        return [
            entry
            for entry in self._staging.entries()
            if not state.is_done(entry.entry_id) and entry.entry_id not in state.aside_entries
        ]

    def clean_up(self) -> None:
        """Deletes bytes whose receipt is in the journal: a crash may have come between the two."""
        state = self._state()
        for entry in self._staging.entries():
            if state.is_done(entry.entry_id):
                self._staging.remove(entry.entry_id)

    def _drop(self, entries: list[Entry], reason: str) -> int:
        """Drops entries unsent, but for the one on its way; returns how many. Marked first, then deleted."""
        dropped = 0
        for entry in entries:
            with self._journal_lock:
                if entry.entry_id == self._uploading or self._state().is_done(entry.entry_id):
                    continue
                self._record({"record": "superseded", "entry_id": entry.entry_id, "reason": reason}, durable=True)
            self._staging.remove(entry.entry_id)
            dropped += 1
            logger.info("checkpoint %s of epoch %s is dropped unsent: %s", entry.slot.name, entry.slot.epoch, reason)
        return dropped

    def _send_entry(self, entry: Entry) -> None:
        with self._journal_lock:
            if self._state().is_done(entry.entry_id):  # dropped for room meanwhile
                return
            self._uploading = entry.entry_id
        try:
            digest = self._staging.seal(entry, self._client.part_size)
            files = {file.name: entry.file_path(file.name) for file in entry.files}
            receipt = self._client.upload(self._model(), entry.entry_id, _manifest(entry, digest), files)
            self._remember(self._model())
        except HubRejected as error:
            if error.status not in _ABOUT_THE_CONTENT:
                raise
            self._set_entry_aside(entry, str(error))
        except (StagingError, FileNotFoundError) as error:
            self._explain_missing(entry, error)
        else:
            self._settle(receipt)
        finally:
            self._uploading = None

    def _settle(self, receipt: Receipt) -> None:
        """The receipt is on disk before the bytes go."""
        record = {
            "record": "receipt",
            "entry_id": receipt.entry_id,
            "checkpoint_id": receipt.checkpoint_id,
            "model_id": self._model(),
            "at": time.time(),
        }
        try:
            self._record(record, durable=True)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            # Or a disk that we filled could never be emptied. The hub has the bytes; a kill now costs only the count.
            self._staging.remove(receipt.entry_id)
            self._record(record, durable=True)
        self._staging.remove(receipt.entry_id)
        self._progress("checkpoints", 1)

    def _explain_missing(self, entry: Entry, error: Exception) -> None:
        """Bytes that are gone or changed: delivered by another deliverer, known to the hub, or lost; in that order."""
        written_meanwhile = read_journal(self._folder.journal)
        if written_meanwhile.is_done(entry.entry_id):
            with self._journal_lock:
                self._state().receipts.update(written_meanwhile.receipts)
                self._state().superseded.update(written_meanwhile.superseded)
            return
        receipt = self._client.find_checkpoint(self._model(), entry.entry_id)
        if receipt is not None:
            self._settle(receipt)
            return
        self._set_entry_aside(entry, str(error))

    def _set_entry_aside(self, entry: Entry, reason: str) -> None:
        self._record({"record": "aside_entry", "entry_id": entry.entry_id, "reason": reason[:300]})
        logger.warning("checkpoint %s is set aside in %s: %s", entry.slot.name, entry.folder, reason)

    # The journal.

    def _state(self) -> Delivered:
        if self._journal is None:
            raise HubUnavailable("session.lock is not held")
        return self._journal.state

    def _record(self, record: dict[str, Any], *, durable: bool = False) -> None:
        with self._journal_lock:
            if self._journal is None:
                raise HubUnavailable("session.lock is not held")
            self._journal.append(record, durable=durable)

    def _model(self) -> str:
        if self._model_id is None:
            raise HubUnavailable("the run is not registered")
        return self._model_id


def _key(path: Path, event: Event) -> tuple[str, str, int, int]:
    return path.name, event["attempt_id"], event["rank"], event["seq"]


def _expanded(path: Path, record: dict[str, Any] | None) -> list[Event]:
    if record is None:
        return []
    try:
        return expand(record)
    except (KeyError, TypeError):
        logger.warning("%s: a line is no batch of events and is skipped: %s", path, repr(record)[:200])
        return []


def _superseded(waiting: list[Entry], outdated: set[str]) -> list[Entry]:
    """Unsent epoch and best entries that a newer one of their kind supersedes, oldest first.

    Files of one save (the same attempt, epoch and step under several names) do not supersede each other.
    """
    newest = {entry.slot.kind: entry for entry in waiting}

    def is_superseded(entry: Entry) -> bool:
        slot, newer = entry.slot, newest[entry.slot.kind].slot
        moment, newer_moment = (slot.attempt_id, slot.epoch, slot.step), (newer.attempt_id, newer.epoch, newer.step)
        return (
            entry.entry_id in outdated
            or moment != newer_moment
            or (slot.name == newer.name and entry.entry_id != newest[slot.kind].entry_id)
        )

    return [entry for entry in waiting if entry.slot.kind != "final" and is_superseded(entry)]


def _manifest(entry: Entry, digest: Digest) -> wire.CheckpointRequest:
    slot = entry.slot
    return {
        "attempt_id": slot.attempt_id,
        "epoch": slot.epoch,
        "step": slot.step,
        "kind": slot.kind,
        "name": slot.name,
        "metrics": entry.metrics,
        "files": [
            {"name": file.name, "size": file.size, "sha256": file.sha256, "parts": list(file.parts)}
            for file in digest.files
        ],
    }

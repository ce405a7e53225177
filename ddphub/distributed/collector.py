"""The collector: rank 0's end of the relay.

It answers hellos, pops messages into the spool, and acknowledges to each rank the highest number up to which it holds
every event; only after the spool is on disk. It knows who is alive: a rank that says nothing for a while is lost.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from ddphub import names
from ddphub.distributed import relay
from ddphub.distributed.courier import CONNECT_PAUSES
from ddphub.distributed.post import Inbox, pop
from ddphub.distributed.relay import Arrival
from ddphub.distributed.rendezvous import Rendezvous, Store
from ddphub.events import GONE, Event, to_json
from ddphub.seqs import SeqSet

logger = logging.getLogger(__name__)

INTERVAL: Final = 0.25
"""Seconds between two drains. Pops do not block: a blocking pop would hold up the acknowledgements."""

BUSY_INTERVAL: Final = 0.05
"""The same behind a drain that brought BUSY_BYTES: ranks that report much soon have their windows full."""

BUSY_BYTES: Final = 256 * 1024

DRAIN_BYTES: Final = 2 * 1024 * 1024
DRAIN_SECONDS: Final = 1.0
"""Bytes that one drain may take, or seconds, before they go to disk and acknowledgements go out."""

WATCH_INTERVAL: Final = 1.0
"""Seconds between two looks for ranks that are silent."""

ACKS_TOGETHER: Final = 1000
"""Acknowledgements in one request to the store."""

HELLO_GRACE: Final = 5.0
"""Seconds after the start in which `finish` still waits for ranks that have not said hello."""


TOGETHER: Final = 1.0
"""Seconds in which two ends count as one, so that their order says nothing."""

PROCESS_STRIDE: Final = 2**40
"""Numbers that one process of a rank may use in an attempt."""


class EventSpool(Protocol):
    """Rank 0's spool file."""

    def append_lines(self, lines: Sequence[bytes]) -> None:
        """Appends batches as they came, with their checksums.

        Raises:
            OSError: the disk does not take them all.
        """

    def sync(self) -> None:
        """Waits until what was appended is on disk.

        Raises:
            OSError: when the disk says no.
        """


@dataclass
class Peer:
    """What rank 0 knows of another rank's newest process."""

    rank: int
    nonce: str
    about: dict[str, Any]
    heard: float
    state: str = "joined"
    reported: int = 0
    dropped: int = 0
    failure: str | None = None
    left_in: str | None = None
    first: int = 0
    """The number of its first event: a process that takes a dead one's rank must not use its numbers again."""
    is_local: bool = False
    """Whether its pid means something here: the same host and the same PID namespace."""
    reason: str | None = None
    """Why it is in its state, where that is known."""
    gone_at: float = 0.0
    left_at: float = 0.0
    """When its process was found gone, and when its goodbye came, by time.monotonic."""

    @property
    def is_gone(self) -> bool:
        """Whether its process has ended, as far as this host can see."""
        return self.is_local and _is_gone(self.about["pid"])


class Collector:
    """Collects the events of all other ranks. Rank 0 only.

    Args:
        rendezvous: finds the job's store.
        keys: names of the relay's keys.
        attempt_id: this attempt.
        run_id: told to every rank.
        folder: the run directory, likewise.
        spool: where batches go.
        report: takes events about ranks ("joined", "lost", ...).
        where: model_id and url as far as the session knows them.
        world_size: number of ranks, this one included.
    """

    def __init__(
        self,
        *,
        rendezvous: Rendezvous,
        keys: relay.Keys,
        attempt_id: str,
        run_id: str,
        folder: Path,
        spool: EventSpool,
        report: Callable[[Event], None],
        where: Callable[[], tuple[str | None, str | None]],
        world_size: int,
    ) -> None:
        self._rendezvous = rendezvous
        self._keys = keys
        self._attempt_id = attempt_id
        self._answer = {"run_id": run_id, "attempt_id": attempt_id, "folder": str(folder)}
        self._spool = spool
        self._report = report
        self._where = where
        self._world_size = world_size
        self._host = socket.gethostname()
        self.peers: dict[int, Peer] = {}
        self._nonces: dict[int, list[str]] = {}  # rank -> the processes that have had it, in order
        self._streams: dict[tuple[str, int], SeqSet] = {}
        self._local: dict[int, Peer] = {}
        self._waiting: set[int] = set()  # ranks of which more is held than they were told
        self._acked: dict[str, str] = {}  # nonce -> what it was told
        self._told = ""  # the part of it that is the same for all
        self._next_watch = 0.0
        self._dead: list[str] = []  # earlier attempts on this store
        self._started = time.monotonic()
        self._has_heard_out = False
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._main, name="ddphub-collector", daemon=True)
        self._thread.start()

    def close(self, timeout: float) -> None:
        """Waits for goodbyes of the ranks that live, at most `timeout` seconds; then tells the others to spool."""
        self._deadline = time.monotonic() + timeout
        self._closing.set()
        self._thread.join(timeout + 2 * DRAIN_SECONDS)

    def absent(self) -> list[int]:
        """Ranks without a goodbye: lost, still running, or never seen."""
        return [rank for rank in range(1, self._world_size) if not self._has_left(rank)]

    def cause(self, killed_since: float) -> str | None:
        """What another rank says, or shows, that ended the run. After `close`, which waits for goodbyes.

        Args:
            killed_since: processes that were gone earlier (time.monotonic) are not to blame.
        """
        failed = [peer for peer in self.peers.values() if peer.failure]
        killed = [peer for peer in self.peers.values() if peer.reason == GONE and peer.gone_at >= killed_since]
        first = min(failed, key=lambda peer: peer.left_at, default=None)
        said = f"rank {first.rank}: {first.failure}" if first else None
        if not killed or not self._has_heard_out:
            return said
        dead = min(killed, key=lambda peer: peer.gone_at)
        more = f" (and {len(killed) - 1} more)" if len(killed) > 1 else ""
        seen = f"rank {dead.rank}: {GONE} without a word{more}: killed, perhaps for its memory, or crashed"
        if first is None:
            return seen
        # A collective that broke for a dead rank is told at once; a rank that died of another's failure, later.
        parts = [seen, said] if dead.gone_at < first.left_at + TOGETHER else [said, seen]
        return "\n\n".join(filter(None, parts))

    def _has_left(self, rank: int) -> bool:
        return rank in self.peers and self.peers[rank].state == "left"

    def _main(self) -> None:
        pauses = iter(CONNECT_PAUSES)
        while not self._is_over():
            try:
                store = self._rendezvous.connect()
                if store is None:
                    self._pause(1.0)
                    continue
                self._find_dead_attempts(store)
                pauses = iter(CONNECT_PAUSES)
                self._serve(store)
                return
            except Exception as error:  # noqa: BLE001  # torch raises RuntimeError and subclasses; ranks spool then
                logger.info("the relay's store failed: %s", str(error).partition("\n")[0])
                pause = next(pauses, None)
                if pause is None:
                    logger.warning("the relay's store is gone: the other ranks write spool files until the end")
                    return
                self._pause(pause)

    def _pause(self, seconds: float) -> None:
        """Waits, shorter once the run is closing."""
        if self._closing.is_set() or self._closing.wait(seconds):
            time.sleep(INTERVAL / 5)

    def _is_over(self) -> bool:
        if not self._closing.is_set():
            return False
        now = time.monotonic()
        if now >= self._deadline:
            return True
        if len(self.peers) < self._world_size - 1 and now - self._started < HELLO_GRACE:
            return False
        return all(peer.state in {"left", "lost"} for peer in self.peers.values())

    def _find_dead_attempts(self, store: Store) -> None:
        """A store that outlived an earlier world (torchrun's restarts) may hold events nobody took."""
        store.append(self._keys.attempts, f"{self._attempt_id},")
        known = dict.fromkeys(store.get(self._keys.attempts).decode().split(","))  # each connection adds its own
        self._dead = [name for name in known if names.is_hex_id(name) and name != self._attempt_id]

    def _serve(self, store: Store) -> None:
        inboxes = [
            Inbox(store, self._keys, self._attempt_id, self._world_size),
            *(Inbox(store, self._keys, attempt_id) for attempt_id in self._dead),
        ]
        for peer in self.peers.values():
            self._answer_hello(store, peer)  # what was set on a connection that broke may not have arrived
        while True:
            over = self._is_over()
            self._greet(store)
            taken, is_empty = self._drain(inboxes)
            until = time.monotonic() + DRAIN_SECONDS
            while over and not is_empty and time.monotonic() < until:
                _, is_empty = self._drain(inboxes)
            self._acknowledge(store, closed=over)
            self._watch()
            if over:
                self._has_heard_out = True
                return
            if is_empty:
                self._pause(INTERVAL if taken < BUSY_BYTES else BUSY_INTERVAL)

    def _greet(self, store: Store) -> None:
        while (message := pop(store, self._keys.hello)) is not None:
            hello = relay.parse(message) or {}
            nonce, rank = hello.get("nonce"), hello.get("rank")
            if not names.is_hex_id(nonce) or not isinstance(rank, int) or not 0 < rank < self._world_size:
                logger.warning("a hello made no sense: %r", message[:200])
                continue
            known = self.peers.get(rank)
            about = {key: hello.get(key) for key in ("host", "pid", "local_rank", "node")}
            if known is None or known.nonce != nonce:
                is_local = about["host"] == self._host and not _is_gone(about["pid"])
                # Once for each process: one that says hello again, while another has its rank, keeps its numbers.
                nonces = self._nonces.setdefault(rank, [])
                if nonce not in nonces:
                    nonces.append(nonce)
                first = nonces.index(nonce) * PROCESS_STRIDE
                self.peers[rank] = Peer(rank, nonce, about, time.monotonic(), first=first, is_local=is_local)
                self._local.pop(rank, None)
                if is_local:
                    self._local[rank] = self.peers[rank]
                self._say(self.peers[rank], "joined")
            self._answer_hello(store, self.peers[rank])

    def _answer_hello(self, store: Store, peer: Peer) -> None:
        # The acknowledgement's key first: the rank reads it without waiting once it has the answer.
        self._acked.pop(peer.nonce, None)
        self._acknowledge_some(store, [peer], self._tell(closed=False))
        store.set(self._keys.answer(peer.nonce), to_json({**self._answer, "first": peer.first}))

    def _drain(self, inboxes: Iterable[Inbox]) -> tuple[int, bool]:
        """Takes what waits; returns how many bytes that was, and whether the queues are empty."""
        messages: list[bytes] = []
        until = time.monotonic() + DRAIN_SECONDS
        try:
            are_empty = [inbox.take(messages, room=DRAIN_BYTES, deadline=until) for inbox in inboxes]
        finally:
            arrived = [batch for message in messages if (batch := self._take(message)) is not None]
            # Sent twice, one is enough. A rank's large ones were read before its earlier small ones: back in order.
            batches = {(batch.attempt_id, batch.rank, batch.first, batch.last): batch for batch in arrived}
            if batches:
                self._keep([batches[key] for key in sorted(batches)])
        return sum(map(len, messages)), all(are_empty)

    def _take(self, message: bytes) -> Arrival | None:
        """Heeds a message; returns its batch if that is new."""
        if relay.is_batch(message):
            batch = Arrival.read(message)
            if batch is not None and self._is_expected(batch.attempt_id, batch.rank):
                self._heard(batch.rank)
                return None if self._stream(batch.attempt_id, batch.rank).covers(batch.first, batch.last) else batch
        elif (content := relay.parse(message)) is not None and self._heed(content):
            return None
        logger.warning("a message of another rank made no sense: %r", message[:200])
        return None

    def _heed(self, content: dict[str, Any]) -> bool:
        """Heeds a message that is no batch; False when it makes no sense."""
        kind, rank = content.get("type"), content.get("rank")
        if not isinstance(rank, int) or not relay.is_count(rank):
            return False
        if kind == "spilled" and relay.is_spilled(content) and self._is_expected(content["attempt_id"], rank):
            self._add(content["attempt_id"], rank, content["first"], content["last"])
            self._heard(rank)
        elif kind == "beat":
            self._heard(rank, content.get("nonce"))
        elif kind == "goodbye":
            self._part(content)
        else:
            return False
        return True

    def _keep(self, batches: list[Arrival]) -> None:
        """Writes batches to disk; only then they count as held."""
        try:
            self._spool.append_lines([batch.line for batch in batches])
            self._spool.sync()
        except OSError as error:
            # Not acknowledged, so their ranks send them again or spool them; what the disk took is there twice then.
            logger.warning("events of other ranks were not taken: %s", error)
            return
        for batch in batches:
            self._add(batch.attempt_id, batch.rank, batch.first, batch.last)

    def _is_expected(self, attempt_id: str, rank: int) -> bool:
        return attempt_id != self._attempt_id or rank in self.peers

    def _stream(self, attempt_id: str, rank: int) -> SeqSet:
        return self._streams.setdefault((attempt_id, rank), SeqSet())

    def _add(self, attempt_id: str, rank: int, first: int, last: int) -> None:
        self._stream(attempt_id, rank).add(first, last)
        if attempt_id == self._attempt_id:
            self._waiting.add(rank)

    def _heard(self, rank: int, nonce: object = None) -> None:
        peer = self.peers.get(rank)
        if peer is None or (nonce is not None and nonce != peer.nonce):
            return
        peer.heard = time.monotonic()
        if peer.state == "lost":
            self._say(peer, "back")

    def _part(self, message: dict[str, Any]) -> None:
        peer = self.peers.get(message.get("rank", 0))
        if peer is None or peer.nonce != message.get("nonce"):
            return
        counts = [message.get("reported"), message.get("dropped")]
        if relay.is_count(*counts):
            peer.reported, peer.dropped = message["reported"], message["dropped"]
        peer.failure = str(message["failure"])[:4000] if message.get("failure") else None
        peer.left_in = str(message["left_in"]) if message.get("left_in") else None
        peer.left_at = time.monotonic()
        self._say(peer, "left", peer.failure)

    def _tell(self, *, closed: bool) -> str:
        """What an acknowledgement says to every rank, as the JSON behind its own."""
        model_id, url = self._where()
        return to_json({"model_id": model_id, "url": url, "closed": closed})[1:]

    def _acknowledge(self, store: Store, *, closed: bool) -> None:
        """Tells the ranks of which more is held, or all when there is news for all."""
        told = self._tell(closed=closed)
        ranks = self._waiting if told == self._told else self.peers.keys()
        self._acknowledge_some(store, [self.peers[rank] for rank in ranks], told)
        self._told, self._waiting = told, set()

    def _acknowledge_some(self, store: Store, peers: Iterable[Peer], told: str) -> None:
        acks: dict[str, str] = {}
        for peer in peers:
            ack = f'{{"held":{self._stream(self._attempt_id, peer.rank).contiguous(peer.first)},{told}'
            if self._acked.get(peer.nonce) != ack:
                acks[self._keys.ack(peer.nonce)] = self._acked[peer.nonce] = ack
        keys = list(acks)
        for start in range(0, len(keys), ACKS_TOGETHER):
            some = keys[start : start + ACKS_TOGETHER]
            store.multi_set(some, [acks[key] for key in some])

    def _watch(self) -> None:
        now = time.monotonic()
        for peer in self._local.values():
            if peer.state != "left" and peer.reason != GONE and peer.is_gone:
                peer.gone_at = now
                self._say(peer, "lost", GONE)
        if now < self._next_watch:
            return
        self._next_watch = now + WATCH_INTERVAL
        for peer in self.peers.values():
            if now - peer.heard > relay.LOST and peer.state not in {"left", "lost"}:
                self._say(peer, "lost", f"not heard of for {relay.LOST:g} s")

    def _say(self, peer: Peer, state: str, reason: str | None = None) -> None:
        peer.state, peer.reason = state, reason
        self._report({"kind": "rank", "of_rank": peer.rank, "state": state, "reason": reason, **peer.about})


def _is_gone(pid: object) -> bool:
    """Whether no process of that id runs here; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in {"Z", "X"}

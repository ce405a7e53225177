"""The courier: carries one rank's events to rank 0, and to the rank's own spool file when that fails.

Two threads share it. The outbox's thread hands events over and *keeps* them: nothing it does can wait for a network.
The courier's own thread talks to the store, and may hang there: then the keeper finds events unacknowledged for too
long and writes them to disk. So a dead store, a stopped rank 0 or a slow one costs neither events nor memory.
"""

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from ddphub import names
from ddphub.distributed import post, relay
from ddphub.distributed.rendezvous import Rendezvous, Store
from ddphub.distributed.topology import Topology
from ddphub.events import to_json

logger = logging.getLogger(__name__)

TICK: Final = 0.1
"""Seconds between two looks for the answer to a hello, and later ones while nothing else says when to look."""

SLOW_TICK: Final = 0.5
FAST_START: Final = 3.0
"""The same after FAST_START seconds without an answer: thousands of ranks must not keep the store from rank 0."""

ASK_PAUSE: Final = 1.5
"""Seconds between two reads of the acknowledgement while little is unacknowledged. Each costs the store about 10 us,
and a large world has thousands of ranks."""

BUSY_ASK_PAUSE: Final = 0.02
"""The same while more than a quarter of `relay.WINDOW` is."""

IDLE_ASK_PAUSE: Final = 5.0
"""The same while nothing is: rank 0 may have learned the model's URL."""

LAST_ASK_PAUSE: Final = 0.02
"""The same while `finish` waits."""

ASK_SHARE: Final = 50e-6
"""Seconds between two ranks' reads of it, at the least: all ranks of a large world end at one time, and rank 0 takes
their goodbyes through the same store."""

RESEND_AFTER: Final = 2.0
"""Seconds without progress after which the oldest unacknowledged batch is pushed again."""

ACK_LATE: Final = 5.0
"""Seconds after which an unacknowledged batch goes to the spool file, and the courier says hello again."""

ANSWER_LATE: Final = 30.0
"""Seconds that events wait in memory for rank 0's first answer; then a kill would take too many, and they go to disk
under the nonce. Longer than a short break: on a node without the shared folder they stay there as a run of its own."""

CONNECT_PAUSES: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds between attempts to reach a store that failed; after the last one this rank writes its spool file only.
Torch prints a stack trace for each failed call, so the attempts are few."""


@dataclass(frozen=True)
class Answer:
    """What rank 0 answered to this process's hello."""

    run_id: str
    attempt_id: str
    folder: Path


class RankSpool(Protocol):
    """Where this rank's events go when the relay cannot take them."""

    def write(self, answer: Answer | None, stream_id: str, batches: Sequence[str]) -> None:
        """Appends batches of a stream (an attempt id, or the nonce while there is no answer) to its file.

        Raises:
            OSError: the disk does not take them.
        """

    def adopt(self, answer: Answer, nonce: str) -> None:
        """Moves what was written under the nonce to the run that rank 0 has named.

        Raises:
            OSError: it cannot be moved; it stays where it is, as a run of its own.
        """


class Unreachable(Exception):
    """The store cannot carry the relay, now or at all."""


@dataclass
class _Held:
    """A batch that rank 0 has not acknowledged; once spilled, only its place in the stream: then `text` is empty."""

    batch: relay.Batch
    since: float
    pushed: bool = False
    pushed_bytes: int = 0

    @property
    def spilled(self) -> bool:
        return not self.batch.text

    @property
    def count(self) -> int:
        return self.batch.count


@dataclass
class Clock:
    """When a courier last did what it does again and again (time.monotonic).

    Attributes:
        answered: its hello was answered.
        asked: it read the acknowledgement.
        said: it sent something, which is a sign of life.
        greeted: it said hello.
    """

    answered: float = field(default_factory=time.monotonic)
    asked: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)
    greeted: float = field(default_factory=time.monotonic)


class Courier:
    """Carries events of one rank other than 0. A `Carrier` for the outbox.

    Args:
        topology: this process's place.
        rendezvous: finds the job's store.
        keys: names of the relay's keys.
        spool: where events go that the relay cannot take.
        about: host, pid and the like, told in the hello.
    """

    def __init__(
        self,
        *,
        topology: Topology,
        rendezvous: Rendezvous,
        keys: relay.Keys,
        spool: RankSpool,
        about: dict[str, Any],
    ) -> None:
        self.nonce = names.new_hex_id()
        self.answer: Answer | None = None
        self.model_id: str | None = None
        self.url: str | None = None
        self.dropped = 0
        self.spilled = 0
        self._topology = topology
        self._rendezvous = rendezvous
        self._keys = keys
        self._spool = spool
        self._about = about
        self._window = relay.window(topology.world_size)
        self._least_pause = topology.world_size * ASK_SHARE
        self._lock = threading.Lock()  # held for moments only, never around I/O
        self._spilling = threading.Lock()  # around a write to the spool file: flush and outbox may both want to
        self._unanswered: list[str] = []
        self._unanswered_bytes = 0
        self._unanswered_since = time.monotonic()
        self._stream_id = self.nonce
        self._next_seq = 0
        self._held: deque[_Held] = deque()
        # What the disk refused when the stream changed: (answer, stream, batches), still to be written.
        self._left_behind: list[tuple[Answer | None, str, list[relay.Batch]]] = []
        self._progress = time.monotonic()
        self._resent = 0.0
        self._closed_by_owner = False
        self._goodbye: Callable[[], dict[str, Any]] | None = None
        self._said_goodbye = threading.Event()
        self._wake = threading.Event()
        self._stopped = False
        self.gave_up = False
        self._thread = threading.Thread(target=self._main, name="ddphub-courier", daemon=True)
        self._thread.start()

    # The keeper's side: the outbox's thread, or whoever flushes.

    def carry(self, events: Sequence[str]) -> None:
        """Keeps events for the courier's thread, and spills what waits too long or takes too much memory."""
        now = time.monotonic()
        with self._lock:
            if self.answer is None:
                if not self._unanswered:
                    self._unanswered_since = now
                self._unanswered.extend(events)
                self._unanswered_bytes += sum(map(len, events))
            else:
                self._hold(events, now)
        if events:
            self._wake.set()
        self._spill_overdue(now)

    def finish(self, goodbye: Callable[[], dict[str, Any]], timeout: float) -> None:
        """Sends the goodbye behind everything carried, waits for the acknowledgement, spills the rest.

        Args:
            goodbye: makes the fields of the message, when it is sent.
            timeout: seconds to wait at most.
        """
        deadline = time.monotonic() + timeout
        self._goodbye = goodbye
        self._wake.set()
        while time.monotonic() < deadline and not self.gave_up and not self._closed_by_owner:
            with self._lock:
                if self.answer is not None and self._said_goodbye.is_set() and not self._held:
                    break
            self._said_goodbye.wait(0.05) if not self._said_goodbye.is_set() else time.sleep(0.02)
        self._stopped = True
        self._wake.set()
        self._spill_all()
        # A thread that comes back from torch's C++ while the interpreter ends takes the process down with SIGABRT.
        self._thread.join(max(0.5, deadline - time.monotonic()))

    @property
    def unspilled(self) -> int:
        """Events neither acknowledged nor on disk."""
        with self._lock:
            left_behind = sum(batch.count for _, _, batches in self._left_behind for batch in batches)
            held = sum(held.count for held in self._held if not held.spilled)
            return held + left_behind + len(self._unanswered)

    def _hold(self, events: Sequence[str], now: float) -> None:
        if not self._held:
            self._progress = now
        for group in relay.split(list(events)):
            batch = relay.pack(self._stream_id, self._topology.rank, self._next_seq, group)
            self._next_seq = batch.last + 1
            self._held.append(_Held(batch, now))

    def _spill_overdue(self, now: float) -> None:
        with self._lock:
            too_much = self._unanswered_bytes > relay.UNANSWERED_WINDOW or self._held_bytes() > self._window
            late = any(not held.spilled and now - held.since > ACK_LATE for held in self._held)
            late = late or (bool(self._unanswered) and now - self._unanswered_since > ANSWER_LATE)
        if too_much or late or self.gave_up or self._stopped or self._left_behind:
            self._spill_all()

    def _held_bytes(self) -> int:
        return sum(len(held.batch.text) for held in self._held)

    def _spill_all(self) -> None:
        """Writes what is held to this rank's spool file; what the disk refuses stays held while memory allows."""
        with self._spilling:
            self._spill_left_behind()
            with self._lock:
                if self.answer is None:
                    self._hold(self._unanswered, time.monotonic())
                    self._unanswered.clear()
                    self._unanswered_bytes = 0
                answer, stream_id = self.answer, self._stream_id
                spilling = [held for held in self._held if not held.spilled]
            if not spilling:
                return
            try:
                self._spool.write(answer, stream_id, [held.batch.text for held in spilling])
            except OSError as error:
                self._drop_what_is_too_much(error)
                return
            with self._lock:
                self.spilled += sum(held.count for held in spilling)
                if answer is None:
                    self._held.clear()  # complete under the nonce: nobody will acknowledge them
                else:
                    self._let_go(spilling[-1].batch.last)

    def _spill_left_behind(self) -> None:
        while self._left_behind:
            answer, stream_id, batches = self._left_behind[0]
            try:
                self._spool.write(answer, stream_id, [batch.text for batch in batches])
            except OSError:
                return
            self._left_behind.pop(0)
            self.spilled += sum(batch.count for batch in batches)

    def _let_go(self, last: int) -> None:
        """Keeps of everything up to `last` only its place in the stream, as one range; rank 0 is told of it."""
        gone = [held for held in self._held if held.batch.last <= last]
        if gone:
            rest = list(self._held)[len(gone) :]
            place = relay.Batch(gone[0].batch.first, gone[-1].batch.last, "")
            merged = _Held(place, gone[0].since, pushed_bytes=sum(held.pushed_bytes for held in gone))
            self._held = deque([merged, *rest])

    def _drop_what_is_too_much(self, error: OSError) -> None:
        dropped, last = 0, -1
        with self._lock:
            excess = self._held_bytes() - relay.UNANSWERED_WINDOW
            for held in self._held:
                if excess <= 0:
                    break
                excess -= len(held.batch.text)
                dropped += 0 if held.spilled else held.count
                last = held.batch.last
            self._let_go(last)  # told as spilled, or rank 0 would wait for these numbers for ever
        if dropped:
            self.dropped += dropped
            logger.warning("%d events were dropped: rank 0 cannot be reached and the disk says %s", dropped, error)

    # The courier's thread.

    def _main(self) -> None:
        pauses = iter(CONNECT_PAUSES)
        while not self._stopped:
            try:
                store = self._connect()
                self._say_hello(store)
                pauses = iter(CONNECT_PAUSES)
                self._serve(store)
            except Exception as error:  # noqa: BLE001  # torch raises RuntimeError and subclasses; whatever it is, spill
                # A client that has failed once must not be used again: its connection may be out of step.
                logger.info("the relay's store failed: %s", str(error).partition("\n")[0])
                pause = next(pauses, None)
                if pause is None:
                    break
                until = time.monotonic() + pause
                while not self._stopped and time.monotonic() < until:
                    time.sleep(TICK)  # `_wait` would end with the next event
        self.gave_up = True

    def _connect(self) -> Store:
        while not self._stopped:
            store = self._rendezvous.connect()
            if store is not None:
                return store
            self._wait(1.0)
        raise Unreachable("closed before the job had a store")

    def _say_hello(self, store: Store) -> None:
        hello = {"nonce": self.nonce, "rank": self._topology.rank, **self._about}
        store.queue_push(self._keys.hello, to_json(hello))

    def _serve(self, store: Store) -> None:
        self._await_answer(store)
        clock = Clock()
        while not self._stopped:
            next_turn = self.take_turn(store, clock)
            self._wait(max(0.0, next_turn - time.monotonic()))

    def take_turn(self, store: Store, clock: Clock) -> float:
        """Does what is due; returns when to come again if no event comes before (time.monotonic). After the answer."""
        now = time.monotonic()
        if self._push(store, now):
            clock.said = now
        if now >= self._next_ask(clock):
            clock.asked = now
            self._take_ack(store)
        if now - clock.said >= relay.BEAT:
            clock.said = now
            beat = {"type": "beat", "nonce": self.nonce, "rank": self._topology.rank}
            self._send(store, [to_json(beat).encode()], now)
        if self._held and now - max(self._progress, clock.greeted) > ACK_LATE:
            # Another rank 0 may own the queue by now (a restart that this process outlived).
            clock.greeted = now
            self._say_hello(store)
            self._take_answer(store)
        return min(clock.said + relay.BEAT, self._next_ask(clock))

    def _await_answer(self, store: Store) -> None:
        started = last_hello = time.monotonic()
        patience = ACK_LATE
        while not self._stopped:
            self._take_answer(store)
            if self.answer is not None:
                return
            now = time.monotonic()
            if now - last_hello > patience:
                # Whoever took the hello from its queue may have died, or lost its connection, with it.
                last_hello, patience = now, 2 * patience
                self._say_hello(store)
            self._wait(TICK if now - started < FAST_START else SLOW_TICK)

    def _wait(self, seconds: float) -> None:
        self._wake.wait(seconds)
        self._wake.clear()

    def _take_answer(self, store: Store) -> None:
        key = self._keys.answer(self.nonce)
        if not store.check([key]):
            return
        content = json.loads(store.get(key))
        answer = Answer(content["run_id"], content["attempt_id"], Path(content["folder"]))
        first_seq = content["first"]
        if not relay.is_count(first_seq) or names.wrong_run_id(answer.run_id) or not names.is_hex_id(answer.attempt_id):
            raise Unreachable("rank 0's answer makes no sense")
        if self.answer and self.answer.attempt_id == answer.attempt_id:
            return
        first_answer = self.answer is None
        if not first_answer:
            self._spill_all()  # under the attempt that they were numbered for
        with self._spilling, self._lock:
            left = [held.batch for held in self._held if not held.spilled]
            if left:
                self._left_behind.append((self.answer, self._stream_id, left))
            waiting, self._unanswered = self._unanswered, []
            self._unanswered_bytes = 0
            self.answer = answer
            self._stream_id = answer.attempt_id
            self._next_seq = first_seq
            self._held.clear()
            self._progress = time.monotonic()
            self._hold(waiting, self._progress)
        if first_answer:
            with self._spilling:
                self._spool.adopt(answer, self.nonce)

    def _push(self, store: Store, now: float) -> bool:
        """Sends what is not on its way; returns whether there was anything."""
        with self._lock:
            if self._held and now - max(self._progress, self._resent) > RESEND_AFTER:
                # A cut connection can lose one push in the middle while later ones arrive.
                self._resent = now
                self._held[0].pushed = False
            in_flight = sum(held.pushed_bytes for held in self._held)
            waiting = [held for held in self._held if not held.pushed]
        outgoing: list[bytes] = []
        for held in waiting:
            batch = held.batch
            if held.spilled:
                place = {"attempt_id": self._stream_id, "rank": self._topology.rank}
                outgoing.append(
                    to_json({"type": "spilled", **place, "first": batch.first, "last": batch.last}).encode()
                )
            elif in_flight <= self._window or held.pushed_bytes:
                outgoing.append(batch.to_message())
                held.pushed_bytes += len(batch.text)
                in_flight += len(batch.text)
            else:
                # Rank 0 does not drain: what is on its way already is all that may pile up in the store.
                break
            held.pushed = True
        self._send(store, outgoing, now)
        goodbye = self._goodbye
        # Behind every batch: rank 0 stops listening when it has heard all goodbyes.
        with self._lock:
            all_pushed = all(held.pushed for held in self._held)
        if goodbye is not None and all_pushed and not self._said_goodbye.is_set():
            place = {"nonce": self.nonce, "rank": self._topology.rank}
            # Through the queue, whatever its size, see `post.Inbox.take`.
            store.queue_push(self._keys.queue(self._stream_id), to_json({"type": "goodbye", **place, **goodbye()}))
            self._said_goodbye.set()
        return bool(outgoing)

    def _send(self, store: Store, messages: list[bytes], now: float) -> None:
        # A box that rank 0 does not empty would grow past what it can empty in one request.
        is_stuck = bool(self._held) and now - self._progress > ACK_LATE
        post.send(store, self._keys, self._stream_id, self._topology.rank, messages, by_queue=is_stuck)

    def _next_ask(self, clock: Clock) -> float:
        """When to read the acknowledgement again (time.monotonic)."""
        last = clock.asked
        if self._goodbye is not None:
            return last + max(LAST_ASK_PAUSE, self._least_pause)
        with self._lock:
            if self._held_bytes() > relay.WINDOW // 4:
                return last + max(BUSY_ASK_PAUSE, self._least_pause)
            if self._held:
                # No sooner than rank 0 can have it.
                return max(last, self._held[0].since) + ASK_PAUSE
        is_new = self.model_id is None and last < clock.answered + 2 * IDLE_ASK_PAUSE
        return last + (ASK_PAUSE if is_new else IDLE_ASK_PAUSE)

    def _take_ack(self, store: Store) -> None:
        # `get` would wait for the key first, in a round trip of its own; of a key that is there this changes nothing.
        text = store.compare_set(self._keys.ack(self.nonce), "", "")
        if not text:
            return
        content = json.loads(text)
        self.model_id, self.url = content["model_id"], content["url"]
        with self._lock:
            while self._held and self._held[0].batch.last <= content["held"]:
                self._held.popleft()
                self._progress = time.monotonic()
            if not self._held:
                self._progress = time.monotonic()
        self._closed_by_owner = bool(content["closed"])

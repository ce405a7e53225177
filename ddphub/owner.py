"""Rank 0's side of a run, wired: run directory, spool, staging area, session, collector."""

import contextlib
import logging
import os
import platform
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from ddphub import names
from ddphub.checkpoints.staging import Slot, StagingArea
from ddphub.config import Settings
from ddphub.distributed.collector import Collector
from ddphub.distributed.outbox import Outbox
from ddphub.distributed.relay import Keys
from ddphub.distributed.rendezvous import Rendezvous
from ddphub.distributed.slurm import Departure, Ending, SlurmJob
from ddphub.distributed.topology import Topology
from ddphub.errors import JournalError, SettingsError
from ddphub.events import OF_ITSELF, Event
from ddphub.session.folder import RunFolder, RunInfo
from ddphub.session.lines import LineWriter
from ddphub.session.lock import SessionLock
from ddphub.session.presence import Presence
from ddphub.session.report import report
from ddphub.session.session import Session
from ddphub.session.spool import OwnSpool
from ddphub.tell import tell

logger = logging.getLogger(__name__)

RUN_LOCK_WAIT: Final = 2.0
"""Seconds that a start waits for another start of the same run to have written run.json."""

STORE_WAIT: Final = 10.0
"""Seconds that rank 0 waits for the launcher's store to say whether the run is being restarted."""

LAUNCHER_PACE: Final = 5.0
"""Seconds after a worker's end in which its launcher tells the others to leave; torchrun looks ten times a second."""

LONGEST_COLLECTIVE: Final = 900.0
"""Seconds after a rank's end in which another one's collective fails of it; NCCL's time-out is 600 s."""

HUB_WAIT: Final = 0.7
"""Seconds that `init` waits on rank 0 so that `run.url` can be printed; training starts without it after that, and a
line says it when the hub has answered."""


class Owner:
    """What only rank 0 has: the run directory, the session, the relay's end. Built by `Run` alone.

    Args:
        settings: checked settings.
        topology: this process's place.
        rendezvous: finds the job's store.
        keys: names of the relay's keys.
        ordinal: which call of `init` in this process.
        check: of logged values, those that can be recorded.

    Raises:
        SettingsError: the run directory cannot be made.
    """

    def __init__(
        self,
        settings: Settings,
        topology: Topology,
        rendezvous: Rendezvous,
        keys: Keys,
        ordinal: int,
        *,
        check: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> None:
        self._topology = topology
        self.attempt_id = names.new_hex_id()
        self._slurm = SlurmJob.detect()
        self._departure: Departure | None = None
        self._told_at = 0.0
        self._telling = threading.Lock()
        self._has_told = self._has_told_url = False
        try:
            run_id = settings.run_id or decide_run_id(settings, self._slurm, rendezvous, keys, ordinal)
            self.folder = RunFolder(settings.root / run_id)
            self.folder.create()
            with _briefly(self.folder.run_lock):
                self.info = self._continue_or_make(settings, run_id, self._slurm)
                self.info.save(self.folder.run_json)
        except OSError as error:
            raise SettingsError("dir", str(settings.root), "settings", f"cannot be written: {error}") from error
        self._presence = Presence(self.folder.alive)
        self._presence.start()
        self.staging = StagingArea(self.folder.staging, budget=settings.staging_budget, make_room=self._make_room)
        self._writer = LineWriter(self.folder.relay_file(self.attempt_id))
        self._own_spool = OwnSpool(self.attempt_id, self._writer)
        self.outbox = Outbox(self._own_spool, check)
        client = None
        self._is_online = settings.mode == "online" and settings.hub is not None
        if settings.mode == "online" and settings.hub is not None:
            from ddphub.hubs.connect import connect  # noqa: PLC0415  # requests, for online runs only

            client = connect(settings.hub, settings.api_key)
        self.session = Session(
            folder=self.folder,
            info=self.info,
            attempt_id=self.attempt_id,
            staging=self.staging,
            client=client,
            rate_limits=settings.rate_limits,
            on_reached=self._tell_late,
        )
        self.collector: Collector | None = None
        if topology.world_size > 1:
            self.collector = Collector(
                rendezvous=rendezvous,
                keys=keys,
                attempt_id=self.attempt_id,
                run_id=run_id,
                folder=self.folder.path,
                spool=self._writer,
                report=self.put,
                where=lambda: (self.session.model_id, self.session.url),
                world_size=topology.world_size,
            )
        started = {"kind": "attempt", "state": "started", **self._about_attempt(), "reason": None}
        self.put({**started, "slurm": self._slurm.about()} if self._slurm else started)
        self.put({"kind": "rank", "of_rank": 0, "state": "joined", **about(topology)})

    def announce(self) -> None:
        """Starts the session, and says where the run can be seen."""
        self.session.start()
        self.session.wait_for_hub(HUB_WAIT)
        with self._telling:
            url = self.session.url
            where = f"on disk in {self.folder.path}"
            if self._is_online:
                error = self.session.last_error
                where = url or f"on disk until the hub answers{f' ({error})' if error else ''}"
            tell([f"run {self.info.run_id}: {where}"])
            self._has_told, self._has_told_url = True, url is not None

    def _tell_late(self) -> None:
        """The hub has answered; `announce` may have been too early to say where. A thread of the session."""
        with self._telling:
            if self._has_told and not self._has_told_url and self.session.url is not None:
                self._has_told_url = True
                tell([f"run {self.info.run_id}: {self.session.url}"])

    def ask_why(self, signal_name: str) -> None:
        """A signal tells the run to leave: asks SLURM why, so that the attempt ends with the state that SLURM gives."""
        self._departure = Departure(signal_name, self._slurm)
        self._told_at = time.monotonic()

    def hurry(self, deadline: float) -> None:
        """Ends a `finish` that is under way at `deadline` (time.monotonic), if that is earlier."""
        self.session.hurry(deadline)

    def start_clocks(self) -> None:
        """See `Delivery.start_clocks`."""
        self.session.start_clocks()

    def put(self, event: Event) -> None:
        """An event of rank 0's own."""
        self.outbox.put({"time": time.time(), **event})

    def finish(
        self, state: str, failure: str | None, deadline: float, goodbye_wait: float, dropped_values: int
    ) -> None:
        """Collects goodbyes, delivers until `deadline` (time.monotonic), prints the report."""
        if self.collector is not None:
            self.collector.close(min(goodbye_wait, max(0.0, deadline - time.monotonic())))
        ended = self._ending(state, failure, deadline)
        self.put({"kind": "rank", "of_rank": 0, "state": "left", **about(self._topology)})
        self.put({"kind": "attempt", **ended, **self._about_attempt()})
        self.outbox.flush(max(1.0, deadline - time.monotonic()))
        self.session.finish(deadline)
        self._writer.close()
        self._presence.stop()
        if time.monotonic() > deadline:
            # Reading a long run's files may take seconds, which a process that is told to leave does not have.
            said = f"run {self.info.run_id}: out of time; ddphub status {self.folder.path}"
            tell([said, *self._remarks(dropped_values)])
            return
        tell([*report(self.folder).lines(), *self._remarks(dropped_values)])

    def _ending(self, state: str, failure: str | None, deadline: float) -> dict[str, str | None]:
        """How the attempt ends: what SLURM says, else a rank's failure, else what rank 0 says."""
        said = self._departure.ending(deadline) if self._departure and state not in OF_ITSELF else None
        if said and state != "failed":
            state, failure = said.state, said.reason
        if cause := self._cause(state, said):
            # Often the cause of what rank 0 saw ("connection closed by peer", torchrun's SIGTERM): it comes first.
            state, failure = "failed", f"{cause}\n\nrank 0: {failure}" if failure else cause
        if said is None or said.said_by is None:
            return {"state": state, "reason": failure}
        if state == "failed" and said.state != "failed":
            # Ranks that are told to leave, or whose peers have left, often fail of that.
            failure = f"{said.reason}\n\n{failure}"
        return {"state": said.state, "reason": failure, "said_by": said.said_by}

    def _cause(self, state: str, said: Ending | None) -> str | None:
        """What another rank says, or shows, that ended the run.

        A launcher whose worker was killed tells the others to leave, and nobody else says why; or their collective
        breaks first. Ranks that a scheduler tells to leave say goodbye.
        """
        if self.collector is None:
            return None
        if state == "failed":
            return self.collector.cause(time.monotonic() - LONGEST_COLLECTIVE)
        is_unexplained = state == "preempted" and (said is None or said.said_by is None)
        return self.collector.cause(self._told_at - LAUNCHER_PACE if is_unexplained else float("inf"))

    def _remarks(self, dropped_values: int) -> list[str]:
        """What the run directory does not know."""
        remarks = []
        if error := self.session.last_error:
            remarks.append(f"  ! the hub: {error}")
        dropped = self.outbox.dropped + self._own_spool.dropped
        peers = self.collector.peers.values() if self.collector else ()
        dropped += dropped_values + sum(peer.dropped for peer in peers)
        if dropped:
            remarks.append(f"  ! {dropped} values or events were dropped; the log says why")
        if self._own_spool.unwritten:
            remarks.append(f"  ! {self._own_spool.unwritten} events are lost: the disk did not take them")
        if self.collector and (absent := self.collector.absent()):
            shown = ", ".join(map(str, absent[:20]))
            remarks.append(f"  ! no goodbye from ranks {shown}: what they hold is in their own spool files")
        remarks += [f"  ! rank {peer.rank} left files in {peer.left_in}" for peer in peers if peer.left_in]
        return remarks

    def _about_attempt(self) -> dict[str, Any]:
        return {"world_size": self._topology.world_size, "host": socket.gethostname()}

    def _make_room(self, slot: Slot, needed: int) -> None:
        self.session.make_room(slot, needed)

    def _continue_or_make(self, settings: Settings, run_id: str, slurm: SlurmJob | None) -> RunInfo:
        made = RunInfo(run_id, settings.project, settings.name, settings.hub, model=settings.model)
        try:
            info = RunInfo.load(self.folder.run_json)
        except FileNotFoundError:
            info = made
        except JournalError as error:
            aside = self.folder.run_json.with_suffix(f".damaged-{int(time.time())}")
            self.folder.run_json.rename(aside)
            logger.warning("%s; it is set aside as %s", error, aside.name)
            info = made
        if (info.project, info.name) != (made.project, made.name):
            logger.warning("run %s goes on as %s/%s, as it was made", run_id, info.project, info.name)
        if settings.hub is not None and info.hub != settings.hub:
            if info.hub is not None:
                logger.warning("run %s reported to %s before; it goes on at %s", run_id, info.hub, settings.hub)
            info.hub = settings.hub
        info.model = settings.model or info.model
        info.config = settings.config or info.config
        info.environment = _environment()
        info.attempts = [*info.attempts, self.attempt_id]
        info.world_size = self._topology.world_size
        info.restart_count = slurm.restart_count if slurm else None
        return info


@contextlib.contextmanager
def _briefly(path: Path) -> Iterator[None]:
    """Two starts of one run id take turns, so that run.json gets both attempts; one that hangs is not waited for."""
    lock = SessionLock(path)
    until = time.monotonic() + RUN_LOCK_WAIT
    while not lock.acquire() and time.monotonic() < until:
        time.sleep(0.02)
    try:
        yield
    finally:
        lock.release()


def decide_run_id(settings: Settings, slurm: SlurmJob | None, rendezvous: Rendezvous, keys: Keys, ordinal: int) -> str:
    """Rank 0's choice, left in torchrun's store so that a restart in place continues the run."""
    choice = names.new_run_id() if slurm is None else slurm.run_id(settings.project, settings.name, ordinal)
    if slurm is not None and _is_taken(settings.root / choice, slurm):
        # The job was not requeued, so this is another run of it (two scripts of one name in one allocation).
        choice = f"{choice}-{names.new_hex_id()[:6]}"
    address = rendezvous.find()
    if address is None or not address.agent:
        return choice
    found: list[str] = []
    # In a thread, because connecting to a store whose process is stopped heeds no timeout. What it sets late is the
    # same choice, so it does no harm.
    asking = threading.Thread(target=_ask, args=(rendezvous, keys, choice, found), name="ddphub-run-id", daemon=True)
    asking.start()
    asking.join(STORE_WAIT)
    if not found:
        logger.warning("the launcher's store does not answer, so a restart will be a run of its own")
        return choice
    return choice if names.wrong_run_id(found[0]) else found[0]


def _is_taken(path: Path, slurm: SlurmJob) -> bool:
    """Whether another start of the same job has this run directory; otherwise it is ours from now on."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        with contextlib.suppress(JournalError, FileNotFoundError):
            return slurm.restart_count <= (RunInfo.load(RunFolder(path).run_json).restart_count or 0)
        return slurm.restart_count == 0  # of a start that has not come to its run.json
    return False


def _ask(rendezvous: Rendezvous, keys: Keys, choice: str, found: list[str]) -> None:
    try:
        store = rendezvous.connect()
        found.append(store.compare_set(keys.run, "", choice).decode() if store is not None else choice)
    except Exception as error:  # noqa: BLE001  # torch raises RuntimeError and subclasses; a new run is better than none
        logger.info("the launcher's store failed: %s", error)


def about(topology: Topology) -> dict[str, Any]:
    """What a rank tells of its process."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "local_rank": topology.local_rank,
        "node": topology.node,
    }


def _environment() -> dict[str, Any]:
    """What hubs show of the machine; no path, no argument."""
    return {
        "host": socket.gethostname(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "cpus": os.cpu_count() or 0,
    }

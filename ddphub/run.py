"""Run: what a training script holds on every rank. This file wires the parts together, and owner.py rank 0's.

```
rank 0:       Outbox -> OwnSpool --.
                                   |--> spool file --> Session (Delivery) --> hub
other ranks:  Outbox -> Courier ===|==> Collector (rank 0)
                           '--> StraySpool, when the relay cannot take it
writing rank: StagingArea ------------------------------> Session (Delivery) --> hub
```
"""

import contextlib
import itertools
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from ddphub import process
from ddphub.checkpoints.staging import StagingArea
from ddphub.config import Settings
from ddphub.console.keys import without_keys
from ddphub.distributed.agreement import agree
from ddphub.distributed.courier import Courier
from ddphub.distributed.outbox import Outbox
from ddphub.distributed.relay import Keys
from ddphub.distributed.rendezvous import Rendezvous
from ddphub.distributed.topology import Topology
from ddphub.errors import StagingError
from ddphub.events import plain_text
from ddphub.hubs import wire
from ddphub.hubs.client import HubClient
from ddphub.latest import await_latest, find_latest, tell_ranks
from ddphub.metrics import INT_BITS, PLAIN, MetricReader
from ddphub.observer import Observer
from ddphub.owner import Owner, about
from ddphub.saver import Saver, scratch
from ddphub.session.folder import UNANSWERED, RunFolder, RunInfo
from ddphub.session.spool import StraySpool

logger = logging.getLogger(__name__)

Kind = Literal["epoch", "best", "final"]

ANSWER_WAIT: Final = 10.0
"""Seconds that the first save of a writing rank other than 0 waits to be told the run's directory."""

GOODBYE_WAIT: Final = 10.0
"""Seconds that rank 0 waits for the other ranks' goodbyes."""

OTHER_RANK_BUDGET: Final = 5.0
"""Seconds that `finish` may take on a rank other than 0."""

EXIT_BUDGET: Final = 20.0
OTHER_RANK_EXIT_BUDGET: Final = 2.0
"""Seconds for an interpreter that exits without `finish`: rank 0, and the others."""

LOOP_SHARE: Final = 0.6
"""Of the signal budget, what a loop that asks `should_stop` has to save and leave; the rest delivers."""

SIGNAL_GOODBYE_WAIT: Final = 3.0
"""Seconds that rank 0 waits for goodbyes then: every rank has got the signal, and a killed one will not answer."""

REASON_LENGTH: Final = 4000
"""Characters of a traceback that are kept: its end."""

STOPPED: Final = "the hub asked it to stop"
"""Why a run was stopped."""

_ordinals = itertools.count()


def init(
    *,
    project: str | None = None,
    name: str | None = None,
    run_id: str | None = None,
    hub: str | None = None,
    model: str | None = None,
    dir: str | os.PathLike[str] | None = None,  # noqa: A002  # the name of the setting everywhere
    mode: str | None = None,
    config: Mapping[str, Any] | None = None,
    rate_limits: Mapping[str, float] | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    finish_timeout: float | None = None,
    staging_budget: int | None = None,
    warning_signal: str | None = None,
    signal_budget: float | None = None,
    console: str | None = None,
    system_interval: float | None = None,
    api_key: str | None = None,
    **unknown: object,
) -> "Run":
    """Starts reporting. Every rank calls it, in the same order when it is called more than once.

    Args:
        project: the project's name.
        name: the model's name; the script's name by default.
        run_id: the run to continue or to make; DDPHUB_RUN_ID.
        hub: the hub's URL, `platform` or `hub-v1`, see `ddphub.address`; DDPHUB_URL. Without one the run stays on disk.
        model: an existing model to report to: its id, KEY_MODELID, or the URL of its page.
        dir: folder for run directories; DDPHUB_DIR, `./.ddphub`.
        mode: `online`, `offline` or `disabled`; DDPHUB_MODE.
        config: what the run is made with, shown by the hub.
        rate_limits: seconds between requests: `{"metrics": 3.0, "ckpt": 900.0, "heartbeat": 300.0}`.
        rank: this process's rank, for launchers that set no RANK (`mp.spawn`).
        world_size: number of ranks, likewise.
        finish_timeout: seconds that `finish` may take on rank 0 (600).
        staging_budget: bytes of checkpoints that may wait on disk; DDPHUB_STAGING_BUDGET, 50 GiB.
        warning_signal: a signal beside SIGTERM that announces the end, `USR1` for SLURM's `--signal=USR1@60`;
            DDPHUB_WARNING_SIGNAL.
        signal_budget: seconds between SIGTERM and the end; DDPHUB_SIGNAL_BUDGET, 20. SLURM's KillWait must be longer.
        console: whose printed lines the hub shows: `rank0`, `all` or `off`; DDPHUB_CONSOLE. What C libraries write is
            not seen, and a line that holds an API key is withheld; see `ddphub.console`.
        system_interval: seconds between two looks at process, machine and GPU; DDPHUB_SYSTEM_INTERVAL, 15, 0 for none.
            They need the extra `system`.
        api_key: the hub's key; better in DDPHUB_API_KEY or `ddphub login`.
        unknown: refused by name.

    Returns:
        The run. In a child of a process that has one it is disabled.

    Raises:
        SettingsError: a setting or the launcher's environment is wrong; names the field, the value and its source.
            After `init` nothing raises into the training loop.
    """
    ordinal = next(_ordinals)
    given = {key: value for key, value in locals().items() if key not in {"unknown", "ordinal"}} | unknown
    explicit = run_id or os.environ.get("DDPHUB_RUN_ID")
    if process.is_owned_by_parent(explicit):
        logger.info("a parent process reports this run: it is disabled in this one")
        given["mode"] = "disabled"
    settings = Settings.resolve(given)
    topology = Topology.detect(settings.rank, settings.world_size)
    run = Run(settings, topology, ordinal)
    if settings.mode != "disabled":
        process.enter(run, run.id or explicit, settings.signals)
    return run


class Run:
    """One run as one rank sees it; made by `init`. Also a context manager that records a failure and finishes.

    Attributes:
        topology: this process's place.
    """

    def __init__(self, settings: Settings, topology: Topology, ordinal: int) -> None:
        self.topology = topology
        self._settings = settings
        self._enabled = settings.mode != "disabled"
        self._calls = 0
        self._newest_step = 0
        self._reader = MetricReader()
        self._failure: str | None = None
        self._finishing = threading.Lock()
        self._finished = False
        self._signal: int | None = None
        self._asks = False
        self._knows_stop = False
        self._latest_calls = itertools.count()
        self._has_waited = False
        self._owner: Owner | None = None
        self._courier: Courier | None = None
        self._staging: StagingArea | None = None
        if not self._enabled:
            return
        rendezvous = Rendezvous(topology)
        keys = Keys(rendezvous.namespace, ordinal)
        if topology.is_owner:
            self._owner = Owner(settings, topology, rendezvous, keys, ordinal, check=self._reader.check)
            self._outbox = self._owner.outbox
            self._staging = self._owner.staging
        else:
            self._stray = StraySpool(topology.rank, settings.root, self._without_answer)
            self._courier = Courier(
                topology=topology, rendezvous=rendezvous, keys=keys, spool=self._stray, about=about(topology)
            )
            self._outbox = Outbox(self._courier, self._reader.check)
        self._saver = Saver(self._reader, self._outbox.put, self._place, self._wake)
        self._observer = Observer(settings, topology, self._outbox.put, lambda: self._newest_step)
        if self._owner is not None:
            self._owner.announce()

    # What the run is.

    @property
    def id(self) -> str | None:
        """The run id; None when disabled, and on other ranks until rank 0 has answered."""
        if self._owner is not None:
            return self._owner.info.run_id
        answer = self._courier.answer if self._courier is not None else None
        return answer.run_id if answer else self._settings.run_id if self._enabled else None

    @property
    def model_id(self) -> str | None:
        """The hub's id of the model; None until the hub has told it."""
        if self._owner is not None:
            return self._owner.session.model_id
        return self._courier.model_id if self._courier is not None else None

    @property
    def url(self) -> str | None:
        """Where to look; None until the hub has told it."""
        if self._owner is not None:
            return self._owner.session.url
        return self._courier.url if self._courier is not None else None

    # What a training loop calls.

    def log(self, values: Mapping[str, Any], *, step: int | None = None, epoch: int | None = None) -> None:
        """Records metrics. Any rank; takes microseconds, does no I/O, never raises.

        Args:
            values: name -> number, bool, numpy scalar or 0-d tensor. Anything else is dropped with one warning.
            step: the step; a counter of this rank's calls by default.
            epoch: the epoch, if any.
        """
        if not self._enabled or self._finished:  # a loop may go on for the moment between its end and the signal's
            return
        try:
            # The path of every step, short and in one piece: after a step of training none of it is in the caches.
            kept = dict(values)
            for value in kept.values():
                if type(value) not in PLAIN:
                    self._log_unread(kept, step, epoch)
                    return
            calls = self._calls
            if step is None:
                step = calls
            elif type(step) is not int or step.bit_length() > INT_BITS:
                step = self._whole_step(step)
            if epoch is not None and (type(epoch) is not int or epoch.bit_length() > INT_BITS):
                epoch = self._reader.whole("epoch", epoch)
            self._calls = calls + 1
            self._newest_step = step
            self._outbox.log(kept, step, epoch)
        except Exception as error:  # noqa: BLE001  # the promise: no exception reaches the training loop
            said = "".join(traceback.format_exception_only(error)).strip()  # an error's own text may raise
            self._reader.drop("log", f"could not be recorded: {said}")

    def _log_unread(self, values: Mapping[str, Any], step: object, epoch: object) -> None:
        """Tensors among them: they are read at once."""
        kept = self._reader.read(values)
        step, epoch = self._whole_step(step), self._reader.whole("epoch", epoch)
        self._calls += 1
        if kept:
            self._newest_step = step
            self._outbox.put({"time": time.time(), "kind": "metrics", "step": step, "epoch": epoch, "values": kept})

    def _whole_step(self, step: object) -> int:
        whole = self._reader.whole("step", step)
        return self._calls if whole is None else whole

    def save_checkpoint(
        self,
        path: str | os.PathLike[str],
        *,
        epoch: int | None = None,
        step: int | None = None,
        kind: Kind = "epoch",
        name: str | None = None,
        metrics: Mapping[str, Any] | None = None,
        writer: int = 0,
    ) -> str | None:
        """Stages a checkpoint that is completely written. All ranks may call it; the writer's call copies it.

        Call it after the file is closed; when it returns the copy is complete, and the file may be rewritten.

        Args:
            path: a file, or a directory that every rank has finished writing.
            epoch: the epoch.
            step: the step.
            kind: `epoch`, `best` or `final`.
            name: the checkpoint's name; the file's by default. A second call for the same kind, epoch, step and
                name is the same checkpoint.
            metrics: shown with it.
            writer: the rank that wrote the file.

        Returns:
            The entry's id on the writer; None on other ranks, and when it was refused (a warning says why).
        """
        if not self._enabled or self.topology.rank != writer:
            return None
        return self._saver.save(path, epoch=epoch, step=step, kind=kind, name=name, metrics=metrics)

    @contextlib.contextmanager
    def checkpoint(
        self,
        *,
        epoch: int | None = None,
        step: int | None = None,
        kind: Kind = "epoch",
        name: str = "checkpoint.pt",
        metrics: Mapping[str, Any] | None = None,
    ) -> Iterator[Path]:
        """Gives a path to write a checkpoint to, straight into the staging area. The writing rank.

        ```
        with run.checkpoint(epoch=e) as path:
            torch.save(state, path)
        ```

        It counts when the block ends without an exception. When nothing can be staged the path is a temporary one
        that is thrown away, so the block always runs.
        """
        writing = (
            self._saver.write(epoch=epoch, step=step, kind=kind, name=name, metrics=metrics)
            if self._enabled
            else scratch()
        )
        with writing as path:
            yield path

    def latest_checkpoint(self, kind: Kind | None = None) -> Path | None:
        """The newest complete checkpoint of this run, of earlier attempts too: a copy that the caller may keep open.

        Every rank calls it, in the same order. Rank 0 takes it from the run directory, or fetches it from the hub,
        where the bytes are checked; the others wait for that. A rank that does not see rank 0's files fetches it
        for itself.

        Args:
            kind: `epoch`, `best` or `final`; any by default.

        Returns:
            A file, or a folder for a checkpoint of several files; None where there is none (a new run), and where
            it could not be had (a warning says why).
        """
        if not self._enabled:
            return None
        number = next(self._latest_calls)
        kinds = wire.KINDS if kind is None else (kind,)
        try:
            if self._owner is not None:
                path = None
                try:
                    path = find_latest(self._owner.folder.latest, self._owner.staging, kinds, self._ask_hub)
                finally:
                    tell_ranks(self._owner.folder.latest, self._owner.attempt_id, number, path)
                return path
            attempt_id, area = self._place()
            folder, courier = area.folder.parent, self._courier
            if courier is not None and courier.answer is not None and courier.answer.folder == folder:
                return await_latest(RunFolder(folder).latest, attempt_id, number, lambda: courier.gave_up)
            return find_latest(RunFolder(folder).latest, area, kinds, self._ask_hub)
        except Exception as error:  # noqa: BLE001  # the promise: no exception reaches the training loop
            logger.warning("latest_checkpoint() found none: %s", error)
            return None

    def _ask_hub(self) -> tuple[HubClient, str] | None:
        """A client of the run's hub, and the run's model there."""
        settings = self._settings
        if settings.hub is None or settings.mode != "online" or self.id is None:
            return None
        from ddphub.hubs.connect import connect  # noqa: PLC0415  # requests, for online runs only

        client = connect(settings.hub, settings.api_key)
        try:
            # The run goes by the project that it was made with, whatever the program says now.
            project = self._owner.info.project if self._owner is not None else settings.project
            model_id = self.model_id or client.find_model(project, self.id)
        except BaseException:
            client.close()
            raise
        if model_id is None:
            client.close()
            return None
        return client, model_id

    def should_stop(self) -> bool:
        """Whether the hub asked the run to stop, or it was told to leave. All ranks, in step.

        The one call that waits for other ranks: a broadcast of one element from rank 0 over the default process
        group. Never raises.
        """
        if not self._enabled:
            return False
        self._asks = True
        try:
            answer = agree(self._signal is not None or self._is_asked_to_stop, self.topology.world_size)
        except Exception as error:  # noqa: BLE001  # a peer died: the loop's next collective says so better
            logger.warning("should_stop() could not ask rank 0: %s", error)
            return False
        self._knows_stop = self._knows_stop or (answer and self._is_asked_to_stop)
        return answer

    @property
    def stop_requested(self) -> bool:
        """Whether the hub asked the run to stop, as far as this rank knows: rank 0; False elsewhere. Waits for nobody.

        For loops that tell the other ranks by themselves; `should_stop` does both.
        """
        self._knows_stop = self._knows_stop or self._is_asked_to_stop
        return self._signal is not None or self._is_asked_to_stop

    @property
    def _is_asked_to_stop(self) -> bool:
        return self._owner is not None and self._owner.session.stop_requested

    def start_clocks(self) -> None:
        """Starts the rate limit of checkpoints: the first of each kind waits for it, too. Rank 0; elsewhere nothing."""
        if self._owner is not None:
            self._owner.start_clocks()

    def finish(self) -> None:
        """Ends the run on this rank: flushes, delivers, reports. Any rank; idempotent; never raises.

        Rank 0 waits for the other ranks' goodbyes (10 s) and delivers within `finish_timeout`; another rank takes
        at most 5 s. What is left stays on disk, and the report names the command that delivers it.
        """
        budget = self._settings.finish_timeout if self._owner is not None else OTHER_RANK_BUDGET
        self._end(budget=budget)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left_well = error is None or (isinstance(error, SystemExit) and error.code in {None, 0})
        if not left_well and kind is not None:
            self.on_failure(kind, error, trace)
        self.finish()

    # Endings.

    def _end(self, *, budget: float, goodbye_wait: float = GOODBYE_WAIT) -> None:
        with self._finishing:
            if not self._enabled or self._finished:
                return
            self._finished = True
            deadline = time.monotonic() + budget
            self._note_signal(process.received_signal())  # a handler may end the main thread before ours has begun
            state, reason = "finished", self._failure
            if self._failure:
                state = "failed"
            elif self._signal is not None:
                state, reason = "preempted", _name(self._signal)
            elif self._knows_stop:
                # A loop that never asked has come to its own end.
                state, reason = "stopped", STOPPED
            try:
                self._observer.stop()
                self._outbox.flush(min(budget, OTHER_RANK_BUDGET))  # before anything waits for others
                if self._owner is not None:
                    self._owner.finish(state, reason, deadline, goodbye_wait, self._reader.dropped)
                else:
                    self._say_goodbye(budget)
            except Exception:
                logger.exception("finishing went wrong; what is on disk is safe: ddphub status")
            except BaseException:
                # Ctrl-C while it waits: what this rank holds goes to disk before the process does.
                self._outbox.flush(1.0)
                if self._courier is not None:
                    self._courier.finish(self._goodbye, 0.0)
                raise
            self._outbox.close()
            process.leave(self)

    def _say_goodbye(self, budget: float) -> None:
        courier = self._courier
        if courier is None:
            return
        courier.finish(self._goodbye, budget)
        self._stray.close()
        if courier.unspilled:
            logger.warning("%d events of rank %d could not be saved", courier.unspilled, self.topology.rank)

    def _goodbye(self) -> dict[str, Any]:
        courier, left_in = self._courier, self._stray.left_in
        is_elsewhere = left_in is not None and not (courier and courier.answer and courier.answer.folder == left_in)
        return {
            "reported": self._outbox.packed,
            "dropped": self._outbox.dropped + self._reader.dropped + (courier.dropped if courier else 0),
            "failure": self._failure,
            "left_in": str(left_in) if is_elsewhere else None,
        }

    def on_exit(self) -> None:
        """See `process`: as `finish`, with a shorter budget."""
        budget = EXIT_BUDGET if self._owner is not None else OTHER_RANK_EXIT_BUDGET
        self._end(budget=budget)

    def on_signal(self, number: int, *, ends: bool) -> bool:
        """See `process`: what is complete gets to safety before the process ends.

        A loop that asks `should_stop` gets the time to save and leave by itself: until the end that a warning signal
        announces, and for LOOP_SHARE of the budget after SIGTERM.
        """
        self._note_signal(number)
        budget = self._settings.signal_budget
        deadline = time.monotonic() + budget
        has_time = self._asks and not self._finishing.locked()
        is_warning = number != signal.SIGTERM and has_time
        what_next = "the training loop leaves" if is_warning else f"{budget:g} s at most"
        logger.warning("ddphub: rank %d got %s: flushing, %s", self.topology.rank, _name(number), what_next)
        if not (ends or self._finishing.locked()) or is_warning:
            # The script's own handler, or its loop, decides what is next: it may go on for long, or end any moment.
            self._flush(budget)
            return is_warning
        if has_time:
            self._flush(budget)
            until = time.monotonic() + LOOP_SHARE * budget
            while not self._finished and time.monotonic() < until:
                time.sleep(0.05)
        if self._owner is not None:
            self._owner.hurry(deadline)  # a finish that may be under way, too
        left = max(0.0, deadline - time.monotonic())
        self._end(budget=left if self._owner else min(OTHER_RANK_BUDGET, left), goodbye_wait=SIGNAL_GOODBYE_WAIT)
        if has_time:
            # It has left its loop, and may leave the process in its own way.
            time.sleep(max(0.0, deadline - time.monotonic()))
        return False

    def _flush(self, budget: float) -> None:
        self._observer.flush()
        self._outbox.flush(budget)

    def _note_signal(self, number: int | None) -> None:
        if number is None or number == self._signal:
            return
        if self._owner is not None:
            self._owner.ask_why(_name(number))  # before the loop may see the signal and end the run
        self._signal = number

    def on_failure(self, kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
        """See `process`: the run is a failed one, and says why."""
        # The end of it before anything else: an exception may quote a whole batch, and this is the training's thread.
        said = "".join(traceback.format_exception(kind, error, trace))[-2 * REASON_LENGTH :]
        self._failure = plain_text(without_keys(said, self._settings.secrets), REASON_LENGTH)

    def on_fork(self) -> None:
        """See `process`: in the child this copy is silent; its threads are the parent's."""
        self._enabled = False
        self._observer.forget()
        self._outbox.disable()

    # Checkpoints.

    def _place(self) -> tuple[str, StagingArea]:
        """The attempt and where its checkpoints go; raises StagingError while this rank knows none."""
        return self._attempt_id(), self._staging_area()

    def _attempt_id(self) -> str:
        if self._owner is not None:
            return self._owner.attempt_id
        courier = self._courier
        until = time.monotonic() + (0.0 if self._has_waited else ANSWER_WAIT)
        self._has_waited = True
        while courier is not None:
            if courier.answer is not None:
                return courier.answer.attempt_id
            if courier.gave_up or time.monotonic() >= until:
                break
            time.sleep(0.05)
        raise StagingError("rank 0 has not told this rank which run it belongs to")

    def _staging_area(self) -> StagingArea:
        if self._staging is None and self._courier is not None and self._courier.answer is not None:
            answer = self._courier.answer
            folder = self._stray.folder(answer, answer.attempt_id)
            self._staging = StagingArea(folder.staging, budget=self._settings.staging_budget)
        if self._staging is None:
            raise StagingError("there is no run directory yet")
        return self._staging

    def _wake(self) -> None:
        if self._owner is not None:
            self._owner.session.wake()

    def _without_answer(self, stream_id: str) -> RunInfo:
        """The run as a rank knows it that rank 0 has not answered: under its own id if it has none."""
        settings = self._settings
        return RunInfo(
            run_id=settings.run_id or f"{UNANSWERED}{stream_id}",
            project=settings.project,
            name=settings.name,
            hub=settings.hub,
            world_size=self.topology.world_size,
        )


def _name(number: int) -> str:
    """SIGTERM for 15."""
    return signal.Signals(number).name

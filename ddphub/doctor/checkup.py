"""Wires the parts: looks at settings, place and hub at once, then brings the ranks together."""

import importlib.util
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from ddphub.address import HubAddress
from ddphub.config import DEFAULT_DIR, VARIABLES
from ddphub.distributed.probe import Mailbox, gpus
from ddphub.distributed.rendezvous import Address, Rendezvous
from ddphub.distributed.slurm import SlurmJob
from ddphub.distributed.topology import Topology
from ddphub.doctor.bounded import Pending
from ddphub.doctor.finding import Finding
from ddphub.doctor.hub import examine_hub
from ddphub.doctor.meeting import GOODBYE_WAIT, Chair, attend
from ddphub.doctor.place import ELSEWHERE, examine_place
from ddphub.doctor.rank import RankReport
from ddphub.doctor.report import Report, shown_ranks
from ddphub.doctor.settings import Sources, find_settings
from ddphub.doctor.store import explain, nameless, open_mailbox, own_address, step_store, try_mailbox, unreachable
from ddphub.errors import SettingsError

SETTINGS_WAIT: Final = 5.0
PLACE_WAIT: Final = 10.0
"""Seconds for the settings, which touch the directory, and for all of what one rank finds alone."""

RANKS_WAIT: Final = 10.0
"""Seconds that rank 0 waits for the store and for the other ranks, once it is ready itself."""

LOCKS_WAIT: Final = 5.0
"""Seconds for trying locks between nodes."""

END_WAIT: Final = GOODBYE_WAIT + 1.0
"""Seconds for the end of the meeting."""


def examine(directory: Path | None = None, *, ask_gpus: bool = False, wait: float = RANKS_WAIT) -> Report:
    """Looks at everything, in about half a minute whatever hangs. Any rank; all ranks of a job at about the same time.

    Args:
        directory: a folder of run directories; that of the settings when None.
        ask_gpus: whether each rank asks its GPU for name and memory, which starts CUDA.
        wait: seconds that rank 0 waits for the other ranks.
    """
    # torch writes a stack trace to stderr for each refused connection; which one it was is told below.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    environ = dict(os.environ)
    topology, finding = _find_topology(environ)
    own = RankReport.of(topology)
    own.findings.append(finding)
    if importlib.util.find_spec("psutil") is None:
        text = "psutil is missing: system figures are not reported"
        advice = 'pip install "ddphub[system]" (in a clone: pip install ".[system]")'
        own.findings.append(Finding("system", "ok", text, advice))
    environ |= (made := step_store(topology, environ))
    begin = time.monotonic()
    found = _settings(directory, environ, begin + SETTINGS_WAIT)
    own.findings += found.findings
    place, hub = _begin(found), Pending(lambda: examine_hub(found)) if topology.is_owner else None
    # torch is imported here, while the others wait for disk and network.
    rendezvous = Rendezvous(topology, environ)
    address = rendezvous.find() if topology.world_size > 1 else None
    name, gpu = Pending(lambda: own_address(address)), Pending(lambda: gpus(topology.local_rank, ask=ask_gpus))
    until = max(begin + PLACE_WAIT, time.monotonic() + 1)
    _finish_place(own, found, place, until)
    with suppress(TimeoutError):
        own.address = name.result(until)
    try:
        own.gpu = gpu.result(until)
    except TimeoutError:
        own.gpu = "no answer"
        own.findings.append(Finding("gpu", "problem", "its driver does not answer", "see what nvidia-smi says here"))
    if hub is not None:
        own.findings += _outcome(
            hub, until, "hub", "it does not answer in time: see its address and the proxy settings"
        )
    if topology.world_size == 1:
        return Report(1, [own])
    meet = _Meeting(topology, own, found, rendezvous, address, is_ours=bool(made), wait=wait)
    return meet.lead() if topology.is_owner else meet.join()


def _find_topology(environ: Mapping[str, str]) -> tuple[Topology, Finding]:
    job = SlurmJob.detect(environ)
    try:
        topology = Topology.detect(environ=environ)
    except SettingsError as error:
        return Topology(), Finding("topology", "problem", str(error), "start it by torchrun or srun, or unset these")
    where = f"; SLURM job {job.job}, step {job.step}" if job else ""
    if topology.source == "single":
        advice = "srun ddphub doctor looks at every rank's place" if job else None
        return topology, Finding("topology", "ok", f"one process, in no torchrun and no SLURM step{where}", advice)
    text = f"{topology.world_size} ranks; this is rank {topology.rank}, local rank {topology.local_rank} on node "
    return topology, Finding("topology", "ok", f"{text}{topology.node}: from {topology.source}'s variables{where}")


def _settings(directory: Path | None, environ: Mapping[str, str], until: float) -> Sources:
    try:
        return Pending(lambda: find_settings(directory, environ)).result(until)
    except TimeoutError:
        found = Sources(usable_dir=False)
    # Without the directory; the credentials file may hang as well.
    with suppress(TimeoutError):
        found = Pending(lambda: find_settings(directory, environ, touch=False)).result(until + 1)
    shown = directory or environ.get(VARIABLES["dir"]) or DEFAULT_DIR
    found.findings.append(_hangs(shown))
    return found


def _begin(found: Sources) -> Pending[tuple[str, list[Finding]]] | None:
    settings = found.settings
    if settings is None or not found.usable_dir:
        return None
    return Pending(lambda: examine_place(settings.root, found.dir, settings.staging_budget))


def _finish_place(
    own: RankReport, found: Sources, place: Pending[tuple[str, list[Finding]]] | None, until: float
) -> None:
    if place is None or found.settings is None:
        return
    own.directory = str(found.settings.root)
    try:
        own.lock, findings = place.result(until)
        own.findings += findings
    except TimeoutError:
        found.usable_dir = False
        own.findings.append(_hangs(own.directory))


def _hangs(directory: Path | str) -> Finding:
    return Finding("directory", "problem", f"{directory} does not answer: its file server hangs", ELSEWHERE)


def _outcome(pending: Pending[list[Finding]], until: float, topic: str, advice: str) -> list[Finding]:
    try:
        return pending.result(until)
    except TimeoutError:
        return [Finding(topic, "problem", "no answer in time", advice)]


class _Meeting:
    """One rank's part in the meeting, in a thread: a store whose process is stopped may hold it up for ever."""

    def __init__(
        self,
        topology: Topology,
        own: RankReport,
        found: Sources,
        rendezvous: Rendezvous,
        address: Address | None,
        *,
        is_ours: bool,
        wait: float,
    ) -> None:
        self._topology = topology
        self._own = own
        self._found = found
        self._rendezvous = rendezvous
        self._address = address
        self._is_ours = is_ours
        self._wait = wait
        self._chair: Chair | None = None
        self._store: list[Finding] = []
        self._findings: list[Finding] = []

    def _hub_knows_repeats(self) -> bool:
        hub = self._found.settings.hub if self._found.settings is not None else None
        return hub is None or HubAddress.parse(hub, "settings", {}).service == "ddphub"

    @property
    def _directory(self) -> Path | None:
        return self._found.settings.root if self._found.settings is not None and self._found.usable_dir else None

    def lead(self) -> Report:
        """Rank 0: hears everybody, and reports what it knows when the time is up."""
        until = time.monotonic() + self._wait
        self._hold(Pending(lambda: self._preside(until)), until + LOCKS_WAIT + END_WAIT)
        reports = self._chair.reports if self._chair is not None else [self._own]
        silent = sorted(set(range(self._topology.world_size)) - {report.rank for report in reports})
        findings = [*self._store, *self._findings]
        if silent:
            text = f"{shown_ranks(silent)} did not answer within {self._wait:g} s"
            advice = "see what they print themselves; a longer --wait where programs start slowly"
            findings.append(Finding("ranks", "problem", text, advice))
        else:
            findings.append(Finding("ranks", "ok", f"all {self._topology.world_size} ranks answer"))
        return Report(self._topology.world_size, reports, findings)

    def join(self) -> Report:
        """Another rank: its report is rank 0's to print, unless rank 0 cannot be told."""
        until = time.monotonic() + self._wait + LOCKS_WAIT + END_WAIT
        told = self._hold(Pending(lambda: self._attend(until)), until + 1)
        if not told and not self._store:
            self._store.append(Finding("store", "problem", "rank 0 does not ask: it has ended, or is not there yet"))
        findings = [] if told else self._store
        return Report(self._topology.world_size, [self._own], findings, is_spokesman=not told)

    def _hold(self, meeting: Pending[bool], until: float) -> bool:
        try:
            return meeting.result(until)
        except TimeoutError:
            text = "does not answer in time"
        except RuntimeError as error:  # torch's own, and what it raises for a store without queues
            text = str(error).splitlines()[0][:300]
        self._store.append(unreachable(self._address, text, is_ours=self._is_ours))
        return False

    def _open(self) -> Mailbox | None:
        mailbox = open_mailbox(self._rendezvous)
        if mailbox is None:
            self._store.append(nameless(is_step=False))
        elif self._is_ours and self._topology.is_owner:
            self._store.append(nameless(is_step=True))
        return mailbox

    def _preside(self, until: float) -> bool:
        mailbox = self._open()
        if mailbox is None or self._address is None:
            return False
        self._store.append(try_mailbox(mailbox, explain(self._address, is_ours=self._is_ours)))
        chair = self._chair = Chair(mailbox, self._own, self._topology.world_size)
        chair.gather(until)
        self._findings += chair.compare_clocks()
        if self._directory is not None:
            soon = time.monotonic() + LOCKS_WAIT
            self._findings += chair.try_locks(self._directory, keys=self._hub_knows_repeats(), until=soon)
        chair.dismiss()
        return True

    def _attend(self, until: float) -> bool:
        mailbox = self._open()
        return mailbox is not None and attend(mailbox, self._own, self._directory, until)

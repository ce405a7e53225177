"""Random faults in real jobs against a real hub; afterwards nothing may be lost, doubled or torn."""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from hub_process import HubProcess
from jobs import HubView, Job, ddphub

from chaos.accounting import ENDING, FLUSH_BOUND, TRANSIT_BOUND, Account, Broken, Checkpoint, Metric, account
from chaos.plan import Fault, Plan, make_plan
from chaos.record import ProcessRecord, read_records
from chaos.tcp_proxy import TcpProxy, WireFault

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = "chaos-key-chaos-key-chaos-key-chaos-key-ch"

JOB_PATIENCE = 150.0
"""Seconds after which a start of the job hangs: stops, back-offs and goodbyes of a good one take less than half."""

SYNC_PATIENCE = 180.0

NUMBERS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}


@dataclass
class Outcome:
    """What came of one run."""

    plan: Plan
    account: Account
    faults: Counter[str]
    seconds: float
    folder: Path | None = None
    """Where everything is, when something was found."""
    trouble: list[str] = field(default_factory=list)
    """What hung, failed or could not be checked."""


@dataclass(frozen=True)
class _Hub:
    """What a job is told of its hub."""

    url: str
    key: str


class RandomRun:
    """One planned run in a folder of its own.

    Args:
        plan: what to do.
        folder: an empty folder.

    Attributes:
        compared: what `account` was given.
    """

    compared: tuple[list[ProcessRecord], dict[int, Broken], list[Metric], list[Checkpoint]]

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        self._faults: Counter[str] = Counter()
        self._trouble: list[str] = []
        self._broken: dict[int, Broken] = {}
        self._jobs: list[Job] = []
        self._relays: list[TcpProxy] = []
        self._syncs: list[subprocess.Popen[bytes]] = []
        self._due: list[tuple[float, Callable[[], None]]] = []

    def run(self) -> Outcome:
        """Runs the plan and compares."""
        began = time.monotonic()
        arguments = ("--part-size", self._plan.part_size, "--inline-check-bytes", self._plan.inline_check_bytes)
        found = Account()
        with HubProcess(self._folder / "hub", api_key=KEY, arguments=tuple(map(str, arguments))) as self._hub:
            self._hub_wire = TcpProxy(lambda: self._hub.port, http=True)
            try:
                self._break()
                found = self._compare()
            except Exception:  # noqa: BLE001  # one run's trouble is told with its plan; the others go on
                self._trouble.append(traceback.format_exc())
            finally:
                self._end()
        for wire in (self._hub_wire, *self._relays):
            wire.close()
        self._faults += Counter({f"hub wire {kind}": count for kind, count in self._hub_wire.hits.items()})
        for relay in self._relays:
            self._faults += Counter({f"relay wire {kind}": count for kind, count in relay.hits.items()})
        return Outcome(self._plan, found, self._faults, time.monotonic() - began, self._folder, trouble=self._trouble)

    def _break(self) -> None:
        for index, faults in enumerate(self._plan.starts):
            self._start(index, faults)
            is_last = index == len(self._plan.starts) - 1
            if is_last or not self._plan.overlaps:
                self._wait_for_orphans()
        for kill_after in self._plan.late_syncs:
            sync = self._sync()
            with contextlib.suppress(subprocess.TimeoutExpired):
                sync.wait(kill_after or SYNC_PATIENCE)
            if sync.poll() is None:
                self._faults["late sync kill"] += 1
                sync.kill()
                sync.wait()

    # One start of the job.

    def _start(self, index: int, faults: tuple[Fault, ...]) -> None:
        plan = self._plan
        port_file = self._folder / f"store-port-{index}"
        relay = TcpProxy(lambda: int(port_file.read_text()) if port_file.exists() else None)
        self._relays.append(relay)
        self._broken[index] = Broken(relay=relay.hurt)
        early = [fault for fault in faults if fault.at < 0]
        for fault in early:
            self._wire(fault).set(WireFault(fault.kind, fault.amount, fault.times))
        names = ("steps", "epochs", "pause", "style", "writer", "size", "ending")
        given = {name: getattr(plan, name) for name in names}
        if plan.run_id:
            given["run_id"] = plan.run_id
        if plan.raises:
            given["raises"] = plan.raises
        # Safe path: the program's own folder, where it would find itself as `chaos`, is not searched.
        search = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(Path(__file__).parents[1])])
        job = Job(
            self._folder,
            "chaos.py",
            hub=_Hub(self._hub_wire.url, KEY),
            ranks=plan.ranks,
            launcher=("--standalone", f"--max-restarts={plan.max_restarts}"),
            environment={"PYTHONPATH": search, "PYTHONSAFEPATH": "1", "NO_PROXY": "127.0.0.1"},
            launch=index,
            relay_port=relay.port,
            finish_timeout=plan.finish_timeout,
            **given,
        )
        self._jobs.append(job)
        patience = time.monotonic() + JOB_PATIENCE
        begun: float | None = None
        while job.process.poll() is None:
            if begun is None:
                begun = next((one.begun for one in self._records(index) if one.begun is not None), None)
                if begun is not None:
                    for fault in early:
                        self._due.append((begun + fault.at + fault.duration, lambda f=fault: self._wire(f).set(None)))
                    for fault in faults:
                        if fault.at >= 0:
                            self._due.append((begun + fault.at, lambda f=fault: self._inject(index, job, f)))
            self._do_what_is_due()
            if time.monotonic() > patience:
                self._trouble.append(f"start {index} of the job hangs:\n{job.text[-3000:]}")
                job.end()
                break
            time.sleep(0.02)
        self._undo_all()

    def _inject(self, index: int, job: Job, fault: Fault) -> None:
        end = time.monotonic() + fault.duration
        match fault.target:
            case "hub-wire" | "relay-wire":
                wire = self._wire(fault)
                wire.set(WireFault(fault.kind, fault.amount, fault.times))
                self._due.append((end, lambda: wire.set(None)))
            case "rank":
                self._signal_rank(index, fault, end)
            case "agent":
                began = time.monotonic()
                self._send("agent", job.process.pid, fault, end)
                if fault.kind != "term":
                    self._broken[index].agent.append((began, end + 1.0 if fault.kind == "stop" else float("inf")))
            case "hub":
                self._faults[f"hub {fault.kind}"] += 1
                if fault.kind == "kill":
                    self._hub.kill()
                    self._due.append((end, self._hub.start))
                else:
                    os.kill(self._hub.pid, signal.SIGSTOP)
                    self._due.append((end, lambda: os.kill(self._hub.pid, signal.SIGCONT)))
            case "sync":
                sync = self._sync()
                self._faults["sync beside the job"] += 1
                if fault.kind != "none":
                    at = time.monotonic() + fault.amount
                    self._due.append((at, lambda: self._send("sync", sync.pid, fault, at + fault.duration)))

    def _signal_rank(self, index: int, fault: Fault, end: float) -> None:
        living = [one for one in self._records(index) if one.rank == fault.rank and self._lives(one)]
        if not living:
            self._faults["(too late for its process)"] += 1
            return
        name = "rank 0" if fault.rank == 0 else "rank"
        record = living[-1]
        if self._send(name, record.pid, fault, end) and fault.kind == "kill":
            self._broken[index].killed[record.name] = time.monotonic()

    def _send(self, name: str, pid: int, fault: Fault, end: float) -> bool:
        """Sends a signal to a process that this run started and that lives."""
        sent = False
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                process.send_signal(NUMBERS[fault.kind])
                sent = True
        if not sent:
            self._faults["(too late for its process)"] += 1
            return False
        self._faults[f"{name} {fault.kind}"] += 1
        if fault.kind == "stop":
            self._due.append((end, lambda: _continue(process)))
        return True

    def _wire(self, fault: Fault) -> TcpProxy:
        return self._hub_wire if fault.target == "hub-wire" else self._relays[-1]

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        due = sorted((one for one in self._due if one[0] <= now), key=lambda one: one[0])
        self._due = [one for one in self._due if one[0] > now]
        for _, action in due:
            action()

    def _undo_all(self) -> None:
        """Waits for what is to be undone: stopped processes go on, the hub is back, wires are clean."""
        until = time.monotonic() + 30
        while self._due and time.monotonic() < until:
            self._do_what_is_due()
            time.sleep(0.02)
        for relay in self._relays:
            relay.set(None)

    # Processes.

    def _records(self, index: int) -> list[ProcessRecord]:
        return [one for one in read_records(self._folder / "records") if one.start == index]

    def _lives(self, record: ProcessRecord) -> bool:
        try:
            process = psutil.Process(record.pid)
            return str(self._folder) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def _wait_for_orphans(self) -> None:
        """Ranks may outlive a killed agent; they end by themselves."""
        until = time.monotonic() + JOB_PATIENCE
        while living := [one for one in read_records(self._folder / "records") if self._lives(one)]:
            if time.monotonic() > until:
                self._trouble.append(f"processes hang: {[one.name for one in living]}\n{self._jobs[-1].text[-3000:]}")
                return
            time.sleep(0.1)

    def _sync(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "DDPHUB_URL": self._hub_wire.url, "DDPHUB_API_KEY": KEY}
        with (self._folder / "sync.log").open("ab") as log:
            command = [sys.executable, "-c", "from ddphub.cli import main; main()", "sync", str(self._folder / "runs")]
            self._syncs.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
        return self._syncs[-1]

    def _end(self) -> None:
        for sync in self._syncs:
            if sync.poll() is None:
                sync.kill()
                sync.wait()
        for job in self._jobs:
            job.end()

    # The comparison.

    def _compare(self) -> Account:
        for sync in self._syncs:
            try:
                sync.wait(SYNC_PATIENCE)
            except subprocess.TimeoutExpired:
                self._trouble.append("a `ddphub sync` beside the job hangs")
        self._hub_wire.set(None)
        runs = self._folder / "runs"
        if any(runs.glob("*/run.json")):
            hub = {"DDPHUB_URL": self._hub_wire.url, "DDPHUB_API_KEY": KEY}
            done = ddphub("sync", str(runs), environment=hub, check=False, timeout=SYNC_PATIENCE)
            if done.returncode:
                self._trouble.append(f"the last sync ended with {done.returncode}: {done.stdout}{done.stderr}")
        metrics, checkpoints = read_hub(self._hub)
        self.compared = (read_records(self._folder / "records"), self._broken, metrics, checkpoints)
        found = account(*self.compared)
        if not any(record.begun for record in self.compared[0]):
            self._trouble.append(f"no rank ever began:\n{self._jobs[0].text[-3000:]}")
        return found


def read_hub(hub: HubProcess) -> tuple[list[Metric], list[Checkpoint]]:
    """Every metric record and every checkpoint, with its downloaded bytes' sums, of every model."""
    view = HubView(hub)
    metrics, checkpoints = [], []
    with hub.client() as client:
        for model in view.models():
            metrics += [Metric(model, one["rank"], one["step"], one["values"]) for one in view.metrics(model)]
            for one in view.checkpoints(model):
                files = []
                for file in one["files"]:
                    url = f"{hub.url}/v1/models/{model}/checkpoints/{one['id']}/files/{file['name']}"
                    answer = client.get(url, timeout=30)
                    answer.raise_for_status()
                    files.append((file["name"], hashlib.sha256(answer.content).hexdigest()))
                checkpoints.append(Checkpoint(model, one["id"], one["kind"], one["epoch"], tuple(sorted(files))))
    return metrics, checkpoints


def _continue(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGCONT)


def run_one(seed: int, number: int) -> Outcome:
    """One run; its folder is gone when all was well."""
    plan = make_plan(seed, number)
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-{number}-"))
    (folder / "plan.txt").write_text(plan.text() + "\n")
    outcome = RandomRun(plan, folder).run()
    if not outcome.trouble and not outcome.account.findings:
        shutil.rmtree(folder)
        outcome.folder = None
    return outcome


def main(runs: int, seed: int, at_once: int, first: int = 0) -> int:
    """Runs number `first` to `first + runs - 1` of a seed; the exit code."""
    total, faults, bad = Account(), Counter(), []
    began = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        waiting = [pool.submit(run_one, seed, number) for number in range(first, first + runs)]
        try:
            for future in as_completed(waiting):
                outcome = future.result()
                total.add(outcome.account)
                faults += outcome.faults
                bad += [outcome] if outcome.folder else []
                _tell(outcome)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # those under way end their processes themselves
            raise
    _summarise(total, faults, bad, runs, time.monotonic() - began)
    return 1 if bad or total.lost or total.doubled or total.torn else 0


def _tell(outcome: Outcome) -> None:
    plan, found = outcome.plan, outcome.account
    excused = "".join(f", {count} {why}" for why, count in found.excused.items())
    print(
        f"run {plan.number}: {outcome.seconds:.1f} s, {plan.ranks} ranks, {len(plan.starts)} starts, "
        f"{found.events_delivered} of {found.events} events{excused}, {found.saves_delivered} of {found.saves} saves, "
        f"{sum(outcome.faults.values())} faults, {'FOUND SOMETHING' if outcome.folder else 'good'}",
        flush=True,
    )
    if outcome.folder:
        print(f"  again: scripts/chaos --seed {plan.seed} --first {plan.number} --runs 1\n  kept: {outcome.folder}")
        print("  " + "\n  ".join([*plan.text().splitlines(), *found.findings[:20], *outcome.trouble]), flush=True)


def _summarise(total: Account, faults: Counter[str], bad: list[Outcome], runs: int, seconds: float) -> None:
    print(f"\n{runs} runs in {seconds:.0f} s; faults injected:")
    for kind, count in sorted(faults.items()):
        print(f"  {kind:<28} {count:>6}")
    print(f"events       {total.events} generated, {total.events_delivered} delivered")
    print(f"checkpoints  {total.saves} saved, {total.saves_delivered} delivered", end="; ")
    print(f"{total.unfinished_saves} saves did not return, {total.refused} were refused with reason")
    bounds = {
        "not flushed": (f"when killed, bound {FLUSH_BOUND:g} s"),
        "in transit": (f"when killed, bound {TRANSIT_BOUND:g} s"),
        "never answered": "when killed, bound 4 MiB",
        "while ending": f"by SIGTERM, bound {ENDING:g} s",
    }
    for why, bound in bounds.items():
        longest = total.longest.get(why, 0.0)
        print(f"  {why} {bound}: {total.excused[why]} events, the oldest {longest:.2f} s before the end")
    print(f"lost {total.lost}, doubled {total.doubled}, torn {total.torn}; {len(bad)} runs with findings or trouble")

"""What must hold after a crash and a recovery: lost 0, doubled 0, torn 0, and nothing half-done on disk.

What was generated is known from the scenario's own record, which no code of ddphub writes or reads.
"""

import contextlib
import hashlib
import io
import json
import os
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import requests
from jobs import HubView

from chaos.every_step_calls import RECORD
from ddphub.checkpoints.layout import Layout
from ddphub.checkpoints.staging import StagingArea
from ddphub.cli import app
from ddphub.distributed.collector import PROCESS_STRIDE
from ddphub.session.folder import RunFolder
from ddphub.session.journal import read_journal
from ddphub.session.sync import find_runs


@dataclass(frozen=True)
class HubAddress:
    """A hub, as `HubView` wants one."""

    url: str
    key: str

    def client(self) -> requests.Session:
        session = requests.Session()
        session.trust_env = False
        session.headers["x-api-key"] = self.key
        return session


@dataclass(frozen=True)
class Place:
    """Where one crash point happens.

    Attributes:
        folder: of its own.
        hub: where the run reports to.
        run_id: of its own, and the project's name: one hub serves many points.
        store: port of a TCPStore that no process of the scenario serves.
    """

    folder: Path
    hub: HubAddress
    run_id: str
    store: int = 0

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def run(self) -> RunFolder:
        """The run's directory, where the scenario names the run."""
        return RunFolder(self.runs / self.run_id)

    @property
    def record(self) -> Path:
        return self.folder / "record"

    def enter(self) -> None:
        """In a new process: what it needs to write its record and to find the hub."""
        record = os.open(self.record, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(record, RECORD)
        os.close(record)
        os.environ.update(DDPHUB_URL=self.hub.url, DDPHUB_API_KEY=self.hub.key, DDPHUB_DIR=str(self.runs))

    @staticmethod
    def note(what: str, **about: Any) -> None:
        """Write down what was generated, or what a call promised by returning."""
        os.write(RECORD, json.dumps({"what": what, **about}).encode() + b"\n")

    def noted(self, what: str) -> list[dict[str, Any]]:
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        return [line for line in map(json.loads, lines) if line["what"] == what]


def value_of(rank: int, step: int) -> float:
    """The metric that rank logs at step."""
    return step * 1.5 + rank


def digest(path: Path) -> dict[str, str]:
    """File name -> sha256 of a file, or of a folder's files."""
    files = [path] if path.is_file() else [one for one in sorted(path.rglob("*")) if one.is_file()]
    top = path.parent if path.is_file() else path
    return {one.relative_to(top).as_posix(): hashlib.sha256(one.read_bytes()).hexdigest() for one in files}


@dataclass(frozen=True)
class CommandResult:
    """What a command said."""

    code: int
    out: str
    err: str


def command(*arguments: str) -> CommandResult:
    """Runs `ddphub` in this process; what it does not catch itself reaches the caller."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            app(arguments, standalone_mode=True)
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 1
    return CommandResult(code, out.getvalue(), err.getvalue())


class Account:
    """What the hub has of one point."""

    def __init__(self, place: Place) -> None:
        self._view = HubView(place.hub)
        self._hub = place.hub
        found = self._view.get("/v1/models", project=place.run_id)["results"]
        self.models = [model["id"] for model in found]
        self.run_ids = [model["run_id"] for model in found]

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        return [record for model in self.models for record in self._view.metrics(model)]

    @cached_property
    def others(self) -> list[dict[str, Any]]:
        return [record for model in self.models for record in self._view.get(f"/v1/models/{model}/events")]

    @cached_property
    def checkpoints(self) -> list[dict[str, Any]]:
        """Each with the sha256 of the bytes that the hub hands out."""
        found = []
        for model in self.models:
            for one in self._view.checkpoints(model):
                read = {file["name"]: self._sha256(model, one["id"], file["name"]) for file in one["files"]}
                found.append({**one, "read": read})
        return found

    def _sha256(self, model: str, checkpoint: str, name: str) -> str:
        url = f"{self._hub.url}/v1/models/{model}/checkpoints/{checkpoint}/files/{name}"
        with self._hub.client() as client:
            answer = client.get(url, timeout=30)
            answer.raise_for_status()
            return hashlib.sha256(answer.content).hexdigest()


def check_events(place: Place, account: Account, *, refused: frozenset[int] = frozenset()) -> None:
    """Every rank's steps are there once, without a gap, at least up to what was promised.

    Args:
        place: the point.
        account: the hub's.
        refused: numbers of the events of rank 0 that the hub does not take.
    """
    assert len(account.run_ids) == len(set(account.run_ids)), f"doubled runs: {account.run_ids}"
    logged = {(one["rank"], one["step"]) for one in place.noted("logging")}
    kept = Counter((record["rank"], record["step"]) for record in account.metrics)
    doubled = [key for key, count in kept.items() if count > 1]
    assert not doubled, f"doubled events: {doubled}"
    assert not kept.keys() - logged, f"events that nobody logged: {sorted(kept.keys() - logged)}"
    for record in account.metrics:
        expected = {"value": value_of(record["rank"], record["step"])}
        assert record["values"] == expected, f"torn event: {record}"
    promised = {(one["rank"], step) for one in place.noted("durable") for step in one["steps"]}
    promised |= {key for key in logged if {"what": "finished", "rank": key[0]} in place.noted("finished")}
    assert not promised - kept.keys(), f"lost events: {sorted(promised - kept.keys())}"
    for rank in {key[0] for key in kept}:
        steps = sorted(step for other, step in logged if other == rank)
        got = sorted(step for other, step in kept if other == rank)
        assert got == steps[: len(got)], f"rank {rank} has a gap: {got} of {steps}"
    streams = defaultdict(list)
    for record in [*account.metrics, *account.others]:
        streams[record["attempt_id"], record["rank"]].append(record["seq"])
    for (_, rank), seqs in streams.items():
        assert len(seqs) == len(set(seqs)), f"doubled numbers of rank {rank}: {sorted(seqs)}"
        for process in {seq // PROCESS_STRIDE for seq in seqs}:
            own = sorted(seq % PROCESS_STRIDE for seq in seqs if seq // PROCESS_STRIDE == process)
            whole = [seq for seq in range(own[-1] + 1) if rank or seq not in refused]
            assert own == whole, f"lost numbers of rank {rank}: {own}"


def check_checkpoints(place: Place, account: Account) -> None:
    """Every promised checkpoint is there once, with the bytes that were saved; no other."""

    def key(one: dict[str, Any]) -> tuple[Any, ...]:
        return one["kind"], one["epoch"], one["name"]

    saving = {key(one): one["files"] for one in place.noted("saving")}
    saved = {key(one): one["entry_id"] for one in place.noted("saved")}
    kept = Counter(map(key, account.checkpoints))
    assert not (doubled := [one for one, count in kept.items() if count > 1]), f"doubled checkpoints: {doubled}"
    assert not (lost := saved.keys() - kept.keys()), f"lost checkpoints: {sorted(map(str, lost))}"
    for one in account.checkpoints:
        assert one["read"] == saving.get(key(one)), f"torn checkpoint: {one}"
        assert saved.get(key(one)) in {None, one["entry_id"]}, f"another entry: {one}"


def check_staging(folder: Path, left: int = 0) -> None:
    """Nothing but whole entries and slots."""
    area, layout = StagingArea(folder), Layout(folder)
    assert len(area.entries()) == left, f"left staged: {[entry.slot.name for entry in area.entries()]}"
    assert not area.broken()
    arrivals = sorted(path.name for path in layout.arrivals.glob("*"))
    assert not arrivals, f"left in incoming: {arrivals}"
    for slot in layout.slots.glob("*"):
        assert slot.suffix == ".json", f"left in slots: {slot.name}"
        assert json.loads(slot.read_text())["entry_id"]


def check_disk(place: Place, account: Account, *, left: int = 0, aside: int = 0) -> None:
    """Run directories hold nothing half-done, and say the same as the hub.

    Args:
        place: the point.
        account: the hub's.
        left: entries that the hub does not take.
        aside: events that it does not take.
    """
    events = uploaded = 0
    receipts = set()
    for folder in find_runs(place.runs):
        halves = [str(path.relative_to(place.runs)) for path in folder.path.rglob("*") if _is_half(path)]
        assert not halves, f"half-done files left on disk: {halves}"
        check_staging(folder.staging, left)
        status = command("status", str(folder.path), "--json")
        assert status.code == 0, status.err
        report = json.loads(status.out)
        assert report["events"]["pending"] == report["checkpoints"]["pending"] == 0, report
        assert report["events"]["set_aside"] == aside, report
        assert report["checkpoints"]["set_aside"] == left, report
        events += report["events"]["reported"] - aside
        uploaded += report["checkpoints"]["uploaded"]
        receipts |= read_journal(folder.journal).receipts.keys()
    told = len(account.metrics) + len(account.others)
    assert events == told, f"{events} events reported, the hub has {told}"
    assert receipts == {one["entry_id"] for one in account.checkpoints}, "receipts and the hub's checkpoints differ"
    assert uploaded == len(account.checkpoints)
    for folder in place.runs.glob("*"):
        # A process that dies before it has written run.json, or after it has handed a run over, leaves an empty frame.
        held = [path.name for path in folder.rglob("*") if path.suffix == ".jsonl" or path.name == "checkpoint.json"]
        assert (folder / "run.json").exists() or not held, f"no run, but files, in {folder.name}: {held}"


def _is_half(path: Path) -> bool:
    return path.is_file() and (path.name.startswith(".") or path.suffix in {".tmp", ".new"})

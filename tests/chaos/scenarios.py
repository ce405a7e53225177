"""What `every_step` runs and kills: each process of the design, in as few calls as show all that it does.

A scenario's `act` runs in the process that is killed. It writes down what it generates before it does, and what was
promised after the promise was made; `every_step_checks` compares that with the hub and the disk.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import socket
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import requests
from torch.distributed import TCPStore

import ddphub
import ddphub.run
from chaos.every_step_calls import die_with_parent
from chaos.every_step_checks import (
    Account,
    HubAddress,
    Place,
    check_checkpoints,
    check_disk,
    check_events,
    check_staging,
    command,
    digest,
    value_of,
)
from ddphub.checkpoints.staging import Slot, StagingArea
from ddphub.distributed import collector, relay
from ddphub.distributed.courier import Answer
from ddphub.errors import HubUnavailable
from ddphub.events import to_json
from ddphub.hubs.client import Receipt, Registration
from ddphub.hubs.ddphub import DdphubClient
from ddphub.hubs.wire import PartUrl
from ddphub.server import ServerSettings
from ddphub.server import serve as serve_hub
from ddphub.server.commits import Commits
from ddphub.server.storage.interface import Prepared
from ddphub.server.storage.local import LocalStorage
from ddphub.session import loop
from ddphub.session.delivery import Delivery, _manifest
from ddphub.session.folder import RunInfo
from ddphub.session.journal import Journal
from ddphub.session.lines import LineWriter
from ddphub.session.spool import OwnSpool, StraySpool

PART_SIZE = 4096
TERMINATED = 0
"""Exit code of a hub that was asked to end."""

FIRST, SECOND, NONCE = "a" * 32, "b" * 32, "c" * 32
"""Attempts, and the name of a process that was not answered."""

Step = Callable[[Place], None]


@dataclass(frozen=True)
class Scenario:
    """One process, what it does, and what must hold.

    Attributes:
        process: which process of the design is killed.
        about: what it does meanwhile.
        prepare: makes what it finds.
        act: what it does.
        recover: what a new process does after it.
        check: raises AssertionError.
        companions: what other processes do at the same time; they must succeed.
        exit_code: of `act` when it is left alone.
        is_hub: the killed process serves; the one companion is its client.
    """

    process: str
    about: str
    prepare: Step
    act: Step
    recover: Step
    check: Step
    companions: tuple[Step, ...] = ()
    exit_code: int = 0
    is_hub: bool = False


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def some_bytes(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def write_files(place: Place) -> None:
    """What a trainer has written before it saves: a file of several parts, and a folder."""
    (place.folder / "last.pt").write_bytes(some_bytes(1, 2 * PART_SIZE + 100))
    (place.folder / "sharded/deep").mkdir(parents=True)
    (place.folder / "sharded/0").write_bytes(some_bytes(2, PART_SIZE))
    (place.folder / "sharded/deep/1").write_bytes(some_bytes(3, 10))


# A training process ---------------------------------------------------------------------------------------------------


def start(place: Place, **settings: Any) -> ddphub.Run:
    limits = {"ckpt": 0, "metrics": 0.25}
    return ddphub.init(project=place.run_id, name="train", rate_limits=limits, finish_timeout=20, **settings)


def log(run: ddphub.Run, place: Place, rank: int, steps: Iterable[int]) -> None:
    for step in steps:
        place.note("logging", rank=rank, step=step)
        run.log({"value": value_of(rank, step)}, step=step)


def flush(run: ddphub.Run, place: Place, rank: int, steps: Iterable[int]) -> None:
    """What half a second does: the events are in the spool."""
    if run._outbox.flush(5):
        place.note("durable", rank=rank, steps=list(steps))


def save(run: ddphub.Run, place: Place, path: Path, **options: Any) -> None:
    about = {"kind": options.get("kind", "epoch"), "epoch": options.get("epoch"), "name": path.name}
    place.note("saving", **about, files=digest(path))
    entry_id = run.save_checkpoint(path, **options)
    if entry_id is not None:
        place.note("saved", **about, entry_id=entry_id)


def train(place: Place) -> None:
    run = start(place, run_id=place.run_id)
    log(run, place, 0, range(3))
    flush(run, place, 0, range(3))
    save(run, place, place.folder / "last.pt", epoch=0)
    content = some_bytes(4, PART_SIZE + 1)
    about = {"kind": "epoch", "epoch": 1, "name": "block.pt"}
    place.note("saving", **about, files={"block.pt": hashlib.sha256(content).hexdigest()})
    with run.checkpoint(epoch=1, name="block.pt") as path:
        path.write_bytes(content)
    place.note("saved", **about, entry_id=None)
    log(run, place, 0, range(3, 5))
    save(run, place, place.folder / "sharded", kind="final")
    run.finish()
    place.note("finished", rank=0)


def age(place: Place) -> None:
    """Nobody comes at once: what is younger than a moment may belong to a process that lives."""
    then = time.time() - 2 * 3600
    for path in place.runs.rglob("*"):
        os.utime(path, (then, then))


def sync(place: Place) -> None:
    """A new process delivers what is left; `status` can always be asked."""
    age(place)
    is_run = any(place.runs.glob("*/run.json"))
    assert command("status", str(place.runs)).code == (0 if is_run else 1)
    done = command("sync", str(place.runs))
    assert done.code == (0 if is_run else 1), done.out + done.err


def check_all(place: Place) -> None:
    account = Account(place)
    check_events(place, account)
    check_checkpoints(place, account)
    check_disk(place, account)


# A restart ------------------------------------------------------------------------------------------------------------


def leave_a_dead_attempt(place: Place) -> None:
    """Spool with half a line at its end, an entry, and a claim, all of a process that was killed."""
    write_files(place)
    place.runs.mkdir()
    place.run.create()
    about = RunInfo(place.run_id, place.run_id, "train", place.hub.url, attempts=[FIRST])
    about.save(place.run.run_json)
    writer = LineWriter(place.run.relay_file(FIRST))
    writer.append([batch(place, FIRST, 0, range(3))])
    writer.close()
    with place.run.relay_file(FIRST).open("a") as file:
        file.write('0123abcd {"attempt_id":')
    place.note("durable", rank=0, steps=[0, 1, 2])
    stage(place, Slot(FIRST, "epoch", 7, None, "last.pt"), place.folder / "last.pt")
    leave_a_claim(place, Slot(FIRST, "epoch", 8, None, "last.pt"))


def leave_a_claim(place: Place, slot: Slot) -> None:
    child = os.fork()
    if child == 0:
        with StagingArea(place.run.staging).write(slot, {}) as pending:
            pending.path.write_bytes(b"unfinished")
            os._exit(0)
    os.waitpid(child, 0)


def train_again(place: Place) -> None:
    run = start(place, run_id=place.run_id)
    log(run, place, 0, range(3, 5))
    save(run, place, place.folder / "last.pt", epoch=0)
    run.finish()
    place.note("finished", rank=0)


# Staging alone --------------------------------------------------------------------------------------------------------

SLOTS = (Slot(FIRST, "epoch", 0, None, "last.pt"), Slot(FIRST, "epoch", 1, None, "sharded"))


def stage(place: Place, slot: Slot, source: Path) -> str:
    area = StagingArea(place.run.staging, budget=10**6)
    about = {"kind": slot.kind, "epoch": slot.epoch, "name": slot.name}
    place.note("saving", **about, files=digest(source))
    staged = area.stage(slot, source, {"loss": 0.5})
    place.note("saved", **about, entry_id=staged.entry_id)
    return staged.entry_id


def prepare_staging(place: Place) -> None:
    write_files(place)
    leave_a_claim(place, Slot(FIRST, "epoch", 8, None, "last.pt"))


def stage_and_remove(place: Place) -> None:
    area = StagingArea(place.run.staging, budget=10**6)
    first = stage(place, SLOTS[0], place.folder / "last.pt")
    about = {"kind": "epoch", "epoch": 1, "name": "sharded"}
    place.note("saving", **about, files=digest(place.folder / "sharded"))
    with area.write(SLOTS[1], {}) as pending:
        shutil.copytree(place.folder / "sharded", pending.path)
    place.note("saved", **about, entry_id=pending.entry_id)
    for entry in area.entries():
        area.seal(entry, PART_SIZE)
    area.recover()
    place.note("removing", entry_id=first)
    area.remove(first)
    place.note("removed", entry_id=first)


def stage_again(place: Place) -> None:
    """What was saved is whole; every slot can be staged, and is then there once, unless it was removed."""
    area = StagingArea(place.run.staging, budget=10**6)
    area.recover()
    saved = {one["entry_id"] for one in place.noted("saved")}
    saving = {(one["epoch"], one["name"]): one["files"] for one in place.noted("saving")}
    removing, removed = ({one["entry_id"] for one in place.noted(what)} for what in ("removing", "removed"))
    entries = {entry.entry_id: entry for entry in area.entries()}
    assert not (lost := saved - removing - entries.keys()), f"lost: {lost}"
    assert not removed & entries.keys(), "removed, and still there"
    for entry in entries.values():
        files = digest(entry.folder / "files")
        assert files == saving[entry.slot.epoch, entry.slot.name], f"torn: {entry}"
        area.seal(entry, PART_SIZE)
    for slot, source in zip(SLOTS, (place.folder / "last.pt", place.folder / "sharded"), strict=True):
        staged = area.stage(slot, source, {})
        known = [entry for entry in entries.values() if entry.slot == slot]
        is_gone = staged.entry_id in removing
        assert staged.new is (not known and not is_gone), f"doubled or refused: {staged}"
        assert (staged.entry is None) is (is_gone and not known)
        area.remove(staged.entry_id)
        again = area.stage(slot, source, {})
        assert (again.entry_id, again.entry, again.new) == (staged.entry_id, None, False)


def check_empty(place: Place) -> None:
    check_staging(place.run.staging)


# Spools alone ---------------------------------------------------------------------------------------------------------


def batch(place: Place, stream_id: str, rank: int, steps: Iterable[int]) -> str:
    texts = []
    for step in steps:
        place.note("logging", rank=rank, step=step)
        event = {"time": 1e9 + step, "kind": "metrics", "step": step, "epoch": None}
        texts.append(to_json({**event, "values": {"value": value_of(rank, step)}}))
    return relay.pack(stream_id, rank, next(iter(steps)), texts).text


def about_run(place: Place, run_id: str, *attempts: str) -> RunInfo:
    return RunInfo(run_id, place.run_id, "train", place.hub.url, attempts=list(attempts))


def make_runs(place: Place) -> None:
    place.runs.mkdir()


def make_run(place: Place) -> None:
    make_runs(place)
    place.run.create()
    about_run(place, place.run_id, FIRST).save(place.run.run_json)


def spool_own(place: Place) -> None:
    """Rank 0's own events; the batches' numbers are the spool's."""
    place.run.create()
    about_run(place, place.run_id, FIRST).save(place.run.run_json)
    spool = OwnSpool(FIRST, LineWriter(place.run.relay_file(FIRST)))
    for first in (0, 3, 6):
        events = []
        for step in range(first, first + 3):
            place.note("logging", rank=0, step=step)
            event = {"time": 1e9 + step, "kind": "metrics", "step": step, "epoch": None}
            events.append(to_json({**event, "values": {"value": value_of(0, step)}}))
        spool.carry(events)
        place.note("durable", rank=0, steps=list(range(first + 3)))


def spool_stray(place: Place) -> None:
    """A rank that is not answered, then answered, then cut off."""
    answer = Answer(place.run_id, FIRST, place.run.path)
    stray = StraySpool(1, place.runs, lambda stream_id: about_run(place, f"unanswered-{stream_id}"))
    for first in (0, 3):
        stray.write(None, NONCE, [batch(place, NONCE, 1, range(first, first + 3))])
        place.note("durable", rank=1, steps=list(range(first + 3)))
    stray.adopt(answer, NONCE)
    texts = [relay.pack(FIRST, 1, 0, [one_event(place, 1, step) for step in (6, 7)]).text]
    stray.write(answer, FIRST, texts)
    place.note("durable", rank=1, steps=list(range(8)))


def one_event(place: Place, rank: int, step: int) -> str:
    place.note("logging", rank=rank, step=step)
    event = {"time": 1e9 + step, "kind": "metrics", "step": step, "epoch": None}
    return to_json({**event, "values": {"value": value_of(rank, step)}})


# Two ranks ------------------------------------------------------------------------------------------------------------


def serve_store(place: Place) -> None:
    """The job's store in a process of its own, as torchrun's agent has it."""
    store = TCPStore("127.0.0.1", place.store, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    while True:
        time.sleep(3600)
        store.num_keys()


def join(place: Place, rank: int) -> ddphub.Run:
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(place.store),
        TORCHELASTIC_USE_AGENT_STORE="True",
        TORCHELASTIC_RUN_ID=place.run_id,
    )
    # How long a dead peer is waited for; a point in which someone waits would take as long.
    ddphub.run.OTHER_RANK_BUDGET = ddphub.run.ANSWER_WAIT = collector.HELLO_GRACE = 1.0
    return start(place, rank=rank, world_size=2, mode="offline")


def lead(place: Place) -> None:
    run = join(place, 0)
    log(run, place, 0, range(3))
    flush(run, place, 0, range(3))
    log(run, place, 0, range(3, 5))
    run.finish()
    place.note("finished", rank=0)


def follow(place: Place) -> None:
    run = join(place, 1)
    log(run, place, 1, range(3))
    run._outbox.flush(5)
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        if run._courier.answer is not None and run._courier.unspilled == 0:
            place.note("durable", rank=1, steps=[0, 1, 2])
            break
        time.sleep(0.02)
    save(run, place, place.folder / "last.pt", epoch=0, writer=1)
    log(run, place, 1, range(3, 6))
    run.finish()
    place.note("finished", rank=1)


# Delivery -------------------------------------------------------------------------------------------------------------

REFUSED = 1


def prepare_delivery(place: Place) -> None:
    """Three streams and one event twice, five entries; an event and an entry that no hub takes, and one superseded."""
    prepare_small_delivery(place)
    run = place.run
    strays = LineWriter(run.rank_file(NONCE, 1))
    strays.append([batch(place, NONCE, 1, range(4))])
    twice = batch(place, FIRST, 2, range(3))
    LineWriter(run.relay_file(FIRST)).append([twice])
    LineWriter(run.rank_file(FIRST, 2)).append([twice])
    for rank in (1, 2):
        place.note("finished", rank=rank)
    refused = relay.pack(FIRST, 0, 6, [one_event(place, 0, 6), '{"time":1,"kind":""}', one_event(place, 0, 7)])
    LineWriter(run.relay_file(FIRST)).append([refused.text])
    stage(place, Slot(FIRST, "best", 1, None, "last.pt"), place.folder / "last.pt")
    stage(place, Slot(FIRST, "final", None, None, "last.pt"), place.folder / "last.pt")
    area = StagingArea(run.staging)
    area.stage(Slot(FIRST, "odd", 1, None, "last.pt"), place.folder / "last.pt", {})
    dropped = area.stage(Slot(FIRST, "epoch", 9, None, "last.pt"), place.folder / "last.pt", {}).entry_id
    Journal(run.journal).append({"record": "superseded", "entry_id": dropped, "reason": "the byte budget"})


def prepare_small_delivery(place: Place) -> None:
    write_files(place)
    make_run(place)
    place.note("finished", rank=0)
    writer = LineWriter(place.run.relay_file(FIRST))
    writer.append([batch(place, FIRST, 0, range(3)), batch(place, FIRST, 0, range(3, 6))])
    stage(place, Slot(FIRST, "epoch", 0, None, "last.pt"), place.folder / "last.pt")
    stage(place, Slot(FIRST, "epoch", 1, None, "sharded"), place.folder / "sharded")


def deliver(place: Place) -> None:
    done = command("sync", str(place.runs))
    print(done.out, done.err)
    raise SystemExit(done.code)


def deliver_again(place: Place) -> None:
    """Exit code 1 because of what the hub does not take."""
    age(place)
    assert command("status", str(place.runs)).code == 0
    done = command("sync", str(place.runs))
    assert done.code == 1, done.out + done.err


def check_delivered(place: Place) -> None:
    account = Account(place)
    check_events(place, account, refused=frozenset({7}))
    check_checkpoints(place, account)
    check_disk(place, account, left=1, aside=1)


def prepare_delivered(place: Place) -> None:
    prepare_small_delivery(place)
    sync(place)


def prune(place: Place) -> None:
    done = command("sync", str(place.runs), "--keep", "0")
    print(done.out, done.err)
    raise SystemExit(done.code)


def prune_again(place: Place) -> None:
    """What was begun is brought to its end, and nothing is forgotten that was delivered."""
    sync(place)
    done = command("sync", str(place.runs), "--keep", "0")
    assert done.code == 0, done.out + done.err
    assert not place.run.spool_files()


# The hub --------------------------------------------------------------------------------------------------------------


def serve(place: Place) -> None:
    port = int(place.hub.url.rpartition(":")[2])
    serve_hub(ServerSettings(data=place.folder / "hub", port=port, api_key=place.hub.key, part_size=PART_SIZE))


def wait_for_hub(hub: HubAddress) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            requests.get(f"{hub.url}/healthz", timeout=5).raise_for_status()
            return
        except requests.RequestException:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def deliver_with_patience(place: Place) -> None:
    """`ddphub sync`, again and again as a person would; pauses are short, for the sake of those who wait."""
    loop.FIRST_PAUSE = 0.05
    for _ in range(20):
        done = command("sync", str(place.runs))
        if done.code == 0:
            return
        time.sleep(0.1)
    raise AssertionError(done.out + done.err)


def leave_a_dead_hub(place: Place) -> None:
    """A hub that was killed before: one run delivered, another's checkpoint half there, and halves of everything."""
    template = place.folder.parent / "dead-hub"
    if not template.exists():
        _make_dead_hub(place)
        place.folder.rename(template)
        place.folder.mkdir()
    shutil.copytree(template, place.folder, dirs_exist_ok=True)


def _make_dead_hub(place: Place) -> None:
    prepare_small_delivery(place)
    child = os.fork()
    if child == 0:
        die_with_parent()
        serve(place)
    wait_for_hub(place.hub)
    client = DdphubClient(place.hub.url, place.hub.key)
    model_id = client.register(Registration(place.run_id, place.run_id, "train", {}))
    run = StagingArea(place.run.staging)
    sending = DdphubClient._put_part

    def put_one(self: DdphubClient, path: Path, part: PartUrl) -> None:
        sending(self, path, part)
        raise HubUnavailable("killed")

    DdphubClient._put_part = put_one
    client._senders.connections = 1
    (entry, *_) = run.entries()
    sealed = run.seal(entry, PART_SIZE)
    with contextlib.suppress(HubUnavailable):
        client.upload(model_id, entry.entry_id, _manifest(entry, sealed), {"last.pt": entry.file_path("last.pt")})
    os.kill(child, 9)
    os.waitpid(child, 0)
    data = place.folder / "hub"
    assert sorted(path.name for path in data.glob("uploads/*/*")) == ["0", "0-0"]  # the file, and its part's mark
    (data / "incoming" / "5ca1ab1e").write_bytes(b"half a part")
    (data / "uploads" / "gone").mkdir()
    (data / "uploads" / "gone" / "0-0").write_bytes(b"a part")
    with sqlite3.connect(data / "hub.db") as database:
        ((project,),) = database.execute("select public_id from projects")
    database.close()
    joined = data / "blobs" / project / sealed.files[0].sha256[:2]
    joined.mkdir(parents=True)
    shutil.copy(entry.file_path("last.pt"), joined / sealed.files[0].sha256)


def check_requests(place: Place) -> None:
    """By what the hub answers."""
    wait_for_hub(place.hub)
    check_all(place)


def check_data(place: Place) -> None:
    """By what lies in its directory: a sound database, and no byte that it does not account for."""
    data = place.folder / "hub"
    database = sqlite3.connect(data / "hub.db")
    assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
    assert database.execute("pragma foreign_key_check").fetchall() == []
    kept = database.execute("select p.public_id, b.sha256, b.size from blobs b join projects p on p.id = b.project_ref")
    expected = {(project, sha256, size) for project, sha256, size in kept}
    uncommitted = database.execute("select count(*) from checkpoints where committed_at is null").fetchone()
    database.close()
    assert uncommitted == (0,)
    found = set()
    for path in data.glob("blobs/*/*/*"):
        content = path.read_bytes()
        assert hashlib.sha256(content).hexdigest() == path.name, f"torn blob: {path}"
        found.add((path.parent.parent.name, path.name, len(content)))
    assert found == expected, f"blobs that the database does not know: {found ^ expected}"
    left = sorted(str(path.relative_to(data)) for name in ("incoming", "uploads") for path in data.glob(f"{name}/*"))
    assert not left, f"left on the hub's disk: {left}"
    known = {"hub.lock", "hub.db", "hub.db-wal", "hub.db-shm", "secret", "keys.changes", "incoming", "uploads", "blobs"}
    assert {path.name for path in data.iterdir()} <= known


SCENARIOS = {
    "training": Scenario(
        "rank 0", "logs, saves in three ways, delivers, finishes", write_files, train, sync, check_all
    ),
    "restart": Scenario(
        "rank 0", "continues the run of a killed attempt", leave_a_dead_attempt, train_again, sync, check_all
    ),
    "staging": Scenario(
        "a writing rank", "stages, writes, seals, removes", prepare_staging, stage_and_remove, stage_again, check_empty
    ),
    "own spool": Scenario("rank 0", "makes a run and spools", make_runs, spool_own, sync, check_all),
    "stray spool": Scenario("rank 1", "spools unanswered, is adopted", make_run, spool_stray, sync, check_all),
    "relay, rank 0": Scenario("rank 0", "collects from rank 1", write_files, lead, sync, check_all, (follow,)),
    "relay, rank 1": Scenario("rank 1", "relays to rank 0", write_files, follow, sync, check_all, (lead,)),
    "delivery": Scenario(
        *("ddphub sync", "delivers an offline run", prepare_delivery, deliver, deliver_again, check_delivered),
        exit_code=1,
    ),
    "pruning": Scenario("ddphub sync", "deletes what is delivered", prepare_delivered, prune, prune_again, check_all),
    "hub, first start": Scenario(
        *("hub", "starts, takes a run", prepare_small_delivery, serve, sync, check_data, (deliver_with_patience,)),
        is_hub=True,
        exit_code=TERMINATED,
    ),
    "hub, after a crash": Scenario(
        *("hub", "cleans up, takes the rest", leave_a_dead_hub, serve, sync, check_data, (deliver_with_patience,)),
        is_hub=True,
        exit_code=TERMINATED,
    ),
}


# Defects on purpose: the checks must find them ------------------------------------------------------------------------


def deliver_and_delete_too_early(place: Place) -> None:
    """Deletes the bytes when it begins to send them."""
    upload = DdphubClient.upload

    def upload_deleted(self: DdphubClient, model_id: str, entry_id: str, request: Any, files: dict[str, Path]) -> Any:
        copies = {name: place.folder / f"copy-{name.replace('/', '-')}" for name in files}
        for name, path in files.items():
            shutil.copy(path, copies[name])
        StagingArea(place.run.staging).remove(entry_id)
        return upload(self, model_id, entry_id, request, copies)

    DdphubClient.upload = upload_deleted
    deliver(place)


def receive_and_record_too_late(place: Place) -> None:
    """Deletes the bytes before the receipt is written."""
    settle = Delivery._settle

    def settle_late(self: Delivery, receipt: Receipt) -> None:
        self._staging.remove(receipt.entry_id)
        settle(self, receipt)

    Delivery._settle = settle_late
    deliver(place)


def spool_into_a_run_json_in_two_steps(place: Place) -> None:
    """Writes run.json in place."""
    RunInfo.save = lambda self, path: path.write_text(json.dumps(asdict(self)))
    spool_own(place)


def answer_before_the_disk_has_it(place: Place) -> None:
    """A hub that commits a checkpoint before its bytes are in their place."""
    place_at_once = LocalStorage.place
    commit = Commits._commit
    waiting: list[Callable[[], None]] = []

    def place_later(self: LocalStorage, prepared: Sequence[Prepared]) -> None:
        waiting.append(partial(place_at_once, self, list(prepared)))

    def commit_first(self: Commits, *arguments: Any) -> Any:
        result = commit(self, *arguments)
        while waiting:
            waiting.pop()()
        return result

    LocalStorage.place, Commits._commit = place_later, commit_first
    serve(place)


PLANTED = {
    "deleted too early": Scenario("", "", prepare_small_delivery, deliver_and_delete_too_early, sync, check_all),
    "receipt too late": Scenario("", "", prepare_small_delivery, receive_and_record_too_late, sync, check_all),
    "two steps": Scenario("", "", make_runs, spool_into_a_run_json_in_two_steps, sync, check_all),
    "commit too early": Scenario(
        *("", "", prepare_small_delivery, answer_before_the_disk_has_it, sync, check_data, (deliver_with_patience,)),
        is_hub=True,
        exit_code=TERMINATED,
    ),
}

"""Moves events from many ranks to rank 0: `relay.py NAME`; `how` says by what.

    events        real runs whose ranks call `run.log`, `rate` events a second in all for `seconds`
    bytes         real runs whose ranks hand `size` bytes of encoded events, in all, to the relay
    store         the same bytes in the same batches, pushed to the store's queue and popped: the limit
    gather_object every step, gloo, `steps` times

Reads a turn as a line of JSON, prints its figures as a line of JSON, and so on.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist
from world import (
    PATIENCE,
    SCALARS,
    Process,
    SpoolWatch,
    be_rank,
    open_store,
    processes,
    read_arrivals,
    serve_store,
    start_run,
)

from ddphub.distributed import relay
from ddphub.events import to_json

BURST = 0.05
"""Seconds of events that a rank logs at a time."""

CARRIED = 2048
"""Events handed to the relay at a time."""


def main() -> None:
    """Entry point."""
    ways = {"events": run_world, "bytes": run_world, "store": run_store, "gather_object": run_gather}
    for line in sys.stdin:
        what = json.loads(line)
        print(json.dumps(ways[what["how"]](what)), flush=True)


def quantile(values: list[float], share: float) -> float:
    """The value that a share of them does not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def start_agent(made: list[Process]) -> int:
    """The store's port."""
    made.append(Process(serve_store))
    return int(made[-1].hear())


# Real runs ------------------------------------------------------------------------------------------------------------


def run_world(what: dict[str, Any]) -> dict[str, float]:
    """`events` and `bytes`."""
    ranks, folder = what["ranks"], Path(what["folder"])
    send = send_events if what["how"] == "events" else send_bytes
    with processes() as made:
        port = start_agent(made)
        owner = Process(lambda me: lead(me, ranks, port, folder))
        made.append(owner)
        senders = []
        for rank in range(1, ranks):
            senders.append(Process(lambda me, rank=rank: follow(me, rank, port, what, send)))
            made.append(senders[-1])
        for process in (owner, *senders):
            assert process.hear() == "ready"
        watch = SpoolWatch(folder)
        agent = made[0]
        cpu, agent_cpu, started = owner.cpu_seconds(), agent.cpu_seconds(), time.time()
        for sender in senders:
            sender.tell("go")
        watch.wait(what.get("seconds", 0.0))
        said = {rank: watch.hear(sender) for rank, sender in enumerate(senders, 1)}
        watch.look()
        cpu, agent_cpu = owner.cpu_seconds() - cpu, agent.cpu_seconds() - agent_cpu
        owner.tell("end")
        owner.hear()
    found = read_arrivals(folder, watch.sizes, since=started)
    logged = {rank: count for rank, (count, _) in said.items()}
    kept = {rank: found.arrived.get(rank, set()) | found.spilled.get(rank, set()) for rank in logged}
    lost = sum(len(set(range(count)) - kept[rank]) for rank, count in logged.items())
    events_a_second, bytes_a_second = found.rates()
    return {
        "events a second": events_a_second,
        "MiB/s": bytes_a_second / 2**20,
        "delay p50": quantile(found.delays, 0.5),
        "delay p99": quantile(found.delays, 0.99),
        "CPU of rank 0": cpu / (max(found.at) - started),
        "CPU of rank 0 an event": cpu / found.count * 1e6,
        "CPU of the store an event": agent_cpu / found.count * 1e6,
        "spilled": found.spilled_count,
        "doubled": found.doubled,
        "lost": lost,
        "of them dropped, and counted": sum(dropped for _, dropped in said.values()),
    }


def lead(me: Process, ranks: int, port: int, folder: Path) -> None:
    """Rank 0."""
    be_rank(0, ranks, port)
    run = start_run(folder)
    me.tell("ready")
    me.hear()
    run.finish()
    me.tell("done")


def follow(me: Process, rank: int, port: int, what: dict[str, Any], send: Any) -> None:  # noqa: ANN401  # JSON
    """Another rank."""
    be_rank(rank, what["ranks"], port)
    run = start_run(Path(what["folder"]))
    until = time.monotonic() + PATIENCE
    while run.id is None and time.monotonic() < until:
        time.sleep(0.05)
    me.tell("ready")
    me.hear()
    count = send(run, what)
    run.finish()  # returns when rank 0 has acknowledged everything
    me.tell((count, run._outbox.dropped))


def send_events(run: Any, what: dict[str, Any]) -> int:  # noqa: ANN401  # JSON
    """As a training thread does, at a pace that does not depend on where the events are."""
    pace = what["rate"] / (what["ranks"] - 1)
    started, step = time.monotonic(), 0
    while (now := time.monotonic() - started) < what["seconds"]:
        while step < now * pace:
            run.log(SCALARS, step=step)
            step += 1
        time.sleep(BURST)
    return step


def send_bytes(run: Any, what: dict[str, Any]) -> int:  # noqa: ANN401  # JSON
    """Encoded events as fast as the relay takes them: its sender is given more while its window has room."""
    events = encoded(what)
    courier = run._courier  # what the outbox hands events to; encoding them is not what is measured
    room = relay.window(what["ranks"]) * 3 // 4 // len(events[0]) - CARRIED
    for first in range(0, len(events), CARRIED):
        until = time.monotonic() + PATIENCE
        while courier.unspilled > room and time.monotonic() < until:
            time.sleep(0.01)
        courier.carry(events[first : first + CARRIED])
    return len(events)


def encoded(what: dict[str, Any]) -> list[str]:
    """One rank's share of the bytes, as the outbox makes them of `run.log`."""

    def event(step: int) -> str:
        content = {"time": time.time(), "kind": "metrics", "step": step, "epoch": None, "values": SCALARS}
        return to_json(content)

    count = what["size"] // (what["ranks"] - 1) // len(event(100_000))
    return [event(step) for step in range(count)]


# The limit ------------------------------------------------------------------------------------------------------------


def run_store(what: dict[str, Any]) -> dict[str, float]:
    """The same batches through a bare queue of the store; nothing is kept."""
    with processes() as made:
        port = start_agent(made)
        owner = Process(lambda me: pop(me, port))
        senders = [Process(lambda me, rank=rank: push(me, rank, port, what)) for rank in range(1, what["ranks"])]
        made += [owner, *senders]
        assert owner.hear() == "ready"
        counts = [sender.hear() for sender in senders]
        owner.tell(sum(batches for batches, _, _ in counts))
        agent_cpu, cpu, started = made[0].cpu_seconds(), owner.cpu_seconds(), time.time()
        for sender in senders:
            sender.tell("go")
        size = owner.hear()
        taken = time.time() - started
        cpu, agent_cpu = owner.cpu_seconds() - cpu, made[0].cpu_seconds() - agent_cpu
    events = sum(count for _, count, _ in counts)
    assert size == sum(length for _, _, length in counts)
    return {
        "events a second": events / taken,
        "MiB/s": size / taken / 2**20,
        "CPU of rank 0 an event": cpu / events * 1e6,
        "CPU of the store an event": agent_cpu / events * 1e6,
    }


def push(me: Process, rank: int, port: int, what: dict[str, Any]) -> None:
    """A rank that pushes and does nothing else."""
    store = open_store(port)
    events = encoded(what)
    first, batches = 0, []
    for group in relay.split(events):
        batches.append(relay.pack("0" * 32, rank, first, group).to_message())
        first += len(group)
    me.tell((len(batches), len(events), sum(map(len, batches))))
    me.hear()
    for batch in batches:
        store.queue_push("queue", batch)
    me.hear()


def pop(me: Process, port: int) -> None:
    """Rank 0 that pops and does nothing else."""
    store = open_store(port)
    me.tell("ready")
    count = me.hear()
    me.tell(sum(len(store.queue_pop("queue", True)) for _ in range(count)))
    me.hear()


# What people write themselves -----------------------------------------------------------------------------------------


def run_gather(what: dict[str, Any]) -> dict[str, float]:
    """A collective in every step."""
    with processes() as made:
        port = start_agent(made)
        for rank in range(what["ranks"]):
            made.append(Process(lambda me, rank=rank: gather(me, rank, port, what)))
        owner = made[1]
        for process in made[1:]:
            assert process.hear() == "ready"
        cpu, started = owner.cpu_seconds(), time.time()
        for process in made[1:]:
            process.tell("go")
        held = owner.hear()
        taken = time.time() - started
        cpu = owner.cpu_seconds() - cpu
    events = what["steps"] * (what["ranks"] - 1)
    return {
        "events a second": events / taken,
        "delay p50": quantile(held, 0.5),
        "delay p99": quantile(held, 0.99),
        "CPU of rank 0 an event": cpu / events * 1e6,
    }


def gather(me: Process, rank: int, port: int, what: dict[str, Any]) -> None:
    """One rank: gives its event, and waits for all others as a collective does."""
    dist.init_process_group("gloo", store=open_store(port), rank=rank, world_size=what["ranks"])
    dist.barrier()
    me.tell("ready")
    me.hear()
    held = []
    gathered: list[Any] | None = [None] * what["ranks"] if rank == 0 else None
    for step in range(what["steps"]):
        event = {"time": time.time(), "kind": "metrics", "step": step, "epoch": None, "values": SCALARS, "rank": rank}
        called = time.perf_counter()
        dist.gather_object(event, gathered)
        held.append(time.perf_counter() - called)
    me.tell(held if rank == 0 else None)
    me.hear()


if __name__ == "__main__":
    main()

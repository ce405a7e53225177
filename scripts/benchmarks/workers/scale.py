"""A world of many ranks: `scale.py NAME`; `ranks`, `pace` (events a second of each), `seconds`, `folder`.

Rank 0 is a real run, and the store is a real one in a process of its own. The other ranks are real senders, many in
a process, each with its own connection to the store; what their threads and outboxes would do is done for them in turn.
Reads a turn as a line of JSON, prints its figures as a line of JSON, and so on.
"""

import json
import random
import sys
import time
from pathlib import Path
from typing import Any, Final, cast

from world import (
    PATIENCE,
    SCALARS,
    Process,
    SpoolWatch,
    be_rank,
    processes,
    read_arrivals,
    serve_store,
    start_run,
)

from ddphub.distributed.courier import Clock, Courier
from ddphub.distributed.outbox import INTERVAL
from ddphub.distributed.relay import Keys
from ddphub.distributed.rendezvous import Rendezvous, Store
from ddphub.distributed.topology import Topology
from ddphub.events import to_json
from ddphub.session.folder import RunInfo
from ddphub.session.spool import StraySpool

SIMULATORS: Final = 4
"""Processes that play the other ranks."""

SETTLE: Final = 2.0
"""Seconds of reporting before the measurement."""


def main() -> None:
    """Entry point."""
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


def run(what: dict[str, Any]) -> dict[str, float]:
    """One turn."""
    ranks, folder = what["ranks"], Path(what["folder"])
    with processes() as made:
        agent = Process(serve_store)
        made.append(agent)
        port = int(agent.hear())
        owner = Process(lambda me: lead(me, ranks, port, folder))
        made.append(owner)
        assert owner.hear() == "ready"
        simulators = []
        for part in range(SIMULATORS):
            played = range(1 + part, ranks, SIMULATORS)
            simulators.append(Process(lambda me, played=played: play(me, played, port, what)))
            made.append(simulators[-1])
        for process in simulators:
            assert process.hear() == "ready"
        for process in simulators:
            process.tell("go")
        watch = SpoolWatch(folder)
        watch.wait(SETTLE)
        cpu, agent_cpu, started = owner.cpu_seconds(), agent.cpu_seconds(), time.time()
        watch.wait(what["seconds"])
        taken = time.time() - started
        cpu, agent_cpu = owner.cpu_seconds() - cpu, agent.cpu_seconds() - agent_cpu
        for process in simulators:
            process.tell("end")
        logged = {int(rank): count for process in simulators for rank, count in watch.hear(process).items()}
        watch.wait(2.0)
    found = read_arrivals(folder, watch.sizes, since=started)
    kept = {rank: found.arrived.get(rank, set()) | found.spilled.get(rank, set()) for rank in logged}
    delays = sorted(found.delays)
    arrived = sum(events for at, (events, _) in found.at.items() if at <= started + taken)
    return {
        "events a second": arrived / taken,
        "CPU of rank 0": cpu / taken * 100,
        "CPU of the store": agent_cpu / taken * 100,
        "CPU of rank 0 an event": cpu / arrived * 1e6,
        "delay p50": delays[len(delays) // 2],
        "delay p99": delays[len(delays) * 99 // 100],
        "lost": sum(len(set(range(count)) - kept[rank]) for rank, count in logged.items()),
        "spilled": found.spilled_count,
        "doubled": found.doubled,
    }


def lead(me: Process, ranks: int, port: int, folder: Path) -> None:
    """Rank 0; its end is not part of this."""
    be_rank(0, ranks, port)
    start_run(folder)
    me.tell("ready")
    me.hear()


class Played(Courier):
    """A real sender without its thread: a thousand threads would measure each other."""

    def __init__(self, rank: int, world_size: int, folder: Path) -> None:
        topology = Topology(rank, world_size, source="arguments")
        self.rank = rank
        self.meeting = Rendezvous(topology)
        super().__init__(
            topology=topology,
            rendezvous=self.meeting,
            keys=Keys(self.meeting.namespace, 0),
            spool=StraySpool(rank, folder, lambda nonce: RunInfo(f"unanswered-{nonce}", "bench", "relay")),
            about={"host": f"node{rank // 8}", "pid": 1, "local_rank": rank % 8, "node": rank // 8},
        )
        self.store = cast("Store", self.meeting.connect())
        self.clock = Clock()
        self.next_turn = 0.0
        self.steps = 0
        self._say_hello(self.store)

    def _main(self) -> None:
        """Nothing; see `turn`."""

    def ask(self) -> bool:
        """Whether rank 0 has answered."""
        if self.answer is None:
            self._take_answer(self.store)
            self.clock = Clock()
        return self.answer is not None

    def turn(self) -> None:
        """What its thread would do."""
        self.next_turn = self.take_turn(self.store, self.clock)


def play(me: Process, ranks: range, port: int, what: dict[str, Any]) -> None:
    """Plays ranks, all of them on another host than rank 0."""
    be_rank(ranks[0], what["ranks"], port)
    played = [Played(rank, what["ranks"], Path(what["folder"])) for rank in ranks]
    until = time.monotonic() + PATIENCE
    while sum(one.ask() for one in played) < len(played) and time.monotonic() < until:
        time.sleep(0.2)
    me.tell("ready")
    me.hear()
    started = time.monotonic()
    turn = 0
    while not me.has_said():
        for index, one in enumerate(played):
            # Each rank's outbox packs every INTERVAL; the ranks are spread over it.
            part = index / len(played)
            due = started + (turn + part) * INTERVAL
            if (pause := due - time.monotonic()) > 0:
                time.sleep(pause)
            count = int((turn + part + 1) * INTERVAL * what["pace"]) - one.steps
            one.carry([event(one.steps + number) for number in range(count)])
            one.steps += count
            if count or one.next_turn < time.monotonic() + INTERVAL:
                one.turn()
        turn += 1
    me.hear()
    me.tell({one.rank: one.steps for one in played})
    me.hear()


def event(step: int) -> str:
    """An event that was logged at some time since the outbox's last turn."""
    logged = time.time() - random.uniform(0, INTERVAL)
    return to_json({"time": logged, "kind": "metrics", "step": step, "epoch": None, "values": SCALARS})


if __name__ == "__main__":
    main()

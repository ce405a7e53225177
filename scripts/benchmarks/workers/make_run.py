"""Leaves a run directory as an offline run does: `CONTESTANT FOLDER EVENTS CHECKPOINTS BYTES_EACH`.

Written with the product's own parts: what rank 0 of 8 gathers every half a second goes to its spool file as the relay
packs it, and each checkpoint is staged and sealed as a save is. Only no time passes between two steps.
"""

import json
import os
import sys
from pathlib import Path

from run_events import ATTEMPT, BEGAN, RANKS, at, stretches, text

from ddphub.checkpoints.staging import Slot, StagingArea
from ddphub.distributed.relay import pack
from ddphub.events import to_json
from ddphub.hubs.wire import PART_SIZE
from ddphub.session.folder import RunFolder, RunInfo
from ddphub.session.lines import LineWriter

STEPS_A_LINE = 50
"""Steps of one rank in half a second, at 100 a second."""


def write_events(folder: RunFolder, events: int) -> None:
    """The spool: the attempt's start, its ranks, their steps, and its end; as many events as asked for."""
    writer = LineWriter(folder.relay_file(ATTEMPT))
    about = {"host": "node-0", "pid": 1000, "local_rank": 0, "node": 0, "reason": None}
    head = [to_json({"time": BEGAN, "kind": "attempt", "state": "started", "world_size": RANKS, "reason": None})]
    joined = {"time": BEGAN, "kind": "rank", "state": "joined", **about}
    head += [to_json({**joined, "of_rank": rank}) for rank in range(RANKS)]
    writer.append([pack(ATTEMPT, 0, 0, head).text])
    next_seq = [len(head), *(0 for _ in range(1, RANKS))]
    last = 0
    for rank, steps in stretches(events - len(head) - 1, STEPS_A_LINE):
        batch = pack(ATTEMPT, rank, next_seq[rank], [text(rank, step) for step in steps])
        next_seq[rank] = batch.last + 1
        last = steps[-1]
        writer.append([batch.text])
    end = {"time": at(0, last), "kind": "attempt", "state": "finished", "world_size": RANKS, "reason": None}
    writer.append([pack(ATTEMPT, 0, next_seq[0], [to_json(end)]).text])
    writer.sync()
    writer.close()


def stage(folder: RunFolder, checkpoints: int, size: int) -> None:
    """The staging area: no two checkpoints have the same bytes."""
    area = StagingArea(folder.staging)
    for epoch in range(checkpoints):
        slot = Slot(attempt_id=ATTEMPT, kind="epoch", epoch=epoch, step=None, name="last.pt")
        with area.write(slot, {"val/accuracy": 0.5}) as pending:
            pending.path.write_bytes(os.urandom(size))
        if pending.entry is not None:
            area.seal(pending.entry, PART_SIZE)


def main() -> None:
    """Leaves it."""
    folder = RunFolder(Path(sys.argv[2]))
    events, checkpoints, size = map(int, sys.argv[3:])
    folder.create()
    info = RunInfo(run_id=folder.path.name, project="sync", name="sync", attempts=[ATTEMPT], world_size=RANKS)
    info.save(folder.run_json)
    write_events(folder, events)
    stage(folder, checkpoints, size)
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    print(json.dumps({"bytes": sum(path.stat().st_size for path in files), "files": len(files)}))


if __name__ == "__main__":
    main()

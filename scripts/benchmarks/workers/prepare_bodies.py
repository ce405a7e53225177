"""Writes the bodies of requests that report one run, a line each: `CONTESTANT FOLDER EVENTS EVENTS_A_REQUEST`.

For ddphub as its client sends events, up to 1,000 in a request. For mlflow as its `log_batch` sends them: each scalar
is a metric, up to 1,000 in a request; its runs know no ranks, so the rank is part of a metric's name.
"""

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from run_events import ATTEMPT, at, scalars, stretches, text


def of_ddphub(events: int, steps: int) -> Iterator[str]:
    """Events as DdphubClient sends them."""
    for rank, some in stretches(events, steps):
        for step in some:
            yield f'{text(rank, step)[:-1]},"attempt_id":"{ATTEMPT}","rank":{rank},"seq":{step}}}'


def of_mlflow(events: int, steps: int) -> Iterator[str]:
    """Metrics as MlflowClient sends them."""
    for rank, some in stretches(events, steps):
        for step in some:
            for name, value in scalars(rank, step).items():
                metric = {"key": f"rank_{rank}/{name}", "value": value, "timestamp": int(at(rank, step) * 1000)}
                yield json.dumps({**metric, "step": step})


def main() -> None:
    """Writes them."""
    contestant, folder, events, at_once = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    steps = max(1, at_once // 8)
    if contestant == "ddphub":
        items, head, tail = of_ddphub(events, steps), "[", "]"
    else:
        items, head, tail, at_once = of_mlflow(events, steps), '{"run_id": "RUN", "metrics": [', "]}", at_once * 5
    requests = 0
    with (folder / f"{contestant}.bodies").open("w") as file:
        while some := list(islice(items, at_once)):
            file.write(f"{head}{','.join(some)}{tail}\n")
            requests += 1
    print(json.dumps({"requests": requests}))


if __name__ == "__main__":
    main()

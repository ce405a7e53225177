"""Reports a large run to a hub, as its ranks would over HTTP: many ranks, one metric, a point for each rank and step.

    python scripts/large_run.py http://127.0.0.1:8765 --ranks 1000 --steps 1000

Prints the model's id. The key is DDPHUB_API_KEY. What a chart must show is known: see `value`.
"""

import argparse
import os
import secrets
import time
from collections.abc import Iterator
from typing import Any, Final

import requests

METRIC: Final = "train/loss"
BATCH: Final = 1000
"""Events in one request: as many as a hub takes."""

SECONDS_A_STEP: Final = 2.0


def value(rank: int, step: int, ranks: int, steps: int) -> float:
    """The metric: falls from 2 to 1, up to 0.5 more for higher ranks; one rank has a spike to 9, one a dip to 0."""
    if (rank, step) == spike(ranks, steps):
        return 9.0
    if (rank, step) == dip(ranks, steps):
        return 0.0
    return 2.0 - step / steps + 0.5 * rank / ranks


def spike(ranks: int, steps: int) -> tuple[int, int]:
    """Rank and step of the greatest value."""
    return ranks // 7, steps // 3


def dip(ranks: int, steps: int) -> tuple[int, int]:
    """Rank and step of the least value."""
    return ranks // 3, 2 * steps // 3


class LargeRun:
    """One run that reports to a hub.

    Args:
        url: the hub's.
        key: an API key.
        ranks: how many.
        steps: how many each rank is going to report; `value` is made for so many.
        start: when the run began, in seconds since the epoch.
    """

    def __init__(self, url: str, key: str, ranks: int, steps: int, start: float) -> None:
        self.ranks = ranks
        self.steps = steps
        self.attempt_id = secrets.token_hex(16)
        self._start = start
        self._http = requests.Session()
        self._http.trust_env = False
        self._http.headers["x-api-key"] = key
        request = {"project": "large", "meta": {"name": f"{ranks} ranks"}, "config": {"ranks": ranks, "steps": steps}}
        answer = self._http.post(f"{url}/v1/models", json=request, headers={"Idempotency-Key": secrets.token_hex(16)})
        answer.raise_for_status()
        self.model_id: str = answer.json()["data"]["id"]
        self._events = f"{url}/v1/models/{self.model_id}/events"
        self._heartbeat = f"{url}/v1/agent/heartbeat/models/{self.model_id}"
        self._seq = [0] * ranks

    def join(self) -> None:
        """The attempt begins, and every rank joins."""
        events = [self._event(0, self._start, kind="attempt", state="started", world_size=self.ranks, host="node-0")]
        for rank in range(self.ranks):
            place = {"host": f"node-{rank // 8}", "pid": 1000 + rank, "local_rank": rank % 8}
            events.append(self._event(0, self._start, kind="rank", of_rank=rank, state="joined", **place))
        self._send(iter(events))

    def log(self, steps: range) -> None:
        """Every rank logs these steps, one rank after the other: fewer rows to touch, so a hub takes it in faster."""
        self._send(self._point(rank, step) for rank in range(self.ranks) for step in steps)

    def step(self, step: int) -> None:
        """All ranks log one step now, as while they train; rank 0 gives a sign of life."""
        now = time.time()
        self._send(self._point(rank, step, now) for rank in range(self.ranks))
        self._http.post(self._heartbeat, json={"attempt_id": self.attempt_id}, timeout=60).raise_for_status()

    def _point(self, rank: int, step: int, at: float | None = None) -> dict[str, Any]:
        # The ranks log one after the other, within half a step.
        of_step = self._start + SECONDS_A_STEP * (step + 0.5 * rank / self.ranks)
        values = {METRIC: value(rank, step, self.ranks, self.steps)}
        return self._event(rank, at or of_step, kind="metrics", step=step, epoch=step // 100, values=values)

    def _event(self, rank: int, at: float, **fields: Any) -> dict[str, Any]:  # noqa: ANN401  # what each kind has
        self._seq[rank] += 1
        return {"attempt_id": self.attempt_id, "rank": rank, "seq": self._seq[rank] - 1, "time": at, **fields}

    def _send(self, events: Iterator[dict[str, Any]]) -> None:
        batch = []
        for event in events:
            batch.append(event)
            if len(batch) == BATCH:
                self._post(batch)
                batch = []
        if batch:
            self._post(batch)

    def _post(self, batch: list[dict[str, Any]]) -> None:
        answer = self._http.post(self._events, json=batch, timeout=60)
        answer.raise_for_status()


def main() -> None:
    """Report a run that has just come so far."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--ranks", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=1000)
    arguments = parser.parse_args()
    start = time.time() - SECONDS_A_STEP * arguments.steps
    run = LargeRun(arguments.url, os.environ["DDPHUB_API_KEY"], arguments.ranks, arguments.steps, start)
    run.join()
    run.log(range(arguments.steps))
    print(run.model_id)


if __name__ == "__main__":
    main()

"""What a run makes, for clients to send: events in the form that Delivery gives them, and entries."""

import secrets
from pathlib import Path
from typing import Any

from ddphub.hubs.client import Registration

BEGAN = 1795344785.0
"""2026-11-22 10:53:05 UTC."""


class Attempt:
    """Makes one attempt's events; each has the next number of its rank."""

    def __init__(self, attempt_id: str | None = None) -> None:
        self.id = attempt_id or secrets.token_hex(16)
        self._seqs: dict[int, int] = {}

    def event(self, kind: str, rank: int = 0, **fields: Any) -> dict[str, Any]:
        seq = self._seqs[rank] = self._seqs.get(rank, -1) + 1
        return {"time": BEGAN + seq, "kind": kind, **fields, "attempt_id": self.id, "rank": rank, "seq": seq}

    def metrics(self, epoch: int | None, values: dict[str, Any], rank: int = 0) -> dict[str, Any]:
        return self.event("metrics", rank, step=0, epoch=epoch, values=values)

    def log(self, message: str, rank: int = 0, **fields: Any) -> dict[str, Any]:
        return self.event("log", rank, level="info", message=message) | fields

    def state(self, state: str, reason: str | None = None) -> dict[str, Any]:
        return self.event("attempt", state=state, world_size=2, host="node0", reason=reason)


def registration(*attempts: Attempt, **fields: Any) -> Registration:
    """A run of these attempts."""
    given = {"run_id": "run", "project": "My Project", "name": "exp ok", "config": {}}
    return Registration(**{**given, "attempts": tuple(attempt.id for attempt in attempts), **fields})


def entry(folder: Path, kind: str = "epoch", name: str = "last.pt", content: bytes = b"weights", **fields: Any):
    """(entry id, request, files) of a checkpoint of one file."""
    path = folder / f"{secrets.token_hex(4)}-{name}"
    path.write_bytes(content)
    files = [{"name": name, "size": len(content), "sha256": "", "parts": []}]
    request = {"attempt_id": "0" * 32, "epoch": 0, "step": None, "kind": kind, "name": name, "metrics": {}}
    return secrets.token_hex(16), {**request, **fields, "files": files}, {name: path}

"""What only torch can tell `ddphub doctor`: which GPUs a process sees, and messages through the job's store."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ddphub.distributed.relay import parse
from ddphub.distributed.rendezvous import Store
from ddphub.events import to_json

DEVICES: Final = (Path("/dev/nvidiactl"), Path("/dev/kfd"))
"""One of them is there wherever a CUDA or ROCm driver is, so a host without a GPU need not import torch."""

POLL: Final = 0.05
"""Seconds between two looks at a queue, at most: also how exactly two ranks' clocks are compared."""


def gpus(local_rank: int, *, ask: bool) -> str:
    """The GPUs that this process sees. Any rank.

    Args:
        local_rank: which one it would use.
        ask: whether to ask that one for its name and memory, which starts CUDA in this process.
    """
    if not any(path.exists() for path in DEVICES):
        return "none"
    import torch  # noqa: PLC0415  # `import ddphub` must not import torch

    count = torch.cuda.device_count()
    if count == 0:
        return "none visible"
    if not ask:
        return f"{count} visible"
    try:
        found = torch.cuda.get_device_properties(local_rank % count)
    except RuntimeError as error:
        return str(error).splitlines()[0][:100]
    return f"{found.name}, {found.total_memory / 1024**3:.0f} GiB"


class Mailbox:
    """JSON messages between ranks, through queues of the job's store. One thread.

    A pop that blocks cannot be told how long, so queues are asked again and again.

    Args:
        store: a client of this mailbox's own.
        namespace: what keeps its queues apart from others'.
    """

    def __init__(self, store: Store, namespace: str) -> None:
        from torch.distributed import QueueEmptyError  # noqa: PLC0415  # `import ddphub` must not import torch

        self._empty = QueueEmptyError
        self._store = store
        self._namespace = namespace

    def send(self, queue: str, message: Mapping[str, Any]) -> None:
        """Appends to a queue; without a timeout.

        Raises:
            RuntimeError: the store has gone, or it has no queues.
        """
        self._store.queue_push(f"{self._namespace}/{queue}", to_json(dict(message)))

    def receive(self, queue: str, until: float = 0.0) -> dict[str, Any] | None:
        """The queue's first message, or None when none comes until then (time.monotonic). Others are passed over.

        Raises:
            RuntimeError: as `send`.
        """
        pause = POLL / 16
        while True:
            try:
                message = parse(self._store.queue_pop(f"{self._namespace}/{queue}", False))  # False: do not block
            except self._empty:
                if time.monotonic() >= until:
                    return None
                time.sleep(pause)
                pause = min(2 * pause, POLL)
            else:
                if message is not None:
                    return message

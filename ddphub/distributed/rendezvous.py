"""Where the ranks meet: which store of the job the relay uses, and connections to it.

| the job has | rank 0 | other ranks |
| --- | --- | --- |
| torchrun's agent store | connects to MASTER_ADDR:MASTER_PORT | the same |
| an initialised process group over a TCPStore | connects to that store and keeps it alive | connects to it |
| MASTER_ADDR and MASTER_PORT | opens the server, shared with a later `init_process_group` | connects |
| none of these yet | waits for a process group | the same |

A store without queues (FileStore, HashStore, `USE_LIBUV=0`) cannot carry the relay: every rank then writes spool files.
"""

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from ddphub.distributed.topology import Topology

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore  # where its types are declared

logger = logging.getLogger(__name__)

CLIENT_TIMEOUT: Final = timedelta(seconds=5)
"""How long one store call may take before it fails; a push has no timeout, so only threads push."""

CONNECT_TIMEOUT: Final = timedelta(seconds=15)
"""How long one attempt to connect may take: torch polls for a server that is not up yet."""

# The server that this process opened, kept for its life: other ranks and a later process group use it. `init` twice
# in one process uses it twice.
_server: Any = None


class Store(Protocol):
    """What the relay uses of torch's TCPStore, which is imported late; every call may raise RuntimeError."""

    def queue_push(self, key: str, value: str | bytes, /) -> None:
        """Appends to a queue; not acknowledged, and without a timeout."""

    def queue_pop(self, key: str, block: bool, /) -> bytes:
        """The queue's first value; QueueEmptyError when it is empty and `block` is False."""

    def set(self, key: str, value: str, /) -> None:
        """Sets a key."""

    def get(self, key: str, /) -> bytes:
        """A key's value; waits for the key."""

    def check(self, keys: list[str], /) -> bool:
        """Whether all keys are there."""

    def append(self, key: str, value: str | bytes, /) -> None:
        """Appends to a key's value; makes the key. Not acknowledged, as no `set` is."""

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes, /) -> bytes:
        """Sets a key that is absent (`expected` empty) or has the expected value; returns its value then."""

    def multi_get(self, keys: list[str], /) -> list[bytes]:
        """The values of keys; waits for all of them."""

    def multi_set(self, keys: list[str], values: list[str], /) -> None:
        """Sets keys."""


@dataclass(frozen=True)
class Address:
    """Where the store is.

    Attributes:
        host: name or address.
        port: TCP port.
        agent: whether torchrun's agent serves it, so that it outlives this world's processes.
        serve: whether rank 0 has to open it.
    """

    host: str
    port: int
    agent: bool
    serve: bool


class Rendezvous:
    """Finds the job's store and connects to it. Any rank; calls that connect belong in a thread.

    Args:
        topology: this process's place.
        environ: the environment; `os.environ` when None.
    """

    def __init__(self, topology: Topology, environ: Mapping[str, str] | None = None) -> None:
        self._topology = topology
        self._environ = os.environ if environ is None else environ
        if topology.world_size > 1:
            # Here, in the main thread: the relay's threads need it, and two first imports at once see half a module.
            import torch.distributed  # noqa: F401, PLC0415  # `import ddphub` must not import torch
        # The process group's own store object: destroy_process_group would otherwise end its server on rank 0.
        self._kept: Any = None

    @property
    def namespace(self) -> str:
        """What keeps apart the jobs that share one rendezvous store."""
        return f"ddphub/{self._environ.get('TORCHELASTIC_RUN_ID', '')}"

    def find(self) -> Address | None:
        """The store's address, or None when the job has none yet."""
        host, port = self._environ.get("MASTER_ADDR"), self._environ.get("MASTER_PORT", "")
        named = bool(host) and port.isdigit()
        if named and self._environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return Address(str(host), int(port), agent=True, serve=False)
        store = _process_group_store()
        if store is not None:
            self._kept = store
            return Address(store.host, store.port, agent=False, serve=False)
        if named and int(port) > 0:
            return Address(str(host), int(port), agent=False, serve=self._topology.is_owner)
        return None

    def connect(self) -> Store | None:
        """A client of its own for the caller, or None when the job has no store yet. Waits at most 15 s.

        Raises:
            RuntimeError: the store cannot be reached (torch's DistStoreError and DistNetworkError among them).
        """
        address = self.find()
        if address is None:
            return None
        if address.serve:
            _serve(address)
        # torch's own types say str where bytes come back.
        return cast("Store", _open(address.host, address.port, CONNECT_TIMEOUT))


def _serve(address: Address) -> None:
    """Rank 0 only: opens the store's server unless this process or another one already serves it."""
    global _server
    if _server is not None:
        return
    try:
        _server = _open("0.0.0.0", address.port, CLIENT_TIMEOUT, serve=True)  # noqa: S104  # all ranks must reach it
    except RuntimeError as error:
        # The port is taken: by a launcher that serves it (then the client finds a store) or by a stranger (then the
        # client fails, and the ranks write spool files).
        logger.info("the store's port %d is taken: %s", address.port, str(error).splitlines()[0])


def _open(host: str, port: int, timeout: timedelta, *, serve: bool = False) -> "TCPStore":
    from torch._C._distributed_c10d import TCPStore  # noqa: PLC0415  # `import ddphub` must not import torch

    store = TCPStore(host, port, None, serve, timeout, wait_for_workers=False, multi_tenant=serve)
    store.set_timeout(CLIENT_TIMEOUT)
    return store


def _process_group_store() -> Any:  # noqa: ANN401  # a torch object; torch may not be imported
    """The TCPStore under the default process group, or None."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    # There is no public way to a process group's store; newer torch may move this one.
    get_store = getattr(distributed.distributed_c10d, "_get_default_store", None)
    store: Any = get_store() if get_store else None
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    return store if isinstance(store, distributed.TCPStore) else None

"""The job's store: where it is, and whether a message comes back from it."""

import socket
import subprocess
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from ddphub import names
from ddphub.distributed.probe import Mailbox
from ddphub.distributed.rendezvous import Address, Rendezvous
from ddphub.distributed.topology import Topology
from ddphub.doctor.finding import Finding

FIRST_PORT: Final = 20_000
PORTS: Final = 10_000
"""Below the ports that Linux gives to clients (32768 and up)."""

EXPORT: Final = "export MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1) MASTER_PORT=29500"


def step_store(topology: Topology, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that name a store for a SLURM step that has none; empty where it has one, or is no step. Any rank.

    Every rank comes to the same: rank 0's host, which is the step's first, and a port made of the step's number.
    """
    if topology.world_size == 1 or topology.source != "slurm" or environ.get("MASTER_ADDR"):
        return {}
    nodes = environ.get("SLURM_STEP_NODELIST", "")
    with suppress(OSError, subprocess.SubprocessError, IndexError):
        done = subprocess.run(  # noqa: S603  # SLURM's own variable, not through a shell
            ["scontrol", "show", "hostnames", nodes],  # noqa: S607  # from wherever srun is
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
        step = f"{environ.get('SLURM_JOB_ID')}.{environ.get('SLURM_STEP_ID')}"
        port = FIRST_PORT + zlib.crc32(step.encode()) % PORTS
        return {"MASTER_ADDR": done.stdout.split()[0], "MASTER_PORT": str(port)}
    return {}


def open_mailbox(rendezvous: Rendezvous) -> Mailbox | None:
    """The ranks' mailbox, or None when the job has no store. Any rank; waits.

    Raises:
        RuntimeError: the store cannot be reached.
    """
    store = rendezvous.connect()
    return Mailbox(store, f"{rendezvous.namespace}/doctor") if store is not None else None


def try_mailbox(mailbox: Mailbox, shown: str) -> Finding:
    """Sends a message to this rank itself. Rank 0.

    Raises:
        RuntimeError: the store has no queues, or has gone.
    """
    queue = f"echo/{names.new_hex_id()}"
    begin = time.monotonic()
    mailbox.send(queue, {"echo": True})
    if mailbox.receive(queue, begin + 5) is None:
        return Finding(
            "store", "problem", f"{shown}: a message did not come back", "events will wait for `ddphub sync`"
        )
    return Finding("store", "ok", f"{shown}: a message came back in {(time.monotonic() - begin) * 1000:.1f} ms")


def explain(address: Address, *, is_ours: bool) -> str:
    """Which store it is, in words."""
    whose = "torchrun's agent serves it" if address.agent else "rank 0 serves it"
    if is_ours:
        whose = "the doctor's own"
    return f"{address.host}:{address.port} ({whose})"


def nameless(is_step: bool) -> Finding:
    """For a world whose launcher names no store."""
    text = "the launcher names no store: MASTER_ADDR and MASTER_PORT are not set"
    advice = f"before srun: {EXPORT}" if is_step else "start the job with torchrun, or export both"
    return Finding("store", "warning" if is_step else "problem", text, advice)


def unreachable(address: Address | None, why: str, *, is_ours: bool) -> Finding:
    """For a store that does not answer, or refuses."""
    advice = "without it the ranks' events wait on disk for `ddphub sync`"
    if address is None:
        return Finding("store", "problem", why, advice)
    if address.serve:
        advice += f"; MASTER_ADDR must be a name of this host, {socket.gethostname()}, that all nodes reach"
    else:
        advice += "; MASTER_ADDR must be the host of rank 0 or of torchrun's first agent, and reached from all nodes"
    return Finding("store", "problem", f"{explain(address, is_ours=is_ours)}: {why}", advice)


def own_address(address: Address | None) -> str | None:
    """The address from which this host talks to the store's; sends nothing."""
    if address is None:
        return None
    with suppress(OSError):
        family, kind, protocol, _, target = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as asking:
            asking.connect(target)
            return str(asking.getsockname()[0])
    return None

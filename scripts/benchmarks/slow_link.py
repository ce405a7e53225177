"""Two network namespaces with a slow line between them: what a hub far away, or beyond a bad network, is like.

netem where the kernel has it, else `workers/pass_packets.py`. Root only.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from benchmarks.bench import WORKERS
from benchmarks.figures import LeftOut

_NETWORK: Final = "10.203.77"
"""Addresses that only the two namespaces know."""


@dataclass(frozen=True)
class Side:
    """One end of the line.

    Args:
        address: its IPv4 address.
        prefix: the command that runs another one there.
    """

    address: str
    prefix: tuple[str, ...]


@dataclass(frozen=True)
class SlowLink:
    """A line.

    Args:
        near: where the clients run.
        far: where the servers run.
        made_by: netem, or what stands in for it.
    """

    near: Side
    far: Side
    made_by: str


@contextlib.contextmanager
def slow_link(
    *, delay_ms: float = 50.0, loss: float = 0.01, mbit: float = 200.0, control: str | None = None
) -> Iterator[SlowLink]:
    """A line between two namespaces, which are gone afterwards with every process's connections in them.

    Args:
        delay_ms: of a packet and its answer together: half of it each way.
        loss: share of packets that is lost, each way.
        mbit: megabits a second that the line carries each way.
        control: the TCP congestion control on both sides, as cubic; None for the machine's own.

    Raises:
        LeftOut: it cannot be made here.
    """
    if os.geteuid() != 0:
        raise LeftOut("network namespaces need root")
    if missing := [program for program in ("ip", "tc", "sysctl") if shutil.which(program) is None]:
        raise LeftOut(f"needs {', '.join(missing)}")
    names = [f"ddphub-{os.getpid()}-{side}" for side in ("near", "far")]
    devices = [f"slow{os.getpid() % 10**8}{side}" for side in "ab"]
    with contextlib.ExitStack() as stack:
        for name in names:
            _run("ip", "netns", "add", name)
            stack.callback(_run, "ip", "netns", "delete", name)
        made_by = "netem"
        if not _make_netem_pair(names, devices, delay_ms, loss, mbit):
            made_by = "a program between two TUN devices"
            stack.enter_context(_passing(devices, delay_ms / 2000, loss, mbit * 1e6))
        for name, device, number in zip(names, devices, (1, 2), strict=True):
            if made_by != "netem":
                _run("ip", "link", "set", device, "netns", name)
            inside = ("ip", "netns", "exec", name)
            _run(*inside, "ip", "address", "add", f"{_NETWORK}.{number}/24", "dev", device)
            # As much as the line's own queue holds: a device that drops by itself would add to the loss.
            _run(*inside, "ip", "link", "set", device, "mtu", "1500", "txqueuelen", "10000", "up")
            _run(*inside, "ip", "link", "set", "lo", "up")
            if control is not None:
                _set_control(inside, control)
        near, far = (
            Side(f"{_NETWORK}.{number}", ("ip", "netns", "exec", name)) for number, name in enumerate(names, start=1)
        )
        yield SlowLink(near, far, made_by)


def congestion_control() -> str:
    """The machine's own."""
    return _run("sysctl", "-n", "net.ipv4.tcp_congestion_control").strip()


def _set_control(inside: tuple[str, ...], control: str) -> None:
    try:
        _run(*inside, "sysctl", "-qw", f"net.ipv4.tcp_congestion_control={control}")
    except LeftOut:
        raise LeftOut(f"the kernel has no {control}") from None


def _make_netem_pair(names: list[str], devices: list[str], delay_ms: float, loss: float, mbit: float) -> bool:
    """Two ends of a virtual cable in the namespaces; False where the kernel has no netem."""
    try:
        _run("ip", "link", "add", devices[0], "netns", names[0], "type", "veth", "peer", devices[1], "netns", names[1])
    except LeftOut:
        return False
    # A queue of 0.1 s, and what is on its way meanwhile, in packets of 1500 bytes.
    limit = int((0.1 + delay_ms / 2000) * mbit * 1e6 / 8 / 1500)
    for name, device in zip(names, devices, strict=True):
        inside = ("ip", "netns", "exec", name)
        shape = ["delay", f"{delay_ms / 2}ms", "loss", f"{loss:%}", "rate", f"{mbit}mbit", "limit", str(limit)]
        try:
            # Packets of the wire's size: lost one by one.
            _run(*inside, "ip", "link", "set", device, "gso_max_segs", "1")
            _run(*inside, "tc", "qdisc", "add", "dev", device, "root", "netem", *shape)
        except LeftOut:
            _run("ip", "netns", "exec", names[0], "ip", "link", "delete", devices[0])
            return False
    return True


@contextlib.contextmanager
def _passing(devices: list[str], delay_s: float, loss: float, bits_a_second: float) -> Iterator[None]:
    program = [sys.executable, str(WORKERS / "pass_packets.py"), str(delay_s), str(loss), str(bits_a_second), *devices]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        if not process.stdout.readline():
            raise LeftOut(f"no TUN devices: {process.stderr.read().splitlines()[-1:]}")
        yield
    finally:
        process.kill()
        process.communicate()


def _run(*command: str) -> str:
    """A command's output.

    Raises:
        LeftOut: it failed.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise LeftOut(f"{' '.join(command)}: {done.stderr.strip()[:200]}")
    return done.stdout

"""A slow line between two TUN devices: passes packets on late, at a bounded rate, and loses some.

    python pass_packets.py DELAY_S LOSS BITS_A_SECOND DEVICE DEVICE

Makes both devices, prints "ready", and passes packets on until it is killed. It stands in for netem where the kernel
has none; each direction has a queue of its own, which drops what comes when it is full.
"""

import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque
from typing import Final

_TUNSETIFF: Final = 0x400454CA
_TUN_WITHOUT_HEADER: Final = 0x1001
"""IFF_TUN and IFF_NO_PI: whole IP packets and nothing before them."""

_LONGEST: Final = 65536
_AT_ONCE: Final = 64
"""Packets taken from one device before the other has its turn."""

QUEUE_S: Final = 0.1
"""How long a packet waits at most for those before it, as in a router's buffer of that depth."""


class Direction:
    """Packets from one device to the other.

    Args:
        source: descriptor of the device that they come from.
        target: descriptor of the device that they go to.
        delay_s: how long each is on its way.
        loss: share of them that is lost.
        bits_a_second: what the line carries.
    """

    def __init__(self, source: int, target: int, delay_s: float, loss: float, bits_a_second: float) -> None:
        self.source = source
        self._target = target
        self._delay_s = delay_s
        self._loss = loss
        self._seconds_a_byte = 8 / bits_a_second
        self._free_at = 0.0
        self._on_the_way: deque[tuple[float, bytes]] = deque()

    def take(self) -> None:
        """Takes what has come."""
        for _ in range(_AT_ONCE):
            try:
                packet = os.read(self.source, _LONGEST)
            except BlockingIOError:
                return
            now = time.monotonic()
            begins = max(now, self._free_at)
            if begins - now > QUEUE_S:
                continue
            self._free_at = begins + len(packet) * self._seconds_a_byte
            # What is lost was on the line as well.
            if random.random() >= self._loss:
                self._on_the_way.append((self._free_at + self._delay_s, packet))

    def give(self) -> float | None:
        """Passes on what has arrived; when the next packet does, by time.monotonic."""
        while self._on_the_way:
            arrives, packet = self._on_the_way[0]
            if arrives > time.monotonic():
                return arrives
            self._on_the_way.popleft()
            try:
                os.write(self._target, packet)
            except OSError:
                continue  # the other side is not up yet, or full: lost, as on any line
        return None


def main(delay_s: str, loss: str, bits_a_second: str, *devices: str) -> None:
    """Passes packets on until the process is killed."""
    files = [_open(device) for device in devices]
    directions = [
        Direction(source, target, float(delay_s), float(loss), float(bits_a_second))
        for source, target in (files, reversed(files))
    ]
    print("ready", flush=True)
    poll = select.poll()
    for file in files:
        poll.register(file, select.POLLIN)
    by_source = {direction.source: direction for direction in directions}
    while True:
        next_ones = [arrives for direction in directions if (arrives := direction.give()) is not None]
        wait = None if not next_ones else max(0.0, min(next_ones) - time.monotonic()) * 1000
        for file, _ in poll.poll(wait):
            by_source[file].take()


def _open(device: str) -> int:
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _TUN_WITHOUT_HEADER))
    return file


if __name__ == "__main__":
    main(*sys.argv[1:])

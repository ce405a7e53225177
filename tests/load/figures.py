"""Figures of a load: how long things took, and what the hub's processes used."""

import threading
import time

import psutil


def spread(seconds):
    """How many, and their p50, p99 and greatest, in ms."""
    if not seconds:
        return "none"
    ordered = sorted(seconds)
    p50, p99 = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
    return f"{len(ordered):,}, p50 {1000 * p50:,.0f} ms, p99 {1000 * p99:,.0f} ms, max {1000 * ordered[-1]:,.0f} ms"


class Usage:
    """CPU time and memory of a process and of those it has started.

    Args:
        pid: the process.
    """

    def __init__(self, pid):
        self.peak = 0
        self._process = psutil.Process(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="usage", daemon=True)
        self._cpu = self._began = 0.0

    def begin(self):
        """From now on."""
        self._cpu, self._began = self._cpu_time(), time.monotonic()
        self._thread.start()

    def end(self):
        """Until now: (cores kept busy, seconds)."""
        self._over.set()
        self._thread.join()
        seconds = time.monotonic() - self._began
        return (self._cpu_time() - self._cpu) / seconds, seconds

    def _all(self):
        return [self._process, *self._process.children(recursive=True)]

    def _cpu_time(self):
        return sum(sum(one.cpu_times()[:2]) for one in self._all())

    def _watch(self):
        while not self._over.wait(0.5):
            try:
                # What processes share is counted once.
                self.peak = max(self.peak, sum(one.memory_full_info().pss for one in self._all()))
            except psutil.NoSuchProcess:
                continue

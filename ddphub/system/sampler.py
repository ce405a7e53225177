"""The sampler: a thread that measures process, machine and GPU now and then, and reports it as metrics."""

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ddphub.events import SYSTEM, Event
from ddphub.system import Figure

logger = logging.getLogger(__name__)

FIRST: Final = 1.0
"""Seconds from the start to the first sample: a page that is opened at once has something to show."""

JITTER: Final = 0.2
"""Of an interval, by how much each may be shorter or longer: a thousand ranks must not report at one moment."""


class Sampler:
    """Measures in the background. Any rank; needs the extra `system`, and measures nothing without it.

    What it asks may raise or hang (a driver, a file server): that costs figures, and nobody waits for its thread.

    Args:
        put: takes events.
        step: the newest step that the rank has logged.
        root: where run directories are.
        local_rank: this process's place on its node; None where nobody has told it.
        interval: seconds between two samples.
    """

    def __init__(
        self,
        put: Callable[[Event], None],
        step: Callable[[], int],
        *,
        root: Path,
        local_rank: int | None,
        interval: float,
    ) -> None:
        self._put = put
        self._step = step
        self._root = root
        self._local_rank = local_rank
        self._interval = interval
        self._random = random.Random()  # noqa: S311  # not the program's own, whose order may matter to it
        self._failed: set[str] = set()
        self._ended = threading.Event()
        self._ending = threading.Lock()  # around reporting, which takes microseconds: nothing is reported after `stop`

    def start(self) -> None:
        """Starts the thread."""
        # Imported here, not in the thread: a fork during an import leaves its lock taken in the child for ever.
        sources = []
        try:
            from ddphub.system.host import host_figures  # noqa: PLC0415  # psutil is an extra

            sources.append(lambda: host_figures(self._root))
            from ddphub.system.gpu import gpu_figures  # noqa: PLC0415  # and so is nvidia-ml-py

            sources.append(lambda: gpu_figures(self._local_rank, os.environ))
        except Exception as error:  # noqa: BLE001  # ImportError, or what a package of that name does instead
            logger.info("system figures are missing (%s): pip install 'ddphub[system]'", error)
        if sources:
            threading.Thread(target=self._main, args=(sources,), name="ddphub-system", daemon=True).start()

    def stop(self) -> None:
        """From here on nothing is reported. Waits for nothing."""
        with self._ending:
            self._ended.set()

    def _main(self, sources: list[Callable[[], dict[str, Figure]]]) -> None:
        figures: dict[str, Figure] = {}
        for source in sources:
            try:
                figures = {**source(), **figures}  # the machine's come last, and of those the disk's: it may hang
            except Exception as error:  # noqa: BLE001  # whatever psutil and NVML raise: it costs these figures
                logger.info("system figures are missing: %s", error)
        wait = min(FIRST, self._interval)
        while not self._ended.wait(wait * self._random.uniform(1 - JITTER, 1 + JITTER)):
            wait = self._interval
            values = self._measure(figures)
            event = {"time": time.time(), "kind": "metrics", "step": self._step(), "epoch": None, "values": values}
            with self._ending:
                if values and not self._ended.is_set():
                    self._put(event)

    def _measure(self, figures: dict[str, Figure]) -> dict[str, float]:
        values = {}
        for name, figure in figures.items():
            try:
                values[SYSTEM + name] = figure()
            except Exception as error:  # noqa: BLE001  # as above
                if name not in self._failed:
                    self._failed.add(name)
                    logger.info("%s%s cannot be measured: %s", SYSTEM, name, error)
        return values

"""What a rank reports beside what its script logs: system figures, and what it prints."""

import logging
import os
from collections.abc import Callable, Mapping

from ddphub.config import Settings
from ddphub.console.console import Console
from ddphub.distributed.topology import LAUNCHERS, Topology
from ddphub.events import Event
from ddphub.system.sampler import Sampler

logger = logging.getLogger(__name__)


class Observer:
    """Owns a rank's sampler and console, as far as the settings want them. Any rank; built by `Run` alone.

    Args:
        settings: checked settings.
        topology: this process's place.
        put: takes events.
        step: the newest step that the rank has logged.
    """

    def __init__(
        self, settings: Settings, topology: Topology, put: Callable[[Event], None], step: Callable[[], int]
    ) -> None:
        self._sampler: Sampler | None = None
        self._console: Console | None = None
        try:
            if settings.console == "all" or (settings.console == "rank0" and topology.is_owner):
                self._console = Console(put, settings.secrets)
                self._console.start()
            if settings.system_interval:
                place = local_rank(topology, os.environ)
                self._sampler = Sampler(
                    put, step, root=settings.root, local_rank=place, interval=settings.system_interval
                )
                self._sampler.start()
        except Exception:  # no thread can be started, or what a script made of sys.stdout: training goes on
            logger.exception("what is beside the metrics is not reported")

    def flush(self) -> None:
        """What was printed so far is in the outbox."""
        if self._console is not None:
            self._console.flush()

    def stop(self) -> None:
        """The run ends: the same, and nothing more is observed."""
        if self._sampler is not None:
            self._sampler.stop()
        if self._console is not None:
            try:
                self._console.stop()
            except Exception:  # a stream that does not take its own method back
                logger.exception("the streams could not be given back")

    def forget(self) -> None:
        """In a forked child: what it prints is not this rank's."""
        if self._console is not None:
            self._console.forget()


def local_rank(topology: Topology, environ: Mapping[str, str]) -> int | None:
    """This process's place on its node; None where several ranks were started by what tells them no places."""
    is_told = topology.source != "arguments" and any(environ.get(launcher.local_rank) for launcher in LAUNCHERS)
    return topology.local_rank if is_told or topology.world_size == 1 else None

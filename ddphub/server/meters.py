"""What the hub counts, as Prometheus reads it.

One process has its figures in memory. The workers of one hub have theirs in a directory that their parent made and
that each of them reads, so that any of them can tell those of all: the client library's multiprocess mode, which the
variable `PROMETHEUS_MULTIPROC_DIR` turns on when the library is imported.
"""

import os
import threading
from collections.abc import Callable
from typing import Final

from prometheus_client import (
    GC_COLLECTOR,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"

# When each figure was first counted: as many lines again, which nobody asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Meters:
    """The figures of this process. Any thread."""

    def __init__(self) -> None:
        self._shared = FOLDER in os.environ
        self._registry = CollectorRegistry()
        self._looks: list[Callable[[], None]] = []
        self._watched: dict[str, Gauge] = {}
        self._looking = threading.Lock()
        self.requests = self._counter("ddphub_requests", "Requests answered.", "method", "route", "status")
        self.seconds = Histogram(
            "ddphub_request_seconds",
            "Seconds from a request's head to the end of its answer.",
            ("method", "route"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.received = self._counter("ddphub_received_bytes", "Bytes of requests' bodies.")
        self.sent = self._counter("ddphub_sent_bytes", "Bytes of answers' bodies.")
        self.in_progress = self._gauge("ddphub_requests_in_progress", "Requests that are being answered.")
        self.refused = self._counter("ddphub_refused", "Requests and connections turned away, by limit.", "limit")
        self.events = self._counter("ddphub_events", "Events that runs sent: stored, or known already.", "outcome")
        if not self._shared:
            ProcessCollector(registry=self._registry)
            self._registry.register(GC_COLLECTOR)
            return
        of_process = ProcessCollector(registry=None)
        # One line for each worker, told apart by its pid.
        gauges = {
            sample.name: Gauge(sample.name, family.documentation, registry=self._registry, multiprocess_mode="liveall")
            for family in of_process.collect()
            for sample in family.samples
        }

        def look() -> None:
            for family in of_process.collect():
                for sample in family.samples:
                    gauges[sample.name].set(sample.value)

        self._looks.append(look)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        # What rises and falls is added up over the workers that live.
        return Gauge(name, text, labels, registry=self._registry, multiprocess_mode="livesum")

    def watch(self, name: str, text: str, value: Callable[[], float], **labels: str) -> None:
        """Tell a figure that is looked up, each time figures are told and now and then.

        Args:
            name: the figure's; several may differ in their labels alone.
            text: what it is.
            value: looks it up.
            labels: the same ones for each of a name.
        """
        if name not in self._watched:
            self._watched[name] = self._gauge(name, text, *labels)
        gauge = self._watched[name]
        child = gauge.labels(**labels) if labels else gauge
        self._looks.append(lambda: child.set(value()))

    def look(self) -> None:
        """Set the gauges to what there is now."""
        with self._looking:
            for look in self._looks:
                look()

    def text(self) -> bytes:
        """All figures, those of the other workers too, in Prometheus' text format."""
        self.look()
        if not self._shared:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the library's
        return generate_latest(registry)

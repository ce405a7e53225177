"""What Delivery asks of a hub. One file per hub implements it; retries are Delivery's, in one layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ddphub.events import Event
from ddphub.hubs.wire import CheckpointRequest


@dataclass(frozen=True)
class Registration:
    """The run as a new or known model.

    Attributes:
        run_id: the idempotency key.
        project: the project's name.
        name: the model's name.
        config: shown by the hub.
    """

    run_id: str
    project: str
    name: str
    config: dict[str, Any]


@dataclass(frozen=True)
class Accepted:
    """The hub's answer to a batch of events.

    Attributes:
        accepted: events stored now.
        duplicates: events that the hub had already.
        stop: whether the hub asks the run to stop.
    """

    accepted: int
    duplicates: int
    stop: bool


@dataclass(frozen=True)
class Receipt:
    """The hub's acknowledgement of one entry: every byte is there and safe."""

    entry_id: str
    checkpoint_id: str


class HubClient(Protocol):
    """A connection to one hub. Any thread; rank 0 or `ddphub sync` only.

    Every call raises HubUnavailable, HubUnauthorized, HubModelGone or HubRejected, and nothing else, and ends by
    itself: each request has a connect and a read timeout.
    """

    part_size: int
    """Bytes of a part, as the hub wants them."""

    heartbeat_s: float | None
    """Seconds between heartbeats that the hub asks for; None when it does not say."""

    def register(self, registration: Registration) -> str:
        """Creates the model, or finds the one that this run made before; returns its id."""

    def send_events(self, model_id: str, events: Sequence[Event]) -> Accepted:
        """Stores events; a repeat changes nothing."""

    def upload(self, model_id: str, entry_id: str, request: CheckpointRequest, files: dict[str, Path]) -> Receipt:
        """Stores a checkpoint; goes on where an earlier try ended. `files`: where each file of the request is.

        Raises:
            FileNotFoundError: a file is gone.
        """

    def find_checkpoint(self, model_id: str, entry_id: str) -> Receipt | None:
        """The receipt of an entry that the hub has, else None."""

    def heartbeat(self, model_id: str, attempt_id: str) -> bool:
        """Says that the run lives; returns whether the hub asks it to stop."""

    def close(self) -> None:
        """Closes connections."""

"""What Delivery asks of a hub. One file per hub implements it; retries are Delivery's, in one layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
        attempts: attempt ids, in order of their start.
        environment: what rank 0's process says of itself: host, os, python, cpus.
        wanted: the hub's id of an existing model that the run was told to report to.
        known: the hub's id of the model that an earlier registration of this run came to.
        memory: what the client had in its `memory` then.
    """

    run_id: str
    project: str
    name: str
    config: dict[str, Any]
    attempts: Sequence[str] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    wanted: str | None = None
    known: str | None = None
    memory: Mapping[str, str] = field(default_factory=dict)


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


@dataclass(frozen=True)
class RemoteFile:
    """A file of a checkpoint on a hub. Size and sha256 are None where the hub does not tell them."""

    name: str
    url: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class RemoteCheckpoint:
    """A checkpoint that a hub has."""

    checkpoint_id: str
    kind: str
    epoch: int | None
    step: int | None
    name: str
    files: tuple[RemoteFile, ...]


class HubClient(Protocol):
    """A connection to one hub. Any thread; rank 0 or `ddphub sync` only.

    Every call raises HubUnavailable, HubUnauthorized, HubModelGone or HubRejected, and nothing else, and ends by
    itself: each request has a connect and a read timeout.
    """

    part_size: int
    """Bytes of a part, as the hub wants them."""

    heartbeat_s: float | None
    """Seconds between heartbeats that the hub asks for; None when it does not say."""

    is_idempotent: bool
    """Whether the hub tells a repeat of an event or an entry from a new one. Where it does not, a client keeps what it
    made of earlier events, `recall` gives it back, and a crash between an answer and the journal sends twice."""

    ends_last: bool
    """Whether the event that a run has finished means that its checkpoints are there, so that it must follow them."""

    memory: dict[str, str]
    """What a later process must know of the model. Delivery keeps it in the journal; no secret."""

    def register(self, registration: Registration) -> str:
        """Creates the model, or finds the one that this run made before; returns its id."""

    def url(self, model_id: str) -> str:
        """Where a person looks at the model."""

    def recall(self, events: Sequence[Event]) -> None:
        """Takes in events that were delivered before this process, in their order. Not called if `is_idempotent`."""

    def send_events(self, model_id: str, events: Sequence[Event]) -> Accepted:
        """Stores events; a repeat changes nothing."""

    def upload(self, model_id: str, entry_id: str, request: CheckpointRequest, files: dict[str, Path]) -> Receipt:
        """Stores a checkpoint; goes on where an earlier try ended. `files`: where each file of the request is.

        Raises:
            FileNotFoundError: a file is gone.
        """

    def find_checkpoint(self, model_id: str, entry_id: str) -> Receipt | None:
        """The receipt of an entry that the hub has, else None."""

    def find_model(self, project: str, run_id: str) -> str | None:
        """The model that this run made; None when there is none, or the hub cannot tell. Makes nothing."""

    def newest_checkpoint(self, model_id: str, kinds: Sequence[str]) -> RemoteCheckpoint | None:
        """The newest complete checkpoint of one of these kinds; None when the hub has none, or gives none back."""

    def download(self, file: RemoteFile, target: Path) -> None:
        """Fetches a file; `target` appears when it is whole, with the size and sha256 that the hub told.

        Raises:
            OSError: it cannot be written.
        """

    def heartbeat(self, model_id: str, attempt_id: str) -> bool:
        """Says that the run lives; returns whether the hub asks it to stop."""

    def close(self) -> None:
        """Closes connections."""

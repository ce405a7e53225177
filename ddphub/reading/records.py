"""What a hub tells of a model, as `ddphub.Hub` gives it to programs. Times are seconds since the epoch, UTC."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self, TypedDict

from ddphub.errors import HubUnavailable
from ddphub.events import decode_scalar


class MetricRecord(TypedDict):
    """One value of one metric. `time` is by the clock of the rank's node; the value may be NaN or infinite."""

    attempt: int
    rank: int
    step: int
    epoch: int | None
    time: float
    name: str
    value: float


class LogLine(TypedDict):
    """A line that a rank printed (`stream` is stdout or stderr) or that ddphub noted (info or warning)."""

    attempt: int
    rank: int
    time: float
    stream: str
    text: str


@dataclass(frozen=True)
class _Record:
    """Made of what the hub sends; what a later hub says beside it is left alone."""

    @classmethod
    def of(cls, item: Any) -> Self:  # noqa: ANN401  # JSON
        """Reads one.

        Raises:
            HubUnavailable: it is none.
        """
        try:
            return cls(**{one.name: item[one.name] for one in fields(cls)})
        except (KeyError, TypeError, ValueError):
            raise HubUnavailable(f"the answer holds no {cls.__name__.lower()}: {str(item)[:200]}") from None

    def to_dict(self) -> dict[str, Any]:
        """The same as a dict."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Progress(_Record):
    """How far a model's newest attempt is. `epochs` is what its configuration says, `rate` steps a second."""

    step: int | None
    epoch: int | None
    epochs: int | None
    rate: float | None


@dataclass(frozen=True, kw_only=True)
class Attempt(_Record):
    """One start of the run's processes. `reason` says why it ended; `slurm` what it said of its SLURM job."""

    number: int
    attempt_id: str
    state: str | None
    reason: str | None
    world_size: int | None
    host: str | None
    started_at: float | None
    ended_at: float | None
    slurm: dict[str, Any] | None = field(hash=False)


@dataclass(frozen=True, kw_only=True)
class Rank(_Record):
    """One rank of an attempt.

    Attributes:
        rank: its number.
        state: what rank 0 said of it: `joined`, `lost`, `back` or `left`.
        health: `ok`, `slow`, `stalled`, `silent`, `dead` or `done`.
        host: where it runs.
        pid: its process there.
        last_step: the newest step that it logged.
        lag: steps behind the first rank.
        rate: steps a second.
        last_step_time: when its step last rose, by its node's clock.
        last_seen: when it last reported, by its node's clock.
        memory: bytes, the newest that it measured.
    """

    rank: int
    state: str
    health: str
    host: str | None
    pid: int | None
    last_step: int | None
    lag: int | None
    rate: float | None
    last_step_time: float | None
    last_seen: float | None
    memory: float | None


@dataclass(frozen=True, kw_only=True)
class Series(_Record):
    """One metric in short: how many values of all ranks there are, and rank 0's least, greatest and newest finite."""

    name: str
    count: int
    least: float | None
    greatest: float | None
    latest: float | None


@dataclass(frozen=True, kw_only=True)
class CheckpointFile(_Record):
    """One file of a checkpoint."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Checkpoint(_Record):
    """A checkpoint that the hub has whole. `attempt` is the number of the attempt that saved it."""

    id: str
    kind: str
    epoch: int | None
    step: int | None
    name: str
    attempt: int
    metrics: dict[str, float] = field(hash=False)
    files: tuple[CheckpointFile, ...]
    committed_at: float

    def __post_init__(self) -> None:
        metrics = {name: float(decode_scalar(value)) for name, value in self.metrics.items()}
        object.__setattr__(self, "metrics", metrics)
        object.__setattr__(self, "files", tuple(map(CheckpointFile.of, self.files)))

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)

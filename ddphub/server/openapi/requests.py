"""Bodies of requests. What a model does not name is ignored, or kept as it is, unless it says otherwise."""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from ddphub.events import ATTEMPT_STATES, MAX_CONSOLE_LINE, MAX_CONSOLE_LINES
from ddphub.hubs.wire import MAX_BATCH_EVENTS, MAX_FILES
from ddphub.names import MAX_NAME
from ddphub.server.api.heartbeats import MAX_AGENT
from ddphub.server.body import INT64_MAX
from ddphub.server.incoming_events import MAX_KIND, MAX_TIME, MAX_VALUES
from ddphub.server.labels import MAX_NOTES, MAX_TAGS
from ddphub.server.retention import MOST

HexId = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=INT64_MAX)]
Integer = Annotated[int, Field(ge=-INT64_MAX - 1, le=INT64_MAX)]
_NO_NAME: Final = r"/\\\x00-\x1f\x7f-\x9f"
Name = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_NAME,
        description="Without '/', '\\', '..' and control characters; does not begin or end with white space.",
        json_schema_extra={"pattern": rf"^(?!.*\.\.)(?!\s)[^{_NO_NAME}]+(?<!\s)$"},
    ),
]
FileName = Annotated[str, Field(min_length=1, max_length=4 * MAX_NAME, description="A relative path.")]
RunId = Annotated[str, Field(json_schema_extra={"pattern": r"^(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"})]
Role = Literal["reader", "writer", "admin"]
Scalar = bool | Integer | float | Literal["NaN", "Infinity", "-Infinity"]
Values = Annotated[dict[str, Scalar], Field(max_length=MAX_VALUES)]


class Meta(BaseModel):
    """What a model is called."""

    name: Name = "model"


class NewModel(BaseModel):
    """A model to create; all of it is kept, and told again."""

    meta: Meta | None = None
    project: Name = "default"
    config: dict[str, Any] | None = None
    dataset: dict[str, Any] | None = None
    lineage: dict[str, Any] | None = None
    notes: Annotated[str, Field(max_length=MAX_NOTES)] | None = None
    tags: Annotated[list[Name], Field(max_length=MAX_TAGS)] = []


class ModelChange(BaseModel):
    """What to change of a model."""

    meta: Meta | None = None
    config: dict[str, Any] | None = None
    dataset: dict[str, Any] | None = None
    lineage: dict[str, Any] | None = None
    notes: Annotated[str, Field(max_length=MAX_NOTES)] | None = None
    tags: Annotated[list[Name], Field(max_length=MAX_TAGS)] = []


class EpochMetrics(BaseModel):
    """HUB v1's metrics: JSON in a text for each epoch."""

    metrics: Annotated[
        dict[str, Annotated[str, Field(json_schema_extra={"contentMediaType": "application/json"})]],
        Field(
            description="By epoch; the values are JSON objects of names and numbers, as text.",
            json_schema_extra={"propertyNames": {"pattern": "^(0|[1-9][0-9]{0,17})$"}},
        ),
    ]


class EventKey(BaseModel):
    """What every event has. The key, attempt_id, rank and seq, is the same for each repeat of it."""

    attempt_id: HexId
    rank: Count
    seq: Count
    time: Annotated[float, Field(ge=0, lt=MAX_TIME, description="Seconds since the epoch.")]


class MetricsEvent(EventKey):
    """Values at a step."""

    kind: Literal["metrics"]
    step: Integer
    epoch: Integer | None = None
    values: Values


class AttemptEvent(EventKey):
    """What happened to an attempt."""

    kind: Literal["attempt"]
    state: Annotated[str, Field(json_schema_extra={"enum": list(ATTEMPT_STATES)})]
    world_size: Integer | None = None
    host: str | None = None
    reason: str | None = None


class RankEvent(EventKey):
    """What rank 0 says of a rank."""

    kind: Literal["rank"]
    state: Literal["joined", "lost", "back", "left"]
    of_rank: Count
    host: str | None = None
    pid: Integer | None = None
    local_rank: Integer | None = None
    node: Integer | None = None
    reason: str | None = None


class LogEvent(EventKey):
    """What ddphub says of the run."""

    kind: Literal["log"]
    message: str
    level: str | None = None


class ConsoleEvent(EventKey):
    """What a rank printed."""

    kind: Literal["console"]
    stream: Literal["stdout", "stderr"]
    lines: Annotated[list[Annotated[str, Field(max_length=MAX_CONSOLE_LINE)]], Field(max_length=MAX_CONSOLE_LINES)]
    left_out: Count


class OtherEvent(EventKey):
    """An event of a kind that the hub does not know is kept as it is."""

    kind: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_KIND,
            json_schema_extra={"not": {"enum": ["metrics", "attempt", "rank", "log", "console"]}},
        ),
    ]


class Events(RootModel[list[MetricsEvent | AttemptEvent | RankEvent | LogEvent | ConsoleEvent | OtherEvent]]):
    """A batch of events: all of it is stored, or nothing."""

    model_config = ConfigDict(json_schema_extra={"maxItems": MAX_BATCH_EVENTS})


class Heartbeat(BaseModel):
    """A sign of life."""

    agent: Annotated[str, Field(max_length=MAX_AGENT)] | None = None
    agentId: Annotated[str, Field(max_length=MAX_AGENT)] | None = None  # noqa: N815  # HUB v1's
    attempt_id: HexId | None = None


class File(BaseModel):
    """One file of a checkpoint: `parts` has the sha256 of each of its parts, in order."""

    name: FileName
    size: Count
    sha256: Sha256
    parts: list[Sha256]


class NewCheckpoint(BaseModel):
    """A checkpoint to begin."""

    attempt_id: HexId
    epoch: Integer | None = None
    step: Integer | None = None
    kind: Literal["epoch", "best", "final"]
    name: FileName
    metrics: Values = {}
    files: Annotated[list[File], Field(min_length=1, max_length=MAX_FILES)]


class Grant(BaseModel):
    """What a user may do, in a project or with null in all of them."""

    model_config = ConfigDict(extra="forbid")

    project: Name | None = None
    role: Role


class NewUser(BaseModel):
    """A user to add."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    grants: list[Grant] = []


class UserChange(BaseModel):
    """What to change of a user; `grants` replaces all of them."""

    model_config = ConfigDict(extra="forbid")

    grants: list[Grant] = []
    disabled: bool | None = None


class NewKey(BaseModel):
    """A key to make."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    role: Role = "writer"
    project: Name | None = None
    run_id: RunId | None = None
    expires_at: float | None = None
    user: Name | None = None


class RetentionRules(BaseModel):
    """Which checkpoints are kept; without any rule all are."""

    model_config = ConfigDict(extra="forbid")

    last: Annotated[int, Field(ge=1, le=MOST)] | None = None
    best: Annotated[int, Field(ge=1, le=MOST)] | None = None
    final: bool | None = None
    days: Annotated[float, Field(gt=0, le=MOST)] | None = None


class Weights(BaseModel):
    """HUB v1's upload of a file with weights."""

    type: Literal["epoch", "final"]
    epoch: Annotated[str, Field(pattern="^[0-9]{1,18}$")]
    isBest: Literal["True", "False"] = "False"  # noqa: N815  # HUB v1's
    map: Annotated[str, Field(description="Of a final one: a number.")] = "0"
    file: Annotated[str, Field(json_schema_extra={"format": "binary"})]

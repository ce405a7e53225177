"""What answers say: `data` of their envelope, unless an operation says otherwise."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ddphub.server.openapi.requests import Grant, Scalar

Seconds = float
"""Since the epoch."""


class Nothing(BaseModel):
    """There is nothing to say."""


class Problem(BaseModel):
    """What is wrong with a request, and what to do (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    success: Literal[False]
    message: str
    request_id: str


class Capabilities(BaseModel):
    """What a client may use here."""

    hub: Literal["ddphub"]
    version: str
    features: list[str]
    part_size: int
    heartbeat_s: float


class Health(BaseModel):
    """The process answers."""

    hub: Literal["ddphub"]


class Ready(BaseModel):
    """Each part answers."""

    hub: Literal["ok"]
    database: Literal["ok"]
    storage: Literal["ok"]


class Progress(BaseModel):
    """How far the newest attempt is; `rate` is steps a second."""

    step: int | None
    epoch: int | None
    epochs: int | None
    rate: float | None
    at: Seconds | None


class Attempt(BaseModel):
    """One start of a run."""

    number: int
    attempt_id: str
    state: str | None
    world_size: int | None
    host: str | None
    started_at: Seconds | None
    ended_at: Seconds | None
    reason: str | None
    slurm: dict[str, Any] | None
    heard_at: Seconds | None
    step: int | None
    epoch: int | None


class Summary(BaseModel):
    """What a list says of a model."""

    id: str
    project: str
    project_id: str
    name: str
    meta: dict[str, Any]
    run_id: str | None
    url: str
    state: str
    reason: str | None
    traceback: str | None
    progress: Progress | None
    heard_at: Seconds | None
    silent_s: float | None
    status: Literal["new", "training", "trained"]
    tags: list[str]
    attempt: int | None
    stop_requested: bool
    attempts: list[Attempt]
    events: int
    created_at: Seconds
    last_seen: Seconds | None


class Rank(BaseModel):
    """One rank of an attempt; `memory` in bytes."""

    rank: int
    state: str
    health: str
    reason: str | None
    host: str | None
    pid: int | None
    local_rank: int | None
    last_step: int | None
    lag: int | None
    rate: float | None
    last_step_time: Seconds | None
    last_seen: Seconds | None
    memory: float | None


class Model(Summary):
    """All that is known of a model; from `data` on in HUB v1's words, whose values are what the client sent."""

    config: dict[str, Any]
    notes: str | None
    ranks: list[Rank]
    checkpoints: int
    data: str | None
    cfg: str | None
    weights: str | None
    resume: str | None
    batch_size: Any
    epochs: Any
    imgsz: Any
    patience: Any
    device: Any
    cache: Any
    train_args: dict[str, Any]
    has_last_weights: bool
    has_best_weights: bool
    is_pretrained: bool
    is_custom: bool


class Models(BaseModel):
    """A page of models; `lastRecordId` is the `last_doc_id` of the next one."""

    results: list[Summary]
    total: int | None
    lastRecordId: str | None  # noqa: N815  # HUB v1's


class Ranks(BaseModel):
    """A page of ranks; `next` is its `after`."""

    results: list[Rank]
    next: int | None


class Accepted(BaseModel):
    """How many events, or epochs, were new and how many known; whether the run should stop."""

    accepted: int
    duplicates: int
    stop: bool


class StoredEvent(BaseModel):
    """An event as it was sent, with its number here; `attempt` is the attempt's number."""

    model_config = ConfigDict(extra="allow")

    id: int
    attempt: int
    attempt_id: str
    rank: int
    seq: int
    kind: str
    time: Seconds


class StoredMetrics(BaseModel):
    """Values at a step."""

    id: int
    attempt: int
    attempt_id: str
    rank: int
    seq: int
    epoch: int | None
    step: int
    time: Seconds
    values: dict[str, Scalar]


class Metric(BaseModel):
    """What is known of a metric: of its finite values the least, the greatest and the latest one."""

    name: str
    count: int
    least: float | None
    greatest: float | None
    latest: float | None


class Metrics(BaseModel):
    """A page of metrics; `next` is the `after` of the next one."""

    results: list[Metric]
    next: str | None


class Line(BaseModel):
    """One line of a chart; of all ranks together where `rank` is null, with the least and the greatest."""

    model_config = ConfigDict(extra="allow")

    attempt: int
    rank: int | None
    older: bool
    x: list[float]
    y: list[float | None]
    low: list[float | None] | None
    high: list[float | None] | None


class Chart(BaseModel):
    """A metric as lines; `points` is how many it has in all, `range` the first and the last x."""

    name: str
    show: Literal["rank0", "band", "ranks"]
    x: Literal["step", "epoch", "time"]
    points: int
    range: list[float] | None
    non_finite: int
    lines: list[Line]


class Beat(BaseModel):
    """Whether the run should stop."""

    agentId: str  # noqa: N815  # HUB v1's
    stop: bool


class Stop(BaseModel):
    """When the run was first asked to stop."""

    stop: Literal[True]
    requested_at: Seconds


class PartUrl(BaseModel):
    """Where to PUT a part, with which headers and without a key.

    Of `received` bytes that the hub has, a PUT may leave out the first ones, and say so by `Content-Range`.
    """

    number: int
    url: str
    headers: dict[str, str] = {}
    received: int = 0


class MissingFile(BaseModel):
    """The parts of a file that have not arrived."""

    name: str
    parts: list[PartUrl]


class CheckpointState(BaseModel):
    """How far a checkpoint is."""

    id: str
    state: Literal["receiving", "checking", "committed"]
    missing: list[MissingFile]


class StoredFile(BaseModel):
    """A file of a checkpoint."""

    name: str
    size: int
    sha256: str


class Checkpoint(BaseModel):
    """A committed checkpoint."""

    id: str
    entry_id: str
    attempt: int
    attempt_id: str
    epoch: int | None
    step: int | None
    kind: Literal["epoch", "best", "final"]
    name: str
    metrics: dict[str, Scalar]
    files: list[StoredFile]
    committed_at: Seconds


class Uploaded(BaseModel):
    """The checkpoint that a file of weights came to."""

    id: str


class Part(BaseModel):
    """A part that has arrived."""

    number: int
    sha256: str


class User(BaseModel):
    """A user."""

    id: str
    name: str
    created_at: Seconds
    disabled_at: Seconds | None
    grants: list[Grant]


class Users(BaseModel):
    """A page of users; `next` is the `after` of the next one."""

    results: list[User]
    next: str | None


class Key(BaseModel):
    """A key, without its secret."""

    id: str
    prefix: str | None
    name: str
    user: str | None
    role: Literal["reader", "writer", "admin"]
    project: str | None
    run_id: str | None
    created_at: Seconds
    expires_at: Seconds | None
    revoked_at: Seconds | None
    last_used_at: Seconds | None


class MadeKey(Key):
    """A key as it is shown once."""

    key: str


class Keys(BaseModel):
    """A page of keys; `next` is the `after` of the next one."""

    results: list[Key]
    next: str | None


class AuditRecord(BaseModel):
    """Who did what."""

    id: int
    time: Seconds
    who: str
    key: str | None
    action: str
    object: str | None
    address: str | None
    request_id: str | None
    detail: dict[str, Any]


class Audit(BaseModel):
    """A page of the audit log; `next` is the `after` of the next one."""

    results: list[AuditRecord]
    next: int | None


class Rules(BaseModel):
    """Which checkpoints are kept."""

    last: int | None
    best: int | None
    final: bool
    days: float | None


class Project(BaseModel):
    """A project; `bytes` is what its checkpoints take."""

    id: str
    name: str
    meta: dict[str, Any]
    created_at: Seconds
    models: int
    bytes: int
    retention: Rules | None


class Projects(BaseModel):
    """A page of projects; `lastRecordId` is the `last_doc_id` of the next one."""

    results: list[Project]
    total: int
    lastRecordId: str | None  # noqa: N815  # HUB v1's


class PrunedCheckpoint(BaseModel):
    """A checkpoint that goes."""

    id: str
    model_id: str
    model_name: str
    kind: str
    epoch: int | None
    step: int | None
    name: str
    size: int
    committed_at: Seconds


class Pruned(BaseModel):
    """Checkpoints that go, and the bytes that they free; whether there are more."""

    checkpoints: list[PrunedCheckpoint]
    bytes: int
    more: bool

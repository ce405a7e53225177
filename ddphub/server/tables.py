"""What the hub remembers, as tables.

```
projects ── models ── attempts ── events          one row per (attempt, rank, seq)
   │           │         └─────── ranks           what the events say of each rank
   │           ├── latest_metrics                 the newest values of rank 0, and each rank's memory
   │           ├── series ── points               every value of a metric, packed for charts
   │           ├── tags
   │           ├── checkpoints ── checkpoint_files
   │           └── deleted_checkpoints            so that a repeat does not bring one back
   └── blobs                                      bytes on disk that a commit vouches for
users ── grants                                    what a user may do, where
   └──── api_keys ── browser_sessions              what programs and browsers show
sign_in_failures, audit, chores
```

A `..._ref` column names a row of another table by its number; ids that clients see are text. Times are seconds since
the epoch, UTC.
"""

from typing import ClassVar, Final

from sqlalchemy import (
    BigInteger,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from ddphub.names import MAX_NAME

INT64: Final = BigInteger().with_variant(Integer(), "sqlite")
"""64 bits everywhere: SQLite's INTEGER has them, and only that may be a primary key there."""


class Base(DeclarativeBase):
    """The tables' common metadata; named constraints can be changed by later migrations."""

    type_annotation_map: ClassVar = {float: Double(), int: INT64}
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class User(Base):
    """A person, or a program, that has keys; one with `disabled_at` may do nothing."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    public_id: Mapped[str] = mapped_column(String(20), unique=True)
    name: Mapped[str] = mapped_column(String(MAX_NAME), unique=True)
    created_at: Mapped[float]
    disabled_at: Mapped[float | None]


class Grant(Base):
    """What a user may do: `admin`, `writer` or `reader`, in one project or where it names none in all."""

    __tablename__ = "grants"
    __table_args__ = (UniqueConstraint("user_ref", "project_ref"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    user_ref: Mapped[int] = mapped_column(ForeignKey("users.id"))
    project_ref: Mapped[int | None] = mapped_column(ForeignKey("projects.id"))
    role: Mapped[str] = mapped_column(String(16))


class ApiKey(Base):
    """A key that the hub made: only its salted digest, and the first letters by which people and the hub find it.

    It can do at most what `role` says, in `project_ref` where it names one, to the run `run_id` where it names one, and
    no more than its user where it has one. A key of an older hub has no prefix.
    """

    __tablename__ = "api_keys"
    __table_args__ = (Index(None, "prefix"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    public_id: Mapped[str] = mapped_column(String(20), unique=True)
    prefix: Mapped[str | None] = mapped_column(String(8))
    salt: Mapped[bytes] = mapped_column(LargeBinary(16))
    digest: Mapped[bytes] = mapped_column(LargeBinary(32))
    user_ref: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    name: Mapped[str] = mapped_column(String(MAX_NAME))
    role: Mapped[str] = mapped_column(String(16))
    project_ref: Mapped[int | None] = mapped_column(ForeignKey("projects.id"))
    run_id: Mapped[str | None] = mapped_column(String(128))
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    revoked_at: Mapped[float | None]
    last_used_at: Mapped[float | None]


class BrowserSession(Base):
    """A browser that signed in with a key; `key_ref` is empty where that was the key of the settings."""

    __tablename__ = "browser_sessions"

    id: Mapped[int] = mapped_column(primary_key=True)
    public_id: Mapped[str] = mapped_column(String(32), unique=True)
    key_ref: Mapped[int | None] = mapped_column(ForeignKey("api_keys.id"))
    created_at: Mapped[float]
    expires_at: Mapped[float]
    ended_at: Mapped[float | None]


class SignInFailures(Base):
    """Wrong keys that came from one address; `since` is when the last did, `keys` are short digests of the last."""

    __tablename__ = "sign_in_failures"

    id: Mapped[int] = mapped_column(primary_key=True)
    address: Mapped[str] = mapped_column(String(64), unique=True)
    count: Mapped[int]
    since: Mapped[float]
    keys: Mapped[bytes] = mapped_column(LargeBinary(128))


class AuditRecord(Base):
    """Who changed what, when and from where; `detail` is JSON."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True)
    time: Mapped[float]
    who: Mapped[str] = mapped_column(Text)
    key: Mapped[str | None] = mapped_column(String(20))
    action: Mapped[str] = mapped_column(String(64))
    object: Mapped[str] = mapped_column(Text)
    address: Mapped[str | None] = mapped_column(String(64))
    request_id: Mapped[str | None] = mapped_column(String(64))
    detail: Mapped[str] = mapped_column(Text)


class Chore(Base):
    """What a hub does from time to time by itself; whoever sets `next_at` further does it this time."""

    __tablename__ = "chores"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    next_at: Mapped[float]


class Project(Base):
    """A project: the scope of run ids and of blobs. `retention` is JSON: which checkpoints are kept; empty for all."""

    __tablename__ = "projects"

    id: Mapped[int] = mapped_column(primary_key=True)
    public_id: Mapped[str] = mapped_column(String(20), unique=True)
    name: Mapped[str] = mapped_column(String(MAX_NAME), unique=True)
    created_at: Mapped[float]
    retention: Mapped[str | None] = mapped_column(Text)


class Model(Base):
    """What a run reports to. `request` is the JSON it was created with; one with `deleted_at` is shown nowhere."""

    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("project_ref", "run_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    public_id: Mapped[str] = mapped_column(String(20), unique=True)
    project_ref: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    run_id: Mapped[str | None] = mapped_column(String(128))
    name: Mapped[str] = mapped_column(String(MAX_NAME))
    request: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float]
    last_seen: Mapped[float | None]
    stop_requested_at: Mapped[float | None]
    events: Mapped[int] = mapped_column(default=0)
    deleted_at: Mapped[float | None]
    notes: Mapped[str | None] = mapped_column(Text)


class Tag(Base):
    """A word that people find a model by."""

    __tablename__ = "tags"
    __table_args__ = (UniqueConstraint("model_ref", "tag"), Index(None, "tag"))

    id: Mapped[int] = mapped_column(primary_key=True)
    model_ref: Mapped[int] = mapped_column(ForeignKey("models.id"))
    tag: Mapped[str] = mapped_column(String(MAX_NAME))


class Attempt(Base):
    """One start of the run's processes; (`state_time`, `state_seq`) is the event that gave the state.

    `slurm` is what the SLURM job said of itself, as JSON; `said_by` is `slurm` where SLURM gave the state.

    By the hub's clock: `seen_at` is its first sight, `heard_at` that or the newest heartbeat, `heard_since` since when
    no heartbeat was late, `progress_at` when a step last rose, `longest_gap` the most seconds between two such times,
    `activity_at` when the program last gave another sign. `step`, `epoch`, `rate` are of the rank that is furthest.
    """

    __tablename__ = "attempts"
    __table_args__ = (UniqueConstraint("model_ref", "attempt_id"), UniqueConstraint("model_ref", "number"))

    id: Mapped[int] = mapped_column(primary_key=True)
    model_ref: Mapped[int] = mapped_column(ForeignKey("models.id"))
    attempt_id: Mapped[str] = mapped_column(String(32))
    number: Mapped[int]
    first_time: Mapped[float]
    state: Mapped[str | None] = mapped_column(String(16))
    state_time: Mapped[float | None]
    state_seq: Mapped[int | None]
    world_size: Mapped[int | None]
    host: Mapped[str | None] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[float | None]
    ended_at: Mapped[float | None]
    slurm: Mapped[str | None] = mapped_column(Text)
    said_by: Mapped[str | None] = mapped_column(String(16))
    seen_at: Mapped[float | None]
    heard_at: Mapped[float | None]
    heard_since: Mapped[float | None]
    progress_at: Mapped[float | None]
    longest_gap: Mapped[float | None]
    activity_at: Mapped[float | None]
    step: Mapped[int | None]
    epoch: Mapped[int | None]
    rate: Mapped[float | None]


class Event(Base):
    """One event. `body` is its JSON without the key.

    It tells a repeat from a contradiction; `fingerprint` did that for older hubs, and is empty since.
    """

    __tablename__ = "events"
    __table_args__ = (
        UniqueConstraint("attempt_ref", "rank", "seq"),
        Index(None, "model_ref", "kind", "id"),
        # An id is never given twice, so a reader's `after=<id>` misses nothing.
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    model_ref: Mapped[int] = mapped_column(ForeignKey("models.id"))
    attempt_ref: Mapped[int] = mapped_column(ForeignKey("attempts.id"))
    rank: Mapped[int]
    seq: Mapped[int]
    time: Mapped[float]
    kind: Mapped[str] = mapped_column(String(32))
    body: Mapped[str] = mapped_column(Text)
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary(32))


class Rank(Base):
    """One rank of an attempt; (`state_time`, `state_seq`) is the event that gave the state.

    `last_step_seq` is of its newest metrics event. `last_epoch`, `last_step_time` are of the event by which its step
    last rose, `progress_at` and `longest_gap` as an attempt's, `stride` the most by which one event raised it. `rate`
    is steps a second over about a minute; `moved` steps since `mark_time` are not in it yet. Both times are its node's.
    """

    __tablename__ = "ranks"
    __table_args__ = (UniqueConstraint("attempt_ref", "rank"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    attempt_ref: Mapped[int] = mapped_column(ForeignKey("attempts.id"))
    rank: Mapped[int]
    state: Mapped[str | None] = mapped_column(String(16))
    state_time: Mapped[float | None]
    state_seq: Mapped[int | None]
    host: Mapped[str | None] = mapped_column(Text)
    pid: Mapped[int | None]
    last_step: Mapped[int | None]
    last_step_seq: Mapped[int | None]
    last_epoch: Mapped[int | None]
    last_step_time: Mapped[float | None]
    progress_at: Mapped[float | None]
    longest_gap: Mapped[float | None]
    stride: Mapped[int | None]
    mark_time: Mapped[float | None]
    moved: Mapped[int | None]
    rate: Mapped[float | None]
    last_seen: Mapped[float | None]
    local_rank: Mapped[int | None]
    reason: Mapped[str | None] = mapped_column(Text)


class LatestMetric(Base):
    """The newest value of a metric of rank 0, or of `ranks.MEMORY` of any rank; `value` is JSON."""

    __tablename__ = "latest_metrics"
    __table_args__ = (UniqueConstraint("model_ref", "rank", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    model_ref: Mapped[int] = mapped_column(ForeignKey("models.id"))
    rank: Mapped[int]
    name: Mapped[str] = mapped_column(String(256))
    value: Mapped[str] = mapped_column(Text)
    step: Mapped[int]
    epoch: Mapped[int | None]
    time: Mapped[float]
    attempt: Mapped[int]
    seq: Mapped[int]


class Series(Base):
    """One metric of a model: how many points it has, and the least, greatest and newest finite value of rank 0.

    `latest_time` is when that newest value was logged, by its node's clock.
    """

    __tablename__ = "series"
    __table_args__ = (UniqueConstraint("model_ref", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    model_ref: Mapped[int] = mapped_column(ForeignKey("models.id"))
    name: Mapped[str] = mapped_column(String(256))
    count: Mapped[int]
    rank0_count: Mapped[int]
    least: Mapped[float | None]
    greatest: Mapped[float | None]
    latest: Mapped[float | None]
    latest_time: Mapped[float | None]


class Points(Base):
    """`count` points of a series in the order of arrival, of rank 0 or of all others; `first` come before them."""

    __tablename__ = "points"
    __table_args__ = (UniqueConstraint("series_ref", "rank0", "first"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    series_ref: Mapped[int] = mapped_column(ForeignKey("series.id"))
    rank0: Mapped[bool]
    first: Mapped[int]
    count: Mapped[int]
    data: Mapped[bytes] = mapped_column(LargeBinary)


class Checkpoint(Base):
    """One checkpoint, from its first request on; committed when `committed_at` says so.

    The process `checking_by` checks its bytes until `checking_until` and prolongs that; `failure` says why its bytes
    can never be what was announced.
    """

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("model_ref", "entry_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    public_id: Mapped[str] = mapped_column(String(20), unique=True)
    model_ref: Mapped[int] = mapped_column(ForeignKey("models.id"))
    attempt_ref: Mapped[int] = mapped_column(ForeignKey("attempts.id"))
    entry_id: Mapped[str] = mapped_column(String(32))
    epoch: Mapped[int | None]
    step: Mapped[int | None]
    kind: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(Text)
    metrics: Mapped[str] = mapped_column(Text)
    part_size: Mapped[int]
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary(32))
    created_at: Mapped[float]
    committed_at: Mapped[float | None]
    checking_by: Mapped[str | None] = mapped_column(String(32))
    checking_until: Mapped[float | None]
    failure: Mapped[str | None] = mapped_column(Text)


class CheckpointFile(Base):
    """One file of a checkpoint; `number` counts from 0, `parts` is a JSON list of sha256.

    `location` and `upload_id` name the multipart upload by which it arrives at an object storage.
    """

    __tablename__ = "checkpoint_files"
    __table_args__ = (UniqueConstraint("checkpoint_ref", "number"), UniqueConstraint("checkpoint_ref", "name"))

    id: Mapped[int] = mapped_column(primary_key=True)
    checkpoint_ref: Mapped[int] = mapped_column(ForeignKey("checkpoints.id"))
    number: Mapped[int]
    name: Mapped[str] = mapped_column(Text)
    size: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    parts: Mapped[str] = mapped_column(Text)
    location: Mapped[str | None] = mapped_column(Text)
    upload_id: Mapped[str | None] = mapped_column(Text)


class DeletedCheckpoint(Base):
    """What is kept of a committed checkpoint that someone deleted: its key, by which a repeat is known."""

    __tablename__ = "deleted_checkpoints"
    __table_args__ = (UniqueConstraint("model_ref", "entry_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    model_ref: Mapped[int] = mapped_column(ForeignKey("models.id"))
    public_id: Mapped[str] = mapped_column(String(20), unique=True)
    entry_id: Mapped[str] = mapped_column(String(32))
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary(32))


class Blob(Base):
    """A file that this project holds: its bytes are stored and were checked.

    `location` is its key in an object storage; a local directory finds it by its sha256.
    """

    __tablename__ = "blobs"
    __table_args__ = (UniqueConstraint("project_ref", "sha256"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    project_ref: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    sha256: Mapped[str] = mapped_column(String(64))
    size: Mapped[int]
    created_at: Mapped[float]
    location: Mapped[str | None] = mapped_column(Text)

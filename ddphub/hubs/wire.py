"""The delivery API's shapes and limits, shared by the client and the hub.

An extension to HUB v1: the same `x-api-key` or `Authorization: Bearer` header and the same answer envelope
`{"success": bool, "message": str, "data": ...}`. Errors are RFC 9457 problem details with the envelope's
`success` and `message` beside them.

The list of checkpoints takes `?entry_id=` (that entry alone, if it is committed), `?after=<checkpoint id>&limit=`,
`?kind=` and `?order=desc`; the list of models `?project=&run_id=&state=&tag=&search=&limit=&last_doc_id=`, `state` and
`tag` also several times. Its next page begins after `lastRecordId`, null when there is none; a page may have fewer
results than asked for, or none, before that.
A model's `notes` and `tags` come with its creation or a PATCH. A checkpoint that was deleted stays committed to the run
that sent it: a repeat of its entry gets the first answer.
Completing a checkpoint whose parts have not all arrived is a 409 whose problem lists them in `missing`.
"""

from typing import Any, Final, Literal, NotRequired, TypedDict

IDEMPOTENCY_KEY: Final = "Idempotency-Key"
"""Request header: a repeat with the same key gets the first answer."""

FOLLOWS_REDIRECTS: Final = "x-ddphub-follows-redirects"
"""Request header of a download: the client follows one redirect, and sends no key to where it leads."""

PROBLEM_JSON: Final = "application/problem+json"

PART_SIZE: Final = 8 * 1024 * 1024
"""Bytes of a part; the last part of a file is shorter. An empty file has no part."""

MAX_BATCH_EVENTS: Final = 1000
"""Events in one request."""

MAX_METRIC_NAME: Final = 256
"""Characters of a metric's name; they are printable."""

MAX_JSON_BODY: Final = 4 * 1024 * 1024
"""Bytes of one JSON request body; more is answered 413."""

MAX_MISSING: Final = 10_000
"""Parts that one answer asks for; where it has so many, there may be more: ask again once they are sent."""

MAX_FILES: Final = 10_000
"""Files in one checkpoint (a directory of shards)."""

HEARTBEAT_S: Final = 10.0
"""Seconds between heartbeats that our own hub asks for."""

Kind = Literal["epoch", "best", "final"]
KINDS: Final = ("epoch", "best", "final")


class Capabilities(TypedDict):
    """`data` of GET /v1/capabilities."""

    hub: str
    version: str
    features: list[str]
    part_size: int
    heartbeat_s: float


class ModelRequest(TypedDict):
    """Body of POST /v1/models with an Idempotency-Key: the run id, scoped to the project."""

    project: str
    meta: dict[str, str]
    config: NotRequired[dict[str, Any]]


class EventsAnswer(TypedDict):
    """`data` of POST /v1/models/{id}/events, whose body is a JSON list of events."""

    accepted: int
    duplicates: int
    stop: bool


class HeartbeatRequest(TypedDict):
    """Body of POST /v1/agent/heartbeat/models/{id}; HUB v1 knows the first two fields."""

    agent: str
    agentId: str | None
    attempt_id: NotRequired[str]


class HeartbeatAnswer(TypedDict):
    """`data` of a heartbeat's answer."""

    agentId: str
    stop: NotRequired[bool]


class FileManifest(TypedDict):
    """One file of a checkpoint. `parts` holds the sha256 (hex) of each PART_SIZE bytes, in order."""

    name: str
    size: int
    sha256: str
    parts: list[str]


class CheckpointRequest(TypedDict):
    """Body of POST /v1/models/{id}/checkpoints, with `Idempotency-Key: <entry_id>`."""

    attempt_id: str
    epoch: int | None
    step: int | None
    kind: str
    name: str
    metrics: dict[str, Any]
    files: list[FileManifest]


class PartUrl(TypedDict):
    """Where to PUT one part: `number` counts from 0; the URL is absolute or begins with '/'.

    `headers` are sent with it: the URL of an object storage is signed for them. The API key is not.
    `received` bytes of it are on the hub: a PUT may send the others alone, with `Content-Range` (RFC 9110, 14.5).
    """

    number: int
    url: str
    headers: NotRequired[dict[str, str]]
    received: NotRequired[int]


class MissingFile(TypedDict):
    """A file whose parts have not all arrived; only parts still to send are listed, see MAX_MISSING."""

    name: str
    parts: list[PartUrl]


class CheckpointAnswer(TypedDict):
    """`data` of POST .../checkpoints, GET .../checkpoints/{c}, .../parts and .../complete.

    `state`: `receiving` until complete, `checking` while the hub reads the bytes again, `committed` once they
    are safe. `missing` is empty unless `state` is `receiving`.
    """

    id: str
    state: str
    missing: list[MissingFile]

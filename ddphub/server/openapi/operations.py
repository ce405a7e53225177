"""Which body each request has, and what it is answered; a test holds that no route is missing."""

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ddphub.server.openapi import answers, requests

Access = Literal["key", "browser", "signed", "open"]
"""Who may ask: who has a key; a browser that signed in, too; who has the signed URL; anyone."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What the code of a route does not tell by itself.

    Attributes:
        access: who may ask.
        body: the body's model; None for a request without one.
        form: the body is a multipart form.
        octets: the body is bytes.
        may_be_empty: a body may be left out.
        key: the type of the Idempotency-Key header; None for a request that does not look at it.
        key_needed: it must be there.
        says: `data` of the answer; None for an answer that is no envelope.
        plain: the media types of an answer that is no envelope, by status; an empty one for no content.
        accepted: 202 says the same as 200.
        problems: statuses beside those that `document` knows of.
    """

    access: Access = "key"
    body: Any = None
    form: bool = False
    octets: bool = False
    may_be_empty: bool = False
    key: Any = None
    key_needed: bool = False
    says: Any = None
    plain: dict[int, str] = field(default_factory=dict)
    accepted: bool = False
    problems: tuple[int, ...] = ()


_NOT_HERE: Final = Operation(problems=(501,))
_FILE: Final = {200: "application/octet-stream", 206: "application/octet-stream", 304: "", 307: ""}
_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
_MODEL: Final = "/v1/models/{model_id}"
_CHECKPOINT: Final = f"{_MODEL}/checkpoints/{{checkpoint_id}}"
_DOWNLOAD: Final = "/v1/downloads/{checkpoint_id}/{number}/{expires}/{signature}/{name}"
_PROJECT: Final = "/v1/projects/{project_id}"

OPERATIONS: Final[dict[tuple[str, str], Operation]] = {
    ("GET", "/healthz"): Operation(access="open", says=answers.Health),
    ("GET", "/readyz"): Operation(access="open", says=answers.Ready),
    ("GET", "/metrics"): Operation(access="browser", plain={200: "text/plain"}),
    ("GET", "/v1/openapi.json"): Operation(access="browser", plain={200: "application/json"}),
    ("GET", "/v1/capabilities"): Operation(says=answers.Capabilities),
    ("POST", "/v1/auth"): Operation(says=answers.Nothing),
    # Models
    ("POST", "/v1/models"): Operation(
        body=requests.NewModel, may_be_empty=True, key=requests.RunId, says=answers.Model
    ),
    ("GET", "/v1/models"): Operation(access="browser", says=answers.Models, problems=(404,)),
    ("GET", _MODEL): Operation(access="browser", says=answers.Model),
    ("PATCH", _MODEL): Operation(body=requests.ModelChange, may_be_empty=True, says=answers.Model),
    ("DELETE", _MODEL): Operation(says=answers.Nothing, problems=(409,)),
    ("POST", _MODEL): Operation(body=requests.EpochMetrics, says=answers.Accepted),
    ("POST", f"{_MODEL}/upload"): Operation(body=requests.Weights, form=True, says=answers.Uploaded),
    ("POST", f"{_MODEL}/export"): _NOT_HERE,
    ("POST", "/v1/predict/{model_id}"): _NOT_HERE,
    # Runs
    ("POST", f"{_MODEL}/events"): Operation(body=requests.Events, says=answers.Accepted),
    ("GET", f"{_MODEL}/events"): Operation(says=list[answers.StoredEvent]),
    ("GET", f"{_MODEL}/metrics"): Operation(says=list[answers.StoredMetrics]),
    ("GET", f"{_MODEL}/series"): Operation(access="browser", says=answers.Metrics, plain={304: ""}),
    ("GET", f"{_MODEL}/chart"): Operation(access="browser", says=answers.Chart, plain={304: ""}),
    ("GET", f"{_MODEL}/ranks"): Operation(access="browser", says=answers.Ranks),
    ("POST", "/v1/agent/heartbeat/models/{model_id}"): Operation(
        body=requests.Heartbeat, may_be_empty=True, says=answers.Beat
    ),
    ("POST", f"{_MODEL}/stop"): Operation(says=answers.Stop),
    # Checkpoints
    ("POST", f"{_MODEL}/checkpoints"): Operation(
        body=requests.NewCheckpoint,
        key=requests.HexId,
        key_needed=True,
        says=answers.CheckpointState,
        problems=(409,),
    ),
    ("GET", f"{_MODEL}/checkpoints"): Operation(access="browser", says=list[answers.Checkpoint]),
    ("GET", _CHECKPOINT): Operation(says=answers.CheckpointState),
    ("GET", f"{_CHECKPOINT}/parts"): Operation(says=answers.CheckpointState),
    ("POST", f"{_CHECKPOINT}/complete"): Operation(says=answers.CheckpointState, accepted=True, problems=(409,)),
    ("DELETE", _CHECKPOINT): Operation(says=answers.Nothing, problems=(409,)),
    ("GET", f"{_CHECKPOINT}/files/{{name}}"): Operation(access="browser", plain=_FILE, problems=(416, 500)),
    ("HEAD", f"{_CHECKPOINT}/files/{{name}}"): Operation(access="browser", plain=_FILE, problems=(416, 500)),
    ("GET", _DOWNLOAD): Operation(access="signed", plain=_FILE, problems=(416, 500)),
    ("HEAD", _DOWNLOAD): Operation(access="signed", plain=_FILE, problems=(416, 500)),
    ("PUT", "/v1/parts/{checkpoint}/{file}/{number}"): Operation(access="signed", octets=True, says=answers.Part),
    # People
    ("POST", "/v1/users"): Operation(body=requests.NewUser, says=answers.User, problems=(409,)),
    ("GET", "/v1/users"): Operation(says=answers.Users, problems=(404,)),
    ("PATCH", "/v1/users/{user_id}"): Operation(body=requests.UserChange, may_be_empty=True, says=answers.User),
    ("DELETE", "/v1/users/{user_id}"): Operation(says=answers.Nothing),
    ("POST", "/v1/keys"): Operation(body=requests.NewKey, says=answers.MadeKey),
    ("GET", "/v1/keys"): Operation(says=answers.Keys, problems=(404,)),
    ("DELETE", "/v1/keys/{key_id}"): Operation(says=answers.Nothing),
    ("GET", "/v1/audit"): Operation(says=answers.Audit),
    # Projects
    ("GET", "/v1/projects"): Operation(access="browser", says=answers.Projects, problems=(404,)),
    ("GET", _PROJECT): Operation(access="browser", says=answers.Project),
    ("GET", f"{_PROJECT}/retention"): Operation(access="browser", says=answers.Rules),
    ("PUT", f"{_PROJECT}/retention"): Operation(body=requests.RetentionRules, may_be_empty=True, says=answers.Rules),
    ("POST", f"{_PROJECT}/retention/plan"): Operation(
        body=requests.RetentionRules, may_be_empty=True, says=answers.Pruned
    ),
    ("POST", f"{_PROJECT}/retention/apply"): Operation(says=answers.Pruned, problems=(409,)),
    # HUB v1's requests that this hub does not answer
    **{(method, "/v1/projects"): _NOT_HERE for method in _METHODS if method != "GET"},
    **{
        (method, path): _NOT_HERE
        for method in _METHODS
        for path in ("/v1/projects/{rest}", "/v1/datasets", "/v1/datasets/{rest}")
    },
}

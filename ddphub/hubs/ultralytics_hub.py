"""The client of Ultralytics HUB v1 and of hubs that speak like it.

| what a run makes | request |
| --- | --- |
| a model | POST /v1/models, once; GET for one that exists |
| rank 0's metrics that have an epoch | POST /v1/models/{id}: each epoch whole, for the hub replaces it; NaN stays NaN |
| a checkpoint of one file | POST .../upload, multipart; `epoch` and `best` as last.pt, `final` as best.pt |
| a heartbeat | POST /v1/agent/heartbeat/models/{id} |

`final/x` is sent as `x`, but never over an `x` of the same epoch. The protocol has no place for anything else: other
events count as delivered and stay on disk. It has no idempotency keys either: a crash between the hub's answer and our
journal sends once more, which replaces metrics by the same ones and can double a model or an upload.
"""

import json
import math
import os
import re
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urljoin, urlsplit

from ddphub import __version__
from ddphub.address import DEFAULT_HUB_WEB, HUB_WEB, HubAddress
from ddphub.errors import HubRejected
from ddphub.events import Event, decode_scalar
from ddphub.hubs import wire
from ddphub.hubs.client import Accepted, Receipt, Registration, RemoteCheckpoint, RemoteFile
from ddphub.hubs.download import download
from ddphub.hubs.epochs import Epoch, Epochs, Told
from ddphub.hubs.http import FileBody, HubConnection, envelope_data, succeeded, text_of

_AGENT_ID: Final = "agent_id"
"""In `memory`: what the hub calls this run's agent, said in each heartbeat."""

_MAP: Final = ("metrics/mAP50-95(B)", "map")
"""Names of a final checkpoint's mean average precision, the first that is there counts."""


class HubV1Client:
    """Speaks HUB v1. A `HubClient`; any thread.

    Args:
        url: base URL of the API.
        api_key: sent as `x-api-key`.
    """

    is_idempotent = False
    ends_last = False

    def __init__(self, url: str, api_key: str | None) -> None:
        self._url = url
        self._connection = HubConnection(url, {"x-api-key": api_key} if api_key else {})
        self._model_id: str | None = None
        self._epochs = Epochs()
        self._told = Told()
        self._folding = threading.Lock()  # around what `recall` and `send_events` change
        self.part_size = wire.PART_SIZE
        self.heartbeat_s: float | None = None
        self.memory: dict[str, str] = {}

    def check_key(self) -> None:
        """Asks whether the hub knows the key; raises as every call does."""
        succeeded(self._connection.call("POST", "/v1/auth"), "POST /v1/auth")

    def register(self, registration: Registration) -> str:
        """See `HubClient`."""
        if self._model_id is None:
            self._epochs = Epochs(registration.attempts)
            if registration.known is not None:
                self.memory = dict(registration.memory)
                self._model_id = registration.known
            elif registration.wanted is not None:
                self._model_id = self._untrained(registration.wanted)
            else:
                answer = self._post("/v1/models", _model_request(registration))
                self._model_id = text_of(envelope_data(answer, "POST /v1/models"), "id")
        return self._model_id

    def url(self, model_id: str) -> str:
        """See `HubClient`."""
        is_the_service = HubAddress.parse(self._url, "run.json", {}).service == "hub-v1"
        web = os.environ.get(HUB_WEB) or (DEFAULT_HUB_WEB if is_the_service else self._url)
        return f"{web.rstrip('/')}/models/{quote(model_id)}"

    def recall(self, events: Sequence[Event]) -> None:
        """See `HubClient`."""
        with self._folding:
            for _ in self._fold(events):
                pass

    def send_events(self, model_id: str, events: Sequence[Event]) -> Accepted:
        """See `HubClient`. No events: asks for the model, which a hub in its senses does not refuse."""
        if not events:
            self._connection.call("GET", _path(model_id))
        stop = False
        with self._folding:
            fresh = [event for event in events if event not in self._told]
            for metrics in self._fold(fresh):
                stop = _asks_to_stop(self._post(_path(model_id), {"metrics": metrics, "type": "metrics"}))
        return Accepted(len(fresh), len(events) - len(fresh), stop)

    def upload(self, model_id: str, entry_id: str, request: wire.CheckpointRequest, files: dict[str, Path]) -> Receipt:
        """See `HubClient`. An entry without an epoch gets the newest that metrics named, else 0."""
        path = only_file(request, files)
        epoch = request["epoch"]
        if epoch is None:
            epoch = max(self._epochs.numbers(), default=0)
        metrics = request["metrics"]
        if request["kind"] == "final":
            said = next((metrics[name] for name in _MAP if name in metrics), 0.0)
            fields = {"epoch": str(epoch), "type": "final", "map": str(_finite(said))}
            name = "best.pt"
        else:
            is_best = request["kind"] == "best" or bool(metrics.get("is_best", False))
            fields = {"epoch": str(epoch), "type": "epoch", "isBest": str(is_best)}
            name = "last.pt"
        body, kind = _form(fields, name, path)
        to = f"{_path(model_id)}/upload"
        succeeded(self._connection.call("POST", to, body, {"content-type": kind}), f"POST {to}")
        return Receipt(entry_id, entry_id)

    def find_checkpoint(self, model_id: str, entry_id: str) -> Receipt | None:
        """See `HubClient`: the hub knows no entries."""

    def find_model(self, project: str, run_id: str) -> str | None:
        """See `HubClient`: the hub knows no runs."""

    def newest_checkpoint(self, model_id: str, kinds: Sequence[str]) -> RemoteCheckpoint | None:
        """See `HubClient`. The hub keeps the last file and the best one, and tells neither size nor sha256."""
        data = self._model(model_id)
        # `weights` of a model that has none of its own are those that it was told to begin with.
        has_weights = data.get("has_best_weights") or data.get("status") == "trained"
        for kind, of_kinds, field, name in (
            ("epoch", {"epoch", "best"}, "resume", "last.pt"),
            ("final", {"final"}, "weights" if has_weights else "", "best.pt"),
        ):
            place = data.get(field)
            if of_kinds & set(kinds) and isinstance(place, str) and place:
                url = urljoin(f"{self._url}/", place)
                if urlsplit(url).scheme in {"http", "https"}:
                    return RemoteCheckpoint(field, kind, None, None, name, (RemoteFile(name, url),))
        return None

    def download(self, file: RemoteFile, target: Path) -> None:
        """See `HubClient`."""
        download(self._connection, file, target)

    def heartbeat(self, model_id: str, attempt_id: str) -> bool:  # noqa: ARG002  # HUB v1 knows no attempts
        """See `HubClient`."""
        body = {"agent": f"ddphub-{__version__}", "agentId": self.memory.get(_AGENT_ID)}
        path = f"/v1/agent/heartbeat/models/{quote(model_id, safe='')}"
        answer = self._post(path, body)
        data = answer.get("data")
        agent_id = data.get("agentId") if isinstance(data, dict) else None
        if isinstance(agent_id, str):
            self.memory = {**self.memory, _AGENT_ID: agent_id}
        return _asks_to_stop(answer)

    def close(self) -> None:
        """See `HubClient`."""
        self._connection.close()

    def _fold(self, events: Sequence[Event]) -> Iterator[dict[str, str]]:
        """The metrics to send for events, if any; see epochs.py."""
        changed = self._epochs.with_events(events)
        if changed:
            yield {str(number): json.dumps(_shown(epoch)) for number, epoch in changed.items()}
        self._epochs.keep(changed)
        self._told.add(events)

    def _untrained(self, wanted: str) -> str:
        data = self._model(wanted)
        if data.get("status") == "trained":
            raise HubRejected(409, f"the model is already trained: {self.url(wanted)}; name another one, or none")
        return text_of(data, "id")

    def _model(self, model_id: str) -> dict[str, Any]:
        data = envelope_data(self._connection.call("GET", _path(model_id)), f"GET {_path(model_id)}")
        return data if isinstance(data, dict) else {}

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        # With spaces, and ASCII only: as this hub's clients have always sent it.
        return succeeded(self._connection.call("POST", path, json.dumps(body).encode()), f"POST {path}")


def only_file(request: wire.CheckpointRequest, files: Mapping[str, Path]) -> Path:
    """Where the entry's file is.

    Raises:
        HubRejected: it is a folder or has several files, which these hubs have no place for.
    """
    names = [file["name"] for file in request["files"]]
    if len(names) != 1 or "/" in names[0]:
        raise HubRejected(
            422, f"this hub takes checkpoints of one file, {request['name']} has {len(names)}: it stays on disk"
        )
    return files[names[0]]


def _path(model_id: str) -> str:
    return f"/v1/models/{quote(model_id, safe='')}"


def _asks_to_stop(answer: Mapping[str, Any]) -> bool:
    """HUB v1 itself has no word for it; hubs that speak like it may."""
    data = answer.get("data")
    return isinstance(data, dict) and bool(data.get("stop"))


def _shown(epoch: Epoch) -> dict[str, Any]:
    """An epoch as it is sent: what the last validation measured stands behind what the epoch itself did."""
    return {**epoch.values, **{name: value for name, value in epoch.finals.items() if name not in epoch.values}}


def _finite(value: Any) -> float:  # noqa: ANN401  # of a checkpoint's metrics
    """A number that a form's field can hold; 0.0 for what is none."""
    try:
        number = float(decode_scalar(value))
    except (TypeError, ValueError):
        return 0.0
    return number if math.isfinite(number) else 0.0


def _model_request(registration: Registration) -> dict[str, Any]:
    """What the run's configuration says in the argument names of Ultralytics; a path gives its last component only."""
    given = registration.config
    numbers = {"batchSize": "batch", "epochs": "epochs", "imageSize": "imgsz", "patience": "patience"}
    texts = {"device": "device", "cache": "cache"}
    config: dict[str, Any] = {
        **{field: given[name] for field, name in numbers.items() if type(given.get(name)) is int},
        **{field: str(given[name]) for field, name in texts.items() if name in given},
    }
    request: dict[str, Any] = {"meta": {"name": registration.name}}
    if config:
        request["config"] = config
    if data := _last_component(given.get("data")):
        request["dataset"] = {"name": data}
    if model := _last_component(given.get("model")):
        parent = {"name": model} if model.endswith(".pt") else {}
        request["lineage"] = {"architecture": {"name": re.sub(r"\.(pt|yaml|yml)$", "", model)}, "parent": parent}
    return request


def _last_component(value: object) -> str | None:
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if isinstance(value, str) else None


def _form(fields: Mapping[str, str], name: str, path: Path) -> tuple[FileBody, str]:
    """A multipart form of text fields and one file, streamed; and its content type (RFC 7578).

    The file's field has the file's name, and no part has a type.
    """
    boundary = secrets.token_hex(16)
    parts = [(f'name="{field}"', value + "\r\n") for field, value in fields.items()]
    parts.append((f'name="{name}"; filename="{name}"', ""))
    before = "".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {about}\r\n\r\n{value}" for about, value in parts
    )
    body = FileBody(path, 0, path.stat().st_size, before.encode(), f"\r\n--{boundary}--\r\n".encode())
    return body, f"multipart/form-data; boundary={boundary}"

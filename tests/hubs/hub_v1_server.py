"""Ultralytics HUB v1, played from recorded traffic: what it takes is what captures/hub-v1.json shows."""

import json
import re
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any

from platform_server import RecordingServer, Request, capture, digest_of_rest

KEY = "k" * 42
HEAD = 64 * 1024


@dataclass
class Form:
    """An upload as it came.

    Attributes:
        fields: (name, value) of the text fields, in order.
        file: the file field's name and file name.
        size: of the file's bytes.
        overhead: bytes of the form around them.
    """

    fields: list[tuple[str, str]]
    file: tuple[str, str]
    size: int
    overhead: int
    sha256: str


class HubV1Server(RecordingServer):
    """The service. Faults are about `auth`, `create`, `model`, `metrics`, `upload` or `heartbeat`.

    Attributes:
        models: id -> what GET tells of it.
        created: bodies of POST /v1/models.
        metrics: id -> epoch -> the string that came last.
        posts: bodies of POST /v1/models/{id}.
        forms: uploads that had an effect.
        files: path -> bytes that it gives back.
    """

    def __init__(self, key: str = KEY) -> None:
        super().__init__()
        self.key = key
        story = capture("hub-v1")["train"]
        self.example = story[0]["response"]["json"]["data"]
        self.models: dict[str, dict[str, Any]] = {}
        self.created: list[dict[str, Any]] = []
        self.metrics: dict[str, dict[str, str]] = {}
        self.posts: list[dict[str, Any]] = []
        self.forms: list[Form] = []
        self.heartbeats: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}

    def add_model(self, **fields: Any) -> str:
        """A model that exists; its id."""
        model_id = f"{len(self.models):020}"
        self.models[model_id] = {**self.example, "id": model_id, **fields}
        return model_id

    def read(self, request: Request, handler: BaseHTTPRequestHandler) -> Any:
        """A form's file is not kept."""
        kind, _, boundary = request.headers.get("content-type", "").partition("; boundary=")
        if kind != "multipart/form-data":
            return super().read(request, handler)
        request.size = int(request.headers["content-length"])
        return _read_form(handler, request.size, boundary)

    def about(self, request: Request) -> str:
        """See `RecordingServer`."""
        last = request.path.rpartition("/")[2]
        if request.path.startswith("/v1/agent/heartbeat/"):
            return "heartbeat"
        if last in {"auth", "upload"}:
            return last
        if request.method == "GET":
            return "model"
        return "create" if last == "models" else "metrics"

    def answer(self, request: Request, body: Any) -> tuple[int, Any]:
        """See `RecordingServer`."""
        if request.path in self.files:
            assert request.method == "GET"
            return 200, self.files[request.path]
        if request.headers.get("x-api-key") != self.key:
            return 401, {"message": "Invalid API key"}
        about = self.about(request)
        if isinstance(body, bytes) and body:
            assert request.headers["content-type"] == "application/json"
        if about == "auth":
            return _ok({})
        if about == "create":
            return self._create(request.json)
        match = re.fullmatch(r"/v1/(?:agent/heartbeat/)?models/(\w+)(?:/upload)?", request.path)
        if match is None or match[1] not in self.models:
            return 404, {"message": "Not found"}
        model_id = match[1]
        if about == "model":
            return _ok(self.models[model_id])
        return _ok(
            {"metrics": self._metrics, "upload": self._upload, "heartbeat": self._beat}[about](
                model_id, request.json if isinstance(body, bytes) else body
            )
        )

    def _create(self, body: dict[str, Any]) -> tuple[int, Any]:
        known = {"meta", "config", "dataset", "lineage", "projectId", "datasetId"}
        assert set(body) <= known, set(body) - known
        types = {"batchSize": int, "epochs": int, "imageSize": int, "patience": int, "device": str, "cache": str}
        for name, value in body.get("config", {}).items():
            assert type(value) is types[name], name
        self.created.append(body)
        return _ok({"id": self.add_model(meta=body.get("meta", {}))})

    def _metrics(self, model_id: str, body: dict[str, Any]) -> dict[str, Any]:
        assert list(body) == ["metrics", "type"]
        assert body["type"] == "metrics"
        for epoch, text in body["metrics"].items():
            assert epoch.isdigit()
            values = json.loads(text)
            assert values
            assert all(type(value) in {int, float, bool} for value in values.values()), text
        self.posts.append(body)
        self.metrics.setdefault(model_id, {}).update(body["metrics"])
        return {}

    def _upload(self, _model_id: str, form: Form) -> dict[str, Any]:
        names = [name for name, _ in form.fields]
        is_final = dict(form.fields)["type"] == "final"
        assert names == ["epoch", "type", "map" if is_final else "isBest"], names
        assert form.file == (("best.pt", "best.pt") if is_final else ("last.pt", "last.pt"))
        int(dict(form.fields)["epoch"])
        if is_final:
            float(dict(form.fields)["map"])
        else:
            assert dict(form.fields)["isBest"] in {"True", "False"}
        self.forms.append(form)
        return {}

    def _beat(self, _model_id: str, body: dict[str, Any]) -> dict[str, Any]:
        assert list(body) == ["agent", "agentId"]
        self.heartbeats.append(body)
        return {"agentId": "agent-mmmmmm"}


def _ok(data: Any) -> tuple[int, Any]:
    return 200, {"success": True, "message": "OK", "data": data}


def _read_form(handler: BaseHTTPRequestHandler, size: int, boundary: str) -> Form:
    fields: list[tuple[str, str]] = []
    mark, left = f"--{boundary}".encode(), size

    def line() -> bytes:
        nonlocal left
        text = handler.rfile.readline(HEAD)
        left -= len(text)
        assert text.endswith(b"\r\n"), text
        return text[:-2]

    while True:
        assert line() == mark
        about = line().decode()
        assert line() == b"", "a part has a type"
        if match := re.fullmatch(r'Content-Disposition: form-data; name="([^"]+)"; filename="([^"]+)"', about):
            break
        name = re.fullmatch(r'Content-Disposition: form-data; name="([^"]+)"', about)[1]
        fields.append((name, line().decode()))
    end = b"\r\n" + mark + b"--\r\n"
    received, sha256 = digest_of_rest(handler, left - len(end))
    assert handler.rfile.read(len(end)) == end
    return Form(fields, (match[1], match[2]), received, size - received, sha256)

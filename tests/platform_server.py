"""Ultralytics Platform, played from recorded traffic: a server on loopback that checks and records every request.

What it takes is what tests/hubs/captures/platform.json shows that the service takes: it refuses with 400 an unknown
event, a missing or unknown field, a value of another type, a wrong run id, bytes that were not announced, and a key
where none belongs; leaving the context fails when it has refused anything.
"""

import contextlib
import hashlib
import json
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

CAPTURES = Path(__file__).parent / "hubs" / "captures"

WEBHOOKS = "/api/webhooks/training/metrics"
UPLOADS = "/api/webhooks/models/upload"
PUTS = "/signed/upload/"

_BLOCK = 1024 * 1024

# What the recorded client sends and others need not.
_OPTIONAL = {
    "training_started": {"epochs", "device"},
    "epoch_end": {"system", "fitness", "best_fitness", "modelInfo"},
    "training_complete": {"validation", "modelPath", "modelSize"},
}
_NULLABLE = {"fitness", "best_fitness", "bestFitness", "parameters", "gflops", "speedMs"}
_FREE = {
    "trainArgs": (str,),
    "metrics": (int, float, type(None)),
    "environment": (str, int, float),
    "system": (object,),
    "progress": (object,),
    "validation": (object,),
}
"""Objects whose names are free, and the types of their values."""

_NOT_CAPTURED = {
    "training_progress": [{"runId": "run_0001"}],
    "training_failed": [{"error": "text", "code": "failed", "runId": "run_0001"}],
}


def capture(name: str) -> dict[str, list[dict[str, Any]]]:
    """The recorded traffic of one service: story -> requests with their answers."""
    return json.loads((CAPTURES / f"{name}.json").read_text())


@dataclass
class Request:
    """One request as it came, and the status it got; None when the connection was dropped instead."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    json: Any = None
    size: int = 0
    status: int | None = None


@dataclass
class Upload:
    """A file that the service gave a place for."""

    filename: str
    path: str
    size: int | None = None
    sha256: str | None = None


@dataclass
class _Fault:
    what: str | None
    status: int | None
    left: float
    headers: dict[str, str] = field(default_factory=dict)


class RecordingServer:
    """Serves in a thread; a subclass says what a request is about, and answers it.

    Attributes:
        url: where.
        requests: every request, in order of arrival.
        problems: what was wrong with those that were refused.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.problems: list[str] = []
        self._faults: list[_Fault] = []
        self._lock = threading.Lock()
        playing = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with contextlib.suppress(ConnectionError):
                    playing._serve(self)

            do_POST = do_PUT = do_GET

            def log_message(self, *_arguments: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_arguments: object) -> None:
                error = sys.exception()
                if not isinstance(error, ConnectionError):  # a client that was killed
                    playing.problems.append(repr(error))

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        assert kind is not None or not self.problems, self.problems

    def fail(self, status: int, what: str | None = None, times: float = 1, **headers: str) -> None:
        """Answers `status` to the next `times` requests about `what` (None: any), which then have no effect."""
        self._faults.append(
            _Fault(what, status, times, {name.replace("_", "-"): text for name, text in headers.items()})
        )

    def drop(self, what: str | None = None, times: float = 1) -> None:
        """Does what the next `times` requests about `what` want, and closes the connection without an answer."""
        self._faults.append(_Fault(what, None, times))

    def heal(self) -> None:
        """Ends every fault."""
        self._faults.clear()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        headers = {name.lower(): text for name, text in handler.headers.items()}
        request = Request(handler.command, parts.path, parse_qs(parts.query), headers)
        try:
            body = self.read(request, handler)
        except AssertionError as problem:
            self.problems.append(f"{request.method} {request.path}: {problem}")
            handler.close_connection = True
            return
        with self._lock:
            self.requests.append(request)
            about = self.about(request)
            fault = next((one for one in self._faults if one.left > 0 and one.what in {None, about}), None)
            if fault is not None:
                fault.left -= 1
            if fault is not None and fault.status is not None:
                request.status, answer = fault.status, {"message": "as the test wants it"}
            else:
                try:
                    request.status, answer = self.answer(request, body)
                except AssertionError as problem:
                    self.problems.append(f"{request.method} {request.path} ({about}): {problem}")
                    request.status, answer = 400, {"message": str(problem)}
            if fault is not None and fault.status is None:
                request.status = None
        if request.status is None:
            handler.close_connection = True
            return
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        handler.send_response(request.status)
        for name, text in (fault.headers if fault else {}).items():
            handler.send_header(name, text)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def read(self, request: Request, handler: BaseHTTPRequestHandler) -> Any:
        """Reads the body; by default as JSON, into the request."""
        content = handler.rfile.read(int(request.headers.get("content-length", 0)))
        request.size = len(content)
        if content:
            request.json = json.loads(content)
        return content

    def about(self, request: Request) -> str:
        """What faults call such a request."""
        raise NotImplementedError

    def answer(self, request: Request, body: Any) -> tuple[int, Any]:
        """Does what is wanted; an AssertionError refuses it."""
        raise NotImplementedError


def digest_of_rest(handler: BaseHTTPRequestHandler, size: int) -> tuple[int, str]:
    """Reads `size` bytes of a body in constant memory: how many came, and their sha256."""
    digest, left = hashlib.sha256(), size
    while left and (block := handler.rfile.read(min(_BLOCK, left))):
        digest.update(block)
        left -= len(block)
    return size - left, digest.hexdigest()


class PlatformServer(RecordingServer):
    """The service. Faults are about an event's name, `upload` (asking for a place) or `put`.

    Args:
        key: the API key that it knows.

    Attributes:
        cancelled: what `cancelled` says from now on.
        gone: ids of models that it has lost.
        uploads: the places that it gave, with what came there.
    """

    def __init__(self, key: str = "ul_" + "k" * 40) -> None:
        super().__init__()
        self.key = key
        self.cancelled = False
        self.gone: set[str] = set()
        self.uploads: list[Upload] = []
        self._runs: dict[str, str] = {}
        self._events: list[dict[str, Any]] = []
        self._saved: dict[str, int] = {}
        self._shapes: dict[str, list[dict[str, Any]]] = dict(_NOT_CAPTURED)
        for story in capture("platform").values():
            for call in story:
                if call["path"] == WEBHOOKS:
                    self._shapes.setdefault(call["json"]["event"], []).append(call["json"]["data"])

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """The webhooks that had an effect, whole; of one event, or of all."""
        return [body for body in self._events if name in {None, body["event"]}]

    def data(self, name: str) -> list[dict[str, Any]]:
        """`data` of one event's webhooks."""
        return [body["data"] for body in self.events(name)]

    def names(self) -> list[str]:
        """The events, in order."""
        return [body["event"] for body in self._events]

    def read(self, request: Request, handler: BaseHTTPRequestHandler) -> Any:
        """Bytes of a checkpoint are not kept."""
        if request.method != "PUT":
            return super().read(request, handler)
        request.size, sha256 = digest_of_rest(handler, int(request.headers.get("content-length", 0)))
        return sha256

    def about(self, request: Request) -> str:
        """See `RecordingServer`."""
        if request.path == WEBHOOKS and isinstance(request.json, dict):
            return str(request.json.get("event"))
        return "put" if request.method == "PUT" else "upload"

    def answer(self, request: Request, body: Any) -> tuple[int, Any]:
        """See `RecordingServer`."""
        assert "content-length" in request.headers, "no Content-Length"
        if request.path.startswith(PUTS):
            return self._put(request, body)
        assert request.method == "POST"
        if request.headers.get("authorization") != f"Bearer {self.key}":
            return 401, {"error": "Unauthorized"}
        assert request.headers.get("content-type") == "application/json"
        assert request.path in {WEBHOOKS, UPLOADS}, "no such path"
        return self._upload(request.json) if request.path == UPLOADS else self._webhook(request.json)

    def _webhook(self, body: dict[str, Any]) -> tuple[int, Any]:
        identity = set(body) - {"event", "data"}
        event, data = body["event"], body["data"]
        assert event in self._shapes, "no such event"
        assert identity == {"modelId"} or (event == "training_started" and identity == {"project", "name"}), identity
        _check(data, self._shapes[event], event, _OPTIONAL.get(event, set()))
        model_id = body.get("modelId")
        if model_id is not None and (model_id in self.gone or model_id not in self._runs):
            return 404, {"error": "Model not found"}
        if event == "training_started":
            return self._started(body)
        assert data.get("runId", self._runs[model_id]) == self._runs[model_id], "another run's id"
        if event == "checkpoint_saved":
            upload = next(one for one in self.uploads if f"gs://bucket/{one.path}" == data["modelPath"])
            assert data["uploadPath"] == upload.path
            assert upload.size is not None, "saved before it was sent"
            self._saved[data["modelPath"]] = upload.size
        if event == "training_complete" and "modelPath" in data["results"]:
            assert self._saved.get(data["results"]["modelPath"]) == data["results"]["modelSize"], "no such checkpoint"
        self._events.append(body)
        return 200, {"success": True, "cancelled": self.cancelled}

    def _started(self, body: dict[str, Any]) -> tuple[int, Any]:
        model_id = body.get("modelId") or f"66f{len(self._runs) + 1:021}"
        self._runs[model_id] = f"run_{len(self.events('training_started')) + 1:04}"
        self._events.append(body)
        told = {"modelId": model_id, "runId": self._runs[model_id], "modelSlug": "t", "modelUrl": f"{self.url}/u/p/t"}
        return 200, {"success": True, "cancelled": self.cancelled, **told}

    def _upload(self, body: dict[str, Any]) -> tuple[int, Any]:
        assert set(body) == {"filename", "modelId", "runId"}, set(body)
        if body["modelId"] in self.gone or body["modelId"] not in self._runs:
            return 404, {"error": "Model not found"}
        assert body["runId"] == self._runs[body["modelId"]], "another run's id"
        number = len(self.uploads)
        upload = Upload(body["filename"], f"staged/{number}/{body['filename']}")
        self.uploads.append(upload)
        return 200, {
            "uploadUrl": f"{self.url}{PUTS}{number}?X-Goog-Signature=zz",
            "gcsPath": f"gs://bucket/{upload.path}",
            "uploadPath": upload.path,
        }

    def _put(self, request: Request, sha256: str) -> tuple[int, Any]:
        assert request.method == "PUT"
        assert not {"authorization", "x-api-key"} & set(request.headers), "a signed URL needs no key"
        assert request.headers["content-type"] == "application/octet-stream"
        assert request.query == {"X-Goog-Signature": ["zz"]}
        assert request.size == int(request.headers["content-length"]), "fewer bytes than announced"
        upload = self.uploads[int(request.path.removeprefix(PUTS))]
        upload.size, upload.sha256 = request.size, sha256
        return 200, b""


def _check(value: Any, examples: list[Any], name: str, optional: set[str]) -> None:
    """Whether a value has the shape of the recorded ones."""
    if name in _FREE:
        assert isinstance(value, dict), f"{name}: expected an object"
        assert all(isinstance(one, _FREE[name]) for one in value.values()), f"{name}: {value}"
    elif isinstance(examples[0], dict):
        assert isinstance(value, dict), f"{name}: expected an object"
        missing = set.intersection(*map(set, examples)) - set(value) - optional
        unknown = set(value) - set.union(*map(set, examples))
        assert not missing, f"{name} lacks {missing}"
        assert not unknown, f"{name} has {unknown}"
        for field_name, one in value.items():
            _check(one, [given[field_name] for given in examples if field_name in given], field_name, optional)
    else:
        kinds = {type(given) for given in examples}
        kinds |= {int, float} if float in kinds else set()
        assert type(value) in kinds or (value is None and name in _NULLABLE), f"{name}: {value!r} is none of {kinds}"

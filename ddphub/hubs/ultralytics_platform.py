"""The client of Ultralytics Platform: webhooks for what happens (platform_events.py), signed URLs for checkpoints.

Webhooks go out in the order of the events, one at a time. The service has no idempotency keys: a crash between its
answer and our journal sends once more, whatever the event.
"""

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urljoin

from ddphub.errors import HubModelGone, HubRejected, HubUnavailable
from ddphub.events import Event, to_json
from ddphub.hubs import wire
from ddphub.hubs.client import Accepted, Receipt, Registration, RemoteCheckpoint, RemoteFile
from ddphub.hubs.download import download
from ddphub.hubs.http import FileBody, HubConnection, succeeded, text_of
from ddphub.hubs.platform_events import PlatformEvents, Webhook, slug, training_started
from ddphub.hubs.ultralytics_hub import only_file

logger = logging.getLogger(__name__)

READ_TIMEOUT: Final = 90.0
"""Seconds for a whole answer: the service looks at a checkpoint before it answers that it is saved."""

_WEBHOOKS: Final = "/api/webhooks/training/metrics"
_UPLOADS: Final = "/api/webhooks/models/upload"

_ABOUT_THE_CONTENT: Final = frozenset({400, 413, 422})
_WITH_RUN: Final = frozenset({"training_progress", "checkpoint_saved", "training_complete", "training_failed"})
_ARTIFACT: Final = ("model_path", "model_size", "model_kind")


class PlatformClient:
    """Speaks to Ultralytics Platform. A `HubClient`; any thread.

    `memory`: `model_id`, which replaces the one that the calls are given once the service has lost that model;
    `run_id`, `model_url`; `announced`, the attempt that the service was told of last; `model_path`, `model_size` and
    `model_kind` of the checkpoint that a complete training names: the newest final, else best, else other one.

    Args:
        url: base URL.
        api_key: sent as a bearer token.
    """

    is_idempotent = False
    ends_last = True

    def __init__(self, url: str, api_key: str | None) -> None:
        self._url = url
        credentials = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._connection = HubConnection(url, credentials, read_timeout=READ_TIMEOUT)
        self._registration: Registration | None = None
        self._events = PlatformEvents(Registration("", "", "", {}), None)
        self._turn = threading.RLock()  # around each webhook and what it changes
        self._refused: set[int] = set()
        self._placed: dict[str, dict[str, Any]] = {}  # entry -> where its bytes are, until the service knows
        self._cancelled = False
        self.part_size = wire.PART_SIZE
        self.heartbeat_s: float | None = None
        self.memory: dict[str, str] = {}

    def register(self, registration: Registration) -> str:
        """See `HubClient`. Project and name go as slugs, and the service finds a free one for the name."""
        with self._turn:
            if self._registration is None:
                if registration.known is not None:
                    self.memory = {**registration.memory, "model_id": registration.known}
                else:
                    self._announce(registration, registration.wanted, (*registration.attempts, "")[0])
                self._registration = registration
                self._events = PlatformEvents(registration, self.memory.get("announced") or None)
            return self.memory["model_id"]

    def url(self, model_id: str) -> str:  # noqa: ARG002  # the service tells the URL
        """See `HubClient`."""
        return urljoin(f"{self._url}/", self.memory.get("model_url", ""))

    def recall(self, events: Sequence[Event]) -> None:
        """See `HubClient`."""
        with self._turn:
            for event in events:
                for group in self._events.groups([event]):
                    for _ in self._events.webhooks(group):
                        pass

    def send_events(self, model_id: str, events: Sequence[Event]) -> Accepted:
        """See `HubClient`. No events: a sign of life, which a hub in its senses does not refuse."""
        if not events:
            self.heartbeat(model_id, "")
        told = self._events.told
        fresh = [event for event in events if event not in told]
        for group in self._events.groups(fresh):
            with self._turn:
                for webhook in self._events.webhooks(group):
                    self._send(webhook, group[0])
        told.add(fresh)
        return Accepted(len(fresh), len(events) - len(fresh), self._cancelled)

    def upload(
        self,
        model_id: str,  # noqa: ARG002  # `memory` has it
        entry_id: str,
        request: wire.CheckpointRequest,
        files: dict[str, Path],
    ) -> Receipt:
        """See `HubClient`."""
        path = only_file(request, files)
        size = path.stat().st_size
        if entry_id not in self._placed:
            self._placed = {entry_id: self._place(request["files"][0]["name"], path, size)}
        placed = self._placed[entry_id]
        try:
            with self._turn:
                self._post("checkpoint_saved", placed)
                self._choose(request["kind"], placed["modelPath"], size)
        except (HubRejected, HubModelGone):
            self._placed = {}
            raise
        self._placed = {}
        return Receipt(entry_id, entry_id)

    def find_checkpoint(self, model_id: str, entry_id: str) -> Receipt | None:
        """See `HubClient`: the service knows no entries."""

    def find_model(self, project: str, run_id: str) -> str | None:
        """See `HubClient`: the service knows no run ids of ours."""

    def newest_checkpoint(self, model_id: str, kinds: Sequence[str]) -> RemoteCheckpoint | None:
        """See `HubClient`: the service gives none back."""

    def download(self, file: RemoteFile, target: Path) -> None:
        """See `HubClient`."""
        download(self._connection, file, target)

    def heartbeat(self, model_id: str, attempt_id: str) -> bool:  # noqa: ARG002  # `memory` has the ids
        """See `HubClient`."""
        with self._turn:
            self._post("training_progress", {})
            return self._cancelled

    def close(self) -> None:
        """See `HubClient`."""
        self._connection.close()

    def _send(self, webhook: Webhook, event: Event) -> None:
        """Sends what an event means.

        An epoch that waited and is refused would make every later event look wrong: it is given up at the second
        refusal, and the event at hand is tried again by the caller.
        """
        try:
            if webhook.event == "training_started":
                self._resume(webhook.data, event["attempt_id"])
            else:
                self._post(webhook.event, webhook.data)
        except HubRejected as error:
            if webhook.is_own or error.status not in _ABOUT_THE_CONTENT:
                raise
            number = webhook.data["epoch"]
            if number not in self._refused:
                self._refused.add(number)
                raise
            logger.warning("epoch %d is not on the hub, which refuses it: %s; it stays on disk", number, error)

    def _resume(self, data: dict[str, Any], attempt_id: str) -> None:
        """An attempt goes on with the model; if it is gone, with a new one, unless the user named it."""
        registration = self._registration
        try:
            self._started({"modelId": self.memory["model_id"]}, data, attempt_id)
        except HubModelGone:
            if registration is None or registration.wanted is not None:
                raise
            gone = self.memory["model_id"]
            self._announce(registration, None, attempt_id)
            logger.warning("the hub has no model %s any more: the run goes on as %s", gone, self.memory["model_id"])

    def _announce(self, registration: Registration, wanted: str | None, attempt_id: str) -> None:
        """Begins with a model of which nothing is known here."""
        identity = {"project": slug(registration.project), "name": slug(registration.name)}
        self._started({"modelId": wanted} if wanted else identity, training_started(registration), attempt_id)
        self.memory = {name: value for name, value in self.memory.items() if name not in _ARTIFACT}
        self._placed = {}

    def _started(self, identity: dict[str, str], data: dict[str, Any], attempt_id: str) -> None:
        answer = self._webhook({**identity, "event": "training_started", "data": data})
        told = {"model_id": text_of(answer, "modelId"), "announced": attempt_id}
        for name, field in (("run_id", "runId"), ("model_url", "modelUrl")):
            if isinstance(answer.get(field), str):
                told[name] = answer[field]
        self.memory = {**self.memory, **told}

    def _place(self, name: str, path: Path, size: int) -> dict[str, Any]:
        """Puts a file where the service wants it; the content of the webhook that says so."""
        body = {"filename": name, "modelId": self.memory["model_id"], **self._run()}
        answer = succeeded(self._connection.call("POST", _UPLOADS, to_json(body).encode()), f"POST {_UPLOADS}")
        to, model_path = urljoin(f"{self._url}/", text_of(answer, "uploadUrl")), text_of(answer, "gcsPath")
        content = FileBody(path, 0, size) if size else b""
        try:
            self._connection.put(to, content, {"content-type": "application/octet-stream"})
        except HubRejected as error:
            if error.status != 400:
                raise
            raise HubUnavailable(str(error)) from error  # what Google's storage says of a URL that has expired
        return {"modelPath": model_path, **self._run(), "uploadPath": answer.get("uploadPath")}

    def _choose(self, kind: str, model_path: str, size: int) -> None:
        """The newest of the highest kind is the model that a complete training names."""
        if wire.KINDS.index(kind) >= wire.KINDS.index(self.memory.get("model_kind", "epoch")):
            chosen = {"model_path": model_path, "model_size": str(size), "model_kind": kind}
            self.memory = {**self.memory, **chosen}

    def _run(self) -> dict[str, str]:
        return {"runId": self.memory["run_id"]} if "run_id" in self.memory else {}

    def _post(self, event: str, data: dict[str, Any]) -> None:
        if event == "training_complete" and "model_path" in self.memory:
            artifact = {"modelPath": self.memory["model_path"], "modelSize": int(self.memory["model_size"])}
            data = {**data, "results": {**data["results"], **artifact}}
        if event in _WITH_RUN:
            data = {**data, **self._run()}
        self._webhook({"modelId": self.memory["model_id"], "event": event, "data": data})

    def _webhook(self, body: dict[str, Any]) -> dict[str, Any]:
        what = f"{body['event']}: POST {_WEBHOOKS}"
        try:
            encoded = to_json(body).encode()
        except (ValueError, TypeError, RecursionError) as error:
            raise HubRejected(400, f"{what}: cannot be sent as JSON: {error}") from error
        answer = succeeded(self._connection.call("POST", _WEBHOOKS, encoded), what)
        self._cancelled = self._cancelled or bool(answer.get("cancelled"))
        return answer

"""The client of the self-hosted hub: the delivery API (see wire.py)."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urljoin

from ddphub import __version__
from ddphub.errors import HubModelGone, HubRejected, HubUnavailable
from ddphub.events import Event, to_json
from ddphub.hubs import wire
from ddphub.hubs.client import Accepted, Receipt, Registration, RemoteCheckpoint, RemoteFile
from ddphub.hubs.download import download
from ddphub.hubs.http import FileBody, HubConnection, count_of, envelope_data, text_of
from ddphub.hubs.parts import PartSenders

CONNECT_TIMEOUT: Final = 10.0
READ_TIMEOUT: Final = 60.0
"""Seconds for a whole answer, once the request is sent; the hub answers a long check with 202 rather than late."""

FIRST_CHECK_POLL: Final = 0.05
CHECK_POLL: Final = 1.0
CHECK_TIMEOUT: Final = 3600.0
"""Seconds until the hub is asked whether it has finished checking a checkpoint, at first and, twice as long each time,
at most; and to go on asking."""

PART_PAUSE: Final = 1.0
LONGEST_PART_PAUSE: Final = 60.0
"""Seconds before the hub is asked again for the parts that are missing, and at most where a storage asks for longer."""

_PAGE: Final = 1000
"""Checkpoints or models in one answer."""


class DdphubClient:
    """Speaks to one self-hosted hub. A `HubClient`; any thread, with a connection pool of its own each.

    Args:
        url: base URL.
        api_key: sent as `x-api-key` to this hub only; never to a signed URL of another host.
    """

    is_idempotent = True
    ends_last = False

    def __init__(self, url: str, api_key: str | None) -> None:
        self._url = url
        self._connection = HubConnection(
            url,
            {"x-api-key": api_key} if api_key else {},
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=READ_TIMEOUT,
        )
        self._senders = PartSenders[tuple[Path, wire.PartUrl]](lambda one: self._put_part(*one), self._connection.leave)
        self._capabilities_known = False
        self.part_size = wire.PART_SIZE
        self.heartbeat_s: float | None = None
        self.memory: dict[str, str] = {}

    def check_key(self) -> None:
        """Asks whether the hub knows the key; raises as every call does."""
        self.call("POST", "/v1/auth")

    def register(self, registration: Registration) -> str:
        """See `HubClient`."""
        self._learn_capabilities()
        if registration.wanted is not None:
            return text_of(self.call("GET", f"/v1/models/{quote(registration.wanted, safe='')}"), "id")
        body: wire.ModelRequest = {
            "project": registration.project,
            "meta": {"name": registration.name},
            "config": registration.config,
        }
        data = self.call("POST", "/v1/models", body, {wire.IDEMPOTENCY_KEY: registration.run_id})
        return text_of(data, "id")

    def url(self, model_id: str) -> str:
        """See `HubClient`."""
        return f"{self._url}/models/{quote(model_id)}"

    def recall(self, events: Sequence[Event]) -> None:
        """See `HubClient`: the hub itself knows them."""

    def send_events(self, model_id: str, events: Sequence[Event]) -> Accepted:
        """See `HubClient`."""
        data = self.call("POST", f"/v1/models/{quote(model_id)}/events", list(events))
        return Accepted(count_of(data, "accepted"), count_of(data, "duplicates"), bool(data.get("stop")))

    def heartbeat(self, model_id: str, attempt_id: str) -> bool:
        """See `HubClient`."""
        body: wire.HeartbeatRequest = {
            "agent": f"ddphub-{__version__}",
            "agentId": None,
            "attempt_id": attempt_id,
        }
        data = self.call("POST", f"/v1/agent/heartbeat/models/{quote(model_id)}", body)
        return bool(data.get("stop"))

    def upload(self, model_id: str, entry_id: str, request: wire.CheckpointRequest, files: dict[str, Path]) -> Receipt:
        """See `HubClient`."""
        self._learn_capabilities()
        base = f"/v1/models/{quote(model_id)}/checkpoints"
        data = self.call("POST", base, request, {wire.IDEMPOTENCY_KEY: entry_id})
        checkpoint_id = text_of(data, "id")
        if data.get("state") != "committed":
            self._send_parts(f"{base}/{quote(checkpoint_id)}", data, files)
            data = self.call("POST", f"{base}/{quote(checkpoint_id)}/complete")
            self._await_commit(f"{base}/{quote(checkpoint_id)}", data)
        return Receipt(entry_id, checkpoint_id)

    def find_checkpoint(self, model_id: str, entry_id: str) -> Receipt | None:
        """See `HubClient`."""
        data = self.call("GET", f"/v1/models/{quote(model_id)}/checkpoints", params={"entry_id": entry_id})
        for item in data if isinstance(data, list) else []:
            if isinstance(item, dict) and item.get("entry_id") == entry_id and item.get("committed_at"):
                return Receipt(entry_id, text_of(item, "id"))
        return None

    def find_model(self, project: str, run_id: str) -> str | None:
        """See `HubClient`."""
        wanted = {"project": project, "run_id": run_id, "limit": str(_PAGE)}
        data = self.call("GET", "/v1/models", params=wanted)
        for item in data.get("results", []) if isinstance(data, dict) else []:
            # An earlier hub does not know the filter and lists every run of the project.
            if isinstance(item, dict) and item.get("run_id") == run_id:
                return text_of(item, "id")
        return None

    def newest_checkpoint(self, model_id: str, kinds: Sequence[str]) -> RemoteCheckpoint | None:
        """See `HubClient`."""
        path = f"/v1/models/{quote(model_id)}/checkpoints"
        # Newest first: the first page nearly always has it. From the oldest on, a checkpoint that retention deletes
        # between two pages would end the search.
        params = {"order": "desc", "limit": str(_PAGE)}
        while page := self.call("GET", path, params=params):
            checkpoints = [self.remote_checkpoint(model_id, item) for item in page]
            newest = next((one for one in checkpoints if one.kind in kinds), None)
            if newest or len(page) < _PAGE or params.get("after") == checkpoints[-1].checkpoint_id:
                return newest
            params["after"] = checkpoints[-1].checkpoint_id
        return None

    def remote_checkpoint(self, model_id: str, item: Any) -> RemoteCheckpoint:  # noqa: ANN401  # JSON
        """A checkpoint as the hub lists it.

        Raises:
            HubUnavailable: it is none.
        """
        try:
            place = f"{self._url}/v1/models/{quote(model_id)}/checkpoints/{quote(item['id'])}/files"
            files = tuple(
                RemoteFile(file["name"], f"{place}/{quote(file['name'])}", int(file["size"]), str(file["sha256"]))
                for file in item["files"]
            )
            return RemoteCheckpoint(item["id"], item["kind"], item["epoch"], item["step"], item["name"], files)
        except (KeyError, TypeError, ValueError):
            raise HubUnavailable(f"the answer lists no checkpoint: {str(item)[:200]}") from None

    def download(self, file: RemoteFile, target: Path) -> None:
        """See `HubClient`."""
        download(self._connection, file, target)

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,  # noqa: ANN401  # JSON
        headers: dict[str, str] | None = None,
        params: dict[str, str] | None = None,
    ) -> Any:  # noqa: ANN401  # JSON
        """One request to the API; the answer's `data`. Raises as every call does."""
        try:
            encoded = None if body is None else to_json(body).encode()
        except (ValueError, TypeError, RecursionError) as error:
            raise HubRejected(400, f"{method} {path}: cannot be sent as JSON: {error}") from error
        return envelope_data(self._connection.call(method, path, encoded, headers, params), f"{method} {path}")

    def close(self) -> None:
        """See `HubClient`."""
        self._connection.close()

    def _learn_capabilities(self) -> None:
        if self._capabilities_known:
            return
        try:
            data = self.call("GET", "/v1/capabilities")
        except HubModelGone as error:
            raise HubUnavailable(
                f"{self._url} is no ddphub hub; if it speaks HUB v1, name it hub-v1+{self._url} ({error})"
            ) from error
        if data.get("hub") != "ddphub":
            raise HubUnavailable(f"{self._url} is no ddphub hub: it says {str(data)[:200]}")
        self.part_size = count_of(data, "part_size") or wire.PART_SIZE
        self.heartbeat_s = float(data["heartbeat_s"]) if isinstance(data.get("heartbeat_s"), int | float) else None
        self._capabilities_known = True

    def _await_commit(self, path: str, data: Any) -> None:  # noqa: ANN401  # JSON
        until = time.monotonic() + CHECK_TIMEOUT
        pause = FIRST_CHECK_POLL
        while data.get("state") == "checking" and time.monotonic() < until:
            time.sleep(min(pause, CHECK_POLL))
            pause *= 2
            data = self.call("GET", path)
        if data.get("state") != "committed":
            raise HubUnavailable(f"the hub has not committed the checkpoint: state {data.get('state')!r}")

    def _send_parts(self, path: str, data: Any, files: dict[str, Path]) -> None:  # noqa: ANN401  # JSON
        """Sends the parts that the hub asks for; after a failure it is asked again, as long as some arrive.

        The URLs of a long upload expire on the way, and a storage may ask for a slower pace.
        """
        while True:
            parts = [(files[name], part) for name, part in _missing(data)]
            sent, error = self._senders.send(parts)
            if error is not None:
                if not sent:
                    raise error
                time.sleep(min(error.retry_after or PART_PAUSE, LONGEST_PART_PAUSE))
            elif sent < wire.MAX_MISSING:
                return
            data = self.call("GET", f"{path}/parts")

    def _put_part(self, path: Path, part: wire.PartUrl) -> None:
        size = path.stat().st_size
        start = part["number"] * self.part_size
        length = min(self.part_size, size - start)
        if length <= 0:
            raise HubUnavailable(f"the hub asks for part {part['number']} of {path.name}, which has {size} bytes")
        place = urljoin(f"{self._url}/", part["url"])
        headers = part.get("headers", {})
        body = FileBody(path, start, length)
        try:
            if 0 < (received := part.get("received", 0)) < length:
                rest = {**headers, "content-range": f"bytes {received}-{length - 1}/{length}"}
                self._connection.put(place, FileBody(path, start + received, length - received), rest)
            else:
                self._connection.put(place, body, headers)
        except HubRejected:
            # Bytes may be damaged on their way where there is no TLS: once more, then it is the file.
            self._put_again(place, body, headers)

    def _put_again(self, place: str, body: FileBody, headers: dict[str, str]) -> None:
        try:
            self._connection.put(place, body, headers)
        except HubRejected as error:
            if self._connection.is_host(place) or "BadDigest" in error.message:
                raise
            # What else a storage says against a request that the hub made is nothing against the checkpoint.
            raise HubUnavailable(error.message) from error


def _missing(data: Any) -> Iterator[tuple[str, wire.PartUrl]]:  # noqa: ANN401  # JSON
    """The file's name, and where to send it, of every part that the hub asks for."""
    try:
        for file in data["missing"]:
            for part in file["parts"]:
                headers = {str(name): str(value) for name, value in part.get("headers", {}).items()}
                yield (
                    str(file["name"]),
                    {
                        "number": int(part["number"]),
                        "url": str(part["url"]),
                        "headers": headers,
                        "received": int(part.get("received", 0)),
                    },
                )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise HubUnavailable("the answer lists no parts as they should be") from None

"""The client of the self-hosted hub: the delivery API (see wire.py)."""

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote, urljoin

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, ProxyManager
from urllib3.connection import HTTPConnection, HTTPSConnection

from ddphub import __version__
from ddphub.errors import HubModelGone, HubRejected, HubUnauthorized, HubUnavailable
from ddphub.events import Event, to_json
from ddphub.files import open_regular
from ddphub.hubs import wire
from ddphub.hubs.client import Accepted, Receipt, Registration

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT: Final = 10.0
READ_TIMEOUT: Final = 60.0
"""Seconds for a whole answer, once the request is sent; the hub answers a long check with 202 rather than late."""

CHECK_POLL: Final = 1.0
CHECK_TIMEOUT: Final = 3600.0
"""Seconds to ask whether the hub has finished checking a checkpoint, and to go on asking."""

MAX_ANSWER: Final = 64 * 1024 * 1024
"""Bytes of an answer; the largest lists the parts of a checkpoint, about 300 bytes each."""

BLOCK: Final = 256 * 1024
"""Bytes read and sent at a time: what an upload adds to memory."""


class DdphubClient:
    """Speaks to one self-hosted hub. A `HubClient`; any thread, with a connection pool of its own each.

    Args:
        url: base URL.
        api_key: sent as `x-api-key` to this hub only; never to a signed URL of another host.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        self._url = url
        self._api_key = api_key
        self._local = threading.local()
        self._sessions: list[requests.Session] = []
        self._capabilities_known = False
        self.part_size = wire.PART_SIZE
        self.heartbeat_s: float | None = None

    def check_key(self) -> None:
        """Asks whether the hub knows the key; raises as every call does."""
        self._call("POST", "/v1/auth")

    def register(self, registration: Registration) -> str:
        """See `HubClient`."""
        self._learn_capabilities()
        body: wire.ModelRequest = {
            "project": registration.project,
            "meta": {"name": registration.name},
            "config": registration.config,
        }
        data = self._call("POST", "/v1/models", body, {wire.IDEMPOTENCY_KEY: registration.run_id})
        return _text(data, "id")

    def send_events(self, model_id: str, events: Sequence[Event]) -> Accepted:
        """See `HubClient`."""
        data = self._call("POST", f"/v1/models/{quote(model_id)}/events", list(events))
        return Accepted(_count(data, "accepted"), _count(data, "duplicates"), bool(data.get("stop")))

    def heartbeat(self, model_id: str, attempt_id: str) -> bool:
        """See `HubClient`."""
        body: wire.HeartbeatRequest = {
            "agent": f"ddphub-{__version__}",
            "agentId": None,
            "attempt_id": attempt_id,
        }
        data = self._call("POST", f"/v1/agent/heartbeat/models/{quote(model_id)}", body)
        return bool(data.get("stop"))

    def upload(self, model_id: str, entry_id: str, request: wire.CheckpointRequest, files: dict[str, Path]) -> Receipt:
        """See `HubClient`."""
        self._learn_capabilities()
        base = f"/v1/models/{quote(model_id)}/checkpoints"
        data = self._call("POST", base, request, {wire.IDEMPOTENCY_KEY: entry_id})
        checkpoint_id = _text(data, "id")
        if data.get("state") != "committed":
            for name, number, url in _missing(data):
                self._put_part(files[name], number, url)
            data = self._call("POST", f"{base}/{quote(checkpoint_id)}/complete")
            self._await_commit(f"{base}/{quote(checkpoint_id)}", data)
        return Receipt(entry_id, checkpoint_id)

    def find_checkpoint(self, model_id: str, entry_id: str) -> Receipt | None:
        """See `HubClient`."""
        data = self._call("GET", f"/v1/models/{quote(model_id)}/checkpoints", params={"entry_id": entry_id})
        for item in data if isinstance(data, list) else []:
            if isinstance(item, dict) and item.get("entry_id") == entry_id and item.get("committed_at"):
                return Receipt(entry_id, _text(item, "id"))
        return None

    def close(self) -> None:
        """See `HubClient`."""
        for session in self._sessions:
            session.close()

    def _learn_capabilities(self) -> None:
        if self._capabilities_known:
            return
        data = self._call("GET", "/v1/capabilities")
        if data.get("hub") != "ddphub":
            raise HubUnavailable(f"{self._url} is no ddphub hub: it says {str(data)[:200]}")
        self.part_size = _count(data, "part_size") or wire.PART_SIZE
        self.heartbeat_s = float(data["heartbeat_s"]) if isinstance(data.get("heartbeat_s"), int | float) else None
        self._capabilities_known = True

    def _await_commit(self, path: str, data: Any) -> None:  # noqa: ANN401  # JSON
        until = time.monotonic() + CHECK_TIMEOUT
        while data.get("state") == "checking" and time.monotonic() < until:
            time.sleep(CHECK_POLL)
            data = self._call("GET", path)
        if data.get("state") != "committed":
            raise HubUnavailable(f"the hub has not committed the checkpoint: state {data.get('state')!r}")

    def _put_part(self, path: Path, number: int, url: str) -> None:
        size = path.stat().st_size
        start = number * self.part_size
        length = min(self.part_size, size - start)
        if length <= 0:
            raise HubUnavailable(f"the hub asks for part {number} of {path.name}, which has {size} bytes")
        body = _FilePart(path, start, length)
        place = urljoin(f"{self._url}/", url)
        try:
            self._request("PUT", place, body, {}, None, key=False)
        except HubRejected:
            # Bytes may be damaged on their way where there is no TLS: once more, then it is the file.
            self._request("PUT", place, body, {}, None, key=False)

    def _call(
        self,
        method: str,
        path: str,
        body: Any = None,  # noqa: ANN401  # JSON
        headers: dict[str, str] | None = None,
        params: dict[str, str] | None = None,
    ) -> Any:  # noqa: ANN401  # JSON
        """One request to the API; the answer's `data`."""
        try:
            encoded = None if body is None else to_json(body).encode()
        except (ValueError, TypeError, RecursionError) as error:
            raise HubRejected(400, f"{method} {path}: cannot be sent as JSON: {error}") from error
        headers = {**(headers or {}), "accept": "application/json"}
        if encoded is not None:
            headers["content-type"] = "application/json"
        response = self._request(method, self._url + path, encoded, headers, params, key=True)
        try:
            content = json.loads(response.content)
            data = content["data"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise HubUnavailable(f"{method} {path}: the answer makes no sense: {response.text[:200]!r}") from None
        if not isinstance(data, dict | list):
            raise HubUnavailable(f"{method} {path}: the answer makes no sense: {response.text[:200]!r}")
        return data

    def _request(
        self,
        method: str,
        url: str,
        body: "bytes | _FilePart | None",
        headers: dict[str, str],
        params: dict[str, str] | None,
        *,
        key: bool,
    ) -> requests.Response:
        if key and self._api_key:
            headers["x-api-key"] = self._api_key
        with _Alarm() as alarm:
            try:
                response = self._session().request(
                    method,
                    url,
                    data=body,
                    headers=headers,
                    params=params,
                    timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
                    allow_redirects=False,  # a redirect would carry the key to another host
                    stream=True,
                )
                _read_whole(response, alarm)
            except (requests.RequestException, OSError) as error:
                if isinstance(error, FileNotFoundError):
                    raise
                cause = f"no whole answer within {READ_TIMEOUT:g} s" if alarm.rang else _cause(error)
                raise HubUnavailable(f"{method} {_shown(url)}: {cause}") from error
        _raise_for_status(response, f"{method} {_shown(url)}", signed=not key)
        return response

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = requests.Session()
            session.trust_env = True  # proxies of the site
            session.auth = _no_netrc  # with trust_env, a netrc entry would replace our header
            session.mount("http://", _Adapter())
            session.mount("https://", _Adapter())
            session.headers["user-agent"] = f"ddphub/{__version__}"
            self._local.session = session
            self._sessions.append(session)
        return session


class _FilePart:
    """`length` bytes of a file from `start` on, read a block at a time while they are sent."""

    def __init__(self, path: Path, start: int, length: int) -> None:
        self._path = path
        self._start = start
        self._length = length

    def __len__(self) -> int:  # requests takes Content-Length from it
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        with open_regular(self._path) as file:
            file.seek(self._start)
            left = self._length
            while left:
                block = file.read(min(BLOCK, left))
                if not block:
                    raise OSError(f"{self._path} is shorter than it was")
                left -= len(block)
                yield block


class _Alarm:
    """Ends a request whose answer takes too long: a timeout of each read alone lets one trickle for ever.

    A context manager around one request of the calling thread; its connection sets the alarm when the body is sent.
    """

    _current = threading.local()

    def __init__(self) -> None:
        self.rang = False
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        self._current.alarm = self
        return self

    def __exit__(self, *_: object) -> None:
        del self._current.alarm
        if self._timer is not None:
            self._timer.cancel()

    @classmethod
    def set(cls, connection: socket.socket) -> None:
        """Gives the calling thread's request READ_TIMEOUT seconds from now."""
        alarm = cls._current.alarm
        alarm._timer = threading.Timer(READ_TIMEOUT, alarm._ring, (connection,))
        alarm._timer.daemon = True
        with contextlib.suppress(RuntimeError):  # the interpreter ends and starts no thread; nobody waits for long now
            alarm._timer.start()

    def _ring(self, connection: socket.socket) -> None:
        self.rang = True
        with contextlib.suppress(OSError):  # it is closed already
            socket.socket.shutdown(connection, socket.SHUT_RDWR)  # of the socket below TLS: its reader finds the end


class _PlainConnection(HTTPConnection):
    def getresponse(self) -> Any:  # noqa: ANN401  # urllib3 overrides the standard library's with a type of its own
        _Alarm.set(self.sock)
        return super().getresponse()


class _TlsConnection(HTTPSConnection):
    def getresponse(self) -> Any:  # noqa: ANN401  # urllib3 overrides the standard library's with a type of its own
        _Alarm.set(self.sock)
        return super().getresponse()


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _Adapter(HTTPAdapter):
    """Connections that set the alarm."""

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  # requests' own
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _PlainPool, "https": _TlsPool}

    def proxy_manager_for(self, *arguments: Any, **options: Any) -> ProxyManager:  # noqa: ANN401  # requests' own
        manager: ProxyManager = super().proxy_manager_for(*arguments, **options)
        if type(manager) is ProxyManager:  # a SOCKS proxy has connections of its own
            manager.pool_classes_by_scheme = {"http": _PlainPool, "https": _TlsPool}
        return manager


def _read_whole(response: requests.Response, alarm: _Alarm) -> None:
    """Reads an answer of bounded size.

    Raises:
        OSError: it is too large, or the alarm has cut it.
    """
    content = bytearray()
    with response:
        for block in response.iter_content(64 * 1024):
            content += block
            if len(content) > MAX_ANSWER:
                raise OSError(f"the answer does not end: {len(content)} bytes so far")
    if alarm.rang:
        raise OSError("cut")  # one that names no length looks whole wherever it is cut
    response._content = bytes(content)


class _WithoutQuery(logging.Filter):
    """Cuts the query from what urllib3 logs of a request: a signed URL is a secret."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                argument.partition("?")[0] + "?..." if isinstance(argument, str) and "?" in argument else argument
                for argument in record.args
            )
        return True


logging.getLogger("urllib3.connectionpool").addFilter(_WithoutQuery())


def _no_netrc(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _raise_for_status(response: requests.Response, what: str, *, signed: bool) -> None:
    status = response.status_code
    if 200 <= status < 300:
        return
    message = f"{what}: {status} {_said(response)}"
    if signed and status in {401, 403, 404, 410}:
        raise HubUnavailable(message)  # the URL has expired: the next try gets a fresh one
    if status in {401, 403}:
        raise HubUnauthorized(message)
    if status in {404, 410}:
        raise HubModelGone(message)
    if status in {408, 409, 423, 425, 429} or status >= 500 or status < 400:
        raise HubUnavailable(message, _retry_after(response))
    raise HubRejected(status, message)


def _said(response: requests.Response) -> str:
    """The problem's text, or the first 200 characters of whatever came."""
    try:
        content = json.loads(response.content)
        return str(content.get("detail") or content.get("message"))[:200]
    except (ValueError, AttributeError, RecursionError):
        return repr(response.text[:200])


def _retry_after(response: requests.Response) -> float | None:
    """Seconds of a Retry-After header: a number or an HTTP date (RFC 9110, 10.2.3)."""
    value = response.headers.get("Retry-After", "")
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _shown(url: str) -> str:
    """A URL without its query: a signed URL is a secret."""
    return url.partition("?")[0]


def _cause(error: BaseException) -> str:
    """The innermost reason of a requests error, without the URL and its query."""
    while isinstance(error, requests.RequestException) and error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    reason = getattr(error, "reason", None) or error
    return f"{type(reason).__name__}: {str(reason).partition('(Caused by')[0][:200]}".replace("\n", " ")


def _text(data: Any, field: str) -> str:  # noqa: ANN401  # JSON
    value = data.get(field) if isinstance(data, dict) else None
    if not isinstance(value, str) or not value:
        raise HubUnavailable(f"the answer has no {field}: {str(data)[:200]}")
    return value


def _count(data: Any, field: str) -> int:  # noqa: ANN401  # JSON
    value = data.get(field) if isinstance(data, dict) else None
    if not isinstance(value, int) or value < 0:
        raise HubUnavailable(f"the answer has no {field}: {str(data)[:200]}")
    return value


def _missing(data: Any) -> Iterator[tuple[str, int, str]]:  # noqa: ANN401  # JSON
    """(file name, part number, URL) of every part that the hub asks for."""
    try:
        for file in data["missing"]:
            for part in file["parts"]:
                yield str(file["name"]), int(part["number"]), str(part["url"])
    except (KeyError, TypeError, ValueError):
        raise HubUnavailable(f"the answer lists no parts: {str(data)[:200]}") from None

"""A connection to a hub: it gives whole answers of bounded size in bounded time, or says in one of our errors why not.

| answer | error |
| --- | --- |
| none, not in time, cut, endless, 3xx, 408, 409, 423, 425, 429, 5xx, not the JSON that was expected | HubUnavailable |
| 401, 403 | HubUnauthorized |
| 404, 410 | HubModelGone |
| another 4xx | HubRejected |
| 401, 403, 404, 410 of a signed URL, which has expired: the next try gets a fresh one | HubUnavailable |

The site's proxies are used; a netrc file is not. The key goes to the hub's own host only: no redirect is followed, as
that would carry it elsewhere; but one of a download is, and there nothing of ours goes along. Nothing is tried twice
here: that is for the callers.
"""

import contextlib
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, ProxyManager
from urllib3.connection import HTTPConnection, HTTPSConnection

from ddphub import __version__
from ddphub.errors import HubModelGone, HubRejected, HubUnauthorized, HubUnavailable
from ddphub.files import open_regular
from ddphub.hubs.wire import FOLLOWS_REDIRECTS

MAX_ANSWER: Final = 64 * 1024 * 1024
"""Bytes of an answer; the largest lists the parts of a checkpoint, about 300 bytes each."""

BLOCK: Final = 256 * 1024
"""Bytes read and sent at a time: what an upload adds to memory."""

_GONE_WITH_ITS_SIGNATURE: Final = frozenset({401, 403, 404, 410})


class SignatureOver(HubUnavailable):
    """A signed URL is no longer good, which says nothing about the hub."""


class HubConnection:
    """Speaks HTTP to one hub; any thread, with a connection pool of its own each.

    Args:
        url: base URL of the hub, without a trailing slash.
        credentials: headers that carry the key.
        connect_timeout: seconds until it is connected; also for each write.
        read_timeout: seconds for a whole answer, once the request is sent.
    """

    def __init__(
        self, url: str, credentials: Mapping[str, str], *, connect_timeout: float = 10.0, read_timeout: float = 60.0
    ) -> None:
        self.url = url
        self._credentials = dict(credentials)
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._local = threading.local()
        self._sessions: list[requests.Session] = []

    def is_own(self, url: str) -> bool:
        """Whether the key may go to a URL: on the hub's own host, and not signed, which needs none."""
        return self.is_host(url) and not urlsplit(url).query

    def is_host(self, url: str) -> bool:
        """Whether a URL is the hub's own host's."""
        own, other = urlsplit(self.url), urlsplit(url)
        return (own.scheme, own.netloc) == (other.scheme, other.netloc)

    def call(
        self,
        method: str,
        path: str,
        body: "bytes | FileBody | None" = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Any:  # noqa: ANN401  # JSON
        """One request to the hub's API; its JSON answer. Bytes are JSON unless `headers` says otherwise."""
        kind = {"content-type": "application/json"} if isinstance(body, bytes) else {}
        headers = {**kind, **(headers or {}), "accept": "application/json", **self._credentials}
        response = self._request(method, self.url + path, body, headers, params, signed=False)
        try:
            return json.loads(response.content)
        except (ValueError, RecursionError):
            raise no_sense(f"{method} {path}", response.text) from None

    def put(self, url: str, body: "bytes | FileBody", headers: Mapping[str, str] | None = None) -> None:
        """Sends bytes to a signed URL, without the key."""
        self._request("PUT", url, body, headers or {}, None, signed=True)

    def open(self, url: str, headers: Mapping[str, str]) -> requests.Response:
        """Begins a download: a 2xx answer whose body is to be read, each read bounded; the caller closes it."""
        own = self.is_own(url)
        # Compressed on the way, its length would not be the file's.
        headers = {**headers, "accept-encoding": "identity"}
        given = {**headers, **self._credentials, FOLLOWS_REDIRECTS: "1"} if own else headers
        response = self._request("GET", url, None, given, None, signed=not own, stream=True, may_redirect=True)
        if response.status_code < 300:
            return response
        place = urljoin(url, response.headers["location"])
        if urlsplit(place).scheme not in {"http", "https"}:
            raise HubUnavailable(f"GET {shown(url)}: the hub sends us to no address of the web")
        return self._request("GET", place, None, headers, None, signed=True, stream=True)

    def leave(self) -> None:
        """Closes the connections of the calling thread, which ends."""
        session: requests.Session | None = self._local.__dict__.pop("session", None)
        if session is not None:
            self._sessions.remove(session)
            session.close()

    def close(self) -> None:
        """Closes the connections of every thread."""
        for session in list(self._sessions):
            session.close()

    def _request(
        self,
        method: str,
        url: str,
        body: "bytes | FileBody | None",
        headers: Mapping[str, str],
        params: Mapping[str, str] | None,
        *,
        signed: bool,
        stream: bool = False,
        may_redirect: bool = False,
    ) -> requests.Response:
        with _Alarm(self._read_timeout) as alarm:
            try:
                response = self._session().request(
                    method,
                    url,
                    data=body,
                    headers=headers,
                    params=params,
                    timeout=(self._connect_timeout, self._read_timeout),
                    allow_redirects=False,  # a redirect would carry the key to another host
                    stream=True,
                )
                if not stream or not 200 <= response.status_code < 300:
                    _read_whole(response, alarm)
            except (requests.RequestException, OSError) as error:
                if isinstance(error, FileNotFoundError):
                    raise
                why = f"no whole answer within {self._read_timeout:g} s" if alarm.rang else cause(error)
                raise HubUnavailable(f"{method} {shown(url)}: {why}") from error
        if not (may_redirect and response.is_redirect):
            _raise_for_status(response, f"{method} {shown(url)}", signed=signed)
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


class FileBody:
    """Bytes of a file as a request's body, read a block at a time while they are sent.

    Args:
        path: the file.
        start: its first byte.
        length: how many bytes; its length is announced, so the file must not shrink.
        before: bytes that go before them.
        after: bytes that follow them.
    """

    def __init__(self, path: Path, start: int, length: int, before: bytes = b"", after: bytes = b"") -> None:
        self._path = path
        self._start = start
        self._length = length
        self._before = before
        self._after = after

    def __len__(self) -> int:  # requests takes Content-Length from it
        return len(self._before) + self._length + len(self._after)

    def __iter__(self) -> Iterator[bytes]:
        if self._before:
            yield self._before
        with open_regular(self._path) as file:
            file.seek(self._start)
            left = self._length
            while left:
                block = file.read(min(BLOCK, left))
                if not block:
                    raise OSError(f"{self._path} is shorter than it was")
                left -= len(block)
                yield block
        if self._after:
            yield self._after


class _Alarm:
    """Ends a request whose answer takes too long: a timeout of each read alone lets one trickle for ever.

    A context manager around one request of the calling thread; its connection sets the alarm when the body is sent.
    """

    _current = threading.local()

    def __init__(self, seconds: float) -> None:
        self.rang = False
        self._seconds = seconds
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
        """Gives the calling thread's request its seconds from now."""
        alarm = cls._current.alarm
        alarm._timer = threading.Timer(alarm._seconds, alarm._ring, (connection,))
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
    if signed and status in _GONE_WITH_ITS_SIGNATURE:
        raise SignatureOver(message)
    if status in {401, 403}:
        raise HubUnauthorized(message)
    if status in {404, 410}:
        raise HubModelGone(message)
    if status in {408, 409, 423, 425, 429} or status >= 500 or status < 400:
        raise HubUnavailable(message, _retry_after(response))
    raise HubRejected(status, message)


_STORAGE_CODE: Final = re.compile(rb"<Error>.*?<Code>([A-Za-z0-9]{1,64})</Code>", re.DOTALL)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def _said(response: requests.Response) -> str:
    """The problem's text, or the first 200 characters of whatever came."""
    if code := storage_code(response.content):
        return code  # the rest may repeat what was signed
    try:
        content = json.loads(response.content)
        # Ends in logs and on terminals, which must not take it for commands.
        return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(content.get("detail") or content.get("message"))[:200])
    except (ValueError, AttributeError, RecursionError):
        return repr(response.text[:200])


def storage_code(content: bytes) -> str | None:
    """The code of an object storage's error (S3, "Error responses"); None of another answer."""
    found = _STORAGE_CODE.search(content[:4096])
    return found.group(1).decode() if found else None


def _retry_after(response: requests.Response) -> float | None:
    """Seconds of a Retry-After header: a number or an HTTP date (RFC 9110, 10.2.3)."""
    value = response.headers.get("Retry-After", "")
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def shown(url: str) -> str:
    """A URL without its query: a signed URL is a secret."""
    return url.partition("?")[0]


def cause(error: BaseException) -> str:
    """The innermost reason of a requests error, without the URL and its query."""
    while isinstance(error, requests.RequestException) and error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    reason = getattr(error, "reason", None) or error
    return f"{type(reason).__name__}: {str(reason).partition('(Caused by')[0][:200]}".replace("\n", " ")


# What answers of hubs have in common.


def succeeded(answer: Any, what: str) -> dict[str, Any]:  # noqa: ANN401  # JSON
    """An answer that is an object and does not say `"success": false`.

    Raises:
        HubUnavailable: it is another.
    """
    if not isinstance(answer, dict) or answer.get("success") is False:
        raise no_sense(what, str(answer))
    return answer


def envelope_data(answer: Any, what: str) -> Any:  # noqa: ANN401  # JSON
    """`data` of an answer `{"success": ..., "message": ..., "data": {...} or [...]}`.

    Raises:
        HubUnavailable: it is another.
    """
    data = succeeded(answer, what).get("data")
    if not isinstance(data, dict | list):
        raise no_sense(what, str(answer))
    return data


def text_of(data: Any, field: str) -> str:  # noqa: ANN401  # JSON
    """A text that must be there and not empty."""
    value = data.get(field) if isinstance(data, dict) else None
    if not isinstance(value, str) or not value:
        raise HubUnavailable(f"the answer has no {field}: {str(data)[:200]}")
    return value


def count_of(data: Any, field: str) -> int:  # noqa: ANN401  # JSON
    """A whole number from 0 up that must be there."""
    value = data.get(field) if isinstance(data, dict) else None
    if not isinstance(value, int) or value < 0:
        raise HubUnavailable(f"the answer has no {field}: {str(data)[:200]}")
    return value


def no_sense(what: str, answer: str) -> HubUnavailable:
    """The error for an answer that is none."""
    return HubUnavailable(f"{what}: the answer makes no sense: {answer[:200]!r}")

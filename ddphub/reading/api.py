"""Requests to a hub's API, and lists page by page."""

import threading
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlencode

from ddphub.errors import HubModelGone, HubUnauthorized, HubUnavailable
from ddphub.hubs.ddphub import DdphubClient
from ddphub.keys import why_refused

PAGE: Final = 500
"""Records in one answer."""

TRIES: Final = 5
PAUSE: Final = 1.0
"""How often a further page is asked for, and seconds before the second try; each further one waits as much longer."""


class Api:
    """The API of one hub; asks nothing yet. Any thread.

    Args:
        url: the hub's base URL.
        api_key: its key.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        self.url: Final = url
        self._api_key = api_key
        self._client = DdphubClient(url, api_key)
        self._is_known = False

    def client(self) -> DdphubClient:
        """The hub's client, once it is known that this hub can be read.

        Raises:
            HubError: it cannot, or does not know the key.
        """
        if self._is_known:
            return self._client
        try:
            data = self._client.call("GET", "/v1/capabilities")
        except HubUnauthorized as error:
            raise HubUnauthorized(f"{why_refused(self.url, self._api_key)} ({error})") from error
        except HubModelGone as error:
            raise HubUnavailable(f"{self.url} is no hub of `ddphub serve` ({error})") from error
        if not isinstance(data, dict) or data.get("hub") != "ddphub":
            raise HubUnavailable(f"{self.url} is no hub of `ddphub serve`: it says {str(data)[:200]}")
        if "search" not in data.get("features", ()):
            raise HubUnavailable(f"{self.url} is an older hub: programs can read it once it is updated")
        self._is_known = True
        return self._client

    def call(self, method: str, path: str, params: dict[str, Any] | None = None, body: object = None) -> Any:  # noqa: ANN401  # JSON
        """One request; the answer's data. Parameters that are None are left out, those of a list are repeated."""
        query = urlencode({name: value for name, value in (params or {}).items() if value is not None}, doseq=True)
        return self.client().call(method, f"{path}?{query}" if query else path, body)

    def each(
        self, path: str, params: dict[str, Any], *, cursor: str = "after", following: str = "next"
    ) -> Iterator[Any]:
        """Every record of a list.

        Args:
            path: the list.
            params: which of its records.
            cursor: the parameter that says where a page begins.
            following: the field that says where the next one does; a list without fields goes on after its last id.
        """
        params = {**params, "limit": PAGE}
        data = self.call("GET", path, params)
        while True:
            records, after = _page(data, following)
            # The next page is here before the last record is out: its reader may delete what the page begins after.
            yield from records[:-1]
            if after is not None:
                data = self._again(path, {**params, cursor: after})
            yield from records[-1:]
            if after is None:
                return

    def _again(self, path: str, params: dict[str, Any]) -> Any:  # noqa: ANN401  # JSON
        """A page that hours of reading may depend on: a hub that restarts is waited for."""
        for number in range(1, TRIES):
            try:
                return self.call("GET", path, params)
            except HubUnavailable as error:
                threading.Event().wait(max(PAUSE * number, min(error.retry_after or 0.0, 60.0)))
        return self.call("GET", path, params)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()


def _page(data: Any, following: str) -> tuple[list[Any], Any]:  # noqa: ANN401  # JSON
    """The records of a page, and where the next one begins; None after the last one."""
    try:
        if isinstance(data, list):
            return data, data[-1]["id"] if len(data) == PAGE else None
        return list(data["results"]), data[following]
    except (KeyError, TypeError):
        raise HubUnavailable(f"the answer is no list: {str(data)[:200]}") from None

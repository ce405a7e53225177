"""A hub, as programs read it."""

import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Final, Self

from ddphub.address import HubAddress, ModelAddress
from ddphub.config import check_key
from ddphub.errors import SettingsError
from ddphub.keys import hub_and_key
from ddphub.reading.model import Model, model_path

if TYPE_CHECKING:
    from ddphub.reading.api import Api


class Hub:
    """A hub of `ddphub serve`, to read and to tidy up. Any process, any thread; asks nothing until it must.

    Args:
        url: its URL; DDPHUB_URL, or the hub of `ddphub login`, by default.
        api_key: its key; DDPHUB_API_KEY, or the one of `ddphub login`, by default.

    Raises:
        SettingsError: no hub is named, it is of another kind, or the only key at hand is for another one.
    """

    def __init__(self, url: str | None = None, api_key: str | None = None) -> None:
        chosen = None if url is None else str(HubAddress.parse(url, "argument", os.environ))
        check_key(api_key, "argument")
        key = api_key
        if chosen is None or key is None:
            chosen, found = hub_and_key(None, chosen, os.environ, source="Hub()")
            key = key or found
        address = HubAddress.parse(chosen, "argument", os.environ)
        if address.service != "ddphub":
            raise SettingsError("hub", chosen, "argument", "only a hub of `ddphub serve` can be read; this one cannot")
        self.url: Final = address.url
        self._key = key

    def models(
        self,
        *,
        project: str | None = None,
        state: str | Iterable[str] | None = None,
        tag: str | Iterable[str] | None = None,
        search: str | None = None,
    ) -> Iterator[Model]:
        """The models, newest first.

        Args:
            project: only those of this project.
            state: only those in this state, or in one of these.
            tag: only those that have this tag, or all of these.
            search: only those with this text in name, run id, project, tags or notes, in upper or lower case.

        Raises:
            HubError: the hub does not answer, does not know the key, or knows no such state.
        """
        wanted = {"project": project, "state": _several(state), "tag": _several(tag), "search": search}
        for item in self._api.each("/v1/models", wanted, cursor="last_doc_id", following="lastRecordId"):
            yield Model.of(self._api, item)

    def model(self, model: str) -> Model:
        """One model.

        Args:
            model: its id, or the URL of its page.

        Raises:
            HubModelGone: the hub has no such model.
            SettingsError: it is the URL of a page of another hub.
        """
        address = ModelAddress.parse(model, "argument", os.environ)
        if address.hub not in {None, self.url}:
            raise SettingsError("model", model, "argument", f"this is {self.url}: open ddphub.Hub({address.hub!r})")
        return Model.of(self._api, self._api.call("GET", model_path(address.model_id)))

    def delete_model(self, model_id: str, *, hard: bool = False) -> None:
        """Hides a model from everyone, or removes it for good, even one that was hidden before.

        Args:
            model_id: its id.
            hard: with everything that it reported, and the bytes of checkpoints that no other model needs.

        Raises:
            HubModelGone: the hub has no such model.
        """
        self._api.call("DELETE", model_path(model_id), {"hard": "true" if hard else None})

    def close(self) -> None:
        """Closes the connections; a later call opens them again."""
        self._api.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Hub({self.url!r})"

    @cached_property
    def _api(self) -> "Api":
        from ddphub.reading.api import Api  # noqa: PLC0415  # requests, only where it is used

        return Api(self.url, self._key)


def _several(given: str | Iterable[str] | None) -> list[str] | None:
    return None if given is None else [given] if isinstance(given, str) else list(given)

"""What `hub=` and `model=` may say: which service speaks there, where it is, and which of its models is meant.

| hub | service | where |
| --- | --- | --- |
| a URL | the one that its host belongs to, else a ddphub hub | there |
| `platform` | Ultralytics Platform | ULTRALYTICS_PLATFORM_URL, else https://platform.ultralytics.com |
| `hub-v1` | Ultralytics HUB v1, or what speaks like it | ULTRALYTICS_HUB_API, else https://api.ultralytics.com |
| `platform+URL`, `hub-v1+URL` | that service | at that URL |

run.json and the journal hold the last form, or the plain URL of a ddphub hub: `ddphub sync` needs no more.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, Self
from urllib.parse import parse_qs, urlsplit

from ddphub.errors import SettingsError

Service = Literal["ddphub", "platform", "hub-v1"]

_EXPECTED: Final = (
    "expected a URL such as https://hub.example.org or http://127.0.0.1:8765, or one of platform, hub-v1, "
    "platform+URL, hub-v1+URL"
)


@dataclass(frozen=True)
class _Known:
    """A service that has a home: the variable that says where it is, its default, and the hosts that are it."""

    variable: str
    default: str
    hosts: frozenset[str]


_SERVICES: Final[dict[Service, _Known]] = {
    "platform": _Known(
        "ULTRALYTICS_PLATFORM_URL", "https://platform.ultralytics.com", frozenset({"platform.ultralytics.com"})
    ),
    "hub-v1": _Known(
        "ULTRALYTICS_HUB_API",
        "https://api.ultralytics.com",
        frozenset({"api.ultralytics.com", "hub.ultralytics.com"}),
    ),
}

HUB_WEB: Final = "ULTRALYTICS_HUB_WEB"
"""The variable that says where people look at HUB v1's models; its API is elsewhere."""

DEFAULT_HUB_WEB: Final = "https://hub.ultralytics.com"

_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
_KEY_AND_MODEL_ID = re.compile(r"([A-Za-z0-9]{42})_([A-Za-z0-9]{20})")


@dataclass(frozen=True)
class HubAddress:
    """A hub: which protocol it speaks, and its base URL without a trailing slash."""

    service: Service
    url: str

    def __str__(self) -> str:
        return self.url if self.service == "ddphub" else f"{self.service}+{self.url}"

    @classmethod
    def parse(cls, text: object, source: str, environ: Mapping[str, str]) -> Self:
        """Reads what a setting says.

        Args:
            text: the setting's value.
            source: where it came from, for the error.
            environ: the environment.

        Raises:
            SettingsError: it names no service and is no http or https URL with a host.
        """
        for service, known in _SERVICES.items():
            if text == service:
                return cls(service, check_url(environ.get(known.variable) or known.default, known.variable))
            if isinstance(text, str) and text.startswith(f"{service}+"):
                return cls(service, check_url(text.removeprefix(f"{service}+"), source))
        url = check_url(text, source)
        host = urlsplit(url).hostname
        for service, known in _SERVICES.items():
            if host in known.hosts:
                return cls(service, known.default if host == urlsplit(DEFAULT_HUB_WEB).hostname else url)
        return cls("ddphub", url)


@dataclass(frozen=True)
class ModelAddress:
    """A model that exists.

    Attributes:
        model_id: the hub's id of it.
        hub: the hub that a URL names; None for a bare id.
        api_key: the key that came with it; never shown.
    """

    model_id: str
    hub: str | None
    api_key: str | None

    @classmethod
    def parse(cls, text: object, source: str, environ: Mapping[str, str]) -> Self:
        """Reads an id, `key_modelid`, or `<web root>/models/<id>`, as HUB v1 clients take them.

        Raises:
            SettingsError: it is none of these.
        """
        expected = "expected a model's id, KEY_MODELID, or the URL of its page: https://hub.example.org/models/ID"
        if isinstance(text, str):
            if match := _KEY_AND_MODEL_ID.fullmatch(text):
                return cls(match[2], None, match[1])
            if _MODEL_ID.fullmatch(text):
                return cls(text, None, None)
            root, mark, tail = text.partition("/models/")
            model_id, _, query = tail.partition("?")
            if mark and _MODEL_ID.fullmatch(model_id.rstrip("/")):
                key = parse_qs(query).get("api_key", [None])[0]
                root = check_url(root, source)
                web = (environ.get(HUB_WEB) or DEFAULT_HUB_WEB).rstrip("/")
                hub = HubAddress.parse("hub-v1" if root == web else root, source, environ)
                return cls(model_id.rstrip("/"), str(hub), key)
        # Not the value itself: a key may be part of it.
        raise SettingsError("model", "...", source, expected)


def check_url(url: object, source: str) -> str:
    """A hub's base URL without a trailing slash.

    Raises:
        SettingsError: when it is no http or https URL with a host.
    """
    if not isinstance(url, str):
        raise SettingsError("hub", url, source, _EXPECTED)
    # What may be a secret is not shown: a user and password, a query, a fragment.
    bare = re.split(r"[?#]", url, maxsplit=1)[0]
    head, at, tail = bare.rpartition("@")
    scheme, mark, _ = head.partition("://")
    shown = f"{scheme if mark else ''}{mark}...@{tail}" if at else bare
    if at:
        raise SettingsError("hub", shown, source, "must carry no user or password: use DDPHUB_API_KEY")
    if bare != url:
        raise SettingsError("hub", f"{shown}...", source, f"must carry no query and no fragment; {_EXPECTED}")
    try:
        parts = urlsplit(url)
        is_valid = parts.port is None or parts.port > 0
    except ValueError:
        is_valid = False
    if not is_valid or parts.scheme not in {"http", "https"} or not parts.hostname:
        raise SettingsError("hub", shown, source, _EXPECTED)
    if any(character.isspace() or not character.isprintable() for character in url):
        raise SettingsError("hub", shown, source, _EXPECTED)
    return url.rstrip("/")

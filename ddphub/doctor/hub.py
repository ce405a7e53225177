"""The hub: does it answer, does it know the key, and which time does it have?"""

import json
import time
from email.utils import parsedate_to_datetime
from typing import Any, Final

from ddphub.address import HubAddress
from ddphub.config import Settings
from ddphub.doctor.finding import Finding
from ddphub.doctor.settings import Sources
from ddphub.errors import HubError, HubModelGone, HubRejected, HubUnauthorized
from ddphub.hubs.http import HubConnection

TIMEOUT: Final = 4.0
"""Seconds to connect, and for an answer. A training waits longer, in the background."""

LATE: Final = 5.0
"""Seconds that a clock may be off: the hub tells its own in whole seconds."""


def examine_hub(found: Sources) -> list[Finding]:
    """Asks the hub that a run would report to. Rank 0 only: no other rank ever talks to it.

    Args:
        found: the settings and where they came from.
    """
    settings = found.settings
    if settings is None:
        return []
    if settings.hub is None:
        text = "no hub is set: a run stays on disk until `ddphub sync --hub URL`"
        return [Finding("hub", "ok", text, "to name one: DDPHUB_URL, or `ddphub login`")]
    shown = f"{settings.hub} (from {found.hub})"
    if found.is_offline:
        return [Finding("hub", "ok", f"{shown} is not asked: mode is offline, `ddphub sync` delivers")]
    return [_without_key(finding, settings) for finding in _ask(settings, settings.hub, shown, found.key)]


def _ask(settings: Settings, hub: str, shown: str, key_source: str | None) -> list[Finding]:
    address = HubAddress.parse(hub, "settings", {})
    key = {"x-api-key": settings.api_key} if settings.api_key and address.service != "platform" else {}
    connection = _Clocked(address.url, key, connect_timeout=TIMEOUT, read_timeout=TIMEOUT)
    try:
        answer = _request(connection, address)
        finding = _about_key(address, shown, key_source)
        if address.service == "ddphub" and not _is_ddphub(answer):
            finding = _stranger(address, shown)
    except HubUnauthorized as error:
        if key_source is None:
            advice = f"set DDPHUB_API_KEY, or run `ddphub login --url {address.url}`"
            finding = Finding("hub", "problem", f"{shown} answers, and wants a key; none is set", advice)
        else:
            text = f"{shown} does not accept the key from {key_source}: {error}"
            finding = Finding("hub", "problem", text, "get the hub's key, and set it there")
    except (HubModelGone, HubRejected) as error:
        finding = _stranger(address, f"{shown}: {error}")
    except HubError as error:
        advice = "training goes on without it, and `ddphub sync --watch` delivers from a host that reaches it"
        if connection.answered:
            finding = Finding("hub", "problem", f"{shown} answers, but not as a hub does: {error}", advice)
        else:
            advice += "; behind a proxy: HTTPS_PROXY, NO_PROXY"
            finding = Finding("hub", "problem", f"{shown} cannot be reached from here: {error}", advice)
    finally:
        connection.close()
    return [finding, *_clock(connection.ahead)]


def _request(connection: "_Clocked", address: HubAddress) -> object:
    match address.service:
        case "ddphub":
            return connection.call("GET", "/v1/capabilities")
        case "hub-v1":
            return connection.call("POST", "/v1/auth")
        case "platform":
            # It has no request that only tries a key, so any answer will do.
            try:
                connection.open(f"{address.url}/", {}).close()
            except HubError:
                if not connection.answered:
                    raise
            return None


def _about_key(address: HubAddress, shown: str, key_source: str | None) -> Finding:
    if address.service != "platform":
        accepted = f"accepts the key from {key_source}" if key_source else "wants no key"
        return Finding("hub", "ok", f"{shown} answers and {accepted}")
    if key_source is None:
        return Finding("hub", "problem", f"{shown} answers; no key is set", "set ULTRALYTICS_API_KEY")
    return Finding("hub", "ok", f"{shown} answers; the key from {key_source} is tried by the first event only")


def _is_ddphub(answer: object) -> bool:
    data = answer.get("data") if isinstance(answer, dict) else None
    return isinstance(data, dict) and data.get("hub") == "ddphub"


def _stranger(address: HubAddress, shown: str) -> Finding:
    advice = "check the URL"
    if address.service == "ddphub":
        advice += f"; if it speaks HUB v1, name it hub-v1+{address.url}"
    return Finding("hub", "problem", f"{shown}: this is no {address.service} hub", advice)


def _clock(ahead: float | None) -> list[Finding]:
    if ahead is None:
        return []
    if abs(ahead) > LATE:
        which = "ahead of" if ahead > 0 else "behind"
        text = f"the hub's clock is {abs(ahead):.0f} s {which} this host's"
        return [Finding("clock", "warning", text, "set both by NTP: times on the hub's pages will not fit together")]
    return [Finding("clock", "ok", "the hub's and this host's agree")]


def _without_key(finding: Finding, settings: Settings) -> Finding:
    """What a stranger answers may repeat the key."""
    if settings.api_key is None:
        return finding
    text = finding.text.replace(settings.api_key, "...").replace(json.dumps(settings.api_key)[1:-1], "...")
    return Finding(finding.topic, finding.state, text, finding.advice)


class _Clocked(HubConnection):
    """Notes of every answer, a refusal too, that it came and which time the hub has."""

    answered = False
    ahead: float | None = None
    """Seconds that the hub's clock is ahead; None where it told no time."""

    def _session(self) -> Any:  # noqa: ANN401  # a requests.Session, which only hubs may import
        session = super()._session()
        session.hooks["response"] = [self._note]
        return session

    def _note(self, response: Any, *_: object, **__: object) -> None:  # noqa: ANN401  # a requests.Response
        self.answered = True
        try:
            told = parsedate_to_datetime(response.headers["Date"]).timestamp()
        except (KeyError, TypeError, ValueError, OverflowError):
            return
        # Cut to a whole second, so half a second later on average.
        self.ahead = told + 0.5 - (time.time() - response.elapsed.total_seconds() / 2)

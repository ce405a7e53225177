"""Proxies in front of the hub: whose `X-Forwarded-*` headers are believed."""

import ipaddress
from collections.abc import Iterable
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

_FORWARDED: Final = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host")


class TrustedProxies:
    """Middleware: a request of a named proxy has the address, scheme and host that it had when it came to that.

    Everybody else's such headers are removed, so that nothing behind this can believe them by mistake.

    Args:
        app: what answers.
        proxies: addresses and networks.
    """

    def __init__(self, app: ASGIApp, proxies: Iterable[str]) -> None:
        self._app = app
        self._networks = [ipaddress.ip_network(proxy) for proxy in proxies]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102  # as ASGI has it
        if scope["type"] == "http" and any(name in _FORWARDED for name, _ in scope["headers"]):
            scope = self._told(scope)
        await self._app(scope, receive, send)

    def _told(self, scope: Scope) -> Scope:
        others = [(name, value) for name, value in scope["headers"] if name not in _FORWARDED]
        told = {**scope, "headers": others}
        client = scope.get("client")
        if client is not None and self._is_trusted(client[0]):
            self._believe(told, Headers(scope=scope))
        return told

    def _believe(self, scope: Scope, headers: Headers) -> None:
        address = self._client(headers)
        if address is not None:
            scope["client"] = (address, 0)
        if (scheme := headers.get("x-forwarded-proto", "").strip().lower()) in {"http", "https"}:
            scope["scheme"] = scheme
        host = headers.get("x-forwarded-host", "").strip()
        if host and host.isascii() and host.isprintable() and not set(host) & set(" ,/\\@?#"):
            MutableHeaders(scope=scope)["host"] = host

    def _client(self, headers: Headers) -> str | None:
        """Each proxy appends who came to it: the last one that is no proxy of ours. The ones before may be invented."""
        hops = [hop.strip() for line in headers.getlist("x-forwarded-for") for hop in line.split(",")]
        found = None
        for hop in reversed(hops):
            address = _address(hop)
            if address is None:
                break
            found = address
            if not self._is_trusted(address):
                break
        return found

    def _is_trusted(self, address: str) -> bool:
        try:
            known = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(known, ipaddress.IPv6Address) and known.ipv4_mapped:
            known = known.ipv4_mapped
        return any(known in network for network in self._networks)


def _address(hop: str) -> str | None:
    """The address of a hop, which some proxies write with a port, and IPv6 in brackets."""
    for text in (hop, hop.removeprefix("[").partition("]")[0], hop.partition(":")[0]):
        try:
            return str(ipaddress.ip_address(text))
        except ValueError:
            continue
    return None

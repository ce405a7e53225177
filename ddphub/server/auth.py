"""Who sends a request: the key in its headers, or the cookie of a browser that signed in."""

from dataclasses import replace

from fastapi import Request

from ddphub.server.hub import Hub
from ddphub.server.keys import unauthorized
from ddphub.server.principal import Principal


def sent_key(request: Request) -> str | None:
    """The key in the request's `x-api-key` or `Authorization: Bearer` header."""
    if key := request.headers.get("x-api-key"):
        return key
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def address_of(request: Request) -> str:
    """Where the request came from."""
    return "" if request.client is None else request.client.host[:64]


def by_key(hub: Hub, request: Request, key: str | None) -> Principal:
    """Who holds a key.

    Args:
        hub: the hub.
        request: what brought the key.
        key: the key; None where there is none.

    Raises:
        Problem: 401 when it is not good, 429 where many wrong ones came from.
    """
    if key is None:
        raise unauthorized("the request has no API key")
    return _with_id(request, hub.keys.find(key, address_of(request)))


def by_cookie(hub: Hub, request: Request) -> Principal | None:
    """Who signed in with the browser that asks; None when nobody did."""
    cookie = request.cookies.get(hub.sessions.cookie)
    found = hub.sessions.find(cookie, address_of(request)) if cookie else None
    return None if found is None else _with_id(request, found)


def _with_id(request: Request, principal: Principal) -> Principal:
    found = replace(principal, request_id=getattr(request.state, "request_id", None))
    # The request's line in the log says who it was.
    request.state.principal = found
    return found

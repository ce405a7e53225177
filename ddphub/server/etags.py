"""Answers that a client may have already (RFC 9110, section 13)."""

from fastapi import Request


def has_already(request: Request, etag: str) -> bool:
    """Whether the request's If-None-Match names this ETag, quotes included."""
    given = [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]
    return etag in given or "*" in given

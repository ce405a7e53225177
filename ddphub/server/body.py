"""Request bodies: never more in memory than allowed, and only JSON that can be stored and sent back."""

import json
import math
import re
from typing import Annotated, Any, Final, NoReturn

from fastapi import Depends, Request
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from ddphub.hubs.wire import MAX_JSON_BODY
from ddphub.server.problems import Problem

INT64_MAX: Final = 2**63 - 1
MAX_DEPTH: Final = 16

_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")


async def _without_nul(request: Request) -> None:
    if "\0" in request.url.path or b"%00" in request.scope["query_string"]:
        raise Problem(422, "the address must not contain NUL")


WithoutNul = Depends(_without_nul)
"""A dependency of all routes: 422 for an address with NUL, which no text of a database can hold."""


async def read_bounded(request: Request, limit: int) -> bytes:
    """The whole body.

    Raises:
        Problem: 413 as soon as it is longer than `limit` bytes, 400 when the client went away.
    """
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced[:20]) > limit:
        raise _too_large(limit)
    content = bytearray()
    try:
        async for chunk in request.stream():
            content += chunk
            if len(content) > limit:
                raise _too_large(limit)
    except ClientDisconnect as error:
        raise Problem(400, "the request ended before its body was complete") from error
    return bytes(content)


def _too_large(limit: int) -> Problem:
    return Problem(413, f"the body has more than {limit} bytes: send less in one request")


async def _read_json_body(request: Request) -> bytes:
    return await read_bounded(request, MAX_JSON_BODY)


JsonBody = Annotated[bytes, Depends(_read_json_body)]
"""A handler's parameter: the body's bytes, at most `MAX_JSON_BODY`; parse them with `parse`."""


def parse(body: bytes) -> Any:  # noqa: ANN401  # any JSON value
    """The body's JSON value.

    Raises:
        Problem: 400 when it is not JSON (NaN and Infinity are not).
    """
    try:
        # A third of the time. What it refuses, which is more than the standard library does, is for that to judge.
        return from_json(body, allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        pass
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_not_json)
    except RecursionError as error:
        raise Problem(400, "the body is nested too deeply") from error
    except ValueError as error:
        raise Problem(400, f"the body is not JSON: {str(error)[:200]}") from error


def parse_object(body: bytes) -> dict[str, Any]:
    """The body's JSON object; an empty body is an empty object.

    Raises:
        Problem: 400 when it is not JSON, 422 when it is no object or holds what cannot be stored.
    """
    value = parse(body) if body else {}
    if not isinstance(value, dict):
        raise Problem(422, "expected a JSON object")
    if wrong := wrong_value(value):
        raise Problem(422, wrong)
    return value


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; send it as the string {name!r}")


def wrong_value(value: object, depth: int = 0) -> str | None:
    """Why a JSON value cannot be stored and sent back unchanged; None when it can."""
    if isinstance(value, str):
        return wrong_text(value)
    if isinstance(value, float):
        return None if math.isfinite(value) else "a number is out of range"
    if isinstance(value, int):
        return None if -INT64_MAX - 1 <= value <= INT64_MAX else "an integer has more than 64 bits"
    if depth == MAX_DEPTH:
        return "nested too deeply"
    if isinstance(value, list):
        parts: list[object] = value
    elif isinstance(value, dict):
        parts = [*value.keys(), *value.values()]
    else:
        return None
    for part in parts:
        if wrong := wrong_value(part, depth + 1):
            return wrong
    return None


def wrong_text(text: str) -> str | None:
    """Why a text cannot be stored and sent back unchanged; None when it can."""
    return "text must not contain NUL or half a surrogate pair" if _UNSTORABLE.search(text) else None


def is_integer(value: object, low: int = -INT64_MAX - 1) -> bool:
    """Whether `value` is an integer (a bool is not) from `low` to the largest that 64 bits hold."""
    return type(value) is int and low <= value <= INT64_MAX

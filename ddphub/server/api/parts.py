"""Parts of checkpoints: a signed URL takes exactly the bytes it was signed for, and no API key."""

import re
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from ddphub.server.body import INT64_MAX
from ddphub.server.hub import HubDep
from ddphub.server.problems import Problem, answer
from ddphub.server.signing import PARTS_PATH, Part
from ddphub.server.storage.incoming import CHUNK, IncomingFile
from ddphub.server.storage.local import LocalStorage

MAX_ID: Final = 64

router = APIRouter(prefix=PARTS_PATH)

_Number = Annotated[int, Query(ge=0, le=INT64_MAX)]
_Hex = Annotated[str, Query(max_length=MAX_ID)]


@router.put("/{checkpoint}/{file}/{number}")
async def put(
    *,
    hub: HubDep,
    request: Request,
    checkpoint: str,
    file: int,
    number: int,
    size: _Number,
    sha256: _Hex,
    expires: _Number,
    signature: _Hex,
    start: _Number = 0,  # one that an earlier version signed has none: it counts as expired
) -> Response:
    """Take one part; a repeat changes nothing."""
    part = Part(checkpoint=checkpoint, file=file, number=number, start=start, size=size, sha256=sha256)
    hub.signer.check_part(part, expires, signature)
    received = _received(request.headers.get("content-range"), part.size)
    announced = request.headers.get("content-length")
    if announced is not None and int(announced) != part.size - received:
        raise Problem(400, f"expected {part.size - received} bytes, the request announces {int(announced)}")
    storage = hub.storage
    if not isinstance(storage, LocalStorage):
        raise Problem(404, "parts go to this hub's object storage: ask for the missing parts again")
    incoming = await run_in_threadpool(storage.new_part, part, received)
    try:
        try:
            await _receive(request, part, incoming)
        except ClientDisconnect as error:
            await run_in_threadpool(storage.keep_some, incoming, part)
            raise Problem(400, "the request ended before the part was complete: send the rest") from error
        await run_in_threadpool(storage.keep_part, incoming, part)
    finally:
        await run_in_threadpool(incoming.close)
    return answer({"number": part.number, "sha256": part.sha256})


_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)


def _received(content_range: str | None, size: int) -> int:
    """How many bytes of a part are not in the request, as the hub has them.

    Raises:
        Problem: 400 when the range is not the end of the part.
    """
    if content_range is None:
        return 0
    found = _RANGE.fullmatch(content_range)
    if found is None or (int(found[2]) + 1, int(found[3])) != (size, size) or int(found[1]) >= size:
        raise Problem(400, f"Content-Range: expected the end of {size} bytes, as bytes 1-{size - 1}/{size}")
    return int(found[1])


async def _receive(request: Request, part: Part, incoming: IncomingFile) -> None:
    """Writes the body behind what the file has.

    Raises:
        ClientDisconnect: it ended early; what came is written.
        Problem: the bytes are not the part's.
    """
    buffer = bytearray()
    received = incoming.size
    try:
        async for chunk in request.stream():
            received += len(chunk)
            if received > part.size:
                raise Problem(413, f"expected {part.size} bytes, got more")
            buffer += chunk
            if len(buffer) >= CHUNK:
                await run_in_threadpool(incoming.write, buffer)
                buffer = bytearray()
    except ClientDisconnect:
        await run_in_threadpool(incoming.write, buffer)
        raise
    await run_in_threadpool(incoming.write, buffer)
    if received < part.size:
        raise Problem(400, f"expected {part.size} bytes, got {received}: send the part again")
    if incoming.sha256 != part.sha256:
        raise Problem(422, "the bytes do not have the part's sha256: send the part again")

"""Parts of checkpoints: a signed URL takes exactly the bytes it was signed for, and no API key."""

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
) -> Response:
    """Take one part; a repeat changes nothing."""
    part = Part(checkpoint=checkpoint, file=file, number=number, size=size, sha256=sha256)
    hub.signer.check_part(part, expires, signature)
    announced = request.headers.get("content-length")
    if announced is not None and int(announced) != part.size:
        raise Problem(400, f"expected {part.size} bytes, the request announces {int(announced)}")
    storage = hub.storage
    if not isinstance(storage, LocalStorage):
        raise Problem(404, "parts go to this hub's object storage: ask for the missing parts again")
    incoming = await run_in_threadpool(storage.new_file)
    try:
        await _receive(request, part, incoming)
        await run_in_threadpool(storage.keep_part, incoming, checkpoint, file, number)
    finally:
        await run_in_threadpool(incoming.close)
    return answer({"number": part.number, "sha256": part.sha256})


async def _receive(request: Request, part: Part, incoming: IncomingFile) -> None:
    buffer = bytearray()
    received = 0
    try:
        async for chunk in request.stream():
            received += len(chunk)
            if received > part.size:
                raise Problem(413, f"expected {part.size} bytes, got more")
            buffer += chunk
            if len(buffer) >= CHUNK:
                await run_in_threadpool(incoming.write, bytes(buffer))
                buffer.clear()
    except ClientDisconnect as error:
        raise Problem(400, "the request ended before the part was complete: send it again") from error
    await run_in_threadpool(incoming.write, bytes(buffer))
    if received < part.size:
        raise Problem(400, f"expected {part.size} bytes, got {received}: send the part again")
    if incoming.sha256 != part.sha256:
        raise Problem(422, "the bytes do not have the part's sha256: send the part again")

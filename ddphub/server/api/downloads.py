"""Files of committed checkpoints: whole, or the range that is asked for (RFC 9110, sections 13 and 14).

Where an object storage has them, who can follow is sent there, to a signed URL of short life. Who sent an API key is
not, unless it says that it takes the key off: programs carry headers of their own along to wherever they are sent.
"""

import logging
import re
from typing import Annotated, Final
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi import Path as PathParameter
from fastapi.responses import Response, StreamingResponse
from sqlalchemy import select

from ddphub.hubs.wire import FOLLOWS_REDIRECTS
from ddphub.server.api.access import Reads, api_router, find_checkpoint, reads
from ddphub.server.auth import sent_key
from ddphub.server.blob_rows import blobs_of_files, project_of
from ddphub.server.body import INT64_MAX
from ddphub.server.etags import has_already
from ddphub.server.hub import Hub, HubDep
from ddphub.server.problems import Problem
from ddphub.server.signing import DOWNLOADS_PATH, Download
from ddphub.server.storage.interface import StoredBlob
from ddphub.server.tables import Checkpoint, CheckpointFile, Model, Project

router = api_router(reads)
signed_router = APIRouter(prefix=DOWNLOADS_PATH)
"""A signed URL gives out the file that it was signed for, and needs no API key."""

_log = logging.getLogger(__name__)

_Number = Annotated[int, PathParameter(ge=0, le=INT64_MAX)]
_RANGE: Final = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})")


@router.api_route("/models/{model_id}/checkpoints/{checkpoint_id}/files/{name:path}", methods=["GET", "HEAD"])
def download(
    *, hub: HubDep, request: Request, principal: Reads, model_id: str, checkpoint_id: str, name: str
) -> Response:
    """One file of a committed checkpoint."""
    with hub.database.read() as session:
        checkpoint = find_checkpoint(session, model_id, checkpoint_id, principal, "reader")
        row = session.scalar(
            select(CheckpointFile).where(CheckpointFile.checkpoint_ref == checkpoint.id, CheckpointFile.name == name)
        )
        if checkpoint.committed_at is None or row is None:
            raise Problem(404, "the model has no committed checkpoint with such a file")
        (blob,) = blobs_of_files(session, project_of(session, checkpoint), [row])
    can_follow = sent_key(request) is None or FOLLOWS_REDIRECTS in request.headers
    return _send(hub, request, row, blob, name, can_follow=can_follow)


@signed_router.api_route("/{checkpoint_id}/{number}/{expires}/{signature}/{name}", methods=["GET", "HEAD"])
def download_signed(
    *, hub: HubDep, request: Request, checkpoint_id: str, number: _Number, expires: _Number, signature: str, name: str
) -> Response:
    """The file that the URL was signed for."""
    hub.signer.check_download(Download(checkpoint=checkpoint_id, file=number, name=name), expires, signature)
    with hub.database.read() as session:
        found = session.execute(
            select(CheckpointFile, Project)
            .join(Checkpoint, Checkpoint.id == CheckpointFile.checkpoint_ref)
            .join(Model, Model.id == Checkpoint.model_ref)
            .join(Project, Project.id == Model.project_ref)
            .where(
                Checkpoint.public_id == checkpoint_id,
                CheckpointFile.number == number,
                Checkpoint.committed_at.is_not(None),
                Model.deleted_at.is_(None),
            )
        ).one_or_none()
        if found is None:
            raise Problem(404, "the checkpoint was deleted")
        row, project = found
        (blob,) = blobs_of_files(session, project, [row])
    return _send(hub, request, row, blob, name, can_follow=True)


def _send(
    hub: Hub, request: Request, row: CheckpointFile, blob: StoredBlob, name: str, *, can_follow: bool
) -> Response:
    etag = f'"{row.sha256}"'
    headers = {
        "etag": etag,
        "accept-ranges": "bytes",
        "cache-control": "private, no-cache",
        "content-disposition": _disposition(name),
    }
    if has_already(request, etag):
        return Response(status_code=304, headers=headers)
    start, end, status = 0, row.size, 200
    wanted = request.headers.get("range")
    if wanted is not None and request.headers.get("if-range", etag) == etag:
        chosen = _range(wanted, row.size)
        if chosen is not None:
            start, end = chosen
            status = 206
            headers["content-range"] = f"bytes {start}-{end - 1}/{row.size}"
    headers["content-length"] = str(end - start)
    media_type = "application/octet-stream"
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    if can_follow and (url := hub.storage.download_url(blob, name.rsplit("/", 1)[-1])) is not None:
        return Response(status_code=307, headers={"location": url, "cache-control": "no-store"})
    try:
        chunks = hub.storage.read(blob, start, end)
    except FileNotFoundError as error:
        with hub.database.read() as session:
            if session.get(CheckpointFile, row.id) is None:
                raise Problem(404, "the checkpoint was deleted") from error
        _log.exception("the blob %s of project %s is gone", blob.sha256, blob.project)
        raise Problem(500, "the hub has lost this file: send its checkpoint again under a new entry id") from error
    return StreamingResponse(chunks, status, headers, media_type)


def _disposition(name: str) -> str:
    # Percent-encoded, so that no name can end the header or leave the browser's download folder.
    return f"attachment; filename*=UTF-8''{quote(name.rsplit('/', 1)[-1], safe='')}"


def _range(header: str, size: int) -> tuple[int, int] | None:
    """The bytes that a Range header asks for: (first, end); None to send the whole file.

    Several ranges, other units and what cannot be read may be answered with the whole file.

    Raises:
        Problem: 416 when the file has none of these bytes.
    """
    match = _RANGE.fullmatch(header.replace(" ", ""))
    if match is None or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None
    if start >= size:
        raise Problem(416, f"the file has {size} bytes", headers={"content-range": f"bytes */{size}"})
    return start, end

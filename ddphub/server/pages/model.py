"""The page of one model, and its parts as open pages ask for them again."""

import time
from functools import partial
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from fastapi.params import Depends
from fastapi.responses import Response, StreamingResponse
from sqlalchemy import select
from sqlalchemy.orm import Session

from ddphub.server.api.access import find_checkpoint, find_model
from ddphub.server.blob_rows import blobs_of_files, project_of
from ddphub.server.body import INT64_MAX
from ddphub.server.hub import Hub, HubDep
from ddphub.server.pages.archive import stream_zip
from ddphub.server.pages.model_parts import PARTS, STREAMS, Look, View, page_values
from ddphub.server.pages.rendering import Fragment, Fragments, FragmentsDep, fragment_answer, page, render
from ddphub.server.pages.visitor import SignedIn, Visitor, to_sign_in
from ddphub.server.principal import Principal
from ddphub.server.problems import Problem
from ddphub.server.tables import CheckpointFile, Model

router = APIRouter(prefix="/models/{model_id}")

_QUIET_AFTER_S: Final = 300.0
_QUIET_S: Final = 15.0
"""Seconds between two looks at a run of which nothing was heard for `_QUIET_AFTER_S`."""

_Place = Annotated[int, Query(ge=0, le=INT64_MAX)]


async def _view(
    *,
    ranks_from: _Place = 0,
    checkpoints_from: _Place = 0,
    log_rank: Annotated[str, Query(max_length=18, pattern="^[0-9]*$")] = "",
    log_stream: Annotated[str, Query(max_length=8)] = "",
) -> View:
    return View(
        ranks_from=ranks_from,
        checkpoints_from=checkpoints_from,
        log_rank=int(log_rank) if log_rank else None,
        log_stream=log_stream if log_stream in STREAMS else "",
    )


ViewDep = Annotated[View, Depends(_view)]
"""A handler's parameter: what of the model's page is to be seen, as its address says."""


@router.get("")
def read(
    *, hub: HubDep, fragments: FragmentsDep, request: Request, visitor: Visitor, model_id: str, view: ViewDep
) -> Response:
    """The whole page."""
    if visitor is None:
        return to_sign_in(request)
    with hub.database.read() as session:
        try:
            model = find_model(session, model_id, visitor, "reader")
        except Problem:
            return page("missing.html", 404, visitor=visitor)
        parts = {
            name: _fragment(hub, fragments, session, model=model, name=name, view=view, visitor=visitor, now=True)
            for name, part in PARTS.items()
            if not part.when_opened
        }
        values = page_values(Look(session, model, view, hub.patience))
    return page("model.html", visitor=visitor, model_id=model_id, view=view, parts=parts, streams=STREAMS, **values)


@router.get("/parts/{name}")
def read_part(
    *,
    hub: HubDep,
    fragments: FragmentsDep,
    request: Request,
    visitor: SignedIn,
    model_id: str,
    name: str,
    view: ViewDep,
) -> Response:
    """One part of the page as it is now."""
    if name not in PARTS:
        raise Problem(404, "a model's page has no such part")
    with hub.database.read() as session:
        model = find_model(session, model_id, visitor, "reader")
        fragment = _fragment(hub, fragments, session, model=model, name=name, view=view, visitor=visitor)
    every_s = PARTS[name].every_s
    if len(fragment.html) > PARTS[name].large:
        every_s *= 2.5
    if time.time() - (model.last_seen or model.created_at) > _QUIET_AFTER_S:
        every_s = max(every_s, _QUIET_S)
    return fragment_answer(request, fragment, every_s)


def _fragment(
    hub: Hub,
    fragments: Fragments,
    session: Session,
    *,
    model: Model,
    name: str,
    view: View,
    visitor: Principal,
    now: bool = False,
) -> Fragment:
    part = PARTS[name]
    look = Look(session, model, view, hub.patience)
    may = {role: visitor.may(role, model.project_ref) for role in part.roles}

    def make() -> str:
        return render(
            f"parts/{name}.html", {"model_id": model.public_id, "view": view, "may": may, **part.values(look)}
        )

    # Only what this part looks at: another filter elsewhere on the page is no other fragment, nor another visitor.
    key = (model.public_id, name, *may.values(), *(getattr(view, field) for field in part.view))
    facts = None if part.facts is None else partial(part.facts, look)
    return fragments.get(key, make, facts, now=now)


@router.get("/checkpoints/{checkpoint_id}/archive")
def download(hub: HubDep, request: Request, visitor: Visitor, model_id: str, checkpoint_id: str) -> Response:
    """All files of a committed checkpoint as one ZIP."""
    if visitor is None:
        return to_sign_in(request)
    with hub.database.read() as session:
        checkpoint = find_checkpoint(session, model_id, checkpoint_id, visitor, "reader")
        if checkpoint.committed_at is None:
            raise Problem(404, "the model has no committed checkpoint with this id")
        files = session.scalars(
            select(CheckpointFile).where(CheckpointFile.checkpoint_ref == checkpoint.id).order_by(CheckpointFile.number)
        ).all()
        blobs = blobs_of_files(session, project_of(session, checkpoint), files)
    if len(hub.storage.held(blobs)) < len({blob.sha256 for blob in blobs}):
        raise Problem(404, "the checkpoint was deleted")
    contents = ((file.name, hub.storage.read(blob)) for file, blob in zip(files, blobs, strict=True))
    headers = {"content-disposition": f'attachment; filename="{checkpoint.public_id}.zip"'}
    return StreamingResponse(stream_zip(contents), headers=headers, media_type="application/zip")

"""What pages change: a stop, a deletion, notes and tags. Each answers with the page to go to."""

import time

from fastapi import APIRouter
from fastapi.responses import RedirectResponse, Response

from ddphub.server.api.access import find_model
from ddphub.server.api.checkpoints import note_deletion
from ddphub.server.audit import record
from ddphub.server.deletion import delete_checkpoint
from ddphub.server.hub import HubDep
from ddphub.server.labels import check_tags, set_labels
from ddphub.server.pages.rendering import FragmentsDep
from ddphub.server.pages.visitor import Form, FromAPage, SignedIn

router = APIRouter(prefix="/models/{model_id}", dependencies=[FromAPage])


@router.post("/stop")
def stop(hub: HubDep, visitor: SignedIn, fragments: FragmentsDep, model_id: str) -> Response:
    """Ask the run to stop; it is told with its next events or heartbeat."""
    with hub.database.write() as session:
        model = find_model(session, model_id, visitor, "writer")
        if model.stop_requested_at is None:
            model.stop_requested_at = time.time()
            record(session, visitor, "model.stop", model_id, name=model.name)
    fragments.forget()
    return _back(model_id)


@router.post("/labels")
def label(hub: HubDep, visitor: SignedIn, fragments: FragmentsDep, model_id: str, form: Form) -> Response:
    """Set the notes, or the tags, which are written with commas between them."""
    content: dict[str, object] = {}
    if "notes" in form:
        # Forms send line breaks as CR LF.
        content["notes"] = form["notes"].replace("\r\n", "\n").strip()
    if "tags" in form:
        content["tags"] = check_tags([tag.strip() for tag in form["tags"].split(",") if tag.strip()])
    with hub.database.write() as session:
        set_labels(session, find_model(session, model_id, visitor, "writer"), content)
    fragments.forget()
    return _back(model_id)


@router.post("/checkpoints/{checkpoint_id}/delete")
def delete(hub: HubDep, visitor: SignedIn, fragments: FragmentsDep, model_id: str, checkpoint_id: str) -> Response:
    """Delete a checkpoint and the bytes that nothing else needs."""
    with hub.database.write() as session:
        note_deletion(session, model_id, checkpoint_id, visitor)
    delete_checkpoint(hub, model_id, checkpoint_id)
    fragments.forget()
    return _back(model_id)


def _back(model_id: str) -> Response:
    return RedirectResponse(f"/models/{model_id}", 303)

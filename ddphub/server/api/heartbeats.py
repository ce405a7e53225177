"""Signs of life from runs, and the wish that one stops."""

import secrets
import time
from typing import TYPE_CHECKING, Final

from fastapi.responses import Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from ddphub import names
from ddphub.server import hub_v1
from ddphub.server.api.access import Writes, api_router, find_model
from ddphub.server.audit import record
from ddphub.server.body import JsonBody, parse_object
from ddphub.server.hub import HubDep
from ddphub.server.problems import Problem, answer
from ddphub.server.progress import note_heartbeat
from ddphub.server.tables import Attempt, Model

if TYPE_CHECKING:
    from ddphub.hubs.wire import HeartbeatAnswer

MAX_AGENT: Final = 256

router = api_router()


@router.post("/agent/heartbeat/models/{model_id}")
def beat(hub: HubDep, principal: Writes, model_id: str, body: JsonBody) -> Response:
    """Note that the run lives; tell it whether to stop."""
    request = parse_object(body)
    for field in ("agent", "agentId"):
        value = request.get(field)
        if value is not None and (not isinstance(value, str) or len(value) > MAX_AGENT):
            raise Problem(422, f"{field}: expected text of at most {MAX_AGENT} characters")
    if request.get("attempt_id") is not None and not names.is_hex_id(request["attempt_id"]):
        raise Problem(422, "attempt_id: expected 32 lower-case hex digits")
    now = time.time()
    with hub.database.write() as session:
        model = find_model(session, model_id, principal, "reporter")
        model.last_seen = now
        if request.get("attempt_id") is None:
            attempt: Attempt | None = hub_v1.report(session, model, [], now)
        else:
            attempt = _attempt(session, model, request["attempt_id"])
        if attempt is not None:
            note_heartbeat(attempt, now, hub.settings.heartbeat_s)
        # Until an attempt has said when it started, nobody knows whether it is the one that was asked to stop.
        stop = model.stop_requested_at is not None and attempt is not None and attempt.started_at is not None
    data: HeartbeatAnswer = {"agentId": request.get("agentId") or secrets.token_hex(16), "stop": stop}
    return answer(data)


def _attempt(session: Session, model: Model, attempt_id: str) -> Attempt | None:
    return session.scalar(select(Attempt).where(Attempt.model_ref == model.id, Attempt.attempt_id == attempt_id))


@router.post("/models/{model_id}/stop")
def stop(hub: HubDep, principal: Writes, model_id: str) -> Response:
    """Ask the run to stop; it is told with its next events or heartbeat."""
    with hub.database.write() as session:
        model = find_model(session, model_id, principal, "writer")
        if model.stop_requested_at is None:
            model.stop_requested_at = time.time()
            record(session, principal, "model.stop", model_id, name=model.name)
        requested_at = model.stop_requested_at
    return answer({"stop": True, "requested_at": requested_at})

"""Events of a model: sending them, reading them."""

import time
from typing import Annotated

from anyio import to_thread
from fastapi import Query
from fastapi.responses import Response

from ddphub.server import event_log
from ddphub.server.api.access import After, Limit, Writes, api_router, find_model
from ddphub.server.body import INT64_MAX, JsonBody, parse
from ddphub.server.hub import MOST_WAITING, Hub, HubDep
from ddphub.server.incoming_events import MAX_KIND, MAX_METRIC_NAME, check_batch
from ddphub.server.principal import Principal
from ddphub.server.problems import Problem, answer

router = api_router()


@router.post("/models/{model_id}/events")
async def add(hub: HubDep, principal: Writes, model_id: str, body: JsonBody) -> Response:
    """Store a batch: all of it, or nothing; 503 while so many wait that the answer could come too late."""
    if hub.storing.statistics().tasks_waiting >= MOST_WAITING:
        raise Problem(503, "the hub is behind with storing events: try again", headers={"retry-after": "2"})
    return await to_thread.run_sync(_add, hub, principal, model_id, body, limiter=hub.storing)


def _add(hub: Hub, principal: Principal, model_id: str, body: bytes) -> Response:
    received = parse(body)
    batch = check_batch(received)
    with hub.database.write() as session:
        model = find_model(session, model_id, principal, "reporter")
        data = event_log.store(session, model, batch, len(received), time.time())
    hub.meters.events.labels("stored").inc(data["accepted"])
    hub.meters.events.labels("known").inc(data["duplicates"])
    return answer(data)


@router.get("/models/{model_id}/events")
def read(
    *,
    hub: HubDep,
    principal: Writes,
    model_id: str,
    kind: Annotated[str | None, Query(max_length=MAX_KIND)] = None,
    rank: Annotated[int | None, Query(ge=0, le=INT64_MAX)] = None,
    newest: bool = False,
    after: After = 0,
    limit: Limit = 1000,
) -> Response:
    """Stored events, oldest first: of one kind, or of all but metrics and console; with `newest` the last ones."""
    query = event_log.Query(after=after, limit=limit, kind=kind, rank=rank, newest=newest)
    with hub.database.read() as session:
        return answer(event_log.read(session, find_model(session, model_id, principal, "reader"), query))


@router.get("/models/{model_id}/metrics")
def read_metrics(
    *,
    hub: HubDep,
    principal: Writes,
    model_id: str,
    rank: Annotated[int | None, Query(ge=0, le=INT64_MAX)] = None,
    name: Annotated[str | None, Query(max_length=MAX_METRIC_NAME)] = None,
    after: After = 0,
    limit: Limit = 1000,
) -> Response:
    """Stored metrics, oldest first: of one rank or all, with one name or all."""
    query = event_log.Query(after=after, limit=limit, kind="metrics", rank=rank, name=name)
    with hub.database.read() as session:
        return answer(event_log.read_metrics(session, find_model(session, model_id, principal, "reader"), query))

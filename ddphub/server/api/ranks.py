"""The ranks of a model's attempt: which goes, and which is slow, silent or dead."""

import time
from typing import Annotated

from fastapi import Query
from fastapi.responses import Response

from ddphub.server import model_view
from ddphub.server.api.access import Limit, Reads, api_router, find_model, reads
from ddphub.server.body import INT64_MAX
from ddphub.server.hub import HubDep
from ddphub.server.problems import Problem, answer

router = api_router(reads)


@router.get("/models/{model_id}/ranks")
def read(
    *,
    hub: HubDep,
    principal: Reads,
    model_id: str,
    attempt: Annotated[int | None, Query(ge=1, le=INT64_MAX)] = None,
    after: Annotated[int, Query(ge=-1, le=INT64_MAX)] = -1,
    limit: Limit = 1000,
) -> Response:
    """The ranks of an attempt, the newest by default, in order; `next` is the `after` of the next page."""
    with hub.database.read() as session:
        model = find_model(session, model_id, principal, "reader")
        found = model_view.ranks(session, model, time.time(), hub.patience, attempt=attempt)
    if found is None:
        raise Problem(404, f"the model has no attempt {attempt}")
    beyond = [rank for rank in found if rank["rank"] > after]
    page = beyond[:limit]
    return answer({"results": page, "next": page[-1]["rank"] if len(beyond) > limit else None})

"""Metrics of a model as charts show them."""

import hashlib
import re
from typing import Annotated, Final

from fastapi import Query, Request
from fastapi.responses import Response
from sqlalchemy import select

from ddphub.hubs.wire import MAX_METRIC_NAME
from ddphub.server.api.access import Limit, Reads, api_router, find_model, reads
from ddphub.server.body import INT64_MAX
from ddphub.server.chart_lines import ChartQuery, Show, X
from ddphub.server.charts import MAX_CHART_RANKS
from ddphub.server.etags import has_already
from ddphub.server.hub import HubDep
from ddphub.server.problems import Problem, answer
from ddphub.server.tables import Series

router = api_router(reads)

_RANKS: Final = re.compile(r"([0-9]{1,19})(?:-([0-9]{1,19}))?")

_At = Annotated[float | None, Query(allow_inf_nan=False)]


@router.get("/models/{model_id}/series")
def read_all(
    *,
    hub: HubDep,
    request: Request,
    principal: Reads,
    model_id: str,
    after: Annotated[str, Query(max_length=MAX_METRIC_NAME)] = "",
    limit: Limit = 1000,
) -> Response:
    """The metrics by name; `next` is the `after` of the next page."""
    columns = Series.name, Series.count, Series.least, Series.greatest, Series.latest
    with hub.database.read() as session:
        model = find_model(session, model_id, principal, "reader")
        chosen = Series.model_ref == model.id, Series.name > after
        rows = session.execute(select(*columns).where(*chosen).order_by(Series.name).limit(limit + 1)).mappings().all()
    results = [dict(row) for row in rows[:limit]]
    body = bytes(answer({"results": results, "next": results[-1]["name"] if len(rows) > limit else None}).body)
    return _sent(request, f'"{hashlib.sha256(body).hexdigest()[:32]}"', body)


@router.get("/models/{model_id}/chart")
def chart(
    *,
    hub: HubDep,
    request: Request,
    principal: Reads,
    model_id: str,
    name: Annotated[str, Query(min_length=1, max_length=MAX_METRIC_NAME)],
    show: Show = "rank0",
    ranks: Annotated[str, Query(max_length=2000)] = "",
    x: X = "step",
    start: Annotated[_At, Query(alias="from")] = None,
    end: Annotated[_At, Query(alias="to")] = None,
    points: Annotated[int, Query(ge=10, le=5000)] = 600,
    older: bool = False,
) -> Response:
    """One metric as lines of about so many points; see `chart_lines` for what they show."""
    if start is not None and end is not None and start > end:
        raise Problem(422, "from: expected a number not above 'to'")
    chosen = _chosen_ranks(ranks)
    if show == "ranks" and not chosen:
        raise Problem(422, "ranks: expected the ranks to show, as 0,4-7")
    query = ChartQuery(
        name=name,
        show=show,
        ranks=chosen if show == "ranks" else (),
        x=x,
        start=start,
        end=end,
        points=points,
        older=older,
    )
    with hub.database.read() as session:
        found = hub.charts.find(session, find_model(session, model_id, principal, "reader"), query)
        body = b"" if has_already(request, found.etag) else hub.charts.draw(session, found)
    return _sent(request, found.etag, body)


def _chosen_ranks(text: str) -> tuple[int, ...]:
    """The ranks of a list as 0,4-7.

    Raises:
        Problem: 422 when it is no such list, or has too many.
    """
    chosen: set[int] = set()
    for part in filter(None, text.split(",")):
        match = _RANKS.fullmatch(part.strip())
        if match is None:
            raise Problem(422, f"ranks: expected ranks and ranges of them, as 0,4-7; got {part[:40]!a}")
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if last < first or last > INT64_MAX:
            raise Problem(422, f"ranks: expected a range from a lower to a higher rank, got {part[:40]!a}")
        if last - first >= MAX_CHART_RANKS or len(chosen.union(range(first, last + 1))) > MAX_CHART_RANKS:
            raise Problem(422, f"ranks: expected at most {MAX_CHART_RANKS} of them; show=band has all in one line")
        chosen.update(range(first, last + 1))
    return tuple(sorted(chosen))


def _sent(request: Request, etag: str, body: bytes) -> Response:
    headers = {"etag": etag, "cache-control": "private, no-cache"}
    if has_already(request, etag):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)

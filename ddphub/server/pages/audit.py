"""The audit page, for the hub's admin: who changed what, the newest first."""

import json
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from ddphub.server import audit
from ddphub.server.body import INT64_MAX
from ddphub.server.hub import HubDep
from ddphub.server.pages.people import check_admin
from ddphub.server.pages.rendering import page
from ddphub.server.pages.visitor import Visitor, to_sign_in

router = APIRouter()

RECORDS: Final = 100
"""Records on one page."""


@router.get("/audit")
def read(
    hub: HubDep,
    request: Request,
    visitor: Visitor,
    before: Annotated[int | None, Query(ge=1, le=INT64_MAX)] = None,
) -> Response:
    """The newest records, or those before one."""
    if visitor is None:
        return to_sign_in(request)
    check_admin(visitor)
    with hub.database.read() as session:
        records = audit.newest(session, before, RECORDS + 1)
    for record in records:
        record["told"] = [(name, _told(value)) for name, value in record["detail"].items() if value is not None]
    further = records[RECORDS - 1]["id"] if len(records) > RECORDS else None
    return page("audit.html", visitor=visitor, records=records[:RECORDS], before=before, further=further)


def _told(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(one, dict) and {"project", "role"} == set(one) for one in value):
        return "; ".join(f"{one['role']} in {one['project'] or 'all projects'}" for one in value) or "none"
    return json.dumps(value)

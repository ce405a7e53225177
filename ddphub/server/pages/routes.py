"""The pages people look at, in one router."""

from fastapi import APIRouter
from fastapi.routing import APIRoute

from ddphub.server.pages import assets, audit, changes, compare, keys, model, models, people, projects, sign_in

router = APIRouter()
for _module in (assets, sign_in, models, model, changes, compare, projects, keys, people, audit):
    for _route in _module.router.routes:
        # What can be read can be asked for without its body (RFC 9110, 9.1); uvicorn leaves that out.
        if isinstance(_route, APIRoute) and _route.methods == {"GET"}:
            _route.methods.add("HEAD")
    router.include_router(_module.router)

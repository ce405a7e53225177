"""The hub as an ASGI application."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddphub import __version__
from ddphub.server import problems
from ddphub.server.api import (
    capabilities,
    checkpoints,
    downloads,
    events,
    health,
    heartbeats,
    hub_v1,
    models,
    parts,
    people,
    projects,
    ranks,
    series,
)
from ddphub.server.body import WithoutNul
from ddphub.server.hub import Hub
from ddphub.server.limits import Limits
from ddphub.server.openapi import document
from ddphub.server.pages import routes as pages
from ddphub.server.pages.problem_page import problem_page
from ddphub.server.proxies import TrustedProxies
from ddphub.server.request_log import RequestLog
from ddphub.server.upkeep import Upkeep

_HEADERS: Final = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def create_app(hub: Hub) -> ASGIApp:
    """The application that serves `hub`, and closes it when it ends."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        upkeep = Upkeep(hub)
        upkeep.start()
        try:
            yield
        finally:
            await asyncio.to_thread(upkeep.close)
            await asyncio.to_thread(hub.close)

    # The generated documentation pages load their scripts from a CDN.
    app = FastAPI(
        title="ddphub",
        version=__version__,
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[WithoutNul],
    )
    app.state.hub = hub
    for module in (
        capabilities,
        models,
        ranks,
        events,
        series,
        health,
        heartbeats,
        people,
        projects,
        hub_v1,
        checkpoints,
        parts,
        downloads,
        document,
    ):
        app.include_router(module.router)
    app.include_router(pages.router, include_in_schema=False)
    for module in (models, checkpoints):
        app.include_router(module.reading_router)
    app.include_router(downloads.signed_router)
    problems.install(app, problem_page)
    # Around everything: an answer to an unexpected error is made outside of the application's own middleware.
    settings = hub.settings
    limited = Limits(app, hub.meters, rate=settings.rate_limit, max_requests=settings.max_requests)
    return TrustedProxies(RequestLog(_SecurityHeaders(limited), hub.meters), settings.trusted_proxies)


class _SecurityHeaders:
    """Adds to every answer the headers that browsers obey, unless the answer has its own.

    Args:
        app: what answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)

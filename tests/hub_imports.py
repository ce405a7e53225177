"""Imported by the nursery of hubs: all that a hub imports, also what it imports late, when it starts and is asked."""

import psycopg
from anyio._backends import _asyncio
from uvicorn.lifespan import on
from uvicorn.protocols.http import auto
from uvicorn.protocols.websockets import auto as websockets

from ddphub.server import __main__
from ddphub.server.pages.rendering import templates

__all__ = ["__main__", "_asyncio", "auto", "on", "psycopg", "websockets"]

for name in templates.list_templates():
    templates.get_template(name)

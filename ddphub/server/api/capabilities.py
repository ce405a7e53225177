"""What this hub is and can do."""

from typing import TYPE_CHECKING

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from ddphub import __version__
from ddphub.server.api.access import writes
from ddphub.server.hub import HubDep
from ddphub.server.problems import answer

if TYPE_CHECKING:
    from ddphub.hubs.wire import Capabilities

router = APIRouter()


@router.get("/v1/capabilities", dependencies=[Depends(writes)])
async def capabilities(hub: HubDep) -> Response:
    """What a client may use here."""
    data: Capabilities = {
        "hub": "ddphub",
        "version": __version__,
        "features": ["events", "checkpoints", "stop", "search"],
        "part_size": hub.settings.part_size,
        "heartbeat_s": hub.settings.heartbeat_s,
    }
    return answer(data)


@router.post("/v1/auth", dependencies=[Depends(writes)])
async def auth() -> Response:
    """Whether the key is good: a bad one does not come here."""
    return answer({})

"""For those who watch the hub: whether it lives, whether it can serve, and its figures."""

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from ddphub.server.api.access import reads
from ddphub.server.hub import Hub, HubDep
from ddphub.server.meters import CONTENT_TYPE
from ddphub.server.problems import Problem, answer

router = APIRouter()


@router.get("/healthz")
async def health() -> Response:
    """Whether the process answers; it asks nothing else."""
    return answer({"hub": "ddphub"})


@router.get("/readyz")
async def ready(hub: HubDep) -> Response:
    """Whether requests should be sent here: 503 while the database or the storage fails, and once it is to stop."""
    parts = await hub.readiness.ask()
    wrong = ", ".join(f"{name}: {said}" for name, said in parts.items() if said != "ok")
    if wrong:
        raise Problem(503, f"the hub is not ready: {wrong}", headers={"retry-after": "1"}, members={"parts": parts})
    return answer(parts)


@router.get("/metrics")
async def metrics(hub: HubDep, request: Request) -> Response:
    """Figures in Prometheus' text format, for who may read all projects, or for everyone where settings say so."""
    if not hub.settings.metrics_open:
        await run_in_threadpool(_check_reader, hub, request)
    return Response(await run_in_threadpool(hub.meters.text), headers={"content-type": CONTENT_TYPE})


def _check_reader(hub: Hub, request: Request) -> None:
    if not reads(request, hub).may("reader", None):
        raise Problem(403, "figures of the whole hub are for who may read all of it")

"""HUB v1's own requests: metrics and weights of a model, and what this hub does not do."""

import time
from typing import Final

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from ddphub.server import hub_v1
from ddphub.server.api.access import Writes, api_router, find_model
from ddphub.server.body import JsonBody, parse_object
from ddphub.server.hub import Hub, HubDep
from ddphub.server.multipart import Form
from ddphub.server.principal import Principal
from ddphub.server.problems import Problem, answer, problem_answer
from ddphub.server.storage.incoming import CHUNK, IncomingFile
from ddphub.server.uploads import Upload, check_upload

router = api_router()


@router.post("/models/{model_id}")
def add_metrics(hub: HubDep, principal: Writes, model_id: str, body: JsonBody) -> Response:
    """Store the metrics of epochs: all of them, or nothing."""
    epochs = hub_v1.check_metrics(parse_object(body))
    with hub.database.write() as session:
        model = find_model(session, model_id, principal, "reporter")
        accepted = hub_v1.report_metrics(session, model, epochs, time.time())
        stop = model.stop_requested_at is not None
    return answer({"accepted": accepted, "duplicates": len(epochs) - accepted, "stop": stop})


@router.post("/models/{model_id}/upload")
async def upload(hub: HubDep, request: Request, principal: Writes, model_id: str) -> Response:
    """Take one file of weights; a repeat finds its checkpoint."""
    await run_in_threadpool(_check_model, hub, principal, model_id)
    form = Form(request)
    incoming = await run_in_threadpool(hub.storage.new_file)
    try:
        await _receive(request, form, incoming)
        checkpoint_id = await run_in_threadpool(_commit, hub, principal, model_id, check_upload(form.fields), incoming)
    finally:
        await run_in_threadpool(incoming.close)
    return answer({"id": checkpoint_id})


def _check_model(hub: Hub, principal: Principal, model_id: str) -> None:
    with hub.database.read() as session:
        find_model(session, model_id, principal, "reporter")


async def _receive(request: Request, form: Form, incoming: IncomingFile) -> None:
    buffer = bytearray()
    try:
        async for chunk in request.stream():
            buffer += form.feed(chunk)
            if len(buffer) >= CHUNK:
                await run_in_threadpool(incoming.write, bytes(buffer))
                buffer.clear()
    except ClientDisconnect as error:
        raise Problem(400, "the request ended before the form was complete: send it again") from error
    form.close()
    await run_in_threadpool(incoming.write, bytes(buffer))


def _commit(hub: Hub, principal: Principal, model_id: str, said: Upload, incoming: IncomingFile) -> str:
    incoming.sync()
    return hub.uploads.take(lambda session: find_model(session, model_id, principal, "reporter"), said, incoming)


_METHODS: Final = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def _not_here(detail: str) -> Response:
    return problem_answer(Problem(501, detail))


@router.api_route("/projects", methods=_METHODS)
@router.api_route("/projects/{rest:path}", methods=_METHODS)
async def projects() -> Response:
    """Projects are made by what names them; `api/projects.py` has what there is beside that."""
    return _not_here("this hub makes a project when a model names it: send `project` with the model")


@router.api_route("/datasets", methods=_METHODS)
@router.api_route("/datasets/{rest:path}", methods=_METHODS)
async def datasets() -> Response:
    """Datasets stay where the training is."""
    return _not_here("this hub keeps no datasets: name one in the model, as a path or a name that the trainer knows")


@router.post("/models/{model_id}/export")
async def export() -> Response:
    """Nothing is computed here."""
    return _not_here("this hub does not export models: download the weights and export them there")


@router.post("/predict/{model_id}")
async def predict() -> Response:
    """Nothing is computed here."""
    return _not_here("this hub does not predict: download the weights and predict there")

"""The document: what FastAPI knows of the routes, and what `operations` adds."""

import http
import json
import re
import warnings
from typing import Any, Final

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from pydantic import BaseModel, TypeAdapter

from ddphub import __version__
from ddphub.hubs.wire import IDEMPOTENCY_KEY, PROBLEM_JSON
from ddphub.server.api.access import reads
from ddphub.server.openapi import answers
from ddphub.server.openapi.operations import OPERATIONS, Access, Operation
from ddphub.server.request_log import REQUEST_ID

PATH: Final = "/v1/openapi.json"

_JSON: Final = "application/json"
_SECURITY: Final[dict[Access, list[dict[str, list[str]]]]] = {
    "key": [{"key": []}, {"bearer": []}],
    "browser": [{"key": []}, {"bearer": []}, {"session": []}],
    "signed": [],
    "open": [],
}
_DESCRIPTION: Final = """The API of a ddphub hub: HUB v1's requests, and those that deliver exactly once.

Answers are `{"success": true, "message": "", "data": ...}` unless they are files; every error is a problem (RFC 9457).
No text may have NUL. What HUB v1 has below `/v1/projects` and `/v1/datasets` and this hub has not is answered 501.
"""

router = APIRouter()


@router.get(PATH, dependencies=[Depends(reads)])
async def read(request: Request) -> Response:
    """This document."""
    state = request.app.state
    if not hasattr(state, "openapi"):
        state.openapi = json.dumps(document(request.app), separators=(",", ":"))
    return Response(state.openapi, media_type=_JSON)


def document(app: FastAPI) -> dict[str, Any]:
    """The document of an application.

    Raises:
        KeyError: a route has no operation.
    """
    with warnings.catch_warnings():
        # Of routes with several methods, which are told apart below.
        warnings.filterwarnings("ignore", message="Duplicate Operation ID")
        made = get_openapi(title="ddphub", version=__version__, description=_DESCRIPTION, routes=app.routes)
    schemas = _Schemas()
    for path, methods in made["paths"].items():
        for method, told in methods.items():
            _complete(told, OPERATIONS[method.upper(), path], schemas, method, path)
    made["components"] = {
        "schemas": schemas.components,
        "securitySchemes": {
            "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            "bearer": {"type": "http", "scheme": "bearer"},
            "session": {"type": "apiKey", "in": "cookie", "name": "ddphub_session"},
        },
    }
    return made


class _Schemas:
    """The schemas of models, and of what they are made of."""

    def __init__(self) -> None:
        self.components: dict[str, Any] = {}

    def of(self, kind: Any, mode: str = "serialization") -> dict[str, Any]:  # noqa: ANN401  # any type
        made = TypeAdapter(kind).json_schema(
            mode=mode,  # type: ignore[arg-type]  # one of its two
            ref_template="#/components/schemas/{model}",
        )
        parts = made.pop("$defs", {})
        is_model = isinstance(kind, type) and issubclass(kind, BaseModel)
        for name, part in {**parts, kind.__name__: made}.items() if is_model else parts.items():
            if self.components.setdefault(name, part) != part:
                raise ValueError(f"two models are called {name}")
        return {"$ref": f"#/components/schemas/{kind.__name__}"} if is_model else made


def _complete(told: dict[str, Any], operation: Operation, schemas: _Schemas, method: str, path: str) -> None:
    told["operationId"] = re.sub("[^a-z0-9]+", "_", f"{method} {path.lower()}").strip("_")
    told["security"] = _SECURITY[operation.access]
    parameters = told.setdefault("parameters", [])
    known = {one["name"] for one in parameters}
    for name in re.findall(r"{(\w+)}", path):
        if name not in known:
            parameters.append({"name": name, "in": "path", "required": True, "schema": {"type": "string"}})
    if operation.key is not None:
        parameters.append(
            {
                "name": IDEMPOTENCY_KEY,
                "in": "header",
                "required": operation.key_needed,
                "description": "The run's or the entry's id: a repeat with the same one gets the first answer.",
                "schema": schemas.of(operation.key),
            }
        )
    told.pop("requestBody", None)
    if operation.body is not None or operation.octets:
        told["requestBody"] = _body(operation, schemas)
    has_content = method != "head"
    responses = {}
    if operation.says is not None:
        envelope = {
            "type": "object",
            "properties": {
                "success": {"const": True},
                "message": {"type": "string"},
                "data": schemas.of(operation.says),
            },
            "required": ["success", "message", "data"],
        }
        responses[200] = _response(200, {_JSON: {"schema": envelope}})
        if operation.accepted:
            responses[202] = _response(202, {_JSON: {"schema": envelope}})
    for status, media_type in operation.plain.items():
        responses[status] = _response(status, {media_type: {}} if media_type and has_content else {})
    problem = {PROBLEM_JSON: {"schema": schemas.of(answers.Problem)}} if has_content else {}
    for status in _problems(operation, method, path):
        responses[status] = _response(status, problem)
    told["responses"] = {str(status): responses[status] for status in sorted(responses)}


def _body(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    if operation.octets:
        content: dict[str, Any] = {"application/octet-stream": {}}
    else:
        media_type = "multipart/form-data" if operation.form else _JSON
        content = {media_type: {"schema": schemas.of(operation.body, "validation")}}
    return {"required": not operation.may_be_empty, "content": content}


def _problems(operation: Operation, method: str, path: str) -> set[int]:
    """What any such request may be answered."""
    found = {*operation.problems, 429, 503}
    if operation.access == "open":
        return found - {429}
    if operation.access in {"key", "browser"}:
        found |= {401, 403}
    if operation.access == "signed":
        found.add(403)
    # Also where a query that nobody reads has NUL.
    found.add(422)
    if "{" in path:
        found.add(404)
    if operation.body is not None or operation.octets:
        found |= {400, 404, 413}
    if method not in {"get", "head"}:
        found.add(507)
    return found


def _response(status: int, content: dict[str, Any]) -> dict[str, Any]:
    headers = {REQUEST_ID: _header("The request's id, as the hub's log has it.", "string")}
    if status in {429, 503}:
        headers["Retry-After"] = _header("Seconds to wait.", "integer")
    said = {"description": http.HTTPStatus(status).phrase, "headers": headers}
    return {**said, "content": content} if content else said


def _header(description: str, kind: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": kind}}

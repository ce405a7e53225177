"""The API's document says what a real hub does: every route is in it, and schemathesis finds nothing that differs."""

import subprocess
import sys

import pytest
import requests
from fastapi.routing import APIRoute, iter_route_contexts
from hub_talk import Talk, attempt_event, metrics_event, problem

from ddphub.server.app import create_app
from ddphub.server.hub import Hub
from ddphub.server.openapi.document import document
from ddphub.server.openapi.operations import OPERATIONS
from ddphub.server.settings import ServerSettings

CONFIGURATION = """
seed = 7
continue-on-failure = true
request-timeout = 20

[generation]
database = "none"
max-examples = 2
with-security-parameters = false
# The document says in words that no text may have NUL.
allow-x00 = false

[phases.stateful]
enabled = false

# What is wrong in each way that there is comes from the coverage phase.
[phases.fuzzing]
generation.mode = "positive"
# Free text and free JSON may have what no schema can say: half surrogates, integers of more than 64 bits.
checks.positive_data_acceptance.enabled = false

[checks.negative_data_rejection]
expected-statuses = [400, 403, 404, 413, 422]

[parameters]
"path.model_id" = "{model}"
"path.checkpoint_id" = "{checkpoint}"
"path.name" = "a"
"path.user_id" = "{user}"
"path.key_id" = "{key}"
"path.project_id" = "{project}"

# What is deleted is something that the others do not need.
[[operations]]
include-name = "DELETE /v1/models/{{model_id}}"
parameters = {{ "path.model_id" = "{other_model}" }}
[[operations]]
include-name = "DELETE /v1/models/{{model_id}}/checkpoints/{{checkpoint_id}}"
parameters = {{ "path.checkpoint_id" = "{other_checkpoint}" }}
[[operations]]
include-name = "DELETE /v1/users/{{user_id}}"
parameters = {{ "path.user_id" = "{other_user}" }}

# HUB v1's requests that this hub answers with 501, whatever their method is; of those that are alike, some.
[[operations]]
include-path-regex = "rest}}$"
enabled = false
[[operations]]
include-path-regex = "^/v1/(projects|datasets|predict)|/export$"
checks.not_a_server_error.enabled = false
checks.unsupported_method.enabled = false
checks.allow_header_conformance.enabled = false

# What they take depends on more than a schema says: hashes that fit each other, JSON in a text, a time in the future.
[[operations]]
include-name = ["{by_more}"]
checks.positive_data_acceptance.enabled = false
"""

BY_MORE = (
    "POST /v1/models/{model_id}",
    "POST /v1/models/{model_id}/checkpoints",
    "POST /v1/models/{model_id}/events",
    "POST /v1/models/{model_id}/upload",
    "GET /v1/models/{model_id}/chart",
    "POST /v1/keys",
    "PUT /v1/parts/{checkpoint}/{file}/{number}",
)


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """The application as FastAPI has it, without what is around it."""
    hub = Hub.open(ServerSettings(data=tmp_path_factory.mktemp("hub") / "data", api_key="k" * 42))
    app = create_app(hub)
    while not hasattr(app, "router"):
        app = app._app
    yield app
    hub.close()


def test_each_route_of_the_api_is_in_the_document_and_no_other(app):
    made = document(app)
    said = {(method.upper(), path) for path, methods in made["paths"].items() for method in methods}
    routes = {
        (method, route.path.replace(":path}", "}"))
        for context in iter_route_contexts(app.routes)
        if isinstance(route := context.original_route, APIRoute)
        for method in route.methods
        if route.path.startswith("/v1") or route.path in {"/healthz", "/readyz", "/metrics"}
    }
    assert said == routes == set(OPERATIONS)
    operations = [told for methods in made["paths"].values() for told in methods.values()]
    assert len({told["operationId"] for told in operations}) == len(operations)
    assert all(told["description"] or told["summary"] for told in operations)


def test_the_document_is_for_who_has_a_key(hub, browser):
    problem(requests.get(f"{hub.url}/v1/openapi.json"), 401)
    made = hub.client().get(f"{hub.url}/v1/openapi.json").json()
    assert made["openapi"].startswith("3.1")
    assert browser.get(f"{hub.url}/v1/openapi.json").json() == made


def test_a_wrong_method_is_told_which_ones_there_are(hub):
    for path, methods in (
        ("/v1/models/x", "GET, POST, PATCH, DELETE"),
        ("/v1/models", "GET, POST"),
        ("/healthz", "GET"),
        ("/sign-in", "GET, HEAD, POST"),
    ):
        answer = hub.client().put(hub.url + path)
        problem(answer, 405)
        assert answer.headers["allow"] == methods


def test_schemathesis_finds_no_difference_between_the_document_and_a_hub(tmp_path, start_hub):
    hub = start_hub(arguments=("--part-size", "65536", "--rate-limit", "0", "--log-format", "json"))
    talk, other = Talk(hub), Talk(hub)
    talk.accepted(attempt_event(talk.attempt_id, 0, "started"), metrics_event(talk.attempt_id, 1))

    def made(path, **body):
        answer = talk.http.post(f"{hub.url}/v1/{path}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]["id"]

    (tmp_path / "schemathesis.toml").write_text(
        CONFIGURATION.format(
            model=talk.model_id,
            checkpoint=talk.upload({"a": b"abc"}),
            other_checkpoint=talk.upload({"b": b"abcd"}),
            project=talk.get()["project_id"],
            other_model=other.model_id,
            user=made("users", name="ada"),
            other_user=made("users", name="bob"),
            key=made("keys", name="of nobody", user=None),
            by_more='", "'.join(BY_MORE),
        )
    )
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", tmp_path / "schemathesis.toml", "run"]
    run = subprocess.run(
        [*command, f"{hub.url}/v1/openapi.json", "--header", f"x-api-key: {hub.key}", "--no-color"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    (tmp_path / "schemathesis.log").write_text(run.stdout)
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr
    # It does not ask for the document as it asks for the others.
    assert f" / {len(OPERATIONS) - 1} total" in run.stdout
    log = hub.log.read_text()
    assert log.count('"request_id"') > 1000
    assert '"level": "error"' not in log

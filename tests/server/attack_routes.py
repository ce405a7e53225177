"""Every route of the hub, what it needs, and a request to it that would succeed with that.

A route that is not here fails test_attacks.py: whoever adds one says what it needs.
"""

from dataclasses import dataclass, field

from hub_talk import attempt_event, manifest, new_id

STRENGTH = {"open": -2, "signed": -2, "any": 0, "reader": 1, "reporter": 2, "writer": 3, "admin": 4, "hub": 5}
"""What a route needs. `any` is any good key, and shows what is the key's own alone; `signed` is a signed URL."""


@dataclass(frozen=True)
class Route:
    """A request: `path` has the names of the victim in braces; `form` is what a page sends."""

    method: str
    path: str
    need: str
    json: object = None
    form: dict | None = None
    files: dict | None = None
    headers: dict = field(default_factory=dict)
    asked: str | None = None
    """The path to ask for, where it is not the route's with the victim's ids in it."""
    says: dict = field(default_factory=dict)
    """What is answered where it is not the usual: {strength: status, or several}."""

    @property
    def name(self):
        return f"{self.method} {self.path}"

    @property
    def is_page(self):
        return not self.path.startswith(("/v1/", "/metrics", "/healthz", "/readyz"))

    @property
    def is_whole_page(self):
        return self.is_page and self.method in {"GET", "HEAD"} and "/parts/" not in self.path


MODEL = "/v1/models/{model_id}"
CHECKPOINT = MODEL + "/checkpoints/{checkpoint_id}"
PROJECT = "/v1/projects/{project_id}"
PAGE = "/models/{model_id}"
DOWNLOAD = "/v1/downloads/{checkpoint_id}/{number}/{expires}/{signature}/{name}"
DATASETS = "/v1/datasets"

_MAKES_NONE = {0: (403, 404)}
"""Some keys make none at all, whatever its project."""

_ALL_RUNS = {STRENGTH["reporter"]: 404}
"""A key for one run knows of no project."""


def routes(victim):
    """All of them.

    Args:
        victim: the ids of what is attacked.
    """
    event = attempt_event(victim["attempt_id"], 900, "finished")
    announced = manifest({"new.pt": b"x"}, victim["attempt_id"])
    with_key = {"Idempotency-Key": new_id()}
    weights = {"best.pt": ("best.pt", b"weights")}
    elsewhere = ("GET", "POST", "PUT", "PATCH", "DELETE")
    api = [
        Route("GET", "/healthz", "open"),
        Route("GET", "/readyz", "open"),
        Route("GET", "/metrics", "reader", says=dict.fromkeys(range(5), 403)),
        Route("GET", "/v1/openapi.json", "open"),
        Route("GET", "/v1/capabilities", "any"),
        Route("POST", "/v1/auth", "any"),
        Route("GET", "/v1/models", "any"),
        Route(
            "POST",
            "/v1/models",
            "writer",
            json={"project": victim["project"], "meta": {"name": "intruder"}},
            headers={"Idempotency-Key": "intruder"},
            says=_MAKES_NONE,
        ),
        Route("GET", MODEL, "reader"),
        Route("PATCH", MODEL, "writer", json={"notes": "defaced"}),
        Route("DELETE", MODEL, "admin"),
        Route("POST", MODEL, "reporter", json={"metrics": {"9": '{"loss": 9}'}}),
        Route("POST", MODEL + "/upload", "reporter", form={"type": "final", "epoch": "9"}, files=weights),
        Route("POST", MODEL + "/export", "any"),
        Route("POST", "/v1/predict/{model_id}", "any"),
        Route("GET", MODEL + "/ranks", "reader"),
        Route("GET", MODEL + "/events", "reader"),
        Route("POST", MODEL + "/events", "reporter", json=[event]),
        Route("GET", MODEL + "/metrics", "reader"),
        Route("GET", MODEL + "/series", "reader"),
        Route("GET", MODEL + "/chart", "reader", asked=MODEL + "/chart?name=loss"),
        Route("POST", "/v1/agent/heartbeat/models/{model_id}", "reporter", json={"attempt_id": victim["attempt_id"]}),
        Route("POST", MODEL + "/stop", "writer"),
        Route("GET", MODEL + "/checkpoints", "reader"),
        Route("POST", MODEL + "/checkpoints", "reporter", json=announced, headers=with_key),
        Route("GET", CHECKPOINT, "reader"),
        Route("GET", CHECKPOINT + "/parts", "reader"),
        Route("POST", CHECKPOINT + "/complete", "reporter"),
        Route("DELETE", CHECKPOINT, "admin"),
        *(
            Route(method, CHECKPOINT + "/files/{name:path}", "reader", asked=CHECKPOINT + "/files/last.pt")
            for method in ("GET", "HEAD")
        ),
        Route("GET", "/v1/projects", "any"),
        Route("GET", PROJECT, "reader", says=_ALL_RUNS),
        Route("GET", PROJECT + "/retention", "reader", says=_ALL_RUNS),
        Route("PUT", PROJECT + "/retention", "admin", json={"last": 50}, says=_ALL_RUNS),
        Route("POST", PROJECT + "/retention/plan", "reader", json={"last": 50}, says=_ALL_RUNS),
        Route("POST", PROJECT + "/retention/apply", "admin", says=_ALL_RUNS),
        *(Route(method, DATASETS, "any") for method in elsewhere),
        *(Route(method, DATASETS + "/{rest:path}", "any", asked=DATASETS + "/1") for method in elsewhere),
        *(Route(method, "/v1/projects", "any") for method in elsewhere[1:]),
        *(Route(method, "/v1/projects/{rest:path}", "any", asked="/v1/projects/nothing/here") for method in elsewhere),
        Route("POST", "/v1/users", "hub", json={"name": "intruder", "grants": [{"project": None, "role": "admin"}]}),
        Route("GET", "/v1/users", "hub"),
        Route("PATCH", "/v1/users/{user_id}", "hub", json={"disabled": True}),
        Route("DELETE", "/v1/users/{user_id}", "hub"),
        Route(
            "POST",
            "/v1/keys",
            "admin",
            json={"name": "intruder", "role": "admin", "project": victim["project"]},
            says=_MAKES_NONE,
        ),
        Route("GET", "/v1/keys", "any"),
        Route("DELETE", "/v1/keys/{key_id}", "admin", says={1: 404, 2: 404, 3: 404}),
        Route("GET", "/v1/audit", "hub"),
        Route("PUT", "/v1/parts/{checkpoint}/{file}/{number}", "signed", asked="{part_url}"),
        *(Route(method, DOWNLOAD, "signed", asked="{download_url}") for method in ("GET", "HEAD")),
    ]
    read = [
        ("/sign-in", "open", {}),
        ("/static/{version}/{name:path}", "open", {"asked": "/static/1/page.css"}),
        ("/", "any", {}),
        ("/parts/models", "any", {}),
        (PAGE, "reader", {}),
        (PAGE + "/parts/{name}", "reader", {"asked": PAGE + "/parts/status"}),
        (PAGE + "/checkpoints/{checkpoint_id}/archive", "reader", {}),
        ("/compare", "any", {"asked": "/compare?model={model_id}"}),
        ("/parts/compare", "any", {"asked": "/parts/compare?model={model_id}"}),
        ("/projects", "any", {}),
        ("/projects/{project_id}", "reader", {"says": _ALL_RUNS}),
        ("/keys", "any", {}),
        ("/people", "hub", {}),
        ("/audit", "hub", {}),
    ]
    pages = [Route(method, path, need, **more) for path, need, more in read for method in ("GET", "HEAD")]
    pages += [
        Route("POST", "/sign-in", "open", form={"key": ""}),
        Route("POST", "/sign-out", "open", form={}),
        Route("POST", PAGE + "/stop", "writer", form={}),
        Route("POST", PAGE + "/labels", "writer", form={"notes": "defaced"}),
        Route(
            "POST",
            PAGE + "/checkpoints/{checkpoint_id}/delete",
            "admin",
            form={},
            asked=PAGE + "/checkpoints/{spare_id}/delete",
        ),
        Route("POST", "/projects/{project_id}/retention", "admin", form={"last": "50"}, says=_ALL_RUNS),
        Route(
            "POST",
            "/keys",
            "admin",
            form={"name": "intruder", "role": "admin", "project": victim["project"]},
            says=_MAKES_NONE,
        ),
        Route("POST", "/keys/{key_id}/revoke", "admin", form={}, says={1: 404, 2: 404, 3: 404}),
        Route("POST", "/people", "hub", form={"name": "another intruder", "role": "admin"}),
        Route("POST", "/people/{user_id}/grant", "hub", form={"role": "admin"}),
        Route("POST", "/people/{user_id}/{what}", "hub", form={}, asked="/people/{user_id}/disable"),
    ]
    return api + pages


def enumerated(app):
    """(method, path) of every route that an application has."""
    for route in app.routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from enumerated(inner)
        else:
            yield from ((method, route.path) for method in route.methods)

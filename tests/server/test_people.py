"""Users and keys: what each may do, and that nobody does more."""

import secrets
import time

import pytest
import requests
from hub_talk import Talk, attempt_event, new_id, problem


class People:
    """A hub's admin, who makes users and keys."""

    def __init__(self, hub):
        self.hub = hub
        self.http = hub.client()

    def url(self, path):
        return f"{self.hub.url}/v1{path}"

    def of(self, key):
        """A session that sends this key."""
        session = requests.Session()
        session.trust_env = False
        session.headers["x-api-key"] = key
        return session

    def post(self, path, http=None, **body):
        return (http or self.http).post(self.url(path), json=body)

    def made(self, answer):
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def user(self, *grants, name=None):
        name = name or f"user-{secrets.token_hex(4)}"
        listed = [{"project": project, "role": role} for project, role in grants]
        return self.made(self.post("/users", name=name, grants=listed))

    def key(self, http=None, **wanted):
        """A new key's facts, and a session that sends it."""
        made = self.made(self.post("/keys", http, **{"name": "a key", **wanted}))
        return made, self.of(made["key"])

    def audit(self):
        records, after = [], 0
        while after is not None:
            data = self.made(self.http.get(self.url("/audit"), params={"after": after, "limit": 1000}))
            records += data["results"]
            after = data["next"]
        return records


@pytest.fixture
def people(hub):
    return People(hub)


def everything_of(talk, checkpoint_id):
    """Every way to read a model."""
    base = f"/models/{talk.model_id}"
    paths = ("", "/ranks", "/events", "/metrics", "/series", "/chart?name=loss", "/checkpoints")
    return [*(base + path for path in paths), f"{base}/checkpoints/{checkpoint_id}/files/last.pt"]


def changes_of(talk, checkpoint_id):
    """Every way to change a model: method, path, JSON, and the weakest role that may."""
    base = f"/models/{talk.model_id}"
    started = [attempt_event(talk.attempt_id, int(time.time() * 1e6) % 10**9, "started")]
    return [
        ("POST", f"{base}/events", started, "reporter"),
        ("POST", f"/agent/heartbeat{base}", {}, "reporter"),
        ("POST", base, {"metrics": {"0": '{"loss": 1}'}}, "reporter"),
        ("GET", f"{base}/checkpoints/{checkpoint_id}/parts", None, "reporter"),
        ("POST", f"{base}/checkpoints/{checkpoint_id}/complete", None, "reporter"),
        ("PATCH", base, {"tags": ["a"]}, "writer"),
        ("POST", f"{base}/stop", None, "writer"),
        ("DELETE", f"{base}/checkpoints/{checkpoint_id}", None, "admin"),
        ("DELETE", base, None, "admin"),
    ]


@pytest.mark.parametrize("role", ["reader", "reporter", "writer", "admin"])
def test_a_key_can_do_what_its_role_says_in_its_project_alone(people, talk, role):
    checkpoint_id = talk.upload({"last.pt": b"abc"})
    run_id = talk.get()["run_id"]
    limits = {"role": role} if role != "reporter" else {"role": "writer", "run_id": run_id}
    _, http = people.key(project=talk.project, **limits)
    for path in everything_of(talk, checkpoint_id):
        assert http.get(people.url(path)).status_code in {200, 404 if "chart" in path else 200}, path
    strength = ["reader", "reporter", "writer", "admin"]
    for method, path, body, needed in changes_of(talk, checkpoint_id):
        answer = http.request(method, people.url(path), json=body)
        if strength.index(role) >= strength.index(needed):
            assert answer.status_code == 200, (method, path, answer.text)
        else:
            problem(answer, 403)
    other = Talk(people.hub)
    other_checkpoint = other.upload({"last.pt": b"abc"})
    kept = ("events", "checkpoints", "stop_requested", "tags")
    before = {field: other.get()[field] for field in kept}
    for path in everything_of(other, other_checkpoint):
        problem(http.get(people.url(path)), 404)
    for method, path, body, _ in changes_of(other, other_checkpoint):
        problem(http.request(method, people.url(path), json=body), 404)
    assert {field: other.get()[field] for field in kept} == before
    listed = http.get(people.url("/models")).json()["data"]["results"]
    assert {model["project"] for model in listed} <= {talk.project}
    for path in ("/capabilities", "/keys"):
        assert http.get(people.url(path)).status_code == 200
    for method, path in (("GET", "/users"), ("POST", "/users"), ("GET", "/audit")):
        problem(http.request(method, people.url(path), json={"name": "x"}), 403)


def create(people, http, project, run_id=None):
    headers = {} if run_id is None else {"Idempotency-Key": run_id}
    body = {"meta": {"name": "net"}} | ({} if project is None else {"project": project})
    return http.post(people.url("/models"), json=body, headers=headers)


def test_who_may_make_runs_and_projects(people, talk):
    project, new = talk.project, f"new-{new_id()}"
    _, reader = people.key(role="reader")
    _, writer = people.key()
    _, of_project = people.key(project=project)
    run_id = new_id()
    _, of_run = people.key(project=project, run_id=run_id)
    problem(create(people, reader, project), 403)
    # What it says of a project that there is not it also says of one that the key is not good for.
    for http in (of_project, of_run):
        answers = [create(people, http, other, run_id) for other in (new, Talk(people.hub).project, "default")]
        assert len({problem(answer, 404)["detail"] for answer in answers}) == 1
    problem(create(people, reader, new), 404)
    assert create(people, writer, new).status_code == 200
    assert create(people, of_project, project, new_id()).status_code == 200
    for other in (None, new_id()):
        problem(create(people, of_run, project, other), 403)
    first, again = (people.made(create(people, of_run, project, run_id)) for _ in range(2))
    assert first["id"] == again["id"]
    # HUB v1 clients name no project.
    assert people.made(create(people, of_run, None, run_id))["id"] == first["id"]
    assert people.made(create(people, of_project, None))["project"] == project
    listed = of_run.get(people.url("/models")).json()["data"]
    assert [model["id"] for model in listed["results"]] == [first["id"]]
    assert listed["total"] == 1
    problem(of_run.get(people.url(f"/models/{talk.model_id}")), 404)
    problem(of_run.post(people.url("/keys"), json={"name": "x", "project": project, "run_id": run_id}), 403)


def test_a_user_does_at_most_what_was_granted_and_a_key_at_most_what_it_says(people):
    mine, other, third = Talk(people.hub), Talk(people.hub), Talk(people.hub)
    user = people.user((mine.project, "writer"), (other.project, "reader"))
    _, http = people.key(user=user["name"])
    _, weak = people.key(user=user["name"], role="reader", project=mine.project)
    seen = {model["project"] for model in http.get(people.url("/models")).json()["data"]["results"]}
    assert seen == {mine.project, other.project}

    def status(session, talk, method="POST", path="/stop"):
        return session.request(method, talk.url(path)).status_code

    assert [status(http, talk) for talk in (mine, other, third)] == [200, 403, 404]
    assert [status(weak, talk) for talk in (mine, other, third)] == [403, 404, 404]
    problem(create(people, http, "new-" + new_id()), 404)
    # A grant that is taken back, a user that is disabled: from the next request on.
    change = {"grants": [{"project": other.project, "role": "admin"}]}
    assert (
        people.http.patch(people.url(f"/users/{user['id']}"), json=change).json()["data"]["grants"] == change["grants"]
    )
    assert [status(http, talk) for talk in (mine, other, third)] == [404, 200, 404]
    problem(weak.get(mine.url()), 404)
    people.http.patch(people.url(f"/users/{user['id']}"), json={"disabled": True})
    assert "disabled" in problem(http.get(other.url()), 401)["detail"]
    people.http.patch(people.url(f"/users/{user['id']}"), json={"disabled": False})
    assert http.get(other.url()).status_code == 200
    assert people.http.delete(people.url(f"/users/{user['id']}")).status_code == 200
    people.http.patch(people.url(f"/users/{user['id']}"), json={"disabled": False})
    assert "revoked" in problem(http.get(other.url()), 401)["detail"]
    problem(people.post("/users", name=user["name"]), 409)


def test_a_user_makes_keys_that_can_do_no_more(people, talk):
    other = Talk(people.hub).project
    user = people.user((talk.project, "writer"))
    own, http = people.key(user=user["name"], expires_at=time.time() + 3600)
    made, session = people.key(http, project=talk.project, role="reader")
    assert made["user"] == user["name"]
    assert made["expires_at"] == own["expires_at"]
    assert session.get(talk.url()).status_code == 200
    everywhere, session = people.key(http)
    assert (everywhere["project"], everywhere["role"]) == (None, "writer")
    assert session.post(talk.url("/stop")).status_code == 200
    _, of_run = people.key(http, project=talk.project, run_id=new_id())
    problem(of_run.get(talk.url()), 404)
    limited, of_project = people.key(http, project=talk.project, role="reader")
    for status, session, wanted in (
        (403, http, {"role": "admin"}),
        (403, http, {"role": "admin", "project": talk.project}),
        (404, http, {"project": other}),
        (404, http, {"project": "new-" + new_id()}),
        (403, http, {"user": "someone"}),
        (403, http, {"user": None, "project": talk.project}),
        (403, http, {"expires_at": own["expires_at"] + 1}),
        (403, of_project, {"project": talk.project, "role": "writer"}),
        (403, of_project, {"role": "reader"}),
    ):
        problem(people.post("/keys", session, name="x", **wanted), status)
    ids = {key["id"] for key in http.get(people.url("/keys")).json()["data"]["results"]}
    assert {own["id"], made["id"], everywhere["id"], limited["id"]} < ids
    stranger, _ = people.key()
    problem(http.delete(people.url(f"/keys/{stranger['id']}")), 404)
    assert http.delete(people.url(f"/keys/{made['id']}")).status_code == 200
    assert made["id"] not in {key["id"] for key in http.get(people.url("/keys")).json()["data"]["results"]}
    every = http.get(people.url("/keys"), params={"every": True}).json()["data"]["results"]
    assert next(key for key in every if key["id"] == made["id"])["revoked_at"] is not None


def test_a_weak_key_neither_sees_other_projects_nor_revokes_stronger_ones(people, talk):
    other = Talk(people.hub).project
    name = people.user((talk.project, "admin"), (other, "reader"))["name"]
    training, _ = people.key(user=name, role="writer", project=talk.project)
    _, elsewhere = people.key(user=name, role="admin", project=other)
    _, reading = people.key(user=name, role="reader", project=talk.project)
    assert {key["project"] for key in elsewhere.get(people.url("/keys")).json()["data"]["results"]} == {other}
    problem(elsewhere.delete(people.url(f"/keys/{training['id']}")), 404)
    problem(reading.delete(people.url(f"/keys/{training['id']}")), 403)


def test_a_key_of_nobody_is_no_person_in_the_audit_log(people, talk):
    name = people.user()["name"]
    _, http = people.key(name=name, project=talk.project, role="admin")
    assert http.delete(talk.url()).status_code == 200
    assert [one["who"] for one in people.audit() if one["object"] == talk.model_id] == [f"key {name}"]


def test_a_projects_admin_makes_sees_and_revokes_its_keys(people, talk):
    _, http = people.key(project=talk.project, role="admin")
    stranger, _ = people.key(project=Talk(people.hub).project)
    theirs, _ = people.key(project=talk.project)
    made, session = people.key(http, project=talk.project, run_id="run-7")
    assert session.get(people.url("/models")).json()["data"]["results"] == []
    problem(people.post("/keys", http, name="x"), 403)
    listed = http.get(people.url("/keys")).json()["data"]["results"]
    assert {key["project"] for key in listed} == {talk.project}
    assert {theirs["id"], made["id"]} < {key["id"] for key in listed}
    problem(http.delete(people.url(f"/keys/{stranger['id']}")), 404)
    for key in (theirs, made):
        assert http.delete(people.url(f"/keys/{key['id']}")).status_code == 200
    problem(session.get(people.url("/models")), 401)


def test_a_key_is_good_until_it_expires_or_is_revoked(people, talk):
    made, http = people.key(expires_at=time.time() + 1.5)
    assert http.get(talk.url()).status_code == 200
    Talk.wait_until(lambda: time.time() > made["expires_at"])
    assert "expired" in problem(http.get(talk.url()), 401)["detail"]
    made, http = people.key()
    assert http.get(talk.url()).status_code == 200
    listed = people.http.get(people.url("/keys")).json()["data"]["results"]
    shown = next(key for key in listed if key["id"] == made["id"])
    assert time.time() - shown.pop("last_used_at") < 60
    assert made["key"].startswith(shown["prefix"])
    assert {**shown, "last_used_at": None, "key": made["key"]} == made
    for _ in range(2):
        assert people.http.delete(people.url(f"/keys/{made['id']}")).status_code == 200
        assert "revoked" in problem(http.get(talk.url()), 401)["detail"]
    refused = [one for one in people.audit() if one["action"] == "key.refused" and one["key"] == made["id"]]
    assert [one["detail"]["why"] for one in refused] == ["this API key was revoked"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/users", {}),
        ("/users", {"name": "a/b"}),
        ("/users", {"name": "x", "grants": {}}),
        ("/users", {"name": "x", "grants": [{"role": "owner"}]}),
        ("/users", {"name": "x", "grants": [{"role": "reporter"}]}),
        ("/users", {"name": "x", "grants": [{"role": "reader", "projekt": "p"}]}),
        ("/users", {"name": "x", "grants": [{"role": "reader"}, {"role": "writer", "project": None}]}),
        ("/users", {"name": "x", "admin": True}),
        ("/keys", {}),
        ("/keys", {"name": "x", "role": "reporter"}),
        ("/keys", {"name": "x", "role": None}),
        ("/keys", {"name": "x", "project": 7}),
        ("/keys", {"name": "x", "run_id": "r"}),
        ("/keys", {"name": "x", "project": "p", "run_id": "../r"}),
        ("/keys", {"name": "x", "project": "p", "run_id": "r", "role": "admin"}),
        ("/keys", {"name": "x", "expires_at": 1}),
        ("/keys", {"name": "x", "expires_at": True}),
        ("/keys", {"name": "x", "expires_at": "tomorrow"}),
        ("/keys", {"name": "x", "expires": 10**10}),
    ],
)
def test_what_makes_no_sense_makes_nothing(people, path, body):
    def stored():
        users = people.http.get(people.url("/users")).json()
        return users, people.http.get(people.url("/keys"), params={"every": True}).json()["data"]["results"][1:]

    before = stored()
    problem(people.post(path, **body), 422)
    assert stored()[0] == before[0]
    assert len(stored()[1]) == len(before[1])


def test_lists_come_page_by_page(people):
    made = [people.user()["id"] for _ in range(3)]
    keys = [people.key()[0]["id"] for _ in range(3)]
    for path, wanted in (("/users", made), ("/keys", keys), ("/audit", None)):
        seen, after = [], None
        while True:
            params = {"limit": 2} | ({} if after is None else {"after": after})
            data = people.http.get(people.url(path), params=params).json()["data"]
            seen += [one["id"] for one in data["results"]]
            after = data["next"]
            if after is None:
                break
        assert len(seen) == len(set(seen))
        assert wanted is None or seen[-3:] == wanted


def test_the_audit_log_tells_who_did_what_from_where(people, talk):
    user = people.user((talk.project, "admin"))
    made, http = people.key(user=user["name"], role="admin")
    checkpoint_id = talk.upload({"last.pt": b"abc"})
    asked = {"X-Request-Id": "look-for-me"}
    assert http.post(talk.url("/stop"), headers=asked).status_code == 200
    assert http.delete(talk.url(f"/checkpoints/{checkpoint_id}")).status_code == 200
    assert http.delete(talk.url()).status_code == 200
    people.http.delete(people.url(f"/keys/{made['id']}"))
    people.http.patch(people.url(f"/users/{user['id']}"), json={"disabled": True})
    people.http.delete(people.url(f"/users/{user['id']}"))
    about = {user["name"], made["id"], talk.model_id, checkpoint_id}
    told = [one for one in people.audit() if one["object"] in about]
    assert [(one["who"], one["action"], one["object"]) for one in told] == [
        ("the settings' key", "user.add", user["name"]),
        ("the settings' key", "key.add", made["id"]),
        (user["name"], "model.stop", talk.model_id),
        (user["name"], "checkpoint.delete", checkpoint_id),
        (user["name"], "model.delete", talk.model_id),
        ("the settings' key", "key.revoke", made["id"]),
        ("the settings' key", "user.change", user["name"]),
        ("the settings' key", "user.remove", user["name"]),
    ]
    assert {one["address"] for one in told} == {"127.0.0.1"}
    stop = told[2]
    assert (stop["key"], stop["request_id"]) == (made["id"], "look-for-me")
    assert made["key"] not in str(people.audit())

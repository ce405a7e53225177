"""Rules of a project: who sets them, and that the hub deletes what they do not keep, and nothing else."""

import functools
import re

import pytest
import requests
from hub_talk import Talk, attempt_event, problem, sha256
from hub_v1_talk import at_once
from kept import findings, settings_of
from sqlalchemy import select, update

from ddphub.server import pruning
from ddphub.server.deletion import delete_checkpoint
from ddphub.server.hub import Hub
from ddphub.server.principal import Principal
from ddphub.server.tables import Checkpoint, Chore, Project
from ddphub.server.upkeep import Upkeep

NONE = {"last": None, "best": None, "final": False, "days": None}


class Rules:
    """The rules of a model's project, as a key may see and change them."""

    def __init__(self, talk, key=None):
        self.talk, self.hub = talk, talk.hub
        self.http = requests.Session()
        self.http.trust_env = False
        self.http.headers["x-api-key"] = key or talk.hub.key
        self.id = talk.get()["project_id"]

    def ask(self, method, path="", **options):
        return self.http.request(method, f"{self.hub.url}/v1/projects/{self.id}{path}", **options)

    def made(self, *arguments, **options):
        answer = self.ask(*arguments, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def set(self, **rules):
        return self.made("PUT", "/retention", json=rules)

    def planned(self, **rules):
        told = self.made("POST", "/retention/plan", json=rules) if rules else self.made("POST", "/retention/plan")
        return [one["epoch"] for one in told["checkpoints"]]

    def applied(self, **parameters):
        return self.made("POST", "/retention/apply", params=parameters)


def finish(talk):
    """Let the run be over."""
    talk.accepted(attempt_event(talk.attempt_id, 0, "started"), attempt_event(talk.attempt_id, 1, "finished"))


def epochs(talk):
    return [one["epoch"] for one in talk.get("/checkpoints")]


@pytest.fixture
def run(talk):
    """A finished run with five checkpoints."""
    finish(talk)
    for epoch in range(5):
        talk.upload({"last.pt": b"%d" % epoch}, epoch=epoch)
    return talk


def test_rules_are_set_tried_and_followed(run):
    rules = Rules(run)
    assert rules.made("GET", "/retention") == NONE
    assert (rules.planned(), rules.planned(last=3), rules.planned(days=1)) == ([], [0, 1], [])
    assert rules.set(last=2) == {"last": 2, "best": None, "final": False, "days": None}
    assert rules.made("GET", "/retention")["last"] == 2
    assert rules.made("GET")["retention"]["last"] == 2
    assert rules.planned() == [0, 1, 2]
    told = rules.applied(limit=2)
    assert ([one["epoch"] for one in told["checkpoints"]], told["more"], told["bytes"]) == ([0, 1], True, 2)
    assert not rules.applied()["more"]
    assert rules.applied()["checkpoints"] == []
    assert epochs(run) == [3, 4]
    assert rules.set() == rules.made("GET", "/retention") == NONE


def test_a_run_that_may_go_on_keeps_what_it_resumes_from(talk):
    """Its newest of each kind; and what another run needs, or is on its way, is nobody's to delete."""
    other = Talk(talk.hub, talk.project)
    shared = other.upload({"x": b"shared"})
    rules = Rules(talk)
    talk.accepted(attempt_event(talk.attempt_id, 0, "started"))
    for epoch in range(3):
        talk.upload({"last.pt": b"shared" if epoch == 0 else b"%d" % epoch}, epoch=epoch)
        talk.upload({"best.pt": b"b%d" % epoch}, epoch=epoch, kind="best")
    arriving = talk.begin({"last.pt": b"arriving"}, epoch=9)
    assert rules.planned(last=1) == [0, 0, 1, 1]
    rules.set(last=1)
    rules.applied()
    assert epochs(talk) == [2, 2]
    assert other.download(shared, "x").content == b"shared"
    talk.send_missing(arriving, {"last.pt": b"arriving"})
    assert talk.complete(arriving["id"]).json()["data"]["state"] == "committed"
    talk.accepted(attempt_event(talk.attempt_id, 1, "finished"))
    assert rules.planned() == [2, 2]
    rules.applied()
    assert epochs(talk) == [9]
    assert talk.get("/checkpoints")[0]["files"][0]["sha256"] == sha256(b"arriving")


def test_the_hub_follows_them_by_itself(start_hub):
    hub = start_hub(arguments=("--part-size", "65536", "--upkeep-s", "0.5"))
    talk, untouched = Talk(hub), Talk(hub)
    finish(talk)
    for model in (talk, untouched):
        for epoch in range(4):
            model.upload({"last.pt": b"%d" % epoch}, epoch=epoch)
    Rules(talk).set(last=1)
    talk.wait_until(lambda: epochs(talk) == [3])
    talk.upload({"last.pt": b"4"}, epoch=4)
    talk.wait_until(lambda: epochs(talk) == [4])
    assert epochs(untouched) == [0, 1, 2, 3]
    records = hub.client().get(f"{hub.url}/v1/audit", params={"limit": 1000}).json()["data"]["results"]
    (first, second) = [one for one in records if one["action"] == "checkpoint.delete"]
    assert (first["who"], first["object"], len(first["detail"]["checkpoints"])) == ("retention", talk.project, 3)
    assert len(second["detail"]["checkpoints"]) == 1
    assert hub.stop() == 0
    assert findings(settings_of(hub)) == []


@pytest.fixture
def opened(start_hub):
    """A hub with two checkpoints of one run, opened by this process; the run, and its project's rules."""
    hub = start_hub()
    talk = Talk(hub)
    finish(talk)
    ids = [talk.upload({"last.pt": b"%d" % epoch}, epoch=epoch) for epoch in range(2)]
    Rules(talk).set(last=1)
    hub.stop()
    inside = Hub.open(settings_of(hub))
    with inside.database.read() as session:
        project = session.scalars(select(Project)).one()
    yield inside, project, talk.model_id, ids
    inside.close()


def test_what_has_become_the_newest_meanwhile_stays(opened, monkeypatch):
    """Someone deletes the newest one between the look and the deletion of what was older."""
    hub, project, model_id, (old, newest) = opened
    by = Principal.of_the_hub("retention")
    looked = pruning.plan(hub, project, pruning.rules_of(project), limit=10)
    assert [one.checkpoint.id for one in looked.some] == [old]
    delete_checkpoint(hub, model_id, newest)
    monkeypatch.setattr(pruning, "plan", lambda *_, **__: looked)
    assert pruning.prune(hub, project, by, limit=10).some == []
    with hub.database.read() as session:
        assert session.scalars(select(Checkpoint.public_id)).all() == [old]


def test_rules_that_were_taken_back_delete_no_more(opened, monkeypatch):
    """While the hub follows them, with a project that it has read before."""
    hub, project, _, ids = opened
    by = Principal.of_the_hub("retention")
    looked = pruning.plan(hub, project, pruning.rules_of(project), limit=10)

    def plan_and_take_back(*_, **__):
        with hub.database.write() as session:
            session.execute(update(Project).values(retention=None))
        return looked

    with monkeypatch.context() as patched:
        patched.setattr(pruning, "plan", plan_and_take_back)
        assert pruning.prune(hub, project, by, limit=10).some == []
    assert pruning.prune(hub, project, by, limit=10).some == []
    with hub.database.read() as session:
        assert session.scalars(select(Checkpoint.public_id).order_by(Checkpoint.id)).all() == ids


def test_one_process_does_a_chore_once(opened):
    hub, *_ = opened
    chores = [Upkeep(hub) for _ in range(6)]
    chore = next(one for one in chores[0].chores if one.name == "retention")
    assert at_once(3, lambda: chores[0].is_ours(chore)) == [False] * 3  # a new hub has nothing to do yet
    with hub.database.write() as session:
        session.execute(update(Chore).values(next_at=1.0))
    waiting = iter(chores)
    assert sorted(at_once(6, lambda: next(waiting).is_ours(chore))) == [False] * 5 + [True]
    assert not chores[0].is_ours(chore)


@pytest.mark.parametrize(
    ("body", "named"), [({"last": 0}, "last"), ({"keep": 1}, "keep"), ({"days": "a"}, "days"), ([], "object")]
)
def test_wrong_rules_change_nothing(run, body, named):
    rules = Rules(run)
    rules.set(last=4)
    assert named in problem(rules.ask("PUT", "/retention", json=body), 422)["detail"]
    assert named in problem(rules.ask("POST", "/retention/plan", json=body), 422)["detail"]
    assert rules.made("GET", "/retention")["last"] == 4


def test_only_admins_of_the_project_set_them(run):
    stranger = Talk(run.hub)

    def key(**wanted):
        answer = run.http.post(f"{run.hub.url}/v1/keys", json={"name": "a key", **wanted})
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]["key"]

    def names(key):
        answer = requests.get(f"{run.hub.url}/v1/projects", params={"limit": 1000}, headers={"x-api-key": key})
        return {one["name"] for one in answer.json()["data"]["results"]}

    for role in ("reader", "writer"):
        rules = Rules(run, key(role=role, project=run.project))
        assert rules.planned(last=3) == [0, 1]
        assert names(rules.http.headers["x-api-key"]) == {run.project}
        problem(rules.ask("PUT", "/retention", json={"last": 1}), 403)
        problem(rules.ask("POST", "/retention/apply"), 403)
    for other in (key(role="admin", project=stranger.project), key(role="writer", project=run.project, run_id="a-run")):
        rules = Rules(run, other)
        assert run.project not in names(other)
        for method, path in (("GET", ""), ("GET", "/retention"), ("PUT", "/retention"), ("POST", "/retention/apply")):
            problem(rules.ask(method, path, json={} if method == "PUT" else None), 404)
    admin = Rules(run, key(role="admin", project=run.project))
    assert admin.set(last=1)["last"] == 1
    assert len(admin.applied()["checkpoints"]) == 4


def test_projects_are_listed_page_by_page(hub):
    made = sorted({Talk(hub).project for _ in range(5)})
    found, after = [], None
    while True:
        answer = hub.client().get(f"{hub.url}/v1/projects", params={"limit": 2, "last_doc_id": after}).json()["data"]
        found += [one["name"] for one in answer["results"]]
        if (after := answer["lastRecordId"]) is None:
            break
    assert found == sorted(found)
    assert set(made) <= set(found)
    assert len(found) == len(set(found)) == answer["total"]
    problem(hub.client().get(f"{hub.url}/v1/projects/nobody"), 404)


def test_the_page_shows_what_would_go_before_it_goes(hub, run, browser):
    page = f"{hub.url}/projects/{Rules(run).id}"
    assert re.search(rf'href="/projects/{Rules(run).id}"', browser.get(f"{hub.url}/projects").text)
    shown = browser.get(page).text
    assert "keeps all" in shown
    assert 'id="planned">Nothing' in shown
    tried = browser.get(page, params={"last": "3", "days": "0.5"}).text
    assert 'id="planned">Nothing' in tried
    tried = browser.get(page, params={"last": "3", "best": "", "days": ""}).text
    assert "2 checkpoints" in re.sub(r"<[^>]*>", "", tried)
    assert 'name="last" min="1" max="1000000" value="3"' in tried
    assert epochs(run) == [0, 1, 2, 3, 4]
    saved = browser.post(f"{page}/retention", data={"last": "3", "best": "", "days": ""})
    assert "keeps the last 3, of each run" in saved.text
    assert Rules(run).made("GET", "/retention")["last"] == 3
    assert browser.post(f"{page}/retention", data={"last": "many"}).status_code == 422
    foreign = {"origin": "https://elsewhere.example"}
    assert browser.post(f"{page}/retention", data={"last": "1"}, headers=foreign).status_code == 403
    assert requests.post(f"{page}/retention", data={"last": "1"}).status_code == 401
    assert browser.get(f"{hub.url}/projects/nobody").status_code == 404
    assert Rules(run).made("GET", "/retention")["last"] == 3


def test_the_program_sets_and_follows_them(run, hub, monkeypatch, program):
    monkeypatch.setenv("DDPHUB_URL", hub.url)
    monkeypatch.setenv("DDPHUB_API_KEY", hub.key)
    said = functools.partial(program, "hub", "retention")
    assert "keeps all" in said("show", run.project)
    assert "the last 2" in said("set", run.project, "--last", "2", "--final")
    assert "3 checkpoints, 3 B: would go" in said("apply", run.project, "--dry-run")
    assert epochs(run) == [0, 1, 2, 3, 4]
    assert len(said("apply", run.project, "--json").splitlines()) == 3
    assert epochs(run) == [3, 4]
    assert "keeps all" in said("set", run.project, "--all")
    assert "name rules" in said("set", run.project, code=2)
    assert "no project" in said("show", "nobody's", code=1)

"""Finding models by project, state, tags and words; notes and tags."""

import time

import pytest
import requests
from hub_talk import Talk, attempt_event, metrics_event, new_id, problem
from hub_v1_talk import V1, delete
from sqlalchemy import select

from ddphub.events import MODEL_STATES as STATES
from ddphub.server import model_view
from ddphub.server.database import Database
from ddphub.server.model_search import Wanted, find
from ddphub.server.principal import Principal
from ddphub.server.states import Patience
from ddphub.server.tables import Attempt, Model


def slurm(job_id, restart_count):
    """What an attempt says of its SLURM job."""
    texts = dict.fromkeys(("array_job_id", "array_task_id", "step", "partition", "job_name", "nodes"))
    return {"cluster": "c", "job_id": job_id, **texts, "node_count": 1, "restart_count": restart_count}


def pages(hub, **wanted):
    """The ids of the models that are wanted, page by page, and what each page said of the total."""
    ids, totals, last = [], [], None
    with hub.client() as client:
        while True:
            answer = client.get(f"{hub.url}/v1/models", params={**wanted, "last_doc_id": last})
            assert answer.status_code == 200, answer.text
            data = answer.json()["data"]
            ids += [model["id"] for model in data["results"]]
            totals.append(data["total"])
            last = data["lastRecordId"]
            if last is None:
                return ids, totals


@pytest.fixture(scope="module")
def zoo(hub):
    """One project with a model in each state that this hub can conclude at once, in three kinds of each."""
    project = f"Zoo {new_id()}"
    states = {}
    now = time.time()
    for number in range(3):
        for state in ("new", "running", "finished", "failed", "preempted", "requeued", "node_failed", "cancelled"):
            talk = Talk(hub, project)
            first, second = talk.attempt_id, new_id()
            started = attempt_event(first, 0, "started", time=now, slurm=slurm(talk.model_id, 0))
            if state == "running":
                talk.accepted(started, metrics_event(first, 1, time=now))
            elif state == "requeued":  # a signal told it to leave; SLURM starts it again and that is preempted, too
                talk.accepted(attempt_event(first, 0, "requeued", said_by="slurm", time=now))
            elif state == "node_failed":
                restarted = attempt_event(second, 0, "started", time=now - 60, slurm=slurm(talk.model_id, 1))
                talk.accepted(started, restarted)
            elif state != "new":
                talk.accepted(started, attempt_event(first, 1, state, time=now))
            states[talk.model_id] = state
            if number == 0:
                answer = talk.http.patch(talk.url(), json={"tags": [state, "first"]})
                assert answer.json()["data"]["tags"] == sorted([state, "first"])
    return project, states


def test_states_are_found_page_by_page(hub, zoo):
    """For every state that there is."""
    project, states = zoo
    for model_id, state in states.items():
        assert hub.client().get(f"{hub.url}/v1/models/{model_id}").json()["data"]["state"] == state
    everything, totals = pages(hub, project=project, limit=1000)
    assert everything == list(states)[::-1]
    assert totals[0] == len(states)
    for state in STATES:
        expected = [model_id for model_id in everything if states[model_id] == state]
        ids, totals = pages(hub, project=project, state=state, limit=2)
        assert ids == expected, state
        assert set(totals) == {None}
    several, _ = pages(hub, project=project, state=["new", "failed", "lost"], limit=4)
    assert several == [model_id for model_id in everything if states[model_id] in {"new", "failed"}]


def test_states_that_time_brings_are_found(start_hub):
    """However long ago what was heard of, a search by state finds what the models say of themselves."""
    hub = start_hub()
    now = time.time()
    runs = [Talk(hub) for _ in range(4)]
    for index, talk in enumerate(runs[:3]):
        started = now + 3000 * (index == 2)  # a node whose clock is wrong
        steps = [metrics_event(talk.attempt_id, 1 + n, time=started + n) for n in range(index * 5)]
        talk.accepted(attempt_event(talk.attempt_id, 0, "started", time=started), *steps)
    runs[3].upload({"last.pt": b"x"})
    client = V1(hub)
    client.beat()
    hub.stop()
    database = Database(hub.database)
    with database.write() as session:  # one has heartbeats for an hour, and no step; so has one of HUB v1
        session.scalar(select(Model).where(Model.public_id == client.model_id)).last_seen = now + 3600
        model = session.scalar(select(Model).where(Model.public_id == runs[1].model_id))
        attempt = session.scalar(select(Attempt).where(Attempt.model_ref == model.id))
        attempt.heard_at = model.last_seen = now + 3600
    seen = set()
    with database.read() as session:
        models = session.scalars(select(Model).order_by(Model.id.desc())).all()
        for later in (0, 25, 40, 700, 1000, 1450, 1700, 2000, 4000, 10**6):
            for up_since in (0.0, now + 20, now + 590, now + later):
                at = {"now": now + later, "patience": Patience(up_since=up_since)}
                summaries = model_view.summaries(session, models, at["now"], at["patience"])
                for state in STATES:
                    found = find(
                        session,
                        Wanted(states=frozenset([state]), by=Principal.of_the_hub("test")),
                        after=None,
                        limit=10,
                        **at,
                    )
                    expected = [one["id"] for one in summaries if one["state"] == state]
                    assert [one["id"] for one in found.results] == expected, (state, later, up_since)
                    seen |= {state} if expected else set()
    database.close()
    assert seen >= {"running", "stalled", "lost"}


def test_a_state_that_there_is_not_is_a_problem(hub):
    answer = hub.client().get(f"{hub.url}/v1/models", params={"state": ["failed", "fialed"]})
    assert "'fialed'" in problem(answer, 422)["detail"]
    problem(hub.client().get(f"{hub.url}/v1/models", params={"search": "x" * 257}), 422)


def test_tags_must_all_match(hub, zoo):
    project, states = zoo
    firsts, totals = pages(hub, project=project, tag="first", limit=3)
    assert len(firsts) == totals[0] == 8
    ids, totals = pages(hub, project=project, tag=["first", "failed"])
    assert ([states[model_id] for model_id in ids], totals[0]) == (["failed"], 1)
    assert pages(hub, project=project, tag=["failed", "finished"])[0] == []
    assert pages(hub, project=project, tag="fail")[0] == []


def test_words_are_found_in_every_text_whatever_their_case(hub):
    project = f"Größe {new_id()}"
    talks = [Talk(hub, project) for _ in range(4)]
    http = hub.client()
    run_id = talks[0].get()["run_id"]
    http.patch(talks[1].url(), json={"notes": "see the ÄRMEL,\nline 2: 50 % done_"})
    http.patch(talks[2].url(), json={"tags": ["ärmel-tag"]})
    http.patch(talks[3].url(), json={"meta": {"name": "ÄRMELnet"}})
    ids = [talk.model_id for talk in talks]
    for words, expected in {
        "ärmel": ids[1:],
        "Ärmel-T": ids[2:3],
        "ÄRMELNET": ids[3:],
        run_id.upper(): ids[:1],
        project.upper(): ids,
        "grösse": ids,
        "50 % DONE_": ids[1:2],
        "50_%": [],
        "LINE 2": ids[1:2],
    }.items():
        found, totals = pages(hub, search=words)
        assert (found, totals[0]) == (expected[::-1], len(expected)), words
    assert pages(hub, search="ärmel", project="another")[0] == []
    assert pages(hub, search="ärmel", tag="ärmel-tag", project=project)[0] == ids[2:3]


def test_notes_and_tags_are_kept_until_they_are_changed(talk):
    def change(**content):
        return talk.http.patch(talk.url(), json=content)

    assert (talk.get()["notes"], talk.get()["tags"]) == (None, [])
    data = change(notes="why:\n<b>not</b>", tags=["b", "a", "b"]).json()["data"]
    assert (data["notes"], data["tags"]) == ("why:\n<b>not</b>", ["a", "b"])
    assert change(config={"lr": 1}).json()["data"]["tags"] == ["a", "b"]
    assert change(tags=[]).json()["data"]["notes"] == "why:\n<b>not</b>"
    assert change(notes=None).json()["data"]["notes"] is None
    assert change(notes="").json()["data"]["notes"] is None
    assert talk.get()["config"] == {"epochs": 5, "batchSize": 16, "lr": 1}
    assert change(notes="n" * 65536, tags=[f"t{number}" for number in range(32)]).status_code == 200


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({"notes": 3}, "notes"),
        ({"notes": "ä" * 32769}, "notes"),
        ({"tags": None}, "tags"),
        ({"tags": "a"}, "tags"),
        ({"tags": [f"t{number}" for number in range(33)]}, "tags"),
        ({"tags": ["a", 3]}, "tags[1]"),
        ({"tags": [""]}, "tags[0]"),
        ({"tags": [" a"]}, "tags[0]"),
        ({"tags": ["a,b"]}, "tags[0]"),
        ({"tags": ["a\nb"]}, "tags[0]"),
        ({"tags": ["x" * 129]}, "tags[0]"),
    ],
)
def test_wrong_notes_and_tags_change_nothing(hub, talk, content, field):
    talk.http.patch(talk.url(), json={"notes": "kept", "tags": ["kept"]})
    assert problem(talk.http.patch(talk.url(), json={**content, "config": {"lr": 9}}), 422)["detail"].startswith(field)
    data = talk.get()
    assert (data["notes"], data["tags"], "lr" in data["config"]) == ("kept", ["kept"], False)
    body = {"project": talk.project, "meta": {"name": "net"}, **content}
    before = pages(hub, project=talk.project)[1][0]
    problem(talk.http.post(f"{hub.url}/v1/models", json=body), 422)
    assert pages(hub, project=talk.project)[1][0] == before


def test_labels_at_creation_are_those_of_the_first_request(hub):
    body = {"project": new_id(), "meta": {"name": "net"}, "notes": "first", "tags": ["first"]}
    http, headers = hub.client(), {"Idempotency-Key": new_id()}
    url = f"{hub.url}/v1/models"
    model_id = http.post(url, json=body, headers=headers).json()["data"]["id"]
    http.patch(f"{url}/{model_id}", json={"tags": ["mine"]})
    again = http.post(url, json={**body, "notes": "again", "tags": ["again"]}, headers=headers).json()["data"]
    assert (again["id"], again["notes"], again["tags"]) == (model_id, "first", ["mine"])


def test_labels_go_with_their_model(start_hub):
    hub = start_hub()
    gone, hidden, kept = (Talk(hub, "p") for _ in range(3))
    for talk in (gone, hidden, kept):
        talk.http.patch(talk.url(), json={"tags": ["t"], "notes": "n"})
    delete(gone, True)
    delete(hidden, False)
    assert pages(hub, tag="t")[0] == pages(hub, search="T")[0] == [kept.model_id]


def test_a_signed_in_browser_reads_and_changes_nothing(hub, browser, talk):
    for path in ("/v1/models", f"/v1/models/{talk.model_id}", f"/v1/models/{talk.model_id}/checkpoints"):
        assert browser.get(hub.url + path).status_code == 200
    problem(browser.patch(talk.url(), json={"notes": "x"}), 401)
    problem(browser.delete(talk.url()), 401)
    problem(browser.delete(talk.url("/checkpoints/x")), 401)
    problem(browser.get(talk.url("/checkpoints/x")), 401)
    problem(requests.get(talk.url()), 401)

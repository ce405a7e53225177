"""States as SLURM would say them: what a client tells of its job, what the hub concludes, and what it shows."""

import re

import pytest
from hub_process import HubProcess
from hub_talk import attempt_event, new_id, problem
from rows import older
from sqlalchemy import text

from ddphub.events import ENDED, MAX_SLURM_NODES, MAX_SLURM_TEXT

JOB = {
    "cluster": "lab",
    "job_id": "17",
    "array_job_id": None,
    "array_task_id": None,
    "step": "0",
    "partition": "gpu",
    "job_name": "digits",
    "nodes": "node[1-2]",
    "node_count": 2,
    "restart_count": 0,
}


@pytest.fixture
def told(talk):
    """Tells of attempts of one model; returns what the hub shows of each, in their order."""
    clock = iter(range(10**6))

    def tell(attempt_id, state, **fields):
        number = next(clock)
        talk.accepted(attempt_event(attempt_id, number, state, time=1_700_000_000.0 + number, **fields))
        return [one["state"] for one in talk.get()["attempts"]]

    return tell


def visible_text(answer):
    assert answer.status_code == 200
    return re.sub(r"<[^>]*>", " ", answer.text.partition("<main")[2])


def restarted(count, **fields):
    return JOB | {"restart_count": count} | fields


@pytest.mark.parametrize("state", ENDED)
def test_a_model_has_the_state_that_its_newest_attempt_ended_with(talk, told, browser, hub, state):
    """In words on the pages."""
    told(talk.attempt_id, "started", slurm=JOB)
    assert told(talk.attempt_id, state, said_by="slurm", reason="SIGTERM: why") == [state]
    assert (talk.get()["state"], talk.get()["attempts"][0]["reason"]) == (state, "SIGTERM: why")
    for path in ("/", f"/models/{talk.model_id}"):
        assert state.replace("_", " ") in visible_text(browser.get(f"{hub.url}{path}"))
    assert talk.get()["status"] == ("trained" if state == "finished" else "training")


def test_the_job_of_an_attempt_is_shown(talk, told, browser, hub):
    """In the answer as it was told, on the page beside the host, escaped."""
    told(talk.attempt_id, "started", slurm=JOB | {"job_name": "<b>", "of_a_later_version": 1})
    told(new_id(), "started", slurm=restarted(3, array_job_id="16", array_task_id="4", nodes=None, partition=None))
    told(new_id(), "started")
    jobs = [one["slurm"] for one in talk.get()["attempts"]]
    assert jobs[0] == JOB | {"job_name": "<b>"}
    assert (jobs[1]["array_task_id"], jobs[1]["nodes"], jobs[2]) == ("4", None, None)
    page = visible_text(browser.get(f"{hub.url}/models/{talk.model_id}"))
    for shown in ("17 &lt;b&gt;", "node[1-2]", "gpu", "16_4 digits"):
        assert shown in page


def test_a_client_that_knows_no_jobs_is_shown_without(talk, told, browser, hub):
    told(talk.attempt_id, "started")
    assert talk.get()["attempts"][0]["slurm"] is None
    assert "SLURM" not in browser.get(f"{hub.url}/models/{talk.model_id}").text


@pytest.mark.parametrize(
    ("slurm", "why"),
    [
        ("17", "slurm: expected an object or null"),
        ({}, "slurm: expected a cluster and a job_id"),
        (JOB | {"job_id": 17}, "slurm: job_id: expected text"),
        (JOB | {"cluster": None}, "slurm: expected a cluster"),
        (JOB | {"partition": ["gpu"]}, "slurm: partition: expected text"),
        (JOB | {"job_name": "n" * (MAX_SLURM_TEXT + 1)}, f"of at most {MAX_SLURM_TEXT} characters"),
        (JOB | {"nodes": "n" * (MAX_SLURM_NODES + 1)}, f"of at most {MAX_SLURM_NODES} characters"),
        (JOB | {"node_count": "2"}, "slurm: node_count: expected an integer"),
        (JOB | {"restart_count": -1}, "slurm: restart_count: expected an integer"),
        (JOB | {"restart_count": True}, "slurm: restart_count: expected an integer"),
        (JOB | {"step": "a\0"}, "must not contain NUL"),
    ],
)
def test_a_job_of_another_shape_is_refused_by_name(talk, slurm, why):
    assert why in problem(talk.events(attempt_event(talk.attempt_id, 0, "started", slurm=slurm)), 422)["message"]
    assert talk.get()["attempts"] == []


@pytest.mark.parametrize("fields", [{"said_by": "me"}, {"said_by": 1}, {"state": "node failed"}])
def test_a_state_that_is_none_is_refused(talk, fields):
    event = attempt_event(talk.attempt_id, 0, "requeued") | fields
    assert "expected" in problem(talk.events(event), 422)["message"]


def test_a_job_that_is_started_again_says_what_became_of_an_attempt_without_an_end(talk, told):
    """It is lost until then; a later start of another job, or another start of the same one, says nothing of it."""
    first, second, third = talk.attempt_id, new_id(), new_id()
    assert told(first, "started", slurm=JOB) == ["started"]
    assert talk.get()["state"] == "running"
    told(new_id(), "started", slurm=restarted(5, job_id="18"))
    told(new_id(), "started", slurm=restarted(5, cluster="other"))
    assert told(new_id(), "started", slurm=JOB)[0] == "started"
    assert told(second, "started", slurm=restarted(1))[0] == "node_failed"
    assert talk.get()["attempts"][0]["reason"] == "it ended without a word, and SLURM started the job again"
    assert talk.get()["attempts"][0]["ended_at"] is None
    assert [told(third, "started", slurm=restarted(2))[index] for index in (0, 4, 5)] == [
        "node_failed",
        "node_failed",
        "started",
    ]


@pytest.mark.parametrize("state", ENDED)
def test_what_an_attempt_said_of_its_end_stands(talk, told, state):
    """Also when it is heard after the next one has begun, from disk."""
    told(talk.attempt_id, "started", slurm=JOB)
    assert told(new_id(), "started", slurm=restarted(1)) == ["node_failed", "started"]
    assert told(talk.attempt_id, state, said_by="slurm") == [state, "started"]


def test_a_signal_whose_cause_nobody_said_was_a_requeue_if_the_job_is_started_again(talk, told):
    """`preempted` without SLURM's word says no more than that a signal came."""
    told(talk.attempt_id, "started", slurm=JOB)
    assert told(talk.attempt_id, "preempted", reason="SIGTERM") == ["preempted"]
    assert told(new_id(), "started", slurm=JOB)[0] == "preempted"
    assert told(new_id(), "started", slurm=restarted(1))[0] == "requeued"
    assert talk.get()["attempts"][0]["reason"] == "SIGTERM; then SLURM started the job again"
    assert re.fullmatch(r"1700000001\.\d", str(talk.get()["attempts"][0]["ended_at"]))


def test_attempts_are_kept_when_an_older_hubs_database_is_brought_up_to_date(tmp_path):
    data = tmp_path / "data"
    with older(data, "0002") as connection:
        connection.execute(text("INSERT INTO projects VALUES (1, 'p', 'old', 1.0)"))
        connection.execute(text("INSERT INTO models VALUES (1, 'm', 1, 'r', 'n', '{}', 1.0, 5.0, NULL, 0, NULL)"))
        connection.execute(
            text("INSERT INTO attempts VALUES (1, 1, :id, 1, 2.0, 'preempted', 3.0, 4, 2, 'h', 'SIGTERM', 2.0, 3.0)"),
            {"id": "a" * 32},
        )
    with HubProcess(data, api_key="k" * 42) as hub:
        (attempt,) = hub.client().get(f"{hub.url}/v1/models/m").json()["data"]["attempts"]
    assert (attempt["state"], attempt["reason"], attempt["slurm"]) == ("preempted", "SIGTERM", None)
    assert (attempt["heard_at"], attempt["step"]) == (5.0, None)

"""GET ranks: who may read them, page by page, of which attempt."""

import pytest
import requests
from hub_talk import attempt_event, metrics_event, new_id, problem, rank_event

FIELDS = {
    *("rank", "state", "health", "reason", "host", "pid", "local_rank"),
    *("last_step", "lag", "rate", "last_step_time", "last_seen", "memory"),
}


@pytest.fixture
def ranks(talk):
    """Two attempts: one of three ranks, and a later one of two."""
    talk.accepted(
        attempt_event(talk.attempt_id, 0, "started"),
        *(rank_event(talk.attempt_id, 1 + rank, rank, "joined", local_rank=rank) for rank in range(3)),
        *(metrics_event(talk.attempt_id, 10, rank=rank, step=5 - rank) for rank in range(3)),
        metrics_event(talk.attempt_id, 11, rank=1, values={"system/memory": 2**30}),
        metrics_event(talk.attempt_id, 11, rank=2, values={"system/memory": "NaN"}),
        rank_event(talk.attempt_id, 5, 2, "left", reason='Traceback:\n  File "a"\nValueError: x'),
        attempt_event(talk.attempt_id, 6, "failed"),
    )
    other = new_id()
    talk.accepted(
        attempt_event(other, 900, "started"),
        rank_event(other, 901, 0, "joined"),
        metrics_event(other, 902, rank=1, values={"system/memory": 2**20}),
    )
    return lambda query="": talk.get(f"/ranks{query}")


def test_the_ranks_of_an_attempt(ranks):
    newest, older = ranks(), ranks("?attempt=1")
    assert [(one["rank"], one["health"], one["memory"]) for one in newest["results"]] == [
        (0, "ok", None),
        (1, "ok", 2**20),
    ]
    assert [(one["rank"], one["health"], one["last_step"], one["lag"]) for one in older["results"]] == [
        (0, "dead", 5, 0),  # it told the end of an attempt that failed with it
        (1, "dead", 4, 1),
        (2, "dead", 3, 2),
    ]
    assert all(set(one) == FIELDS for one in newest["results"] + older["results"])
    assert (older["results"][1]["local_rank"], older["results"][2]["reason"]) == (1, "ValueError: x")
    # The other attempt's memory is not this one's.
    assert [one["memory"] for one in older["results"]] == [None] * 3
    assert ranks()["results"] == ranks("?attempt=2")["results"]


def test_page_by_page(ranks):
    first = ranks("?attempt=1&limit=2")
    assert ([one["rank"] for one in first["results"]], first["next"]) == ([0, 1], 1)
    second = ranks("?attempt=1&limit=2&after=1")
    assert ([one["rank"] for one in second["results"]], second["next"]) == ([2], None)
    assert ranks("?after=99") == {"results": [], "next": None}


def test_a_model_without_attempts_has_no_ranks(talk):
    assert talk.get("/ranks") == {"results": [], "next": None}
    assert "attempt 1" in problem(talk.http.get(talk.url("/ranks?attempt=1")), 404)["message"]
    problem(talk.http.get(talk.url("/ranks?attempt=0")), 422)


def test_who_may_read(talk, browser):
    assert browser.get(talk.url("/ranks")).status_code == 200
    problem(requests.get(talk.url("/ranks"), proxies={"http": ""}, timeout=10), 401)

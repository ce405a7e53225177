"""Series: every value of every event is a point, once, however the events come."""

import itertools
import json
import math
import threading

import numpy as np
import pytest
import requests
from hub_process import HubProcess
from hub_talk import Talk, attempt_event, metrics_event, new_id, problem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import older, selected
from sqlalchemy import func, select, text

from ddphub.server import event_log, points
from ddphub.server.database import Database
from ddphub.server.incoming_events import check_batch
from ddphub.server.tables import Model, Points, Project, Series


def series_of(talk, **query):
    return {one["name"]: one for one in talk.get("/series", params=query)["results"]}


def lines_of(talk, name="loss", **query):
    return talk.get("/chart", params={"name": name, **query})["lines"]


def points_of(talk, name="loss", **query):
    return [
        (line["attempt"], line["rank"], x, y)
        for line in lines_of(talk, name, **query)
        for x, y in zip(line["x"], line["y"], strict=True)
    ]


ALL = {"show": "ranks", "ranks": "0-9"}


def test_a_batch_of_known_and_new_events_adds_the_new_ones(talk):
    events = [metrics_event(talk.attempt_id, seq, rank=rank) for seq in range(4) for rank in range(3)]
    talk.accepted(*events[:7])
    for batch in (events[:7], events[5:9], events[3:5] + events[9:], events):
        talk.accepted(*batch, batch[0])
    assert points_of(talk, **ALL) == [(1, rank, seq, 1 / (seq + 1)) for rank in range(3) for seq in range(4)]
    assert series_of(talk)["loss"]["count"] == 12


def test_a_refused_batch_adds_nothing(talk):
    talk.accepted(metrics_event(talk.attempt_id, 0))
    batch = [metrics_event(talk.attempt_id, 1), metrics_event(talk.attempt_id, 0, values={"loss": 9.0})]
    problem(talk.events(*batch), 422)
    assert points_of(talk) == [(1, 0, 0, 1.0)]


def test_the_same_batches_from_many_threads_are_added_once(talk):
    batches = [
        [metrics_event(talk.attempt_id, seq, rank=seq % 3) for seq in range(first, first + 60)]
        for first in range(0, 180, 30)
    ]

    def send(turn):
        client = talk.hub.client()
        for batch in batches[turn:] + batches[:turn]:
            assert client.post(talk.url("/events"), json=batch).status_code == 200

    threads = [threading.Thread(target=send, args=(turn,)) for turn in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(x for _, _, x, _ in points_of(talk, **ALL)) == list(range(210))


def test_a_kill_between_two_batches_loses_and_doubles_nothing(start_hub):
    hub = start_hub()
    talk = Talk(hub)
    for seq in range(40):
        talk.accepted(metrics_event(talk.attempt_id, seq))
    hub.kill()
    hub.restart()
    for seq in range(30, 50):
        talk.accepted(metrics_event(talk.attempt_id, seq))
    assert [x for _, _, x, _ in points_of(talk)] == list(range(50))


def test_least_greatest_and_latest_are_of_rank_0_and_finite(talk):
    def send(seq, value, rank=0):
        talk.accepted(metrics_event(talk.attempt_id, seq, rank=rank, values={"loss": value}))
        return [series_of(talk)["loss"][name] for name in ("count", "least", "greatest", "latest")]

    assert send(5, "NaN") == [1, None, None, None]
    assert send(0, 99.0, rank=1) == [2, None, None, None]
    assert send(6, 2.5) == [3, 2.5, 2.5, 2.5]
    assert send(8, True) == [4, 1.0, 2.5, 1.0]
    # Older by its own clock, as what a spool file brings late.
    assert send(7, 4) == [5, 1.0, 4.0, 1.0]
    assert send(9, "-Infinity") == [6, 1.0, 4.0, 1.0]
    late = metrics_event(talk.attempt_id, 3, values={"loss": 3.0})
    talk.accepted(metrics_event(talk.attempt_id, 10, values={"loss": 2.0}), late)
    assert series_of(talk)["loss"]["latest"] == 2.0


def test_metrics_of_hub_v1_clients_are_series(v1):
    v1.metrics({"0": {"train/loss": 2.0}, "1": {"train/loss": 1.5}})
    v1.metrics({"1": {"train/loss": 1.5}, "2": '{"train/loss": NaN}'})
    assert points_of(v1, "train/loss") == [(1, 0, 0, 2.0), (1, 0, 1, 1.5), (1, 0, 2, None)]
    assert points_of(v1, "train/loss", x="epoch") == points_of(v1, "train/loss")
    assert series_of(v1)["train/loss"] == {
        "name": "train/loss",
        "count": 3,
        "least": 1.5,
        "greatest": 2.0,
        "latest": 1.5,
    }


def test_series_are_listed_by_name_and_in_pages(talk):
    names = ["b", "a/ä", "q\"'%/?", "b ", "B", "a"]
    assert talk.get("/series") == {"results": [], "next": None}
    talk.accepted(metrics_event(talk.attempt_id, 0, values=dict.fromkeys(names, 1.0)))
    seen, after = [], ""
    while after is not None:
        page = talk.get("/series", params={"after": after, "limit": 4})
        seen += [one["name"] for one in page["results"]]
        after = page["next"]
    assert seen == sorted(names)
    assert [points_of(talk, name) for name in names] == [[(1, 0, 0, 1.0)]] * 6


def test_a_list_that_did_not_change_is_not_sent_again(talk):
    talk.accepted(metrics_event(talk.attempt_id, 0))
    etag = talk.http.get(talk.url("/series")).headers["etag"]
    again = talk.http.get(talk.url("/series"), headers={"if-none-match": etag})
    assert (again.status_code, again.content) == (304, b"")
    talk.accepted(metrics_event(talk.attempt_id, 1))
    assert talk.http.get(talk.url("/series"), headers={"if-none-match": etag}).status_code == 200


def test_series_and_charts_need_a_key_or_a_signed_in_browser(talk, browser):
    talk.accepted(metrics_event(talk.attempt_id, 0))
    for path in ("/series", "/chart?name=loss"):
        assert browser.get(talk.url(path)).json() == talk.http.get(talk.url(path)).json()
        problem(requests.get(talk.url(path)), 401)


def test_the_points_of_a_deleted_model_are_gone(start_hub):
    hub = start_hub()
    gone, kept = Talk(hub), Talk(hub)
    for talk in (gone, kept):
        talk.accepted(*[metrics_event(talk.attempt_id, seq, rank=seq % 2) for seq in range(10)])
        assert len(points_of(talk, **ALL)) == 10
    assert gone.http.delete(gone.url("?hard=true")).status_code == 200
    problem(gone.http.get(gone.url("/chart?name=loss")), 404)
    problem(gone.http.get(gone.url("/series")), 404)
    assert selected(hub.database, "SELECT sum(count) FROM points") == [(10,)]
    assert selected(hub.database, "SELECT count(*) FROM series") == [(1,)]
    # The database gives the deleted rows' numbers again.
    after = Talk(hub)
    after.accepted(metrics_event(after.attempt_id, 0))
    assert points_of(after) == [(1, 0, 0, 1.0)]
    assert len(points_of(kept, **ALL)) == 10


def test_a_batch_with_more_names_than_a_query_takes_is_stored(talk):
    values = {f"m{index}": index for index in range(40 * 1000)}
    names = iter(values)
    events = [
        metrics_event(talk.attempt_id, seq, values={name: values[name] for name in itertools.islice(names, 1000)})
        for seq in range(40)
    ]
    talk.accepted(*events)
    assert points_of(talk, "m39999") == [(1, 0, 39, 39999.0)]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A database without a hub around it."""
    opened = Database(tmp_path_factory.mktemp("series") / "hub.db")
    with opened.write() as session:
        session.add(Project(id=1, public_id="p", name="p", created_at=1.0))
    yield opened
    opened.close()


def add_model(database):
    with database.write() as session:
        model = Model(public_id=new_id()[:20], project_ref=1, run_id=None, name="n", request="{}", created_at=1.0)
        session.add(model)
        session.flush()
        return model.id


def store(database, model_id, *events):
    with database.write() as session:
        event_log.store(session, session.get_one(Model, model_id), check_batch(list(events)), len(events), 1.0)


def stored(database, model_id, rank0=True, after=0):
    with database.read() as session:
        number = session.scalar(select(Series.id).where(Series.model_ref == model_id))
        found = list(points.read(session, number, rank0=rank0, after=after))
    return np.concatenate([np.empty(0, points.POINT), *found])


def rows(database, model_id):
    """How many points each row has, in order."""
    with database.read() as session:
        of = select(Series.id).where(Series.model_ref == model_id).scalar_subquery()
        found = session.execute(
            select(Points.first, Points.count, func.length(Points.data))
            .where(Points.series_ref == of, Points.rank0)
            .order_by(Points.first)
        ).all()
    assert all(length == count * points.POINT.itemsize for _, count, length in found)
    # Each begins where the one before ended.
    assert [first for first, _, _ in found] == [0, *itertools.accumulate(count for _, count, _ in found)][:-1]
    return [count for _, count, _ in found]


@given(st.lists(st.sampled_from([1, 1, 1, 2, 5, 31, 32, 33, 200, 300, 1000]), max_size=60), st.data())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_points_are_read_in_order_from_anywhere_whatever_was_merged(database, sizes, data):
    model_id, attempt_id, steps = add_model(database), new_id(), itertools.count()
    for size in sizes:
        store(database, model_id, *[metrics_event(attempt_id, step) for step in itertools.islice(steps, size)])
    count = sum(sizes)
    if not count:
        return
    assert len(rows(database, model_id)) <= 60
    after = data.draw(st.integers(0, count))
    assert stored(database, model_id, after=after)["step"].tolist() == list(range(after, count))


def test_many_small_batches_make_few_rows_and_are_rewritten_seldom(database, monkeypatch):
    """One rank that reports each step by itself."""
    model_id, attempt_id, written = add_model(database), new_id(), []
    original = points._merge

    def counted(session, series_ref, rank0, first, count):
        before = session.scalar(select(func.count()).select_from(Points))
        original(session, series_ref, rank0, first, count)
        if session.scalar(select(func.count()).select_from(Points)) != before:
            newest = select(Points.count).where(Points.series_ref == series_ref).order_by(Points.first.desc()).limit(1)
            written.append(session.scalar(newest))

    monkeypatch.setattr(points, "_merge", counted)
    with database.write() as session:
        model = session.get_one(Model, model_id)
        for step in range(600):
            points.append(session, model, check_batch([metrics_event(attempt_id, step)]), {attempt_id: 1})
    assert rows(database, model_id)[:2] == [256, 256]
    assert len(rows(database, model_id)) <= 2 + 2 + 24
    # Each point is written when it arrives, and once for each of the sizes 32 and 256.
    assert sum(written) <= 2 * 600
    assert stored(database, model_id)["value"].tolist() == [1 / (step + 1) for step in range(600)]


def test_large_batches_are_written_once(database):
    """What arrives a thousand at a time is not worth writing again."""
    model_id, attempt_id = add_model(database), new_id()
    for start in range(0, 20_000, 1000):
        store(database, model_id, *(metrics_event(attempt_id, start + index) for index in range(1000)))
    assert rows(database, model_id) == [1000] * 20


def test_points_of_events_with_different_names_stay_in_their_order(database):
    model_id, attempt_id = add_model(database), new_id()
    shapes = ({"loss": 1.0}, {"loss": 2.0, "lr": 0.1}, {"lr": 0.2, "loss": "NaN"}, {"loss": True, "n": 3})
    batch = [metrics_event(attempt_id, seq, values=shapes[seq % 4]) for seq in range(40)]
    store(database, model_id, *batch)
    assert stored(database, model_id)["step"].tolist() == list(range(40))
    expected = [1.0, 2.0, math.nan, 1.0] * 10
    assert np.array_equal(stored(database, model_id)["value"], expected, equal_nan=True)


def test_a_point_holds_all_that_a_chart_needs(database):
    model_id, one, two = add_model(database), new_id(), new_id()
    big = 2**63 - 1
    store(database, model_id, metrics_event(one, 0, epoch=7, step=-3, time=1.5, values={"loss": 2**40 + 1}))
    store(database, model_id, metrics_event(two, big, rank=big, step=big, time=2, values={"loss": "Infinity"}))
    (first,), (other,) = stored(database, model_id), stored(database, model_id, rank0=False)
    assert first.tolist() == (1, 0, -3, 7.0, 1.5, 2.0**40 + 1)
    assert other.tolist()[:3] == (2, big, big)
    assert math.isnan(other["epoch"])
    assert other["value"] == math.inf


def test_events_of_an_older_hub_are_in_the_charts_once_it_is_brought_up_to_date(tmp_path):
    data = tmp_path / "data"
    total, attempt_id = 40_000, "a" * 32
    with older(data, "0003") as connection:
        connection.execute(text("INSERT INTO projects VALUES (1, 'p', 'old', 1.0)"))
        for number, name in enumerate(("m", "other"), start=1):
            connection.execute(
                text(
                    "INSERT INTO models (id, public_id, project_ref, run_id, name, request, created_at, events)"
                    f" VALUES ({number}, '{name}', 1, '{name}', 'n', '{{}}', 1.0, 0)"
                )
            )
            connection.execute(
                text(
                    "INSERT INTO attempts (id, model_ref, attempt_id, number, first_time)"
                    f" VALUES ({number}, {number}, '{attempt_id}', 1, 2.0)"
                )
            )
        insert = text(
            "INSERT INTO events (model_ref, attempt_ref, rank, seq, time, kind, body, fingerprint)"
            " VALUES (:model, :model, :rank, :seq, :time, :kind, :body, :digest)"
        )
        connection.execute(
            insert,
            [
                {
                    "model": 1 + (at % 40 == 39),
                    "rank": at % 2,
                    "seq": at,
                    "time": float(at),
                    "kind": "metrics" if at else "weather",
                    "body": json.dumps(
                        {
                            "time": float(at),
                            "kind": "metrics",
                            "step": at,
                            **({"epoch": at // 100} if at % 3 else {}),
                            "values": {"loss": at / 2, "odd": "NaN"} if at % 5 == 0 else {"loss": at / 2},
                        }
                    ),
                    "digest": b"x" * 32,
                }
                for at in range(total)
            ],
        )
    steps = [at for at in range(1, total) if at % 40 != 39]
    with HubProcess(data, api_key="k" * 42) as hub:
        talk = Talk(hub)
        talk.model_id, talk.attempt_id = "m", attempt_id
        found = series_of(talk)
        assert found["loss"] == {
            "name": "loss",
            "count": len(steps),
            "least": 1.0,
            "greatest": (total - 2) / 2,
            "latest": (total - 2) / 2,
        }
        assert (found["odd"]["count"], found["odd"]["latest"]) == (len([at for at in steps if at % 5 == 0]), None)
        for window in (0, 20_000, total - 300):
            shown = points_of(talk, **ALL, **{"from": window, "to": window + 200})
            expected = [(1, at % 2, at, at / 2) for at in steps if window <= at <= window + 200]
            assert [point for point in shown if window <= point[2] <= window + 200] == sorted(expected)
        # It goes on from there.
        talk.accepted(attempt_event(talk.attempt_id, total, "started"), metrics_event(talk.attempt_id, total + 2))
        assert series_of(talk)["loss"]["count"] == len(steps) + 1
        assert points_of(talk)[-1][2] == total + 2
        talk.model_id = "other"
        assert series_of(talk)["loss"]["count"] == total // 40

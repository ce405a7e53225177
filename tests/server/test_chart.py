"""Charts: what a page draws of a metric, in few points and without leaving anything out."""

import itertools
import json
import math
import secrets
import threading

import pytest
from hub_talk import Talk, attempt_event, metrics_event, new_id, problem
from hypothesis import given, settings
from hypothesis import strategies as st

from ddphub.events import encode_scalar
from ddphub.server import event_log
from ddphub.server.chart_lines import ChartQuery
from ddphub.server.charts import Charts
from ddphub.server.database import Database
from ddphub.server.incoming_events import check_batch
from ddphub.server.tables import Model, Project


def chart(talk, name="loss", **query):
    return talk.get("/chart", params={"name": name, **query})


def drawn(talk, **query):
    """(attempt, rank, x, y) of each line."""
    return [(line["attempt"], line["rank"], line["x"], line["y"]) for line in chart(talk, **query)["lines"]]


def send(talk, values, rank=0, first=0, attempt_id=None, **fields):
    """One event for each value, at rising steps."""
    talk.accepted(
        *[
            metrics_event(attempt_id or talk.attempt_id, first + at, rank=rank, values={"loss": value}, **fields)
            for at, value in enumerate(values)
        ]
    )


def test_one_rank_chosen_ranks_and_the_band_over_all(talk):
    for rank in range(3):
        send(talk, [rank, 10 * rank], rank=rank)
    assert drawn(talk) == [(1, 0, [0, 1], [0, 0])]
    assert drawn(talk, show="ranks", ranks="2,0-1") == [(1, rank, [0, 1], [rank, 10 * rank]) for rank in range(3)]
    assert drawn(talk, show="ranks", ranks="1,7") == [(1, 1, [0, 1], [1, 10])]
    assert chart(talk, show="band") == {
        "name": "loss",
        "show": "band",
        "x": "step",
        "range": [0, 1],
        "points": 6,
        "non_finite": 0,
        "lines": [
            {"attempt": 1, "rank": None, "older": False, "x": [0, 1], "y": [1, 10], "low": [0, 0], "high": [2, 20]}
        ],
    }


def test_x_is_the_step_the_epoch_or_the_time(talk):
    talk.accepted(
        metrics_event(talk.attempt_id, 0, epoch=None, values={"loss": 5}),
        metrics_event(talk.attempt_id, 1, epoch=0, values={"loss": 4}),
        metrics_event(talk.attempt_id, 2, epoch=3, values={"loss": 3}),
    )
    assert drawn(talk, x="epoch") == [(1, 0, [0, 3], [4, 3])]
    assert drawn(talk, x="time") == [(1, 0, [1_700_000_000.0, 1_700_000_001.0, 1_700_000_002.0], [5, 4, 3])]
    send(talk, [1], first=7, rank=1)
    assert chart(talk, show="ranks", ranks="1", x="epoch") == {
        "name": "loss",
        "show": "ranks",
        "x": "epoch",
        "points": 4,
        "range": None,
        "non_finite": 0,
        "lines": [],
    }


def test_where_attempts_overlap_the_newest_wins_and_the_older_can_be_shown(talk):
    second = new_id()
    send(talk, [1, 2, 3, 4], rank=0)
    send(talk, [5, 6, 7, 8], rank=1)
    # The restarted job has one rank: what the other one did after that step is no longer true.
    send(talk, [9, 9], first=2, attempt_id=second, time=1_700_001_000.0)
    assert drawn(talk) == [(1, 0, [0, 1], [1, 2]), (2, 0, [2, 3], [9, 9])]
    assert chart(talk, show="band")["range"] == [0, 3]
    lines = chart(talk, older="true", show="band")["lines"]
    assert [(line["attempt"], line["older"], line["x"], line["high"]) for line in lines] == [
        (1, False, [0, 1], [5, 6]),
        (1, True, [2, 3], [7, 8]),
        (2, False, [2, 3], [9, 9]),
    ]
    # By time they do not overlap.
    assert [line[2] for line in drawn(talk, x="time")] == [[1.7e9 + at for at in range(4)], [1_700_001_000.0] * 2]


def test_the_newest_attempt_is_the_one_that_started_last_however_late_it_is_seen(talk):
    """An offline attempt comes last and was first."""
    offline = new_id()
    talk.accepted(attempt_event(talk.attempt_id, 0, "started", time=1_700_000_500.0))
    send(talk, [1, 1], first=5)
    send(talk, [2] * 7, attempt_id=offline)
    etag = talk.http.get(talk.url("/chart?name=loss")).headers["etag"]
    talk.accepted(attempt_event(offline, 100, "started", time=1_700_000_400.0))
    assert drawn(talk) == [(2, 0, [0, 1, 2, 3, 4], [2] * 5), (1, 0, [5, 6], [1, 1])]
    # It starts later than was known: nothing arrived, and yet another chart.
    talk.accepted(attempt_event(offline, 101, "started", time=1_700_000_300.0))
    third = new_id()
    talk.accepted(attempt_event(third, 0, "started", time=1_700_000_900.0))
    assert talk.http.get(talk.url("/chart?name=loss"), headers={"if-none-match": etag}).status_code == 200


def test_values_that_are_not_finite_are_counted_gaps(talk):
    send(talk, [1, "NaN", 3, "Infinity"])
    send(talk, ["NaN", "-Infinity", 5, 6], rank=1)
    answer = chart(talk)
    assert (answer["lines"][0]["y"], answer["non_finite"]) == ([1, None, 3, None], 2)
    answer = chart(talk, show="band")
    assert answer["non_finite"] == 4
    assert [answer["lines"][0][name] for name in ("y", "low", "high")] == [
        [1, None, 4, 6],
        [1, None, 3, 6],
        [1, None, 5, 6],
    ]
    assert chart(talk, **{"from": 1.5, "to": 2})["non_finite"] == 0


def test_numbers_at_the_end_of_what_a_float_holds(talk):
    """The sum of the ranks is no float, and x has no room to the right."""
    big = 1.7e308
    for rank in range(2):
        talk.accepted(metrics_event(talk.attempt_id, 0, rank=rank, step=2**63 - 1, values={"loss": big}))
        talk.accepted(metrics_event(talk.attempt_id, 1, rank=rank, step=-(2**63), values={"loss": -big}))
    assert chart(talk, show="band", points=10)["lines"][0]["y"] == [-big, big]
    assert chart(talk, show="band", **{"from": -1e308, "to": 1e308})["range"] == [-(2**63), 2**63]
    assert chart(talk, **{"from": 5e-324, "to": 1e-323})["lines"][0]["y"] == [-big, big]


def test_many_points_become_few_with_every_spike(talk):
    values = [math.sin(at / 50) for at in range(5000)]
    values[1234], values[4321] = 100.0, -100.0
    for first in range(0, 5000, 1000):
        send(talk, values[first : first + 1000], first=first)
        send(talk, values[first : first + 1000], first=first, rank=1)
    send(talk, [1.0] * 20, first=5000, rank=2)
    (_, _, x, y), *_ = drawn(talk, points=50)
    assert len(x) <= 2 * 51 + 2
    assert (x[0], x[-1]) == (0, 4999)
    assert all(values[at] == value for at, value in zip(x, y, strict=True))
    assert {(1234, 100.0), (4321, -100.0)} <= set(zip(x, y, strict=True))
    lines = chart(talk, points=50, show="ranks", ranks="0-2")["lines"]
    # Where there are few points they stay as they are.
    assert [len(line["x"]) < 110 for line in lines] == [True] * 3
    assert lines[2]["x"] == list(range(5000, 5020))
    (band,) = chart(talk, points=50, show="band")["lines"]
    assert (min(band["low"]), max(band["high"])) == (-100, 100)
    assert 25 <= len(band["x"]) <= 51
    window = chart(talk, points=50, **{"from": 1200, "to": 1249})
    assert window["lines"][0]["x"] == list(range(1199, 1251))
    assert window["range"] == [0, 4999]
    zoomed = chart(talk, points=50, **{"from": 1000, "to": 2000})["lines"][0]
    assert 100.0 in zoomed["y"]
    assert (zoomed["x"][0], zoomed["x"][-1]) == (999, 2001)


def test_a_band_over_time_has_every_rank_in_each_bucket(talk):
    """Ranks log at slightly different moments; a bucket that held some of them would show another mean."""
    for rank in range(4):
        talk.accepted(
            *[
                metrics_event(talk.attempt_id, at, rank=rank, time=2.0**20 + at + rank / 5, values={"loss": rank})
                for at in range(64)
            ]
        )
    (band,) = chart(talk, show="band", x="time", points=5000)["lines"]
    assert len(band["x"]) >= 30
    assert set(zip(band["low"], band["y"], band["high"], strict=True)) == {(0, 1.5, 3)}
    for start, end in ((8, 24), (8.1, 24.1), (8.3, 24.5), (62.9, 90)):
        (part,) = chart(talk, show="band", x="time", **{"from": 2.0**20 + start, "to": 2.0**20 + end})["lines"]
        assert set(zip(part["low"], part["y"], part["high"], strict=True)) == {(0, 1.5, 3)}
        assert start - 3 <= part["x"][0] - 2.0**20 <= start + 1
        assert min(end, 63) - 1 <= part["x"][-1] - 2.0**20 <= end + 3


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("", "name"),
        ("name=", "name"),
        ("name=" + "x" * 257, "name"),
        ("name=loss&show=all", "show"),
        ("name=loss&x=rank", "x"),
        ("name=loss&points=9", "points"),
        ("name=loss&points=5001", "points"),
        ("name=loss&points=many", "points"),
        ("name=loss&from=a", "from"),
        ("name=loss&from=nan", "from"),
        ("name=loss&to=inf", "to"),
        ("name=loss&from=2&to=1", "from"),
        ("name=loss&older=perhaps", "older"),
        ("name=loss&show=ranks", "ranks"),
        ("name=loss&show=ranks&ranks=,", "ranks"),
        ("name=loss&show=ranks&ranks=-1", "ranks"),
        ("name=loss&show=ranks&ranks=3-1", "ranks"),
        ("name=loss&show=ranks&ranks=1;2", "ranks"),
        ("name=loss&show=ranks&ranks=٣", "ranks"),
        ("name=loss&show=ranks&ranks=0-64", "ranks"),
        ("name=loss&show=ranks&ranks=0-63,99", "ranks"),
        ("name=loss&show=ranks&ranks=0-9223372036854775807", "ranks"),
        ("name=loss&show=ranks&ranks=9999999999999999999", "ranks"),
    ],
)
def test_a_wrong_query_is_refused_by_the_name_of_its_field(talk, query, field):
    talk.accepted(metrics_event(talk.attempt_id, 0))
    detail = problem(talk.http.get(talk.url(f"/chart?{query}")), 422)["detail"]
    assert field in detail.partition(": ")[0].split(".")


def test_the_most_ranks_at_once(talk):
    send(talk, [1], rank=9223372036854775807)
    assert drawn(talk, show="ranks", ranks="9223372036854775807,0-9, 10-62") == [(1, 9223372036854775807, [0], [1])]


def test_what_the_hub_does_not_have_is_404(talk):
    talk.accepted(metrics_event(talk.attempt_id, 0))
    for name in ("Loss", "loss ", "%"):
        problem(talk.http.get(talk.url("/chart"), params={"name": name}), 404)
    problem(talk.http.get(f"{talk.hub.url}/v1/models/none/chart?name=loss"), 404)
    problem(talk.http.get(f"{talk.hub.url}/v1/models/none/series"), 404)


def test_a_chart_that_did_not_change_is_not_sent_again(talk):
    def ask(etag="", **query):
        return talk.http.get(talk.url("/chart"), params={"name": "loss", **query}, headers={"if-none-match": etag})

    talk.accepted(metrics_event(talk.attempt_id, 0), metrics_event(talk.attempt_id, 1, values={"other": 1}))
    first = ask()
    assert first.headers["cache-control"] == "private, no-cache"
    assert (ask(first.headers["etag"]).status_code, ask(first.headers["etag"]).content) == (304, b"")
    assert ask(f'"x", W/{first.headers["etag"]}').status_code == 304
    others = [ask(**query).headers["etag"] for query in ({"x": "time"}, {"points": 20}, {"from": 0}, {"show": "band"})]
    assert len({first.headers["etag"], *others}) == 5
    talk.accepted(metrics_event(talk.attempt_id, 2, values={"other": 1}))
    assert ask(first.headers["etag"]).status_code == 304
    talk.accepted(metrics_event(talk.attempt_id, 3))
    assert ask(first.headers["etag"]).status_code == 200


def test_a_growing_chart_is_the_same_to_many_pages_and_to_a_hub_that_starts_again(start_hub):
    hub = start_hub()
    talk = Talk(hub)
    queries = [{"show": show, "ranks": "0-2", "points": 50} for show in ("rank0", "ranks", "band")]
    seen, stop = [], threading.Event()

    def look(client):
        while not stop.is_set():
            for query in queries:
                answer = client.get(talk.url("/chart"), params={"name": "loss", **query})
                assert answer.status_code == 200
                seen.append(answer.json()["data"]["points"])

    send(talk, [0.5])
    threads = [threading.Thread(target=look, args=(hub.client(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for first in range(1, 16):
        for rank in range(3):
            send(talk, [secrets.randbelow(1000) for _ in range(10)], first=first * 10, rank=rank)
    stop.set()
    for thread in threads:
        thread.join()
    warm = [chart(talk, **query) for query in queries]
    assert max(seen) <= warm[0]["points"] == 451
    hub.restart()
    assert [chart(talk, **query) for query in queries] == warm


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A database without a hub around it."""
    opened = Database(tmp_path_factory.mktemp("chart") / "hub.db")
    with opened.write() as session:
        session.add(Project(id=1, public_id="p", name="p", created_at=1.0))
    yield opened
    opened.close()


@st.composite
def histories(draw):
    """Batches of events, and a query to ask after each."""
    point = st.fixed_dictionaries(
        {
            "attempt": st.integers(0, 2),
            "rank": st.integers(0, 3),
            "step": st.integers(0, 12),
            "epoch": st.none() | st.integers(0, 3),
            "time": st.integers(0, 40).map(float),
            "value": st.floats(-10, 10) | st.sampled_from([math.nan, math.inf, -math.inf, 1, True]),
        }
    )
    query = st.builds(
        ChartQuery,
        name=st.just("loss"),
        show=st.sampled_from(["rank0", "ranks", "band"]),
        ranks=st.sets(st.integers(0, 3), min_size=1).map(sorted).map(tuple),
        x=st.sampled_from(["step", "epoch", "time"]),
        start=st.none() | st.integers(-1, 8).map(float),
        end=st.none() | st.integers(8, 41).map(float),
        older=st.booleans(),
    )
    return draw(st.lists(st.tuples(st.lists(point, min_size=1, max_size=25), query), min_size=1, max_size=4))


def expected(points, query):
    """The same chart, computed by looking at each point."""
    begun = {}
    for point in points:
        begun[point["attempt"]] = min(point["time"], begun.get(point["attempt"], math.inf))
    numbers = {attempt: number for number, attempt in enumerate(dict.fromkeys(p["attempt"] for p in points), start=1)}
    order = sorted(begun, key=lambda attempt: (begun[attempt], numbers[attempt]))
    chosen = {"rank0": {0}, "ranks": set(query.ranks), "band": {0, 1, 2, 3}}[query.show]
    read = {rank for rank in range(4) if rank in chosen or (rank and chosen - {0})}
    points = [(p["attempt"], p["rank"], p[query.x], float(p["value"])) for p in points if p[query.x] is not None]
    lines, lost, ends = [], 0, []
    low = -math.inf if query.start is None else query.start
    high = math.inf if query.end is None else query.end
    for place, attempt in enumerate(order):
        cut = min((x for a, r, x, _ in points if a in order[place + 1 :] and r in read), default=math.inf)
        for rank in sorted(chosen) if query.show != "band" else [None]:
            mine = [(x, y) for a, r, x, y in points if a == attempt and (r == rank or (rank is None and r in chosen))]
            for older in (False, True) if query.older else (False,):
                part = sorted(((x, y) for x, y in mine if (x >= cut) == older), key=lambda pair: pair[0])
                ends += [x for x, _ in part]
                lost += sum(low <= x <= high and not math.isfinite(y) for x, y in part)
                if rank is None:
                    groups = itertools.groupby(part, key=lambda pair: pair[0])
                    part = [(x, [y for _, y in group]) for x, group in groups]
                inside = [at for at, (x, _) in enumerate(part) if low <= x <= high]
                first = inside[0] if inside else next((at for at, (x, _) in enumerate(part) if x > high), len(part))
                last = inside[-1] if inside else first - 1
                part = part[max(0, first - 1) : last + 2]
                if part:
                    lines.append((numbers[attempt], rank, older, [x for x, _ in part], [y for _, y in part]))
    return lines, lost, [min(ends), max(ends)] if ends else None


def finite(values):
    return [value for value in values if math.isfinite(value)]


@given(histories())
@settings(max_examples=80, deadline=None)
def test_every_chart_is_what_its_points_say(database, history):
    """With a warm cache, with none, and with one that has room for nothing."""
    warm, roomless = Charts(), Charts(series_bytes=0)
    with database.write() as session:
        model = Model(public_id=new_id()[:20], project_ref=1, run_id=None, name="n", request="{}", created_at=1.0)
        session.add(model)
    attempt_ids, points = [new_id() for _ in range(3)], []
    for batch, query in history:
        events = [
            metrics_event(
                attempt_ids[one["attempt"]],
                len(points) + at,
                **{name: one[name] for name in ("rank", "step", "epoch", "time")},
                values={"loss": encode_scalar(one["value"])},
            )
            for at, one in enumerate(batch)
        ]
        points += batch
        with database.write() as session:
            event_log.store(session, session.get_one(Model, model.id), check_batch(events), len(events), 1.0)
        with database.read() as session:
            bodies = {charts.draw(session, charts.find(session, model, query)) for charts in (warm, roomless, Charts())}
        (body,) = bodies
        answer = json.loads(body)["data"]
        lines, lost, ends = expected(points, query)
        assert (answer["points"], answer["non_finite"], answer["range"]) == (len(points), lost, ends)
        if query.show == "band" and query.x == "time":
            continue
        found = [(one["attempt"], one["rank"], one["older"], one["x"]) for one in answer["lines"]]
        assert found == [line[:4] for line in lines]
        for one, (*_, values) in zip(answer["lines"], lines, strict=True):
            if query.show != "band":
                assert one["y"] == [value if math.isfinite(value) else None for value in values]
                continue
            assert one["low"] == [min(finite(group), default=None) for group in values]
            assert one["high"] == [max(finite(group), default=None) for group in values]
            means = [math.fsum(finite(group)) / len(finite(group)) if finite(group) else None for group in values]
            assert one["y"] == [None if mean is None else pytest.approx(mean, abs=1e-9) for mean in means]


def test_a_spark_is_rank_0_in_few_numbers(database):
    charts, attempt_id = Charts(), new_id()
    with database.write() as session:
        model = Model(public_id=new_id()[:20], project_ref=1, run_id=None, name="n", request="{}", created_at=1.0)
        session.add(model)
        session.flush()
        for rank in range(2):
            values = [10.0 * rank + at // 10 for at in range(100)] + ["NaN"]
            events = [metrics_event(attempt_id, at, rank=rank, values={"loss": y}) for at, y in enumerate(values)]
            event_log.store(session, model, check_batch(events), len(events), 1.0)
    with database.read() as session:
        assert charts.spark(session, model, "loss", points=10) == list(range(10))
        assert charts.spark(session, model, "loss", points=10) == list(range(10))
        assert charts.spark(session, model, "loss", points=200) == [at // 10 for at in range(100)]
        assert charts.spark(session, model, "none") == []

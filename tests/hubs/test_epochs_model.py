"""Any run against a model of dicts: whatever is logged, refused for a while or cut by a crash, the hub has each epoch.

Events are made at random, delivered in random pieces, over answers of 503, by processes that end at random between two
pieces and whose successors recall what the journal says was delivered.
"""

import json
import math
from contextlib import ExitStack, closing

import pytest
from hub_v1_server import KEY, HubV1Server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from platform_server import PlatformServer
from run_events import Attempt, registration

from ddphub.errors import HubUnavailable
from ddphub.hubs.ultralytics_hub import HubV1Client
from ddphub.hubs.ultralytics_platform import PlatformClient

NAMES = ["loss", "rank", "val/loss", "metrics/map", "fitness", "final/val/loss"]

values = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0.0, 0.5, 1.0, "NaN"]), min_size=1, max_size=3)
logged = st.tuples(st.just("metrics"), st.integers(0, 3), st.integers(0, 1), values)
others = st.sampled_from([("log",), ("rank",), ("start",), ("console",), ("system",)])
runs = st.lists(st.one_of(logged, logged, others), max_size=12)
pieces = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2), st.booleans()), min_size=12, max_size=12)
"""(events delivered together, answers of 503 before that, whether the process ends then)."""

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def events_of(run):
    """(attempts, events) of a run that ends well."""
    attempts = [Attempt()]
    made = [attempts[0].state("started")]
    for kind, *fields in run:
        if kind == "metrics":
            epoch, rank, named = fields
            made.append(attempts[-1].metrics(epoch, named, rank))
        elif kind == "log":
            made.append(attempts[-1].log("x"))
        elif kind == "rank":
            made.append(attempts[-1].event("rank"))
        elif kind == "console":
            made.append(attempts[-1].event("console", stream="stdout", lines=["x"], left_out=0))
        elif kind == "system":
            made.append(attempts[-1].metrics(None, {"system/cpu": 1.0}))
        else:
            attempts.append(Attempt())
            made.append(attempts[-1].state("started"))
    return attempts, [*made, attempts[-1].state("finished")]


def deliver(server, make, attempts, events, pieces):
    """As Delivery does; the model's id."""
    with ExitStack() as clients:
        client = clients.enter_context(closing(make()))
        model_id = client.register(registration(*attempts))
        delivered = []
        for size, faults, ends in [*pieces, (len(events), 0, False)]:
            piece = events[len(delivered) : len(delivered) + size]
            if not piece:
                break
            server.fail(503, times=faults)
            for _ in range(faults + 1):
                try:
                    answer = client.send_events(model_id, piece)
                    assert answer.accepted + answer.duplicates == len(piece)
                    break
                except HubUnavailable:
                    pass
            else:
                pytest.fail("it did not arrive")
            server.heal()
            delivered += piece
            if ends:
                memory = dict(client.memory)
                client = clients.enter_context(closing(make()))
                assert client.register(registration(*attempts, known=model_id, memory=memory)) == model_id
                client.recall(delivered)
        return model_id


def expected(events):
    """Each epoch's values as they are in the end; None is NaN."""
    epochs = {}
    for event in events:
        if event["kind"] == "metrics" and event["rank"] == 0 and event["epoch"] is not None:
            named = {name: None if value == "NaN" else value for name, value in event["values"].items()}
            epochs.setdefault(event["epoch"], {}).update(named)
    return epochs


@FEW
@given(run=runs, pieces=pieces)
def test_hub_v1_has_each_epoch_whole(run, pieces):
    attempts, events = events_of(run)
    with HubV1Server() as server:
        model_id = deliver(server, lambda: HubV1Client(server.url, KEY), attempts, events, pieces)
        assert len(server.created) == 1
        got = {
            int(epoch): {name: None if math.isnan(value) else value for name, value in json.loads(text).items()}
            for epoch, text in server.metrics.get(model_id, {}).items()
        }
    wanted = {}
    for epoch, named in expected(events).items():
        plain = {name: value for name, value in named.items() if not name.startswith("final/")}
        finals = {name.removeprefix("final/"): value for name, value in named.items() if name not in plain}
        wanted[epoch] = finals | plain
    assert got == wanted


@FEW
@given(run=runs, pieces=pieces)
def test_the_platform_has_each_epoch_whole_and_once_if_it_was_logged_in_order(run, pieces):
    attempts, events = events_of(run)
    with PlatformServer() as server:
        deliver(server, lambda: PlatformClient(server.url, server.key), attempts, events, pieces)
        sent = server.data("epoch_end")
        names = server.names()
    assert names.count("training_started") == len(attempts)
    assert names.count("console_output") == sum(event["kind"] == "log" for event in events)
    assert names[-1] == "training_complete"
    wanted = {
        epoch: {name: value for name, value in named.items() if not name.startswith("final/")}
        for epoch, named in expected(events).items()
    }
    wanted = {epoch: named for epoch, named in wanted.items() if named}
    has_finals = any("final/val/loss" in named for named in expected(events).values())
    for epoch, named in wanted.items():
        ends = [
            {**data["metrics"], **({"fitness": data["fitness"]} if "fitness" in data else {})}
            for data in sent
            if data["epoch"] == epoch
        ]
        assert named in ends
        if not has_finals:
            assert ends[-1] == named
    if not has_finals:
        assert {data["epoch"] for data in sent} == set(wanted)
        numbers = [event["epoch"] for event in events if event.get("epoch") is not None and event["rank"] == 0]
        results = ("val/", "metrics/", "fitness")
        is_plain = not any(name.startswith(results) for named in wanted.values() for name in named)
        if is_plain and numbers == sorted(numbers) and len(attempts) == 1:
            assert [data["epoch"] for data in sent] == sorted(wanted)

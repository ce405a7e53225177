"""Delivery to hubs that cannot tell a repeat: what was delivered stays delivered, whatever is set aside or retried."""

import pytest
from hub_v1_server import KEY, HubV1Server
from platform_server import PlatformServer
from run_events import Attempt

from ddphub.checkpoints.staging import Slot, StagingArea
from ddphub.events import to_json
from ddphub.hubs.connect import connect
from ddphub.session.delivery import Delivery
from ddphub.session.folder import RunFolder, RunInfo
from ddphub.session.lines import LineWriter


class Run:
    """A run directory whose events this test writes; each delivery is another process's."""

    def __init__(self, place, hub, key):
        self.attempt = Attempt()
        self._hub, self._key = hub, key
        self._folder = RunFolder(place / "run")
        self._folder.create()
        self._info = RunInfo("run", "project", "name", hub, attempts=[self.attempt.id])
        self._info.save(self._folder.run_json)
        self._writer = LineWriter(self._folder.relay_file(self.attempt.id))

    def report(self, *events):
        for event in events:
            key = {"attempt_id": event.pop("attempt_id"), "rank": event.pop("rank"), "first": event.pop("seq")}
            self._writer.append([to_json({**key, "events": [event]})])

    def deliver(self, *, retry=False):
        client = connect(self._hub, self._key)
        staging = StagingArea(self._folder.staging)
        delivery = Delivery(folder=self._folder, info=self._info, staging=staging, client=client, hub=self._hub)
        assert delivery.acquire()
        if retry:
            delivery.retry_aside()
        delivery.register()
        delivery.send_events()
        delivery.release()
        client.close()


def refuse(server, what):
    """Makes the server refuse requests that say `what`; returns how to undo it."""
    take = server.answer
    server.answer = lambda request, body: (422, {"message": "no"}) if what in str(request.json) else take(request, body)
    return lambda: setattr(server, "answer", take)


@pytest.fixture
def platform():
    with PlatformServer() as server:
        yield server


def test_two_deliveries_send_each_event_once(platform, tmp_path):
    run = Run(tmp_path, f"platform+{platform.url}", platform.key)
    run.report(run.attempt.state("started"), run.attempt.metrics(0, {"loss": 1.0}))
    run.deliver()
    run.report(run.attempt.metrics(1, {"val/loss": 0.5}), run.attempt.state("finished"))
    run.deliver()
    run.deliver()
    assert platform.names() == ["training_started", "epoch_end", "epoch_end", "training_complete"]


def test_a_retry_sends_what_was_set_aside_and_nothing_else(platform, tmp_path):
    run = Run(tmp_path, f"platform+{platform.url}", platform.key)
    attempt = run.attempt
    run.report(attempt.state("started"), attempt.metrics(0, {"fitness": 1.0}), attempt.log("odd"), attempt.log("fine"))
    heal = refuse(platform, "odd")
    run.deliver()
    # Before an event is set aside the hub is asked for a sign of sanity.
    assert platform.names() == ["training_started", "epoch_end", "console_output", "training_progress"]
    heal()
    run.deliver(retry=True)
    assert platform.names()[4:] == ["console_output"]
    assert "odd" in platform.data("console_output")[-1]["content"]


def test_what_was_set_aside_is_not_recalled_as_if_it_had_been_delivered(tmp_path):
    """Or its epoch would be refused from then on, with all that comes for it."""
    with HubV1Server() as server:
        run = Run(tmp_path, f"hub-v1+{server.url}", KEY)
        run.report(run.attempt.metrics(0, {"loss": 1.0}), run.attempt.metrics(0, {"odd": 1.0}))
        refuse(server, "odd")
        run.deliver()
        run.report(run.attempt.metrics(0, {"accuracy": 0.5}))
        run.deliver()
        ((_, epochs),) = server.metrics.items()
        assert epochs == {"0": '{"loss": 1.0, "accuracy": 0.5}'}


@pytest.mark.parametrize("is_own", [True, False])
def test_the_end_of_an_attempt_waits_for_its_own_checkpoints_alone(is_own, platform, tmp_path):
    """A later attempt, whose rate limit keeps something waiting, would else hold up every event behind that end."""
    run = Run(tmp_path, f"platform+{platform.url}", platform.key)
    run.report(run.attempt.state("started"), run.attempt.metrics(0, {"val/loss": 1.0}), run.attempt.state("finished"))
    (tmp_path / "last.pt").write_bytes(b"x")
    attempt_id = run.attempt.id if is_own else Attempt().id
    StagingArea(tmp_path / "run" / "staging").stage(
        Slot(attempt_id, "epoch", 0, None, "last.pt"), tmp_path / "last.pt", {}
    )
    run.deliver()
    assert ("training_complete" in platform.names()) == (not is_own)

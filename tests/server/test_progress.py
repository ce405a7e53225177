"""States and ranks by a clock that the test moves: what is said of a run, and when; also what must not be said."""

import time

import pytest
from hub_talk import attempt_event, metrics_event, new_id, rank_event
from sqlalchemy import event as sqlalchemy_event

from ddphub.events import GONE
from ddphub.server import event_log, hub_v1, model_view, reasons
from ddphub.server.hub import Hub
from ddphub.server.incoming_events import check_batch
from ddphub.server.progress import note_heartbeat
from ddphub.server.settings import ServerSettings
from ddphub.server.states import Patience
from ddphub.server.tables import Attempt, Model, Project

MINUTE, HOUR = 60.0, 3600.0


class Training:
    """A run of some ranks that reports to a real database, in one transaction, at times that the test sets.

    Attributes:
        now: the hub's clock.
        off: by how much each rank's clock is wrong.
        step: of each rank.
    """

    def __init__(self, session, ranks=4):
        self.session = session
        self.now = 1_800_000_000.0
        self.patience = Patience()
        self.off = [0.0] * ranks
        self.seqs = [0] * ranks
        self.step = [0] * ranks
        self.said = []
        self.beaten = self.now
        if session.get(Project, 1) is None:
            session.add(Project(id=1, public_id="p" * 20, name="project", created_at=0.0))
            session.flush()
        request = '{"config": {"epochs": 5}}'
        made = Model(
            public_id=new_id()[:20], project_ref=1, run_id=new_id(), name="net", request=request, created_at=0.0
        )
        session.add(made)
        session.flush()
        self.model = made
        self.attempt_id = new_id()

    def event(self, rank, make, *arguments, **fields):
        seq, self.seqs[rank] = self.seqs[rank], self.seqs[rank] + 1
        made = make(self.attempt_id, seq, *arguments, **{"time": self.now + self.off[rank], **fields})
        self.said.append(made | {"rank": rank})
        return self

    def start(self, world_size=None):
        self.event(0, attempt_event, "started", world_size=world_size or len(self.off))
        for rank in range(len(self.off)):
            self.rank(rank, "joined")
        return self.deliver().beat()

    def rank(self, rank, state, **fields):
        return self.event(0, rank_event, rank, state, **{"host": f"node{rank // 2}", **fields})

    def steps(self, ranks=None, count=1, epoch=None, **fields):
        for rank in range(len(self.off)) if ranks is None else ranks:
            self.event(rank, metrics_event, step=self.step[rank], epoch=epoch, **fields)
            self.step[rank] += count
        return self

    def deliver(self):
        for start in range(0, len(self.said), 1000):
            batch = check_batch(self.said[start : start + 1000])
            event_log.store(self.session, self.model, batch, len(batch), self.now)
        self.said = []
        return self

    @property
    def attempt(self):
        return self.session.query(Attempt).filter_by(attempt_id=self.attempt_id).one()

    def beat(self):
        self.beaten = self.now
        note_heartbeat(self.attempt, self.now, self.patience.heartbeat_s)
        return self

    def passes(self, seconds, each=None, every=3.0):
        """Time goes by, with heartbeats; what `each` does is delivered. Returns the states seen."""
        states, until = set(), self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + every)
            if each is not None:
                each()
                self.deliver()
            if self.now - self.beaten >= 10:
                self.beat()
            states.add(self.look()["state"])
        return states

    def look(self):
        return model_view.details(self.session, self.model, self.now, self.patience)

    def healths(self):
        return [one["health"] for one in self.look()["ranks"]]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    opened = Hub.open(ServerSettings(data=tmp_path_factory.mktemp("hub") / "data", api_key="k" * 42))
    yield opened
    opened.close()


@pytest.fixture
def session(hub):
    with hub.database.write() as session:
        yield session


@pytest.fixture
def training(session):
    """Four ranks on two nodes, a few steps old."""
    made = Training(session).start()
    assert made.passes(30, made.steps) == {"running"}
    return made


def test_heartbeats_without_steps_are_a_stall_within_30_s(training):
    """The sentence names who is behind and who waits; a step, and it runs again."""
    training.steps([0, 1, 3]).deliver()
    assert training.passes(20) == {"running"}
    assert "stalled" in training.passes(10)
    look = training.look()
    assert (look["state"], look["progress"]["rate"]) == ("stalled", 0.0)
    assert look["reason"] == (
        "no step for 30 s (longest gap before: 3 s); rank 2 on node1 stopped at step 9; 3 ranks wait at step 10"
    )
    assert [(one["health"], one["lag"], one["rate"]) for one in look["ranks"]] == [
        ("stalled", 0, 0.0),
        ("stalled", 0, 0.0),
        ("stalled", 1, 0.0),
        ("stalled", 0, 0.0),
    ]
    training.steps().deliver()
    assert (training.look()["state"], training.look()["reason"]) == ("running", None)


def test_a_silent_rank_is_waited_for_by_all(training):
    """Even where long pauses are usual, and though the program still writes."""
    training.passes(5 * MINUTE)
    training.steps().deliver()
    training.event(0, metrics_event, kind="console", stream="stdout", lines=["..."], left_out=0).passes(15)
    training.rank(2, "lost", reason="not heard of for 15 s").deliver()
    training.passes(9)
    look = training.look()
    assert (look["state"], training.healths()) == ("stalled", ["stalled", "stalled", "silent", "stalled"])
    assert look["reason"] == (
        "no step for 24 s (longest gap before: 5 min); rank 2 on node1 is silent since step 10; 3 ranks wait at step 10"
    )
    training.rank(2, "lost", reason=GONE).deliver()
    assert training.look()["reason"].count("rank 2 on node1 is gone since step 10") == 1
    assert training.healths()[2] == "dead"
    training.rank(2, "back").steps().deliver()
    assert (training.look()["state"], training.healths()) == ("running", ["ok"] * 4)


def test_who_can_go_on_without_a_silent_rank_is_not_stalled(training):
    training.rank(2, "lost").deliver()
    assert training.passes(2 * MINUTE, lambda: training.steps([0, 1, 3])) == {"running"}
    look = training.look()
    assert look["reason"] == "rank 2 on node1 is silent since step 9"
    assert [one["health"] for one in look["ranks"]] == ["ok", "ok", "silent", "ok"]
    assert training.passes(18) == {"running"}, "it is no longer than a pause"


def test_three_missing_heartbeats_are_a_loss(training):
    training.beat()
    training.now += 30
    assert training.look()["state"] == "running"
    training.now += 1
    look = training.look()
    assert (look["state"], look["silent_s"]) == ("lost", 31.0)
    assert look["reason"] == "no heartbeat from rank 0 on n1 for 31 s (one is due every 10 s); it was at step 9"
    assert training.healths() == ["silent"] * 4
    assert training.look()["progress"]["rate"] is None


def test_a_network_that_was_away_made_nobody_stall(training):
    """Heartbeats come first when it is back, the steps of the time between after that, in pieces."""
    training.beat()
    for _ in range(20):
        training.now += 15
        training.steps()
    backlog, training.said = training.said, []
    assert training.look()["state"] == "lost"
    training.beat()
    assert training.look()["state"] == "running"
    training.now += 18
    for start in range(0, len(backlog), 20):
        training.said = backlog[start : start + 20]
        assert training.beat().look()["state"] == "running"
        training.deliver()
        training.now += 2
    assert training.attempt.longest_gap < 20
    assert training.look()["progress"]["step"] == 29


def test_a_backlog_of_old_steps_is_no_progress(training):
    """A rank's own file, found late, tells of steps before those that are known."""
    training.seqs = [seq + 50 for seq in training.seqs]
    training.steps().deliver()
    training.passes(20)
    training.said = [metrics_event(training.attempt_id, seq, rank=3, step=seq, time=training.now) for seq in (20, 21)]
    training.deliver()
    assert "stalled" in training.passes(9)
    assert training.look()["ranks"][3]["last_step"] == 10


def test_a_delivery_of_what_a_dead_run_left_is_no_sign_of_life(training):
    training.now += 10 * MINUTE
    training.steps().deliver()
    assert (training.look()["state"], training.look()["last_seen"]) == ("lost", training.now)


def test_a_hub_that_was_away_gives_its_runs_a_moment(training):
    training.now += 5 * MINUTE
    assert training.look()["state"] == "lost"
    training.patience = Patience(up_since=training.now - 1)
    assert training.look()["state"] == "running"
    training.now += 28
    assert training.look()["state"] == "running"
    training.now += 2
    assert training.look()["state"] == "lost"
    training.patience = Patience(up_since=training.now + 10 * MINUTE)
    training.now += 10 * MINUTE
    assert training.look()["state"] == "lost", "it was long before"


def test_a_validation_that_writes_is_no_stall(training):
    """The first one; until it takes longer than any should."""

    def write():
        training.event(0, metrics_event, kind="console", stream="stderr", lines=["val 3/90"], left_out=0)

    training.beat()
    assert training.passes(9.5 * MINUTE, write, every=15) == {"running"}
    assert "stalled" in training.passes(1 * MINUTE, write, every=15)


def test_a_validation_that_says_nothing_is_a_surprise_once(training):
    """In this attempt or the one before: twice what it took is how long it may take."""
    assert "stalled" in training.passes(5 * MINUTE)
    training.passes(30, training.steps)
    assert training.passes(6 * MINUTE) == {"running"}
    training.steps().deliver().event(0, attempt_event, "preempted").deliver()
    training.attempt_id, training.seqs = new_id(), [0] * 4
    training.start().passes(30, training.steps)
    assert training.passes(6 * MINUTE) == {"running"}
    assert "stalled" in training.passes(7 * MINUTE)


@pytest.mark.parametrize("epoch_s", [10 * MINUTE, 28 * MINUTE])
def test_a_loop_that_logs_once_an_epoch_runs(session, epoch_s):
    """Its ranks' records of one epoch come in two deliveries."""
    training = Training(session, ranks=2).start()
    for epoch in range(4):
        assert training.passes(epoch_s, every=20) == {"running"}
        training.steps([0], epoch=epoch).deliver()
        training.passes(3)
        training.steps([1], epoch=epoch).deliver()
    assert training.passes(1.9 * epoch_s, every=20) == {"running"}
    assert "stalled" in training.passes(0.2 * epoch_s, every=20)
    assert "ranks 0 and 1 on node0 stopped at step 3 of epoch 3" in training.look()["reason"]


def test_what_comes_before_the_first_step_takes_its_time(session):
    """Compiling, reading a data set. Who has not come is said soon."""
    training = Training(session, ranks=2).start(world_size=8)
    assert training.look()["reason"] is None
    assert training.passes(5 * MINUTE, every=20) == {"running"}
    assert (
        training.look()["reason"] == "no step yet, 5 min after the start; ranks 2, 3, 4, 5 and 2 more have not joined"
    )
    assert training.healths() == ["ok", "ok", *["silent"] * 6]
    assert [one["state"] for one in training.look()["ranks"]] == ["joined"] * 2 + ["absent"] * 6
    training.rank(0, "lost").rank(1, "lost", reason=GONE).deliver()
    assert training.look()["state"] == "stalled"
    training.rank(1, "lost").deliver()
    assert training.look()["state"] == "running", "it compiles, perhaps"
    training.rank(0, "back").rank(1, "back").deliver()
    training.passes(25 * MINUTE, every=20)
    training.passes(20)
    assert training.look()["state"] == "stalled"
    assert training.look()["reason"].startswith("no step yet, 30 min after the start; ")
    training.rank(1, "lost").deliver()
    assert "; rank 1 on node0 is silent without a step; " in training.look()["reason"]


def test_figures_of_the_system_are_no_progress(training):
    """A sampler sends them whatever the training does, with the newest step or a higher one."""

    def sample():
        training.step = [one + 1 for one in training.step]
        training.steps(values={"system/cpu": 3.0, "system/memory": 2.0**30})

    assert "stalled" in training.passes(30, sample)
    look = training.look()
    assert (look["progress"]["step"], look["ranks"][0]["memory"]) == (9, 2.0**30)


@pytest.mark.parametrize("figures", [{}, {"values": {"system/cpu": 1.0}}])
def test_a_run_without_steps_runs(session, figures):
    """It may save checkpoints alone, or nothing."""
    training = Training(session, ranks=1).start()
    assert training.passes(20 * MINUTE, lambda: training.steps(**figures) if figures else None, every=15) == {"running"}
    assert training.look()["progress"]["step"] is None
    assert training.healths() == ["ok"]


def test_clocks_that_are_minutes_off_change_nothing(session):
    training = Training(session).start()
    training.off = [-300.0, 300.0, 0.0, 7200.0]
    training.passes(2 * MINUTE, training.steps)
    look = training.look()
    assert [(one["health"], one["lag"]) for one in look["ranks"]] == [("ok", 0)] * 4
    assert [one["rate"] for one in look["ranks"]] == pytest.approx([1 / 3] * 4)
    assert "stalled" in training.passes(30)


def test_a_clock_that_is_set_costs_a_rank_its_good_name_for_no_moment(training):
    training.passes(MINUTE, training.steps)
    for leap in (3600.0, -7200.0):
        training.off[2] += leap
        for _ in range(20):
            training.passes(3, training.steps)
            assert training.healths() == ["ok"] * 4
    assert training.look()["ranks"][2]["rate"] == pytest.approx(1 / 3)


def test_a_rank_that_makes_fewer_steps_is_slow(training):
    """In lock-step nobody can; these do not wait for each other. The rate is that of the last minute."""

    def most():
        training.steps([0, 1, 2], count=1)
        training.steps([0, 1, 2], count=1)
        training.steps([3])

    training.passes(2 * MINUTE, most)
    look = training.look()
    assert [one["health"] for one in look["ranks"]] == ["ok", "ok", "ok", "slow"]
    assert look["ranks"][3]["lag"] > 20
    assert look["ranks"][0]["rate"] == pytest.approx(2 / 3, rel=0.1)
    assert look["progress"]["rate"] == look["ranks"][0]["rate"]
    training.step[3] = training.step[0]
    training.passes(3 * MINUTE, training.steps)
    assert training.healths() == ["ok"] * 4


def test_what_the_relay_still_has_is_no_lag(session):
    """A hundred steps a second, of which the hub has rank 0's and not yet all of the others'."""
    training = Training(session).start()
    for _ in range(30):
        training.now += 1.0
        for rank in range(4):
            training.step[rank] = int(100 * (training.now - 1_800_000_000.0)) - (80 if rank else 0)
            training.event(rank, metrics_event, step=training.step[rank])
        training.deliver()
        assert {(one["health"], one["lag"]) for one in training.look()["ranks"]} == {("ok", 0)}


def test_a_rank_that_hangs_alone_is_stalled(training):
    assert training.passes(MINUTE, lambda: training.steps([0, 1, 2])) == {"running"}
    assert training.healths() == ["ok", "ok", "ok", "stalled"]
    assert training.look()["ranks"][3]["rate"] is None or training.look()["ranks"][3]["rate"] == 0.0


def test_ranks_that_log_more_rarely_are_well(session):
    """Rank 0 logs every step, rank 1 every twentieth, rank 2 once, rank 3 never."""
    training = Training(session).start()

    def each():
        training.steps([0])
        if training.step[0] % 20 == 1:
            training.step[1] = training.step[0] - 1
            training.steps([1])

    training.steps([2]).deliver()
    seen = set()
    for _ in range(40):
        training.passes(6, each)
        seen |= set(training.healths())
    assert seen == {"ok"}


def test_steps_that_begin_anew_in_each_epoch(session):
    """Every one is progress; a rank in the epoch before is behind."""
    training = Training(session).start()
    for epoch in range(3):
        training.step = [0] * 4
        assert training.passes(30, lambda epoch=epoch: training.steps(epoch=epoch)) == {"running"}
    look = training.look()
    assert (look["progress"]["epoch"], look["progress"]["step"], look["progress"]["epochs"]) == (2, 9, 5)
    training.step = [0, 0, 0, 10]
    training.steps([0, 1, 2], epoch=3).steps([3], epoch=2).deliver()
    training.passes(24)
    assert [one["lag"] for one in training.look()["ranks"]] == [0, 0, 0, 1]
    assert (
        "rank 3 on node1 stopped at step 10 of epoch 2; 3 ranks wait at step 0 of epoch 3" in training.look()["reason"]
    )


def test_epochs_that_are_logged_between_steps_are_no_step_back(training):
    """Steps without an epoch; every epoch one record whose step is the epoch."""
    for epoch in range(3):
        training.event(0, metrics_event, step=epoch, epoch=epoch).deliver()
        look = training.look()
        assert (look["progress"]["epoch"], look["ranks"][0]["lag"]) == (epoch, 0)
        assert look["progress"]["step"] == training.step[0] - 1
        training.passes(9, training.steps)


def test_hub_v1_clients_beat_seldom_and_end_with_a_long_upload(session):
    training = Training(session, ranks=1)
    training.attempt_id = hub_v1.hub_v1_attempt_id(training.model)
    states = set()

    def beats(seconds):
        until = training.now + seconds
        while training.now < until:
            training.now += 300
            hub_v1.report(session, training.model, [], training.now)
            training.beat()
            states.add(training.look()["state"])

    hub_v1.report(session, training.model, [], training.now)
    for epoch in range(3):
        beats(20 * MINUTE)
        hub_v1.report_metrics(session, training.model, {epoch: {"loss": 0.5}}, training.now)
    beats(10 * MINUTE)
    assert states == {"running"}
    training.now += 890
    assert training.look()["state"] == "running"
    training.now += 20
    assert training.look()["state"] == "lost"


def test_ends_say_why(training):
    """The exception, and whose it is; the whole of it beside that."""
    said = (
        'rank 1: Traceback (most recent call last):\n  File "a.py", line 1, in <module>\n    go()\n'
        "torch.OutOfMemoryError: CUDA out of memory.\n\nrank 0: Traceback (most recent call last):\n"
        '  File "b.py", line 2\nRuntimeError: Connection closed by peer'
    )
    training.event(0, attempt_event, "failed", reason=said).deliver()
    look = training.look()
    assert look["reason"] == "rank 1: torch.OutOfMemoryError: CUDA out of memory."
    assert (look["traceback"], look["silent_s"], look["progress"]["rate"]) == (said, None, None)
    assert training.healths() == ["dead", "dead", "dead", "dead"]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (None, None),
        ("", None),
        ("out of memory", "out of memory"),
        ("SIGTERM: the job failed\n\nTraceback (most recent call last):\n  x\nE: y", "E: y"),
        ("rank 3: its process is gone\n\nrank 0: SIGTERM", "rank 3: its process is gone"),
        (
            '  File "a.py", line 3\n    f()\nKeyError: 1\n\nDuring another:\n\n  File "b"\nValueError: 2\nmore',
            "ValueError: 2",
        ),
        ('Traceback (most recent call last):\n  File "a"\nmod.Error: first line\nsecond line', "mod.Error: first line"),
    ],
)
def test_a_failure_in_one_line(said, shown):
    assert reasons.of_failure(said) == shown


@pytest.mark.parametrize(
    ("state", "reason", "shown"),
    [
        ("preempted", "SIGTERM", "told to leave by SIGTERM"),
        ("requeued", "SIGTERM: the job was requeued", "SIGTERM: the job was requeued"),
        ("stopped", None, "the hub was asked to stop it"),
        ("finished", None, None),
    ],
)
def test_the_other_ends(training, state, reason, shown):
    training.rank(3, "left", reason="Traceback").rank(2, "left").event(0, attempt_event, state, reason=reason).deliver()
    assert (training.look()["state"], training.look()["reason"]) == (state, shown)
    assert training.healths() == ["done", "dead", "done", "dead"]


def test_an_attempt_without_an_end_is_lost_when_another_came(training):
    first, training.attempt_id, training.seqs = training.attempt, new_id(), [0] * 4
    training.start()
    assert [one["state"] for one in training.look()["attempts"]] == ["started", "started"]
    training.passes(40, training.steps)
    shown = training.look()["attempts"]
    assert [(one["state"], one["reason"]) for one in shown] == [
        ("lost", "it ended without a word"),
        ("started", None),
    ]
    ranks = model_view.ranks(training.session, training.model, training.now, training.patience, attempt=first.number)
    assert {one["health"] for one in ranks} == {"dead"}
    assert model_view.ranks(training.session, training.model, training.now, training.patience, attempt=3) is None


def test_a_thousand_ranks_are_few_queries_and_a_short_sentence(hub, session):
    """Statements are counted: their number does not grow with the ranks."""
    counted = []
    sqlalchemy_event.listen(session.connection(), "before_cursor_execute", lambda *said: counted.append(said[2]))
    # A chart's points are merged now and then, and events added some dozens at a time.

    def counting(what):
        counted.clear()
        began = time.perf_counter()
        value = what()
        others = [one for one in counted if " points " not in one and "INTO events" not in one]
        return value, len(others), time.perf_counter() - began

    few, many = Training(session, ranks=4).start(), Training(session, ranks=1000).start()
    numbers = {}
    for training in (few, many):
        training.passes(12, training.steps)
        training.now += 3
        training.steps()
        numbers[training] = [counting(training.deliver)[1]]
        training.beat().passes(12)
        training.rank(7 % len(training.off), "lost").rank(3, "lost").rank(1, "lost").rank(2, "lost").rank(0, "lost")
        training.deliver().passes(15)
        look, count, took = counting(training.look)
        numbers[training].append(count)
    assert numbers[few] == numbers[many], numbers
    assert numbers[many][1] < 12
    assert look["reason"] == (
        "no step for 27 s (longest gap before: 3 s); ranks 0 on node0, 1 on node0, 2 on node1, 3 on node1 and 1 more "
        "are silent since step 4; 995 ranks wait at step 4"
    )
    assert took < 5, "details of 1,000 ranks"

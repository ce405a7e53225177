"""Two processes own one run at the same time: one copy of everything all the same, and neither complains.

What was generated is the programs' own record, what arrived is read from the hub. That two starts of one run id are two
attempts is in test_run.py; that `--watch` follows an offline run to its end in session/test_sync.py.
"""

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import mounts
import needs
import pytest
from faulty_proxy import FaultyProxy
from hub_process import KEY, HubProcess
from jobs import COMMANDS, PROGRAMS, HubView, start_python, wait_until

SYNC = "from ddphub.cli import main; main()"

HASTY = "import ddphub.session.lock as lock; lock.LEASE_SECONDS = 2.0; " + SYNC
"""The same with a lease of two seconds."""

DAMAGE = re.compile(r".*delivered\.jsonl: \d damaged lines?; .*")

COMPLAINT = re.compile(r"Traceback|error|Error|lost|refused:|damaged| ! ")


@pytest.fixture
def own_hub(tmp_path):
    """A hub with small parts, so that an upload has a middle."""
    with HubProcess(tmp_path / "hub", api_key=KEY, arguments=("--part-size", "16384")) as process:
        yield process


@pytest.fixture
def proxy(own_hub):
    """A proxy in front of it."""
    made = FaultyProxy(own_hub.url)
    yield made
    made.close()


@pytest.fixture
def start(tmp_path, proxy):
    """Starts owners of runs, and syncs; none outlives the test."""
    started = []

    def make(*command, environment=None, before=()):
        variables = {"DDPHUB_URL": proxy.url, "DDPHUB_API_KEY": KEY, "DDPHUB_DIR": str(tmp_path / "runs")}
        output = (tmp_path / f"output-{len(started)}").open("w+")
        environment = {**os.environ, **variables, **(environment or {})}
        process = start_python(command, COMMANDS, environment=environment, stdout=output, stderr=output, before=before)
        started.append((process, output))
        return Owner(process, output)

    yield make
    for process, output in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        output.close()


class Owner:
    """A process that delivers."""

    def __init__(self, process, output):
        self.process = process
        self._output = output

    @property
    def text(self):
        """What it has printed."""
        return Path(self._output.name).read_text()

    def signal(self, number):
        """To it and its children."""
        os.killpg(self.process.pid, number)

    def ends(self, code=0):
        """Waits for its end; returns what it printed."""
        assert self.process.wait(150) == code, self.text
        return self.text

    def ends_well(self):
        """Exit code 0 and no complaint."""
        text = self.ends()
        assert not COMPLAINT.search(text), text


class Hold:
    """A fault of the proxy: the first request that `chosen` picks stands still until `release` is set."""

    def __init__(self, chosen):
        self.reached = threading.Event()
        self.release = threading.Event()
        self._chosen = chosen

    def __call__(self, handler):
        if not self.reached.is_set() and self._chosen(handler):
            self.reached.set()
            self.release.wait(240)
        return False


def is_part(handler):
    """A part's bytes."""
    return handler.command == "PUT"


def has_metrics(handler):
    """A batch with metrics in it."""
    return handler.path.endswith("/events") and b'"metrics"' in handler.body


def slowly(seconds):
    """A fault of the proxy: every request takes its time."""
    return lambda _handler: time.sleep(seconds) or False


def program(tmp_path, who=1, **options):
    """The command of an owner."""
    command = [PROGRAMS / "owner_run.py", "--out", tmp_path, "--who", who]
    return command + [text for name, value in options.items() for text in (f"--{name}", value)]


@pytest.fixture
def offline(tmp_path, start):
    """Makes runs that have ended and wait to be delivered: `run-1`, `run-2`, ..."""

    def make(count=1, **options):
        made = [
            start(*program(tmp_path, who, mode="offline", **options), environment={"DDPHUB_RUN_ID": f"run-{who}"})
            for who in range(1, count + 1)
        ]
        for one in made:
            one.ends_well()

    return make


def generated(tmp_path):
    """(who, step) of each event and (epoch, sha256) of each checkpoint, by the programs' own records."""

    def lines(pattern):
        return [line.split() for path in tmp_path.glob(pattern) for line in path.read_text().splitlines()]

    logged = [(int(who), int(step)) for who, step in lines("logged-*.txt")]
    saved = [(int(epoch), sha256) for epoch, sha256 in lines("saved-*.txt")]
    assert logged
    assert saved
    return sorted(logged), sorted(saved)


def arrived(hub):
    """The same by the hub: lists, so that a double shows; sha256 of the bytes that it hands out."""
    view = HubView(hub)
    logged, saved = [], []
    for model_id in view.models():
        logged += [(int(one["values"]["who"]), one["step"]) for one in view.metrics(model_id)]
        with hub.client() as client:
            for one in view.checkpoints(model_id):
                place = f"/v1/models/{model_id}/checkpoints/{one['id']}/files/{one['files'][0]['name']}"
                content = client.get(hub.url + place, timeout=30).content
                saved.append((one["epoch"], hashlib.sha256(content).hexdigest()))
    return sorted(logged), sorted(saved)


def check_all_is_there_once(tmp_path, hub, *, two_writers=False):
    """On the hub, and by the run directories' own account.

    Args:
        tmp_path: the test's.
        hub: the hub.
        two_writers: whether two processes wrote one journal at once, and may have damaged a few of its lines.
    """
    assert arrived(hub) == generated(tmp_path)
    for run in status(tmp_path):
        assert [one for one in run["problems"] if not (two_writers and DAMAGE.search(one))] == []
        assert (run["events"]["pending"], run["events"]["set_aside"]) == (0, 0)
        assert (run["checkpoints"]["pending"], run["checkpoints"]["set_aside"]) == (0, 0)
        assert run["checkpoints"]["uploaded"] == run["checkpoints"]["staged"]
    assert not list((tmp_path / "runs").glob("*/staging/*/files/*"))


def status(tmp_path):
    """`ddphub status --json` of every run."""
    command = [sys.executable, "-c", SYNC, "status", str(tmp_path / "runs"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return list(map(json.loads, done.stdout.splitlines()))


def without_damage(text):
    """An output without what it says of lines that two writers damaged."""
    return DAMAGE.sub("", text)


def receipts(tmp_path, run="run-1"):
    """Entry ids of the journal's receipts, one each time it was written."""
    text = (tmp_path / "runs" / run / "delivered.jsonl").read_text()
    return re.findall(r'"entry_id": ?"(\w+)".*"record": ?"receipt"|"record": ?"receipt".*"entry_id": ?"(\w+)"', text)


# Rank 0 is paused, its successor finishes, it wakes.


@pytest.mark.parametrize("exclusion", ["flock", "none"])
@pytest.mark.parametrize("chosen", [is_part, has_metrics])
def test_a_rank_0_that_wakes_after_its_successor_has_ended(tmp_path, own_hub, proxy, start, chosen, exclusion):
    """Stopped while a request is under way; the requeued job finishes; the first one goes on to its own end.

    With flock, as on one host, the first has the lock all the time: the successor leaves the rest to it. Without, as on
    two hosts, the successor delivers what the first had begun, and the first then does it again.
    """
    proxy.fault = hold = Hold(chosen)
    run_id = {"DDPHUB_RUN_ID": "run-1"}
    with contextlib.ExitStack() as stack:
        first = start(*program(tmp_path, 1, hold=1), environment=run_id)
        assert hold.reached.wait(150)
        wait_until((tmp_path / "held-1").exists)
        folder = tmp_path / "runs" / "run-1" / "spool"
        spool = wait_until(lambda: next(folder.glob("*-relay.jsonl"), None), what="the first line")
        wait_until(lambda: '"step":99,' in spool.read_text(), what="the outbox's flush")
        first.signal(signal.SIGSTOP)
        if exclusion == "none":
            view = stack.enter_context(mounts.second_view(tmp_path / "view", tmp_path / "runs"))
            second = start(*program(tmp_path, 2), environment={**run_id, "DDPHUB_DIR": str(view)})
            second.ends_well()
            before_2, saved = generated(tmp_path)
            assert arrived(own_hub) == (before_2, saved), "the successor delivers what the first had reported"
        else:
            second = start(*program(tmp_path, 2), environment=run_id)
            assert "another process has session.lock and delivers this run" in second.ends()
            assert "to deliver the rest: ddphub sync" in second.text
        hold.release.set()
        first.signal(signal.SIGCONT)
        (tmp_path / "go-1").touch()
        first.ends_well()
    check_all_is_there_once(tmp_path, own_hub)
    (run,) = status(tmp_path)
    assert run["attempts"] == 2
    states = [attempt["state"] for attempt in HubView(own_hub).model()["attempts"]]
    assert states == ["finished", "finished"]


def test_two_starts_of_one_run_at_the_same_moment(tmp_path, own_hub, start):
    """Two jobs with one run id on one directory: one model, two attempts, and what the slower leaves, sync delivers."""
    at = time.time() + 1.5
    both = [start(*program(tmp_path, who, at=at, pause=0.01), environment={"DDPHUB_RUN_ID": "run-1"}) for who in (1, 2)]
    texts = [one.ends() for one in both]
    assert sum("another process has session.lock" in text for text in texts) <= 1
    start("-c", SYNC, "sync", tmp_path / "runs").ends_well()
    check_all_is_there_once(tmp_path, own_hub)
    assert HubView(own_hub).model()["state"] == "finished"
    assert len(HubView(own_hub).model()["attempts"]) == status(tmp_path)[0]["attempts"] == 2


# Two syncs.


@pytest.mark.parametrize("count", [1, 3])
def test_two_syncs_at_once(tmp_path, own_hub, proxy, start, offline, count):
    """One delivers a run, the other one says so and leaves it alone; together they do it all."""
    offline(count)
    proxy.fault = slowly(0.02)
    both = [start("-c", SYNC, "sync", tmp_path / "runs") for _ in range(2)]
    for one in both:
        told = one.ends(one.process.wait(150))
        left_alone = told.count("another process delivers it at this moment")
        assert one.process.returncode == (1 if left_alone else 0)
        assert len(COMPLAINT.findall(told)) == left_alone, told
    assert 0 in {one.process.returncode for one in both} or count > 1
    start("-c", SYNC, "sync", tmp_path / "runs").ends_well()
    check_all_is_there_once(tmp_path, own_hub)
    for who in range(1, count + 1):
        assert len(receipts(tmp_path, f"run-{who}")) == 4, "nothing was sent twice"


@pytest.mark.parametrize("exclusion", ["flock", "none"])
def test_a_sync_that_wakes_after_another_has_ended(tmp_path, own_hub, proxy, start, offline, exclusion):
    """Stopped in the middle of an upload of the first run of two, and woken when another sync has ended."""
    offline(2)
    proxy.fault = hold = Hold(is_part)
    with contextlib.ExitStack() as stack:
        first = start("-c", SYNC, "sync", tmp_path / "runs")
        assert hold.reached.wait(150)
        first.signal(signal.SIGSTOP)
        if exclusion == "none":
            view = stack.enter_context(mounts.second_view(tmp_path / "view", tmp_path / "runs"))
            start("-c", SYNC, "sync", view).ends_well()
            assert arrived(own_hub) == generated(tmp_path)
        else:
            second = start("-c", SYNC, "sync", tmp_path / "runs")
            assert "another process delivers it at this moment" in second.ends(1)
            assert len(receipts(tmp_path, "run-2")) == 4, "the other run is nobody's, so it is delivered"
        hold.release.set()
        first.signal(signal.SIGCONT)
        first.ends_well()
    check_all_is_there_once(tmp_path, own_hub)


# Locks that do not exclude.


def test_two_syncs_through_two_views_of_one_directory(tmp_path, own_hub, proxy, start, offline):
    """Both get the lock and deliver at once, to one journal; nothing is called lost.

    FUSE (without big writes) sends a write over a page's end as two, and another's may come between: such lines are
    damaged, which is said; what they acknowledged is on the hub all the same.
    """
    offline(saves=25, steps=4, size=20_000)
    proxy.fault = slowly(0.01)
    with (
        mounts.second_view(tmp_path / "one", tmp_path / "runs") as one,
        mounts.second_view(tmp_path / "two", tmp_path / "runs") as two,
    ):
        for sync in [start("-c", SYNC, "sync", view) for view in (one, two)]:
            text = sync.ends()
            assert not COMPLAINT.search(without_damage(text)), text
    assert len(receipts(tmp_path)) > 25, "they did not overlap"
    check_all_is_there_once(tmp_path, own_hub, two_writers=True)


def test_a_live_run_and_syncs_through_another_view(tmp_path, own_hub, proxy, start):
    """Both deliver while the run goes on; a sync leaves nothing to mend for the owner."""
    proxy.fault = slowly(0.01)
    (tmp_path / "runs").mkdir()
    with mounts.second_view(tmp_path / "view", tmp_path / "runs") as view:
        options = {"saves": 20, "steps": 10, "size": 20_000, "pause": 0.01}
        live = start(*program(tmp_path, 1, **options), environment={"DDPHUB_RUN_ID": "run-1"})
        wait_until((tmp_path / "pid-1").exists)
        while live.process.poll() is None:
            done = start("-c", SYNC, "sync", view)
            # 1 when the run has made more meanwhile.
            assert done.process.wait(150) in {0, 1}
            assert not COMPLAINT.search(without_damage(done.text)), done.text
        assert not COMPLAINT.search(without_damage(live.ends())), live.text
    assert len(receipts(tmp_path)) > 20, "they did not overlap"
    check_all_is_there_once(tmp_path, own_hub, two_writers=True)


# No flock at all.


def without_flock():
    """The start of a command whose process finds a file system without flock."""
    needs.programs("strace")
    quietly = ("strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null")
    return (*quietly, "-e", "trace=flock", "-e", "inject=flock:error=ENOSYS")


def elsewhere():
    """The start of a command whose process believes itself on a host of another name."""
    needs.root()
    return ("unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$0" "$@"')


def test_where_flock_does_not_work_a_lease_takes_its_place(tmp_path, own_hub, proxy, start, offline):
    """Two syncs take turns by it, and the next one on this host takes a dead holder's at once."""
    offline(2)
    proxy.fault = hold = Hold(is_part)
    first = start("-c", SYNC, "sync", tmp_path / "runs" / "run-1", before=without_flock())
    assert hold.reached.wait(150)
    assert (tmp_path / "runs" / "run-1" / "session.lease").exists()
    second = start("-c", SYNC, "sync", tmp_path / "runs", before=without_flock())
    assert "another process delivers it at this moment" in second.ends(1)
    assert len(receipts(tmp_path, "run-2")) == 4
    first.signal(signal.SIGKILL)
    hold.release.set()
    start("-c", SYNC, "sync", tmp_path / "runs", before=without_flock()).ends_well()
    check_all_is_there_once(tmp_path, own_hub)
    assert not list((tmp_path / "runs").glob("*/session.lease")), "given back"


def test_a_lease_of_a_dead_process_on_another_host_runs_out(tmp_path, own_hub, proxy, start, offline):
    """Nobody here can tell that it is dead, but it is not renewed; with 2 s in the place of 30."""
    offline()
    proxy.fault = hold = Hold(is_part)
    first = start("-c", HASTY, "sync", tmp_path / "runs", before=(*elsewhere(), *without_flock()))
    assert hold.reached.wait(150)
    first.signal(signal.SIGKILL)
    hold.release.set()
    start("-c", HASTY, "sync", tmp_path / "runs", before=without_flock()).ends_well()
    check_all_is_there_once(tmp_path, own_hub)


# --watch beside others.


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_watch_beside_a_live_run(tmp_path, own_hub, proxy, start, mode):
    """It keeps out of the way of an online one, delivers for an offline one, and ends after it."""
    proxy.fault = slowly(0.005)
    options = {"mode": mode, "hold": 1, "pause": 0.01}
    live = start(*program(tmp_path, 1, **options), environment={"DDPHUB_RUN_ID": "run-1"})
    wait_until((tmp_path / "pid-1").exists)
    watch = start("-c", SYNC, "sync", "--watch", tmp_path / "runs")
    wait_until((tmp_path / "held-1").exists)
    wait_until(lambda: arrived(own_hub) == generated(tmp_path), what="all that there is so far")
    assert watch.process.poll() is None
    (tmp_path / "go-1").touch()
    live.ends_well()
    watch.ends_well()
    check_all_is_there_once(tmp_path, own_hub)
    assert len(receipts(tmp_path)) == 4, "nothing was sent twice"


def test_a_watch_that_is_stopped_beside_another(tmp_path, own_hub, proxy, start):
    """Two follow an offline run; the one that delivers is stopped, and woken when the run has ended."""
    proxy.fault = hold = Hold(is_part)
    live = start(*program(tmp_path, 1, mode="offline", hold=1), environment={"DDPHUB_RUN_ID": "run-1"})
    wait_until((tmp_path / "pid-1").exists)
    first = start("-c", SYNC, "sync", "--watch", tmp_path / "runs")
    assert hold.reached.wait(150)
    first.signal(signal.SIGSTOP)
    second = start("-c", SYNC, "sync", "--watch", tmp_path / "runs")
    wait_until(lambda: "following" in second.text)
    (tmp_path / "go-1").touch()
    live.ends_well()
    hold.release.set()
    first.signal(signal.SIGCONT)
    first.ends_well()
    second.ends(second.process.wait(150))
    check_all_is_there_once(tmp_path, own_hub)

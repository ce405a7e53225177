"""A sample of the random runs; that their proxy breaks what it says, and that their accounting finds what is wrong."""

import dataclasses
import hashlib
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
from hub_process import HubProcess

from chaos.accounting import ENDING, FLUSH_BOUND, TRANSIT_BOUND, Broken, Checkpoint, Metric, account
from chaos.plan import make_plan
from chaos.random_runs import KEY, RandomRun, read_hub
from chaos.record import PULSE, read_records
from chaos.tcp_proxy import ANSWERS, LATE, TcpProxy, WireFault
from ddphub.hubs.client import Registration
from ddphub.hubs.ddphub import DdphubClient

# A sample of real runs.

SAMPLE = [(1, 848), (1, 5813)]
"""(seed, number) of short plans in which both wires break, a rank is stopped, and the hub is killed."""


def test_a_sample_of_random_runs_loses_doubles_and_tears_nothing(tmp_path):
    """Real jobs under planned faults; then the same comparison must find what is taken from it or put into it."""
    runs = []
    for seed, number in SAMPLE:
        (tmp_path / str(number)).mkdir()
        runs.append(RandomRun(make_plan(seed, number), tmp_path / str(number)))
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(RandomRun.run, runs))
    for run, outcome in zip(runs, outcomes, strict=True):
        assert not outcome.trouble
        assert not outcome.account.findings
        assert_a_planted_fault_is_found(*run.compared)
    assert sum(outcome.account.events_delivered for outcome in outcomes) > 100
    assert sum(outcome.account.saves_delivered for outcome in outcomes) > 3
    assert sum(sum(outcome.faults.values()) for outcome in outcomes) > 3


def assert_a_planted_fault_is_found(records, broken, metrics, checkpoints):
    """Doctors what a good run came to, one thing at a time."""
    survivor = next(one for one in records if one.ended == "finish")
    step = survivor.logged[0][0]
    without = [one for one in metrics if (one.rank, one.step) != (survivor.rank, step)]
    assert len(without) == len(metrics) - 1
    assert account(records, broken, without, checkpoints).lost == 1
    assert account(records, broken, [*metrics, metrics[-1]], checkpoints).doubled == 1
    assert account(records, broken, metrics, checkpoints[1:]).lost == 1
    assert account(records, broken, metrics, [*checkpoints, checkpoints[0]]).doubled == 1
    (name, _), *others = checkpoints[0].files
    torn = dataclasses.replace(checkpoints[0], files=((name, hashlib.sha256(b"torn").hexdigest()), *others))
    found = account(records, broken, metrics, [torn, *checkpoints[1:]])
    assert (found.torn, found.lost) == (1, 1)


def test_a_plan_follows_from_its_seed_and_number():
    """The same again, and another one for another number."""
    assert make_plan(3, 7) == make_plan(3, 7)
    assert len({make_plan(3, number).text() for number in range(50)}) == 50


def test_plans_hold_every_fault():
    """What the summary promises is planned at all."""
    faults = [fault for number in range(400) for start in make_plan(1, number).starts for fault in start]
    planned = {(fault.target, fault.kind) for fault in faults}
    wanted = {("hub-wire", kind) for kind in ("delay", "cut", "truncate", "reset", "stall", "blackhole", *ANSWERS)}
    wanted |= {("relay-wire", kind) for kind in ("delay", "cut", "truncate", "reset", "stall", "blackhole")}
    wanted |= {(target, kind) for target in ("rank", "agent") for kind in ("kill", "stop", "term")}
    wanted |= {("hub", "kill"), ("hub", "stop"), ("sync", "kill"), ("sync", "stop"), ("sync", "none")}
    assert planned == wanted
    assert {fault.rank for fault in faults if fault.target == "rank"} == {0, 1, 2, 3}


# The proxy.


@pytest.fixture
def server():
    """Its port, and the requests it has seen; it answers each with ten bytes."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self):
            length = int(self.headers["Content-Length"])
            if len(self.rfile.read(length)) == length:
                seen.append(length)
                self.send_response(200)
                self.send_header("Content-Length", "10")
                self.end_headers()
                self.wfile.write(b"0123456789")

        def log_message(self, *_arguments):
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_arguments):
            pass  # a connection that the proxy broke

    serving = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield serving.server_address[1], seen
    serving.shutdown()
    serving.server_close()
    thread.join()


@pytest.fixture
def proxy(server):
    """A proxy for requests in front of the server."""
    made = TcpProxy(lambda: server[0], http=True)
    yield made
    made.close()


def put(proxy, size=100_000):
    """Sends `size` bytes; the answer."""
    with requests.Session() as session:
        session.trust_env = False
        return session.put(proxy.url, data=b"x" * size, timeout=10)


def test_a_clean_wire_passes_everything(proxy, server):
    """Bytes both ways, and nothing counts as a fault."""
    assert put(proxy).content == b"0123456789"
    assert server[1] == [100_000]
    assert not proxy.hits
    assert not proxy.hurt


@pytest.mark.parametrize("kind", [kind for kind in ANSWERS if kind != "unanswered"])
def test_the_proxy_answers_itself(proxy, server, kind):
    """The status, once; the server has seen the request in the late case only; then the wire is clean."""
    proxy.set(WireFault(kind, amount=7, times=1))
    answer = put(proxy)
    assert answer.status_code == int({"garbage": "200", "late-502": "502"}.get(kind, kind))
    assert answer.headers.get("Retry-After") == ("7" if kind == "429" else None)
    if kind == "garbage":
        with pytest.raises(ValueError, match="Expecting value"):
            answer.json()
    assert len(server[1]) == (kind in LATE)
    assert put(proxy).content == b"0123456789"
    assert proxy.hits == Counter({kind: 1})


def test_an_answer_is_lost_after_the_server_did_it(proxy, server):
    """The server has seen it, the client has not heard."""
    proxy.set(WireFault("unanswered", times=1))
    with pytest.raises(requests.ConnectionError):
        put(proxy)
    assert server[1] == [100_000]


@pytest.mark.parametrize(
    ("kind", "amount", "arrives"), [("cut", 5000, False), ("truncate", 5, True), ("reset", 5000, False)]
)
def test_a_connection_ends_after_some_bytes(proxy, server, kind, amount, arrives):
    """In the middle of the request, or of its answer."""
    proxy.set(WireFault(kind, amount, times=1))
    with pytest.raises(requests.RequestException):
        put(proxy)
    assert server[1] == ([100_000] if arrives else [])
    assert put(proxy).ok
    assert proxy.hits == Counter({kind: 1})


def test_a_reset_ends_idle_connections_at_once(proxy):
    """The client hears of it without sending anything."""
    with socket.create_connection(("127.0.0.1", proxy.port)) as connection:
        connection.settimeout(10)
        connection.sendall(b"PUT / HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
        assert connection.recv(1000)
        proxy.set(WireFault("reset", times=1))
        with pytest.raises(ConnectionResetError):
            connection.recv(1000)


@pytest.mark.parametrize(("kind", "passes"), [("delay", True), ("stall", True), ("blackhole", False)])
def test_a_wire_that_hangs_hangs_for_a_while(proxy, server, kind, passes):
    """A stall goes on when it is over, what fell into a black hole is gone; till then the server sees nothing."""
    proxy.set(WireFault(kind, 0.3))
    outcome = []

    def try_it():
        try:
            outcome.append(put(proxy, 100).status_code)
        except requests.RequestException:
            outcome.append(None)

    thread = threading.Thread(target=try_it)
    thread.start()
    time.sleep(0.2)
    assert not server[1]
    assert not outcome
    if kind != "delay":
        proxy.set(None)
    thread.join(10)
    assert outcome == [200 if passes else None]
    assert len(server[1]) == passes
    assert proxy.hits == Counter({kind: 1})
    assert proxy.hurt[-1][1] >= proxy.hurt[0][0]


# The accounting.


class Ranks:
    """Writes records as ranks would."""

    def __init__(self, folder):
        self._folder = folder
        folder.mkdir()

    def write(self, rank, *lines, start=0, pid=1):
        """A process's record."""
        text = "".join(f"{line}\n" for line in ("start 0.0", "begin 0.1", *lines))
        (self._folder / f"{start}-0-{rank}-{pid + rank}").write_text(text)

    def account(self, metrics=(), checkpoints=(), broken=None):
        """Compares them with a hub that has `metrics` as (rank, step) and `checkpoints`."""
        seen = [Metric("m", rank, step, {"value": step * 0.5, "rank": rank}) for rank, step in metrics]
        return account(read_records(self._folder), {0: broken or Broken()}, seen, list(checkpoints))


@pytest.fixture
def ranks(tmp_path):
    """No records yet."""
    return Ranks(tmp_path / "records")


def pulses(first, last):
    """A process that runs from one time to another."""
    return [f"pulse {first + index * PULSE:.4f}" for index in range(round((last - first) / PULSE) + 1)]


def killed(rank, moment):
    return {f"0-0-{rank}-{1 + rank}": moment}


def test_what_is_all_there_is_good(ranks):
    """Two ranks, one save, no findings."""
    ranks.write(0, "log 1.0 1", "save 1.1 0 epoch 0 a=11,b=22", "saved 1.2 0", "end 1.3 finish")
    ranks.write(1, "log 1.0 1", "end 1.3 RuntimeError")
    found = ranks.account([(0, 1), (1, 1)], [Checkpoint("m", "c", "epoch", 0, (("a", "11"), ("b", "22")))])
    assert (found.events, found.events_delivered, found.saves, found.saves_delivered) == (2, 2, 1, 1)
    assert (found.lost, found.doubled, found.torn, found.findings) == (0, 0, 0, [])


@pytest.mark.parametrize("end", [["end 1.3 finish"], ["end 1.3 RuntimeError"], [*pulses(1.0, 2.0), "log 2.0 2"]])
def test_a_rank_that_was_not_killed_has_no_excuse(ranks, end):
    """By finish, by an exception, by SIGTERM; whatever became of the wire and the others."""
    ranks.write(0, *pulses(0.1, 5.0), "end 5.0 finish")
    ranks.write(1, "log 1.0 1", *end)
    broken = Broken(killed=killed(0, 5.0), relay=[(0.0, 9.0)], agent=[(0.0, 9.0)])
    found = ranks.account([], broken=broken)
    assert (found.lost, found.events) == (1, 1)
    assert "1 events of 0-0-1-2" in found.findings[0]


def test_a_call_that_may_not_have_returned_may_be_there_or_not(ranks):
    """The last line of a killed process is the report it was about to make."""
    ranks.write(0, "log 1.0 1", "log 1.1 2")
    for metrics in ([(0, 1)], [(0, 1), (0, 2)]):
        found = ranks.account(metrics, broken=Broken(killed=killed(0, 1.1)))
        assert (found.events, found.lost, found.torn) == (1, 0, 0)


def test_a_kill_takes_what_was_not_flushed_and_no_more(ranks):
    """Rank 0, killed 3 s after it began: its last moments are excused, what is older is lost, broken wire or not."""
    times = [3.0 - FLUSH_BOUND - 0.1, 3.0 - FLUSH_BOUND + 0.1, 2.9]
    lines = sorted([*(f"log {moment:.4f} {step}" for step, moment in enumerate(times)), *pulses(0.1, 3.0)], key=at)
    ranks.write(0, *lines, "log 3.0 99")
    found = ranks.account([], broken=Broken(killed=killed(0, 3.0), relay=[(0.0, 3.0)]))
    assert (found.excused, found.lost) == (Counter({"not flushed": 2}), 1)
    assert found.longest["not flushed"] == pytest.approx(FLUSH_BOUND - 0.1, abs=0.01)


def at(line):
    """The time of a line."""
    return float(line.split()[1])


def test_time_in_which_a_process_did_not_run_does_not_count(ranks):
    """A report, 5 s stopped, killed: it had no time to flush. Without the stop it had."""
    ranks.write(0, "log 1.0 1", *pulses(1.0, 1.2), *pulses(6.2, 6.3), "log 6.3 2")
    assert ranks.account([], broken=Broken(killed=killed(0, 6.3))).lost == 0
    ranks.write(0, "log 1.0 1", *pulses(1.0, 6.3), "log 6.3 2")
    assert ranks.account([], broken=Broken(killed=killed(0, 6.3))).lost == 1


OBSTACLES = {
    "none": (Broken(), pulses(0.1, 30.0), 1),
    "the wire broke": (Broken(relay=[(8.0, 8.1)]), pulses(0.1, 30.0), 0),
    "the agent stopped": (Broken(agent=[(8.0, 8.1)]), pulses(0.1, 30.0), 0),
    "the agent stopped before": (Broken(agent=[(2.0, 2.1)]), pulses(0.1, 30.0), 1),
    "the agent stopped long after": (Broken(agent=[(25.0, 25.1)]), pulses(0.1, 30.0), 1),
    "rank 0 stopped": (Broken(), [*pulses(0.1, 8.0), *pulses(9.5, 30.0)], 0),
    "rank 0 died": (Broken(), pulses(0.1, 10.0), 0),
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_in_transit_is_excused_only_if_something_stood_in_the_way(ranks, obstacle):
    """Rank 1 reports at 7 s and is killed at 10 s; another report of its has arrived."""
    broken, owner, lost = OBSTACLES[obstacle]
    ranks.write(0, *owner)
    ranks.write(1, *sorted(["log 1.0 1", "log 7.0 2", *pulses(1.0, 10.0)], key=at), "log 10.0 3")
    broken = dataclasses.replace(broken, killed=killed(1, 10.0))
    found = ranks.account([(1, 1)], broken=broken)
    assert found.lost == lost
    assert found.excused["in transit"] == 1 - lost


@pytest.mark.parametrize(("metrics", "lost"), [([], 0), ([(1, 1)], 1)], ids=["nothing arrived", "something arrived"])
def test_the_transit_bound_holds_for_a_rank_that_was_answered(ranks, metrics, lost):
    """A report older than the bound is excused only for a rank of which nothing has arrived, over a broken wire."""
    ranks.write(0, *pulses(0.1, 30.0))
    ranks.write(1, *sorted(["log 1.0 1", "log 2.0 2", *pulses(1.0, 2.5 + TRANSIT_BOUND)], key=at), "log 9.0 3")
    broken = Broken(killed=killed(1, 9.0), relay=[(0.5, 9.0)])
    assert ranks.account(metrics, broken=broken).lost == lost
    broken.relay.clear()
    assert ranks.account(metrics, broken=broken).lost == 2 - len(metrics)


def test_only_the_last_moment_before_a_sigterm_ends_a_process_is_excused(ranks):
    """It has no `end`, and nobody killed it."""
    ranks.write(0, *sorted([f"log {3 - ENDING + 0.02:.4f} 1", *pulses(0.1, 3.0)], key=at), "log 3.0 2")
    assert ranks.account([]).excused == Counter({"while ending": 1})
    ranks.write(0, *sorted([f"log {3 - ENDING - 0.03:.4f} 1", *pulses(0.1, 3.0)], key=at), "log 3.0 2")
    assert ranks.account([]).lost == 1


def test_a_double_is_found_across_models_and_attempts(ranks):
    """The hub has one report twice."""
    ranks.write(0, "log 1.0 1", "log 1.1 2", "end 1.3 finish")
    found = ranks.account([(0, 1), (0, 2), (0, 2)])
    assert (found.doubled, found.lost) == (1, 0)


@pytest.mark.parametrize(
    "metric", [Metric("m", 0, 7, {"value": 3.5, "rank": 0}), Metric("m", 0, 1, {"value": 9.0, "rank": 0})]
)
def test_an_event_that_nobody_reported_so_is_torn(ranks, metric):
    """An unknown step, or another value."""
    ranks.write(0, "log 1.0 1", "end 1.3 finish")
    records = read_records(ranks._folder)
    assert account(records, {}, [metric], []).torn == 1


SAVED = Checkpoint("m", "c", "epoch", 0, (("a", "11"),))
WRONG_HUBS = {
    "nothing": ([], (1, 0, 0)),
    "twice": ([SAVED, SAVED], (0, 1, 0)),
    "other bytes": ([dataclasses.replace(SAVED, files=(("a", "12"),))], (1, 0, 1)),
    "a file too few": ([dataclasses.replace(SAVED, files=())], (1, 0, 1)),
    "another epoch's": ([dataclasses.replace(SAVED, epoch=1)], (0, 0, 1)),
}


@pytest.mark.parametrize("content", WRONG_HUBS)
@pytest.mark.parametrize("fate", ["finished", "killed"])
def test_a_save_that_returned_is_there_once_and_whole(ranks, content, fate):
    """Whether or not its process was killed afterwards."""
    checkpoints, counts = WRONG_HUBS[content]
    ranks.write(0, "save 1.0 0 epoch 0 a=11", "saved 1.1 0", *(["end 1.2 finish"] if fate == "finished" else []))
    broken = Broken(killed=killed(0, 1.1) if fate == "killed" else {}, relay=[(0, 9)])
    found = ranks.account([], checkpoints, broken)
    assert (found.lost, found.doubled, found.torn) == counts


def test_a_save_that_did_not_return_is_there_or_not_but_whole(ranks):
    """Killed inside the call."""
    ranks.write(0, "save 1.0 0 epoch 0 a=11")
    broken = Broken(killed=killed(0, 1.0))
    for checkpoints, torn in (([], 0), ([SAVED], 0), ([dataclasses.replace(SAVED, files=(("a", "1"),))], 1)):
        found = ranks.account([], checkpoints, broken)
        assert (found.lost, found.torn, found.unfinished_saves) == (0, torn, 1)


@pytest.mark.parametrize(("rank", "relay", "lost"), [(0, [(0.0, 9.0)], 1), (1, [(0.0, 9.0)], 0), (1, [], 1)])
def test_a_refusal_needs_a_reason(ranks, rank, relay, lost):
    """Rank 0 has none; another rank has one when it could not reach rank 0."""
    ranks.write(0, *pulses(0.1, 9.0), "end 9.0 finish")
    ranks.write(rank, "save 3.0 0 epoch 0 a=11", "refused 3.1 0", *pulses(3.1, 9.0), "end 9.0 finish")
    found = ranks.account([], broken=Broken(relay=relay))
    assert (found.refused, found.lost) == (1, lost)


def test_a_torn_checkpoint_on_a_real_hub_is_seen_by_its_bytes(tmp_path):
    """`read_hub` believes no sum that the hub names: it downloads."""
    with HubProcess(tmp_path / "hub", api_key=KEY) as hub:
        client = DdphubClient(hub.url, KEY)
        model = client.register(Registration("run", "chaos", "chaos", {}))
        content = b"as it was saved"
        file = tmp_path / "a.pt"
        file.write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        files = [{"name": "a.pt", "size": len(content), "sha256": sha256, "parts": [sha256]}]
        request = {"attempt_id": "0" * 32, "epoch": 0, "step": None, "kind": "epoch", "name": "a.pt", "metrics": {}}
        client.upload(model, "1" * 32, {**request, "files": files}, {"a.pt": file})
        client.close()
        (checkpoint,) = read_hub(hub)[1]
        assert checkpoint.files == (("a.pt", sha256),)
        (blob,) = [path for path in (tmp_path / "hub").rglob("*") if path.is_file() and content in path.read_bytes()]
        blob.chmod(0o600)
        blob.write_bytes(b"as it was torn.")
        (checkpoint,) = read_hub(hub)[1]
        assert checkpoint.files == (("a.pt", hashlib.sha256(b"as it was torn.").hexdigest()),)

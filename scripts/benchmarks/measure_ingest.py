"""How fast a hub takes events in."""

import contextlib
import itertools
import json
import sqlite3
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.bench import Bench, Hub
from benchmarks.figures import DDPHUB, Aim, Figure, LeftOut, Measured, Outcome, alternate
from benchmarks.mlflow_server import mlflow_server
from ddphub.hubs.client import Registration
from ddphub.hubs.ddphub import DdphubClient

ABOUT: Final = "events a second into the hub, 5 scalars each, beside rows into a plain SQLite file"

LIMIT: Final = "executemany"
MLFLOW: Final = "mlflow"

SCALARS: Final = 5
"""In an event; to mlflow each is a metric."""

AT_ONCE: Final = 1000
"""Events in a request, as many as a hub takes."""

AT_ONCE_MLFLOW: Final = 200
"""Events in a call of `log_batch`, which takes 1,000 metrics."""

RUNS: Final = 4
"""At once, in the second case; each has a sender of its own."""

NICE: Final = ("nice", "-n", "10")
"""As both servers run: nobody gets more of the processor than another."""


def measure(bench: Bench) -> Outcome:
    """One sender, then several at once."""
    outcome = Outcome()
    events, rounds = (2 * AT_ONCE, 1) if bench.quick else (40 * AT_ONCE, 3)
    mlflow_events = events if bench.quick else 10 * AT_ONCE_MLFLOW
    bench.work(DDPHUB, "prepare_bodies", str(bench.folder), str(events), str(AT_ONCE))
    with contextlib.ExitStack() as stack:
        hub = stack.enter_context(bench.hub())
        contestant = Ddphub(bench, hub, events)
        contestant.send(1)
        source = _copy_rows(bench)
        one: dict[str, Callable[[], Measured]] = {
            LIMIT: lambda: _insert(bench, source),
            DDPHUB: lambda: {"rate": contestant.send(1)},
        }
        many: dict[str, Callable[[], Measured]] = {
            LIMIT: lambda: _insert(bench, source),
            DDPHUB: lambda: {"rate": contestant.send(RUNS)},
        }
        if bench.quick:
            outcome.left_out[MLFLOW] = "its server takes many seconds to start: not in a quick run"
        else:
            try:
                server = Mlflow(bench, stack.enter_context(mlflow_server(bench)), mlflow_events)
                one[MLFLOW] = lambda: {"rate": server.send(1)}
                many[MLFLOW] = lambda: {"rate": server.send(RUNS)}
            except LeftOut as error:
                outcome.left_out[MLFLOW] = str(error)
        for case, contestants in (("1 run", one), (f"{RUNS} runs at once", many)):
            bench.say(case)
            rates = alternate(
                contestants, rounds=rounds, warm_up=not bench.quick, left_out=outcome.left_out, say=bench.say
            )["rate"]
            outcome.figures += _figures(case, rates)
            outcome.aims += _aims(case, outcome.figures[-2])
        contestant.check()
    outcome.notes += [_ABOUT_EVENTS, _ABOUT_LIMIT, _ABOUT_REQUESTS]
    return outcome


_ABOUT_EVENTS: Final = (
    f"an event is {SCALARS} scalars of one of 8 ranks; requests are made beforehand and sent over one connection a "
    "run, the next when the one before is answered: the senders' own work counts for nobody"
)
_ABOUT_LIMIT: Final = (
    f"{LIMIT}: the rows of the hub's table of events, with its keys and indexes, in a fresh file with the hub's "
    f"journal mode (WAL) and synchronous=FULL, {AT_ONCE:,} in a transaction as in a request, by one process in both "
    "cases; what else the hub does for an event (HTTP, JSON, checks, the points of charts, newest values, steps of "
    "ranks) is the hub's own cost"
)
_ABOUT_REQUESTS: Final = (
    f"ddphub: {AT_ONCE:,} events in a request; mlflow: {AT_ONCE_MLFLOW} events = 1,000 metrics, the most that one call "
    "of runs/log-batch takes, with the rank in a metric's name; all three acknowledge what is committed"
)


def _figures(case: str, rates: Mapping[str, list[float]]) -> list[Figure]:
    """The same in events and in scalars, which is what mlflow counts."""
    samples = {name: list(values) for name, values in rates.items()}
    scalars = {name: [value * SCALARS for value in values] for name, values in rates.items()}
    return [
        Figure(case, "events taken in", "events/s", "higher", samples, limit=LIMIT, headline=True),
        Figure(case, "scalars taken in", "scalars/s", "higher", scalars, limit=LIMIT),
    ]


def _aims(case: str, figure: Figure) -> list[Aim]:
    aims = [Aim(f"{case}: at least half of {LIMIT}", figure.ratio(DDPHUB, LIMIT), 0.5, at_least=True)]
    if MLFLOW in figure.samples:
        aims.append(Aim(f"{case}: 20 times mlflow", figure.ratio(DDPHUB, MLFLOW), 20.0, at_least=True))
    return aims


class Ddphub:
    """Sends runs to a hub of ours.

    Args:
        bench: the benchmark.
        hub: where to.
        events: of each run.
    """

    def __init__(self, bench: Bench, hub: Hub, events: int) -> None:
        self._bench = bench
        self._hub = hub
        self._events = events
        self._client = DdphubClient(hub.url, hub.key)
        self._models: list[str] = []

    def send(self, runs: int) -> float:
        """Some runs at once, each to a model of its own; events a second."""
        number = len(self._models)
        names = [f"run-{number + index}" for index in range(runs)]
        models = [self._client.register(Registration(name, "ingest", name, {})) for name in names]
        self._models += models
        places = [(f"{self._hub.url}/v1/models/{model}/events", "") for model in models]
        seconds = _send(self._bench, self._bench.folder / "ddphub.bodies", places, {"x-api-key": self._hub.key})
        return runs * self._events / seconds

    def check(self) -> None:
        """Every event of every run is there."""
        for model in self._models:
            told = self._client.call("GET", f"/v1/models/{model}")["events"]
            if told != self._events:
                raise RuntimeError(f"the hub has {told} of {self._events} events")


class Mlflow:
    """Sends runs to mlflow's server.

    Args:
        bench: the benchmark.
        url: where to.
        events: of each run.
    """

    def __init__(self, bench: Bench, url: str, events: int) -> None:
        self._bench = bench
        self._api = f"{url}/api/2.0/mlflow"
        self._events = events
        self._experiment: str = self._call("experiments/create", {"name": "ingest"})["experiment_id"]
        bench.work(MLFLOW, "prepare_bodies", str(bench.folder), str(events), str(AT_ONCE_MLFLOW))

    def send(self, runs: int) -> float:
        """Some runs at once; events a second."""
        asked = {"experiment_id": self._experiment, "start_time": 0}
        made = [self._call("runs/create", asked)["run"]["info"]["run_id"] for _ in range(runs)]
        places = [(f"{self._api}/runs/log-batch", run) for run in made]
        return runs * self._events / _send(self._bench, self._bench.folder / "mlflow.bodies", places, {})

    def _call(self, path: str, body: Mapping[str, Any]) -> Any:  # noqa: ANN401  # JSON
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self._api}/{path}", json.dumps(body).encode(), headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            return json.load(answer)


def _send(bench: Bench, bodies: Path, places: list[tuple[str, str]], headers: Mapping[str, str]) -> float:
    """Sends the bodies to each place (URL, run) at once; the seconds from the first request to the last answer."""
    with contextlib.ExitStack() as stack:
        senders = [stack.enter_context(_sender(bench, bodies, *place)) for place in places]
        for sender in senders:
            _tell(sender, json.dumps(headers))
        for sender in senders:
            _hear(sender)
        for sender in senders:
            _tell(sender, "go")
        told = [json.loads(_hear(sender)) for sender in senders]
    return float(max(one["ended"] for one in told) - min(one["began"] for one in told))


@contextlib.contextmanager
def _sender(bench: Bench, bodies: Path, url: str, run: str) -> Iterator[subprocess.Popen[str]]:
    # All the same program in the same Python: what is compared is who takes it in.
    command = bench.command(DDPHUB, "send_bodies", url, str(bodies), run)
    environment = bench.environment()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _tell(sender: subprocess.Popen[str], line: str) -> None:
    assert sender.stdin is not None
    sender.stdin.write(f"{line}\n")
    sender.stdin.flush()


def _hear(sender: subprocess.Popen[str]) -> str:
    assert sender.stdout is not None
    line = sender.stdout.readline()
    if not line:
        raise RuntimeError(f"a sender ended with {sender.wait(10)}, see above")
    return line


def _copy_rows(bench: Bench) -> Path:
    """A copy of the hub's database after one run: where the limit gets its rows from."""
    copy = bench.folder / "rows.sqlite"
    with (
        contextlib.closing(sqlite3.connect(bench.folder / "hub" / "hub.db")) as database,
        contextlib.closing(sqlite3.connect(copy)) as target,
    ):
        database.backup(target)
    return copy


_number = itertools.count()


def _insert(bench: Bench, source: Path) -> Measured:
    target = bench.folder / f"limit-{next(_number)}.sqlite"
    told = bench.work(DDPHUB, "insert_rows", str(source), str(target), str(AT_ONCE), prefix=NICE)
    for path in bench.folder.glob(f"{target.name}*"):
        path.unlink()
    return {"rate": told["rows"] / told["seconds"]}

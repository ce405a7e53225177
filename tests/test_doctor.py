"""`ddphub doctor`: what it says of a place that is well, and of everything that can be wrong with one."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from email.utils import formatdate

import mounts
import needs
import psutil
import pytest
from faulty_proxy import FaultyProxy, answer
from hub_process import HubProcess
from jobs import TORCHRUN
from jobs import ddphub as command_line

from ddphub.doctor.finding import Finding
from ddphub.doctor.rank import RankReport
from ddphub.doctor.report import shown_ranks

KEY = "doctor-key-doctor-key-doctor-key-doctor-k"
MAIN = "from ddphub.cli import main; main()"
LONGEST = 40
"""Seconds that the doctor may take whatever is broken, with a start of Python and torch on a busy machine."""


class Diagnosis:
    """What a call printed as JSON, and its exit code."""

    def __init__(self, done):
        assert "Traceback" not in done.stderr, done.stderr
        self.code = done.returncode
        self.text = done.stdout + done.stderr
        # A rank that cannot tell rank 0 prints for itself, on stderr.
        self.said = json.loads((done.stdout or done.stderr).strip().splitlines()[-1])
        assert self.said["ok"] == (self.code == 0)

    def of(self, topic):
        """(state, text) of the topic's only finding."""
        (one,) = [one for one in self.said["findings"] if one["topic"] == topic]
        return one["state"], one["text"]

    def wrong(self):
        """Topics that are not well, each once."""
        return {one["topic"] for one in self.said["findings"] if one["state"] != "ok"}

    def problems(self):
        """Texts of problems."""
        return [one["text"] for one in self.said["findings"] if one["state"] == "problem"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """One that all tests ask, and none breaks."""
    with HubProcess(tmp_path_factory.mktemp("doctor") / "hub", api_key=KEY) as process:
        yield process


@pytest.fixture
def proxy(hub):
    """In front of it."""
    made = FaultyProxy(hub.url)
    yield made
    made.close()


def doctor(*arguments, hub=None, environment=None):
    """One call in one process."""
    given = [str(argument) for argument in arguments]
    return Diagnosis(
        command_line("doctor", "--json", *given, hub=hub, environment=environment, check=False, timeout=LONGEST)
    )


def rank_of_two(rank, port, **variables):
    """Variables of one rank of a world of two, whose store is on loopback."""
    return {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **variables}


def test_a_good_place_is_called_good(hub, tmp_path):
    """Every check has a line, exit code 0, and nothing of it stays in the directory."""
    found = doctor(environment={"DDPHUB_DIR": str(tmp_path / "runs")}, hub=hub)
    assert (found.code, found.wrong()) == (0, set())
    assert [one["topic"] for one in found.said["findings"]] == [
        *("topology", "directory", "room", "lock", "copy", "hub", "clock"),
    ]
    assert "(from DDPHUB_DIR)" in found.of("directory")[1]
    assert found.of("hub")[1] == f"{hub.url} (from DDPHUB_URL) answers and accepts the key from DDPHUB_API_KEY"
    assert found.said["ranks"][0]["lock"] == "flock"
    assert list((tmp_path / "runs").iterdir()) == []
    assert hub.key not in found.text


def test_it_reads_for_a_person(hub, tmp_path):
    """A line a check; where something is wrong, what to do on the next."""
    variables = {"DDPHUB_URL": hub.url, "DDPHUB_TYPO": "1"}
    done = command_line("doctor", str(tmp_path / "runs"), environment=variables, check=False)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ok       topology   one process")
    wrong = [index for index, line in enumerate(lines) if not line.startswith(("ok", " "))]
    assert [lines[index].split()[:2] for index in wrong] == [["warning", "settings"], ["problem", "hub"]]
    assert all(lines[index + 1].strip().startswith("-> ") for index in wrong)
    assert "wants a key; none is set" in lines[wrong[1]]


def test_a_missing_psutil_is_noted(hub, tmp_path):
    """It is an extra: no problem, and told."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['psutil'] = None\n")
    found = doctor(tmp_path / "runs", hub=hub, environment={"PYTHONPATH": str(tmp_path)})
    assert (found.code, found.of("system")) == (0, ("ok", "psutil is missing: system figures are not reported"))
    assert 'pip install "ddphub[system]" (in a clone: pip install ".[system]")' in found.text.replace('\\"', '"')


def test_no_hub_is_no_problem(tmp_path):
    """Nor is one that the mode keeps a run from: neither is asked."""
    assert doctor(tmp_path).of("hub")[0] == "ok"
    offline = {"DDPHUB_URL": "http://127.0.0.1:9", "DDPHUB_MODE": "offline"}
    found = doctor(tmp_path, environment=offline)
    assert (found.code, found.of("hub")[0]) == (0, "ok")
    assert "is not asked" in found.of("hub")[1]


def test_a_stored_key_is_named_by_its_file(hub, tmp_path):
    command_line("login", "--url", hub.url, text_in=hub.key + "\n")
    found = doctor(tmp_path / "runs")
    file = tmp_path / "config" / "ddphub" / "credentials.json"
    assert found.of("hub")[1] == f"{hub.url} (from {file}) answers and accepts the key from {file}"
    assert hub.key not in found.text


def test_a_key_that_is_refused_is_not_shown(hub, proxy, tmp_path):
    """Not even when the hub repeats it."""
    secret = "a-secret-a-secret-a-secret"
    variables = {"DDPHUB_URL": hub.url, "DDPHUB_API_KEY": secret}
    found = doctor(tmp_path, environment=variables)
    state, text = found.of("hub")
    assert (found.code, state) == (1, "problem")
    assert "does not accept the key from DDPHUB_API_KEY" in text
    proxy.fault = answer(403, json.dumps({"detail": f"unknown key {secret}"}).encode())
    repeated = doctor(tmp_path, environment={**variables, "DDPHUB_URL": proxy.url})
    assert "unknown key ..." in repeated.of("hub")[1]
    assert secret not in found.text + repeated.text


def test_a_hub_that_is_down_or_something_else_is_told_apart(hub, proxy, tmp_path):
    """It never answers; nobody listens; it answers 503; it is no hub of ours; it is one that speaks HUB v1."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        never = doctor(tmp_path, environment={"DDPHUB_URL": f"http://127.0.0.1:{port}"})
    assert "cannot be reached" in never.of("hub")[1]
    gone = doctor(tmp_path, environment={"DDPHUB_URL": f"http://127.0.0.1:{port}"})
    assert "cannot be reached" in gone.of("hub")[1]
    variables = {"DDPHUB_URL": proxy.url, "DDPHUB_API_KEY": hub.key}
    proxy.fault = answer(503, b"closed")
    assert "answers, but not as a hub does" in doctor(tmp_path, environment=variables).of("hub")[1]
    proxy.fault = answer(404, b"{}")
    assert "this is no ddphub hub" in doctor(tmp_path, environment=variables).of("hub")[1]
    proxy.fault = None
    v1 = {**variables, "DDPHUB_URL": f"hub-v1+{proxy.url}"}
    assert "accepts the key" in doctor(tmp_path, environment=v1).of("hub")[1]
    platform = {"DDPHUB_URL": f"platform+{hub.url}", "ULTRALYTICS_API_KEY": "not-sent"}
    assert "tried by the first event only" in doctor(tmp_path, environment=platform).of("hub")[1]


def test_a_hub_with_another_time_is_noticed(hub, proxy, tmp_path):
    """By the Date of its answer, here one of an hour later."""

    def later(handler):
        handler.date_time_string = lambda: formatdate(time.time() + 3600, usegmt=True)
        return False

    proxy.fault = later
    found = doctor(tmp_path, environment={"DDPHUB_URL": proxy.url, "DDPHUB_API_KEY": hub.key})
    state, text = found.of("clock")
    assert (found.code, state) == (0, "warning")
    assert float(text.split()[4]) == pytest.approx(3600, abs=10)
    assert "ahead of" in text


def test_every_wrong_setting_is_named_and_the_rest_is_looked_at(hub, tmp_path):
    """Also a launcher's variables; a secret in a URL is not repeated."""
    wrong = {
        "RANK": "5",
        "WORLD_SIZE": "2",
        "DDPHUB_URL": "http://me:secret@127.0.0.1:9",
        "DDPHUB_MODE": "onlin",
        "DDPHUB_STAGING_BUDGET": "much",
        "DDPHUB_SIGNAL_BUDGET": "-1",
    }
    found = doctor(tmp_path, environment=wrong)
    named = [text.partition("=")[0] for text in found.problems()]
    assert named == ["RANK", "hub", "mode", "staging_budget", "signal_budget"]
    assert found.of("directory")[0] == found.of("lock")[0] == "ok"
    assert "secret" not in found.text
    no_hub = doctor(tmp_path, environment={"DDPHUB_MODE": "online"})
    assert ["needs a hub" in text for text in no_hub.problems()] == [True]
    assert doctor(tmp_path, environment={"DDPHUB_MODE": "disabled"}).wrong() == {"settings"}


def test_a_directory_that_cannot_be_written_is_a_problem(hub, tmp_path):
    """Read-only; without inodes; full. The hub is asked all the same."""
    with mounts.tmpfs(tmp_path / "small", "size=1m", "nr_inodes=20") as small:
        fits = doctor(small, hub=hub)
        assert (fits.code, fits.wrong()) == (0, {"room"})
        for number in range(18):
            (small / str(number)).touch()
        assert any("No space left" in text or "full" in text for text in doctor(small).problems())
        for path in small.iterdir():
            path.unlink()
        with contextlib.suppress(OSError), (small / "large").open("wb") as large:
            large.write(bytes(2 * 1024 * 1024))
        full = doctor(small)
        assert ["the disk is full" in text for text in full.problems()] == [True]
        mounts.remount(small, "ro")
        read_only = doctor(small, hub=hub)
        assert ["Read-only file system" in text for text in read_only.problems()] == [True]
        assert read_only.of("hub")[0] == "ok"


def test_a_directory_that_hangs_does_not_hold_it_up(hub, tmp_path):
    """Its file server is stopped; the hub is asked all the same."""
    (tmp_path / "real").mkdir()
    with mounts.second_view(tmp_path / "view", of=tmp_path / "real") as view:
        (server,) = [
            one
            for one in psutil.process_iter(["cmdline"])
            if one.info["cmdline"] == ["bindfs", str(view.parent / "real"), str(view)]
        ]
        server.send_signal(signal.SIGSTOP)
        try:
            begin = time.monotonic()
            found = doctor(view / "runs", hub=hub)
            assert time.monotonic() - begin < LONGEST
        finally:
            server.send_signal(signal.SIGCONT)
    assert ["its file server hangs" in text for text in found.problems()] == [True]
    assert found.of("hub")[0] == "ok"


def test_how_a_checkpoint_will_be_copied(tmp_path):
    """XFS shares blocks; tmpfs copies."""
    with mounts.disk(tmp_path / "xfs", "xfs", 300) as xfs:
        assert doctor(xfs / "runs").of("copy")[1].startswith("xfs: a checkpoint is cloned")
    with mounts.tmpfs(tmp_path / "tmpfs") as tmpfs:
        assert doctor(tmpfs / "runs").of("copy")[1].startswith("tmpfs: a checkpoint is copied inside the kernel")


def test_where_flock_is_refused_a_lease_takes_its_place(tmp_path):
    """Here by strace, with the error of an NFS mount without its lock service."""
    needs.programs("strace")
    refuse = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=flock", "-e", "inject=flock:error=ENOLCK"]
    command = [*refuse, sys.executable, "-c", MAIN, "doctor", "--json", str(tmp_path)]
    found = Diagnosis(subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False))
    assert (found.code, found.wrong(), found.of("lock")[0]) == (0, {"lock"}, "warning")
    assert found.said["ranks"][0]["lock"] == "lease"
    assert list(tmp_path.iterdir()) == []


def test_under_torchrun_rank_0_tells_what_every_rank_found(hub, tmp_path):
    """One of two has no directory to write to."""
    program = (
        f'[ "$RANK" = 0 ] || export DDPHUB_DIR=/proc/runs; exec {sys.executable} -c "{MAIN}" doctor --json --wait 20'
    )
    variables = {"DDPHUB_DIR": str(tmp_path / "runs"), "DDPHUB_URL": hub.url, "DDPHUB_API_KEY": hub.key}
    done = subprocess.run(
        [*TORCHRUN, "--standalone", "--nproc-per-node=2", "--no-python", "sh", "-c", program],
        capture_output=True,
        text=True,
        timeout=150,
        env={**os.environ, **variables, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 1
    (said,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    well = {one["topic"]: one["text"] for one in said["findings"] if one["state"] == "ok"}
    assert "torchrun's agent" in well["store"]
    assert well["ranks"] == "all 2 ranks answer"
    assert set(well) >= {"clock", "directory", "hub"}
    assert [(one["rank"], one["local_rank"], one["gpu"]) for one in said["ranks"]] == [(0, 0, "none"), (1, 1, "none")]
    assert abs(said["ranks"][1]["ahead"]) < 2
    problems = [(one["topic"], one["ranks"]) for one in said["findings"] if one["state"] == "problem"]
    assert problems == [("directory", [1])]


def test_nonsense_and_a_dead_world_in_the_store_are_passed_over(free_port, tmp_path):
    """A rank that is there is heard after a namesake that said hello, made no sense, and answered nothing more."""
    from torch.distributed import TCPStore

    command = [sys.executable, "-c", MAIN, "doctor", str(tmp_path), "--json", "--wait", "60"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, **pipes, env={**os.environ, **rank_of_two(0, free_port)})
    store = TCPStore("127.0.0.1", free_port, None, False, timedelta(seconds=60), wait_for_workers=False)
    nonce = "0" * 32
    for hello in ([], {"rank": 99, "nonce": nonce}, {"rank": 1, "nonce": 7}, {"rank": True}, float("nan")):
        store.queue_push("ddphub//doctor/hello", json.dumps(hello))
    store.queue_push("ddphub//doctor/hello", json.dumps({"rank": 1, "nonce": nonce}))
    order = json.loads(store.queue_pop(f"ddphub//doctor/to/{nonce}"))
    assert order["do"] == "report"
    for report in (7, {}, {"host": 1}, {"node": "x", "findings": []}):
        message = {"rank": 1, "nonce": nonce, "time": 1.0, "report": report}
        store.queue_push(f"ddphub//doctor/from/{order['reply']}", json.dumps(message))
    second = subprocess.Popen(command, **pipes, env={**os.environ, **rank_of_two(1, free_port)})
    out, err = first.communicate(timeout=150)
    found = Diagnosis(subprocess.CompletedProcess([], first.returncode, out, err))
    assert (found.code, found.of("ranks")[1]) == (0, "all 2 ranks answer")
    assert second.communicate(timeout=150) == ("", "")
    assert second.returncode == 0


def test_a_store_that_never_answers_does_not_hold_a_rank_up(tmp_path):
    """It then prints for itself what it found: rank 0 cannot be told."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        variables = rank_of_two(1, silent.getsockname()[1], TORCHELASTIC_USE_AGENT_STORE="True")
        done = command_line(
            "doctor", str(tmp_path), "--json", "--wait", "0", environment=variables, check=False, timeout=LONGEST
        )
    assert done.stdout == ""
    found = Diagnosis(done)
    assert [("does not answer in time" in text, found.code) for text in found.problems()] == [(True, 1)]
    assert found.of("directory")[0] == "ok"


def test_a_world_without_a_store_is_told_how_to_get_one(tmp_path):
    found = doctor(tmp_path, "--wait", "0", environment={"RANK": "0", "WORLD_SIZE": "2"})
    assert "MASTER_ADDR and MASTER_PORT are not set" in found.of("store")[1]
    assert found.code == 1


def test_what_another_rank_sends_is_checked():
    good = RankReport(1, findings=[Finding("lock", "warning", "x", "y")])
    assert RankReport.parse(json.loads(json.dumps(good.to_json())), 1) == good
    for field, value in {"host": 1, "node": True, "local_rank": "0", "gpu": None, "findings": {}, "address": 5}.items():
        assert RankReport.parse({**good.to_json(), field: value}, 1) is None
    for finding in (None, {}, {"topic": "a", "state": "fine", "text": "b"}, {"topic": 1, "state": "ok", "text": "b"}):
        assert Finding.parse(finding) is None
    long = Finding.parse({"topic": "a", "state": "ok", "text": "b" * 10**6, "advice": None})
    assert len(long.text) == 1000


def test_ranks_are_shown_short():
    assert shown_ranks([3]) == "rank 3"
    assert shown_ranks([0, 1, 2, 5, 7, 8]) == "ranks 0-2, 5, 7-8"


def test_it_leaves_a_stopped_process_behind():
    """The helper's own promise: what hangs is not waited for."""
    from ddphub.doctor.bounded import Pending

    wait = threading.Event()
    begin = time.monotonic()
    with pytest.raises(TimeoutError):
        Pending(wait.wait).result(begin + 0.1)
    wait.set()
    assert Pending(lambda: 7).result(time.monotonic() + 10) == 7
    with pytest.raises(ZeroDivisionError):
        Pending(lambda: 1 / 0).result(time.monotonic() + 10)

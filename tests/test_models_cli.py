"""`ddphub models` against a real hub with real runs: what it says, and its exit codes."""

import fcntl
import hashlib
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from types import SimpleNamespace

import pytest
from hub_process import KEY, HubProcess
from jobs import ddphub as command_line
from jobs import wait_until

import ddphub
from ddphub.cli import main
from ddphub.models_text import progress_of
from ddphub.reading.records import Progress

MAIN = [sys.executable, "-c", "from ddphub.cli import main; main()"]
LONG = "größe-" * 20


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A hub with two runs that ended, one of them badly; and what they are called there."""
    folder = tmp_path_factory.mktemp("runs")
    ids = {}
    with HubProcess(folder / "hub", api_key=KEY) as process:
        for name, rate in (("good", 0.1), ("bad", 0.2)):
            run = ddphub.init(
                project="digits",
                name=name if name == "good" else LONG,
                config={"lr": rate, "epochs": 3, "augment": {"flip": True, "text": "x y" * 100}},
                hub=process.url,
                api_key=KEY,
                dir=folder / "runs",
                run_id=name,
                rate_limits={"ckpt": 0, "metrics": 0.2},
            )
            with pytest.raises(ValueError, match="no such luck") if name == "bad" else run, run:
                for step in range(10):
                    run.log({"loss": rate / (step + 1), "odd": float("nan")}, step=step, epoch=step // 4)
                for kind in ("epoch", "best"):
                    (folder / f"{kind}.pt").write_bytes(f"{name} {kind}".encode())
                    run.save_checkpoint(folder / f"{kind}.pt", epoch=2, kind=kind, metrics={"accuracy": 0.5})
                if name == "bad":
                    raise ValueError("no such luck")
            ids[name] = run.model_id
        hub = ddphub.Hub(process.url, KEY)
        hub.model(ids["good"]).set(notes="why \x1b[31mnot\nsecond line", tags=["paper", "base"])
        yield process, ids


@pytest.fixture
def models(runs, monkeypatch, capsys):
    """Runs `ddphub models` in this process; its standard output."""
    process, _ = runs
    monkeypatch.setenv("DDPHUB_URL", process.url)
    monkeypatch.setenv("DDPHUB_API_KEY", process.key)

    def models(*arguments, code=0, error="", command="models", typed=""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        monkeypatch.setattr(sys, "argv", ["ddphub", *filter(None, [command]), *arguments])
        ended = 0
        try:
            main()
        except SystemExit as end:
            ended = end.code or 0
        out, err = capsys.readouterr()
        assert ended == code, out + err
        assert error in err
        return out

    return models


def on_terminal(process, columns, *arguments, typed=""):
    """What `ddphub models` writes to a terminal of so many columns, and its exit code."""
    pid, terminal = pty.fork()
    if pid == 0:
        size = struct.pack("HHHH", 50, columns, 0, 0)
        fcntl.ioctl(0, termios.TIOCSWINSZ, size)
        environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "NO_COLOR"}}
        environment |= {"DDPHUB_URL": process.url, "DDPHUB_API_KEY": process.key, "TERM": "xterm"}
        os.execve(sys.executable, [*MAIN, "models", *arguments], environment)
    written = b""
    os.write(terminal, typed.encode())
    while True:
        try:
            block = os.read(terminal, 65536)
        except OSError:  # the program has closed its end
            break
        if not block:
            break
        written += block
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    return written.decode(), os.waitstatus_to_exitcode(status)


def test_list_has_a_line_a_model(models, runs):
    _, ids = runs
    head, *rows = [line.split("\t") for line in models("list").splitlines()]
    assert head == ["ID", "STATE", "PROJECT", "NAME", "PROGRESS", "LAST SEEN", "TAGS"]
    assert [row[:5] for row in rows] == [
        [ids["bad"], "failed", "digits", LONG, "epoch 3 of 3, step 9"],
        [ids["good"], "finished", "digits", "good", "epoch 3 of 3, step 9"],
    ]
    assert rows[1][6] == "base, paper"
    for wanted, expected in {
        ("--project", "digits"): ["bad", "good"],
        ("--project", "none"): [],
        ("--state", "failed"): ["bad"],
        ("--state", "failed", "--state", "finished"): ["bad", "good"],
        ("--tag", "paper", "--tag", "base"): ["good"],
        ("--search", "GRÖSSE"): ["bad"],
    }.items():
        found = [json.loads(line) for line in models("list", "--json", *wanted).splitlines()]
        assert [one["run_id"] for one in found] == expected, wanted
        assert all(one["id"] == ids[one["run_id"]] for one in found)
    assert len(models("list", "--limit", "1", error="there are more than 1").splitlines()) == 2
    assert len(models("list", "--limit", "0", "--json").splitlines()) == 2


def test_show_says_how_it_went_and_why(models, runs):
    process, ids = runs
    text = models("show", ids["good"])
    assert text.startswith(f"good of digits: finished\n{process.url}/models/{ids['good']}\n")
    for part in (
        "run good,",
        "tags: base, paper",
        "attempt 1: finished,",
        "ranks: none of 1 not well",
        "why ",
        "\nsecond",
    ):
        assert part in text
    assert "\x1b" not in text
    lines = [line.split("\t") for line in text.splitlines()]
    assert ["loss", "0.01", "0.01", "0.1", "10"] in lines
    assert ["odd", "-", "-", "-", "10"] in lines
    assert ["augment.text", "x y" * 100] in lines
    (best,) = [line for line in lines if line[1:2] == ["best"]]
    assert best[2:6] == ["2", "-", "best.pt", "9 B"]
    bad = models("show", f"{process.url}/models/{ids['bad']}")
    assert f"{LONG} of digits: failed" in bad
    assert "\nTraceback (most recent call last):" in bad
    assert bad.rstrip().endswith("ValueError: no such luck")


def test_show_as_json_has_everything(models, runs):
    _, ids = runs
    found = json.loads(models("show", ids["good"], "--json"))
    assert (found["id"], found["state"], found["tags"]) == (ids["good"], "finished", ["base", "paper"])
    assert (found["notes"], found["config"]["lr"]) == ("why \x1b[31mnot\nsecond line", 0.1)
    assert [rank["health"] for rank in found["ranks"]] == ["done"]
    assert [one["name"] for one in found["metrics"] if "system/" not in one["name"]] == ["loss", "odd"]
    assert [one["kind"] for one in found["checkpoints"]] == ["best", "epoch"]
    assert found["checkpoints"][0]["files"][0]["sha256"] == hashlib.sha256(b"good best").hexdigest()


def test_compare_marks_what_differs(models, runs):
    _, ids = runs
    rows = {row[1]: row for row in (line.split("\t") for line in models("compare", *ids.values()).splitlines())}
    assert rows[""] == ["", "", f"good ({ids['good']})", f"{LONG} ({ids['bad']})"]
    assert rows["lr"] == ["*", "lr", "0.1", "0.2"]
    assert rows["epochs"] == ["", "epochs", "3", "3"]
    assert rows["augment.flip"][0] == ""
    assert rows["odd"][0] == ""
    assert rows["loss"] == ["*", "loss", "0.01 (0.01 to 0.1)", "0.02 (0.02 to 0.2)"]
    found = json.loads(models("compare", "--json", ids["bad"], ids["good"]))
    assert found["differing"] == ["lr"]
    assert [one["metrics"]["loss"]["latest"] for one in found["models"]] == [0.02, 0.01]
    models("compare", ids["good"], code=2, error="two models or more")


def test_a_terminal_shows_everything_whatever_its_width(runs):
    process, ids = runs
    written, code = on_terminal(process, 100, "list")
    head, *rows = [line for line in re.sub(r"\x1b\[[01]m", "", written).splitlines() if line.strip()]
    assert (code, max(map(len, [head, *rows])) <= 100) == (0, True)
    assert [row.split()[0] for row in rows if ids["good"] in row or ids["bad"] in row] == [ids["bad"], ids["good"]]
    start, end = head.index("NAME"), head.index("PROGRESS")
    assert "".join(row[start:end].strip() for row in rows) == f"{LONG}good"
    written, code = on_terminal(process, 30, "compare", *ids.values())
    assert code == 0
    for line in ("* lr", f"good ({ids['good']}): 0.1", f"{LONG} ({ids['bad']}): 0.2", "augment.flip"):
        assert f"{line}\r\n" in written
    written, code = on_terminal(process, 100, "show", ids["good"])
    assert (code, "\x1b[31m" in written, "why \N{REPLACEMENT CHARACTER}[31mnot\r\nsecond" in written) == (
        0,
        False,
        True,
    )


def test_the_reader_of_a_pipe_may_leave(runs):
    """As `ddphub models list | head -1` does."""
    process, ids = runs
    environment = {**os.environ, "DDPHUB_URL": process.url, "DDPHUB_API_KEY": process.key}
    for arguments in (["list"], ["show", ids["good"], "--json"]):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [*MAIN, "models", *arguments], stdout=write, stderr=subprocess.PIPE, text=True, env=environment, check=False
        )
        os.close(write)
        assert (done.returncode, done.stderr) == (1, "")


def test_download_fetches_what_is_asked_for(models, runs, tmp_path, monkeypatch):
    process, ids = runs
    monkeypatch.chdir(tmp_path)
    assert "best.pt: best checkpoint of epoch 2" in models("download", ids["good"])
    assert (tmp_path / "best.pt").read_bytes() == b"good best"
    models("download", ids["good"], code=2, error="ddphub: best.pt is there already: name another with -o PATH\n")
    url = f"{process.url}/models/{ids['bad']}"
    found = json.loads(models("download", url, "--kind", "epoch", "-o", "out/e.pt", "--json"))
    assert (found["path"], found["checkpoint"]["kind"]) == ("out/e.pt", "epoch")
    assert (tmp_path / "out" / "e.pt").read_bytes() == b"bad epoch"
    checkpoint_id = found["checkpoint"]["id"]
    models("download", url, "--checkpoint", checkpoint_id, "-o", "best.pt")
    assert (tmp_path / "best.pt").read_bytes() == b"bad epoch"
    models("download", url, "--checkpoint", "x" * 20, code=1, error="has no checkpoint")
    models(
        "download",
        url,
        "--kind",
        "final",
        code=1,
        error=f"{url} has no final checkpoint; it has: epoch (1), best (1)\n",
    )
    models("download", url, "--kind", "last", code=2, error="expected one of epoch, best, final")
    models("download", url, "--kind", "best", "--checkpoint", checkpoint_id, code=2, error="not both")
    models("download", url, "-o", "best.pt/under", code=1, error="not fetched")


def test_stop_ends_a_run(own_hub, tmp_path):
    run = ddphub.init(project="p", name="n", hub=own_hub.url, api_key=KEY, dir=tmp_path, rate_limits={"heartbeat": 0.2})
    run.log({"loss": 1.0})
    model = wait_until(lambda: next(ddphub.Hub(own_hub.url, KEY).models(state="running"), None))
    refused = command_line("models", "stop", model.id, hub=own_hub, check=False)
    assert (refused.returncode, "pass --yes" in refused.stderr) == (2, True)
    written, code = on_terminal(own_hub, 80, "stop", model.id, typed="n\n")
    assert ("Ask n of p (running) to stop?" in written, code) == (True, 1)
    assert not run.should_stop()
    said = command_line("models", "stop", model.id, "--yes", "--json", hub=own_hub).stdout
    assert json.loads(said) == {"id": model.id, "state": "running", "stop_requested": True}
    wait_until(run.should_stop)
    assert "running, asked to stop" in command_line("models", "list", hub=own_hub).stdout
    run.finish()
    again = command_line("models", "stop", model.url, hub=own_hub).stdout
    assert "it has ended already: " in again
    assert "asked to stop" not in command_line("models", "show", model.id, hub=own_hub).stdout


def test_show_tells_of_each_attempt_what_its_state_tells(own_hub, models, monkeypatch):
    """A killed rank's loss comes before what it cost the others; an attempt that goes on is what its model is."""
    monkeypatch.setenv("DDPHUB_URL", own_hub.url)
    monkeypatch.setenv("DDPHUB_API_KEY", own_hub.key)
    http = own_hub.client()
    model_id = http.post(f"{own_hub.url}/v1/models", json={"meta": {"name": "n"}}).json()["data"]["id"]

    def say(attempt, seq, state, reason=None):
        event = {"attempt_id": attempt * 32, "rank": 0, "seq": seq, "time": time.time(), "kind": "attempt"}
        event |= {"state": state, "world_size": 2, "host": "h", "reason": reason}
        answer = http.post(f"{own_hub.url}/v1/models/{model_id}/events", json=[event])
        assert answer.status_code == 200, answer.text

    def attempts():
        head, *lines = models("show", model_id).splitlines()
        return head, [line for line in lines if line.startswith("attempt ")]

    trace = 'Traceback (most recent call last):\n  File "a.py", line 1\nRuntimeError: gloo\nclosed by peer'
    say("a", 0, "started")
    say("a", 1, "failed", f"rank 1: its process is gone\n\nrank 0: {trace}")
    head, (first,) = attempts()
    assert head.endswith(": failed: rank 1: its process is gone")
    assert (first.startswith("attempt 1: failed, "), first.endswith(": rank 1: its process is gone")) == (True, True)
    say("b", 0, "started")
    say("b", 1, "failed", trace)
    say("c", 0, "started")
    head, (first, second, third) = attempts()
    assert head.endswith(": running")
    assert first.endswith("rank 0 on h: rank 1: its process is gone")
    assert second.endswith("rank 0 on h: RuntimeError: gloo")
    assert third.startswith("attempt 3: running, started ")
    http.post(f"{own_hub.url}/v1/models/{model_id}/stop")
    assert "it is asked to stop" in models("show", model_id)
    say("c", 1, "stopped")
    assert "it is asked to stop" not in models("show", model_id)


@pytest.mark.parametrize(
    ("epoch", "epochs", "shown"),
    [
        (0, 6, "epoch 1 of 6"),
        (5, 6, "epoch 6 of 6"),
        (6, 6, "epoch 6 of 6"),
        (7, 6, "epoch 7"),
        (-1, 6, "epoch -1"),
        (5, None, "epoch 5"),
        (None, 6, "-"),
    ],
)
def test_progress_counts_epochs_as_people_do(epoch, epochs, shown):
    model = SimpleNamespace(progress=Progress(step=None, epoch=epoch, epochs=epochs, rate=None))
    assert progress_of(model) == shown


def test_delete_hides_and_deletes_for_good(models, runs):
    process, _ = runs
    http = process.client()
    ids = [http.post(f"{process.url}/v1/models", json={"project": "d"}).json()["data"]["id"] for _ in range(2)]
    models("delete", ids[0], code=2, error="pass --yes")
    written, code = on_terminal(process, 80, "delete", ids[0], typed="y\n")
    assert ("Hide model of d (new) from everyone?" in written, code) == (True, 0)
    models("delete", ids[0], "--yes", code=1, error="no such model")
    assert models("delete", ids[1], "--yes") == (
        f"{ids[1]}: hidden; --hard also frees its bytes; there is no way back\n"
    )
    for one in ids:
        assert json.loads(models("delete", one, "--hard", "-y", "--json")) == {"id": one, "hard": True}
    models("delete", ids[0], "--hard", "-y", code=1, error="no such model")
    assert models("list", "--json", "--project", "d") == ""


def test_what_is_wrong_is_said_in_a_line(models, runs, monkeypatch):
    process, ids = runs
    models("show", "x" * 20, code=1, error="no such model")
    models("show", "not/an/id", code=2, error="expected")
    models(
        "list", "--state", "broken", code=2, error="--state: expected one of new, running, stalled, lost, finished, "
    )
    models("list", "--limit", "-1", code=2)
    nothing = (
        "nothing answers at http://127.0.0.1:1: is the hub running? ddphub doctor says more (Connection refused)\n"
    )
    models("list", "--hub", "http://127.0.0.1:1", code=1, error=f"ddphub: {nothing}")
    models("login", "--url", "http://127.0.0.1:1", command=None, typed="k\n", code=1, error=f"not stored: {nothing}")
    models("list", "--hub", "http://no.such.invalid", code=1, error="nothing answers at http://no.such.invalid: ")
    models("list", "--hub", "platform", code=2, error="only a hub of `ddphub serve`")
    models("show", ids["good"], "--hub", "ftp://x", code=2, error="expected a URL")
    models("show", f"http://127.0.0.1:1/models/{ids['good']}", "--hub", process.url, code=2, error="the model is on")
    monkeypatch.setenv("DDPHUB_API_KEY", "k")
    models("list", code=1, error="does not know the key")
    monkeypatch.delenv("DDPHUB_API_KEY")
    wants = f"wants a key, and none is set: DDPHUB_API_KEY, or ddphub login --url {process.url} ("
    models("list", code=1, error=wants)
    models("pull", ids["good"], command=None, code=1, error=wants)
    monkeypatch.delenv("DDPHUB_URL")
    unnamed = "ddphub: no hub is named: pass --hub URL, set DDPHUB_URL, or ddphub login --url URL\n"
    models("list", code=2, error=unnamed)
    models("show", ids["good"], code=2, error=unnamed)


def test_a_page_of_another_hub_does_not_get_the_key(models, runs):
    """DDPHUB_API_KEY is for DDPHUB_URL's hub; a link that someone sent names another."""
    process, _ = runs
    page = "http://127.0.0.1:1/models/" + "x" * 20
    refused = f"DDPHUB_API_KEY is for {process.url}: pass --hub http://127.0.0.1:1"
    for command in (["models", "show"], ["pull"]):
        models(*command, page, command=None, code=2, error=refused)
        models(*command, page, "--hub", "http://127.0.0.1:1", command=None, code=1, error="Connection refused")

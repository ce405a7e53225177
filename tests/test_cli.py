"""The command line: what it says, and its exit codes."""

import json
import os
import subprocess
import sys

import postgres
import pytest
from hub_process import HubProcess
from jobs import ddphub as command_line

import ddphub


@pytest.fixture
def runs(tmp_path):
    """A folder with one offline run: 3 metric events and a checkpoint wait."""
    folder = tmp_path / "runs"
    run = ddphub.init(project="tests", name="cli", dir=folder, mode="offline", run_id="waiting")
    for step in range(3):
        run.log({"loss": 1.0}, step=step)
    (tmp_path / "last.pt").write_bytes(b"weights")
    run.save_checkpoint(tmp_path / "last.pt", epoch=0)
    run.finish()
    return folder


def test_status_tells_what_waits_and_how_to_deliver_it(runs):
    """For a person, and one JSON object a run for a program."""
    told = command_line("status", str(runs)).stdout
    assert "ddphub sync" in told
    status = json.loads(command_line("status", str(runs / "waiting"), "--json").stdout)
    assert set(status) >= {"run_id", "model_id", "url", "attempts", "world_size", "events", "checkpoints"}
    assert status["run_id"] == "waiting"
    assert set(status["events"]) == {"reported", "delivered", "pending", "set_aside"}
    assert set(status["checkpoints"]) >= {"staged", "uploaded", "pending", "superseded", "refused"}
    assert status["events"]["pending"] == status["events"]["reported"] >= 3
    assert status["checkpoints"]["pending"] == status["checkpoints"]["staged"] == 1
    assert (status["attempts"], status["world_size"], status["model_id"]) == (1, 1, None)


def test_status_counts_one_as_one(tmp_path, caplog):
    with ddphub.init(project="tests", name="cli", dir=tmp_path / "runs", mode="offline", run_id="one") as run:
        run.save_checkpoint(tmp_path / "nofile.pt", epoch=0)
        run.log({"a": "text"})
    assert [
        record.getMessage().partition(" is ")[0] for record in caplog.records if record.name.startswith("ddphub")
    ] == [
        "ddphub: checkpoint nofile.pt",
        "ddphub: metric 'a'",
    ]
    told = command_line("status", str(tmp_path / "runs")).stdout
    assert "  ! 1 save refused, " in told


def test_sync_says_when_something_is_left(runs):
    """No hub, a hub that is down, a directory without runs: exit code 1 or 2 and one line, no traceback."""
    no_hub = command_line("sync", str(runs), check=False)
    assert no_hub.returncode == 1
    assert "no hub is named: pass --hub URL" in no_hub.stderr
    nowhere = command_line("sync", str(runs.parent), check=False)
    assert nowhere.returncode == 1
    assert "no run in" in nowhere.stderr
    wrong = command_line("sync", str(runs), "--hub", "ftp://hub", check=False)
    assert wrong.returncode == 2
    assert "expected a URL" in wrong.stderr
    assert not [text for text in (no_hub, nowhere, wrong) if "Traceback" in text.stderr]


def test_a_damaged_run_is_named_and_the_others_are_delivered(runs, own_hub, view):
    """One bad run.json does not hold up the rest, and is not deleted."""
    bad = runs / "bad"
    bad.mkdir()
    (bad / "run.json").write_text('{"run_id": "../up"}')
    done = command_line("sync", str(runs), hub=own_hub, check=False)
    assert done.returncode == 1
    assert "bad/run.json: run_id" in done.stderr
    assert len(view.metrics()) == 3
    assert (bad / "run.json").exists()


def test_login_stores_a_key_that_works_and_only_for_its_hub(own_hub, runs, view, tmp_path):
    """The key comes on standard input, is tried, and is kept in a 0600 file; a wrong one is not stored."""
    refused = command_line("login", "--url", own_hub.url, text_in="wrong-key-wrong-key-wrong\n", check=False)
    assert refused.returncode == 1
    path = tmp_path / "config" / "ddphub" / "credentials.json"
    assert not path.exists()
    command_line("login", "--url", own_hub.url, text_in=own_hub.key + "\n")
    assert path.stat().st_mode & 0o777 == 0o600
    command_line("sync", str(runs), "--hub", own_hub.url)
    assert len(view.metrics()) == 3


def test_a_key_is_not_sent_to_a_hub_that_only_a_run_names(runs, own_hub):
    """DDPHUB_API_KEY belongs to DDPHUB_URL: a run.json with another hub does not get it."""
    path = runs / "waiting" / "run.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "hub": "http://127.0.0.1:9"}))
    refused = command_line("sync", str(runs), hub=own_hub, check=False)
    assert refused.returncode == 1
    assert "DDPHUB_API_KEY is for" in refused.stderr
    alone = command_line("sync", str(runs), environment={"DDPHUB_API_KEY": own_hub.key}, check=False)
    assert "the key in DDPHUB_API_KEY has no DDPHUB_URL beside it: pass --hub http://127.0.0.1:9 to" in alone.stderr


def test_serve_makes_a_key_once_and_says_what_to_paste(tmp_path):
    """The first start prints two export lines; the second start does not, and the key still works."""
    program = [sys.executable, "-c", "from ddphub.cli import main; main()", "serve", "--port", "0", "--data", "hub"]
    url = postgres.database_of(tmp_path / "hub")
    environment = os.environ | ({"DDPHUB_DATABASE_URL": url} if url else {})
    said = []
    for _ in range(2):
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as process:
            lines = []
            for line in process.stdout:
                lines.append(line.strip())
                if line.startswith("ddphub hub on "):
                    break
            process.terminate()
            said.append(lines)
    exports = [line for line in said[0] if line.startswith("export ")]
    assert [line.partition("=")[0] for line in exports] == ["export DDPHUB_URL", "export DDPHUB_API_KEY"]
    assert [line for line in said[1] if "KEY" in line] == []
    key = exports[1].partition("=")[2]
    assert not [path for path in (tmp_path / "hub").rglob("*") if path.is_file() and key.encode() in path.read_bytes()]
    with HubProcess(tmp_path / "hub") as hub:
        answer = hub.client().post(hub.url + "/v1/auth", headers={"x-api-key": key}, timeout=10)
        assert answer.status_code == 200


@pytest.mark.parametrize(
    "arguments", [("serve", "--port", "99999"), ("serve", "--data", "/proc/no"), ("login", "--url", "x")]
)
def test_bad_arguments_end_with_one_line(arguments):
    """Exit code 2 or 1, no traceback."""
    done = command_line(*arguments, check=False, text_in="k\n")
    assert done.returncode in {1, 2}
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


def test_a_live_run_is_left_to_its_own_deliverer(tmp_path, own_hub):
    """`sync` beside a live online run does nothing and says why."""
    run = ddphub.init(
        project="tests", name="live", dir=tmp_path / "runs", hub=own_hub.url, api_key=own_hub.key, finish_timeout=20,
        rate_limits={"metrics": 60},
    )  # fmt: skip
    run.log({"loss": 1.0})
    run._outbox.flush(5)
    done = command_line("sync", str(tmp_path / "runs"), hub=own_hub, check=False)
    run.finish()
    assert done.returncode == 1
    assert "another process delivers it" in done.stderr
    assert "the run is alive and delivers the rest itself: there is nothing to do" in done.stdout
    assert "ddphub sync" not in done.stdout
    assert os.environ.get("_DDPHUB_OWNER") is None

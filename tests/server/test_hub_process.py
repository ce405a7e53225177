"""The hub as a process: its first start, its directory, its memory, and what a kill leaves behind."""

import contextlib
import hashlib
import os
import re
import socket
import stat
import threading
from pathlib import Path

import postgres
import psutil
import pytest
import requests
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hub_process import HubProcess
from hub_talk import PART_SIZE, Talk, attempt_event, cut, file_manifest, metrics_event, new_id, problem
from rows import connected, older
from sqlalchemy import text

from ddphub.errors import SettingsError
from ddphub.server.settings import ServerSettings
from ddphub.server.tables import Base

MIB = 1024 * 1024


def test_the_first_start_makes_a_key_and_says_it_once(start_hub):
    hub = start_hub(api_key=None, cold=True)
    assert re.fullmatch("[A-Za-z0-9]{42}", hub.key)
    assert hub.said[1:] == [
        f"export DDPHUB_URL={hub.url}",
        f"export DDPHUB_API_KEY={hub.key}",
        f"ddphub hub on {hub.url}",
    ]
    assert hub.client().post(f"{hub.url}/v1/auth").status_code == 200
    hub.restart()
    assert hub.said == [f"ddphub hub on {hub.url}"]
    assert hub.client().post(f"{hub.url}/v1/auth").status_code == 200
    hub.stop()
    for path in hub.data_dir.rglob("*"):
        assert not path.is_file() or hub.key.encode() not in path.read_bytes()


def test_a_given_key_is_accepted_beside_the_stored_one(start_hub):
    hub = start_hub(api_key=None)
    made = hub.key
    hub._given_key = "g" * 42
    hub.restart()
    for key in (made, "g" * 42):
        assert requests.post(f"{hub.url}/v1/auth", headers={"x-api-key": key}).status_code == 200
    assert requests.post(f"{hub.url}/v1/auth", headers={"x-api-key": "o" * 42}).status_code == 401


def test_a_given_key_is_neither_said_nor_stored(start_hub):
    hub = start_hub(api_key="s" * 42)
    assert hub.said == [f"ddphub hub on {hub.url}"]
    Talk(hub).upload({"a": b"abc"})
    hub.stop()
    for path in [*hub.data_dir.rglob("*"), hub.log]:
        assert not path.is_file() or b"s" * 42 not in path.read_bytes()


def test_nobody_else_may_read_the_directory(start_hub):
    old = os.umask(0o022)
    try:
        hub = start_hub(cold=True)
    finally:
        os.umask(old)
    talk = Talk(hub)
    talk.upload({"a": b"abc"})
    data = talk.begin({"b": b"abcd"})
    talk.send_missing(data, {"b": b"abcd"})
    paths = [hub.data_dir, *hub.data_dir.rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir()} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()} == {0o600}
    names = {path.name for path in paths}
    rows = set() if postgres.is_on() else {"hub.db", "hub.db-wal"}
    assert {*rows, "secret", "hub.lock", f"{0}-{0}"} <= names


def test_migrations_build_the_tables_that_the_code_declares(start_hub):
    hub = start_hub()
    hub.stop()
    with connected(hub.database) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_the_database_syncs_each_commit_to_a_write_ahead_log(tmp_path):
    from ddphub.server.database import Database

    database = Database(tmp_path / "hub.db")
    with database.read() as session:
        assert session.connection().exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        full = 2
        assert session.connection().exec_driver_sql("PRAGMA synchronous").scalar_one() == full
        assert session.connection().exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1
    database.close()


def test_two_hubs_cannot_serve_one_directory(start_hub):
    hub = start_hub()
    with pytest.raises(RuntimeError, match="another hub serves this directory"):
        HubProcess(hub.data_dir, api_key="k" * 42)


def test_a_directory_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "data").mkdir(mode=0o755)
    (tmp_path / "data" / "thesis.tex").write_text("important")
    with pytest.raises(RuntimeError, match="this one holds other files"):
        HubProcess(tmp_path / "data", api_key="k" * 42)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["thesis.tex"]


def test_a_port_in_use_is_a_clear_refusal_that_touches_nothing(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(RuntimeError, match="cannot listen there"):
            HubProcess(tmp_path / "data", api_key=None, port=port, cold=True)
    assert not (tmp_path / "data" / "hub.db").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": -1},
        {"port": 65536},
        {"host": ""},
        {"api_key": "short"},
        {"api_key": "é" * 42},
        {"api_key": "a b" * 14},
        {"part_size": 0},
        {"heartbeat_s": 0},
        {"heartbeat_s": float("nan")},
        {"stall_s": 0},
        {"first_step_s": float("nan")},
        {"url_lifetime_s": 0},
        {"session_lifetime_s": 10**9},
        {"inline_check_bytes": -1},
        {"shutdown_s": 0},
    ],
)
def test_a_wrong_setting_is_refused_when_it_is_made(wrong):
    (name,) = wrong
    with pytest.raises(SettingsError) as caught:
        ServerSettings(data=Path("unused"), **wrong)
    assert caught.value.field == name
    assert "short" not in str(caught.value)
    assert "a b" not in str(caught.value)


def test_the_key_is_not_in_the_settings_text():
    assert "k" * 42 not in repr(ServerSettings(data=Path("unused"), api_key="k" * 42))


def test_sigterm_ends_the_hub_although_connections_are_open(start_hub):
    hub = start_hub(cold=True)
    with hub.client() as client, socket.create_connection(("127.0.0.1", hub.port)):
        assert client.get(f"{hub.url}/healthz").status_code == 200
        assert hub.stop() in {0, -15}
    hub.restart()
    assert requests.get(f"{hub.url}/healthz").status_code == 200


def test_no_secret_is_in_the_log(start_hub):
    hub = start_hub()
    talk = Talk(hub)
    data = talk.begin({"a": b"abc"})
    url = data["missing"][0]["parts"][0]["url"]
    talk.put(url, b"xyz")
    talk.send_missing(data, {"a": b"abc"})
    talk.complete(data["id"])
    (blob,) = [path for path in (hub.data_dir / "blobs").rglob("*") if path.is_file()]
    blob.unlink()
    problem(talk.download(data["id"], "a"), 500)
    hub.stop()
    log = hub.log.read_text()
    assert blob.name in log
    assert hub.key not in log
    assert "signature" not in log


def test_a_large_upload_does_not_grow_the_memory(start_hub):
    """100 MiB through the hub and back: its peak of resident memory rises by less than 64 MiB."""
    hub = start_hub(arguments=("--part-size", str(8 * MIB)), cold=True)
    talk = Talk(hub)
    talk.upload({"warm": os.urandom(MIB)}, part_size=8 * MIB)
    process = psutil.Process(hub.pid)
    before = process.memory_info().rss
    reset_peak(hub.pid)
    content = os.urandom(MIB) * 100
    checkpoint_id = talk.upload({"big": content}, part_size=8 * MIB)
    digest = hashlib.sha256()
    with talk.http.get(talk.url(f"/checkpoints/{checkpoint_id}/files/big"), stream=True) as answer:
        for chunk in answer.iter_content(MIB):
            digest.update(chunk)
    assert digest.hexdigest() == hashlib.sha256(content).hexdigest()
    grown = peak(hub.pid) - before
    print(f"peak RSS grew by {grown / MIB:.1f} MiB from {before / MIB:.1f} MiB")
    assert grown < 64 * MIB


def reset_peak(pid):
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak(pid):
    """Bytes of the most memory that was resident since `reset_peak`."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) * 1024


# Kills ---------------------------------------------------------------------------------------------------------------


def test_a_kill_in_the_middle_of_a_part_leaves_nothing_of_it(start_hub):
    hub = start_hub()
    talk = Talk(hub)
    content = os.urandom(2 * PART_SIZE)
    data = talk.begin({"a": content})
    one, two = data["missing"][0]["parts"]
    assert talk.put(one["url"], cut(content)[0]).status_code == 200
    with socket.create_connection(("127.0.0.1", hub.port)) as half:
        half.sendall(f"PUT {two['url']} HTTP/1.1\r\nHost: x\r\nContent-Length: {PART_SIZE}\r\n\r\n".encode())
        half.sendall(cut(content)[1][: PART_SIZE // 2])
        talk.wait_until(lambda: list((hub.data_dir / "incoming").iterdir()))
        hub.kill()
    hub.restart()
    assert list((hub.data_dir / "incoming").iterdir()) == []
    left = talk.get(f"/checkpoints/{data['id']}")
    assert [part["number"] for part in left["missing"][0]["parts"]] == [1]
    talk.send_missing(left, {"a": content})
    assert talk.complete(data["id"]).status_code == 200
    assert talk.download(data["id"], "a").content == content


def test_a_client_that_goes_away_leaves_nothing_behind(start_hub):
    hub = start_hub()
    talk = Talk(hub)
    data = talk.begin({"a": b"x" * PART_SIZE})
    url = data["missing"][0]["parts"][0]["url"]
    with socket.create_connection(("127.0.0.1", hub.port)) as half:
        half.sendall(f"PUT {url} HTTP/1.1\r\nHost: x\r\nContent-Length: {PART_SIZE}\r\n\r\nxxx".encode())
        talk.wait_until(lambda: list((hub.data_dir / "incoming").iterdir()))
    talk.wait_until(lambda: not list((hub.data_dir / "incoming").iterdir()))
    assert talk.get(f"/checkpoints/{data['id']}")["state"] == "receiving"
    hub.stop()
    assert "Traceback" not in hub.log.read_text()


@pytest.mark.parametrize("inline", [True, False])
def test_a_kill_during_complete_leaves_nothing_or_the_whole(start_hub, inline):
    """Killed at many moments of the check; completing again always ends with the whole checkpoint, once."""
    limit = str(2**30 if inline else 0)
    hub = start_hub(arguments=("--part-size", str(8 * MIB), "--inline-check-bytes", limit))
    talk = Talk(hub)
    for least in (0, 3, 12):
        content = os.urandom(MIB) * 16
        files = {"a": content + bytes([least]), "b": b"b" + content[: 8 * MIB + least]}
        entry_id = new_id()
        data = talk.begin(files, entry_id, part_size=8 * MIB)
        talk.send_missing(data, files, part_size=8 * MIB)
        thread = threading.Thread(target=complete_quietly, args=(talk, data["id"]))
        thread.start()
        upload = hub.data_dir / "uploads" / data["id"]
        while upload.exists() and checked(hub, upload) < least * MIB:
            pass  # a wait here would miss the moment
        hub.kill()
        thread.join()
        hub.restart()
        assert list((hub.data_dir / "incoming").iterdir()) == []
        again = talk.begin(files, entry_id, part_size=8 * MIB)
        print(f"killed after {least} MiB were checked: {again['state']}")
        assert (again["id"], again["missing"]) == (data["id"], [])
        listed = [one["id"] for one in talk.get("/checkpoints")]
        assert (data["id"] in listed) == (again["state"] == "committed")
        talk.wait_until(lambda at=data["id"]: talk.complete(at).json()["data"]["state"] == "committed")
        assert [one["entry_id"] for one in talk.get("/checkpoints")].count(entry_id) == 1
        for name, content in files.items():
            assert talk.download(data["id"], name).content == content


def complete_quietly(talk, checkpoint_id):
    with contextlib.suppress(requests.RequestException):
        talk.hub.client().post(talk.url(f"/checkpoints/{checkpoint_id}/complete"))


def checked(hub, upload):
    """How far the hub has read a file in a folder; -1 while it reads none."""
    for descriptor in Path(f"/proc/{hub.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if descriptor.readlink().is_relative_to(upload):
                told = (descriptor.parents[1] / "fdinfo" / descriptor.name).read_text()
                return int(told.split()[1])
    return -1


def test_a_blob_without_a_commit_is_removed_at_the_next_start(start_hub):
    """A crash between the last rename and the commit leaves bytes that no row vouches for."""
    hub = start_hub()
    talk = Talk(hub)
    kept = talk.upload({"kept": b"kept"})
    (kept_blob,) = [path for path in (hub.data_dir / "blobs").rglob("*") if path.is_file()]
    data = talk.begin({"a": b"abc"})
    talk.send_missing(data, {"a": b"abc"})
    hub.stop()
    digest = file_manifest("a", b"abc")["sha256"]
    orphan = kept_blob.parent.parent / digest[:2] / digest
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"abc")
    (hub.data_dir / "uploads" / "unknown").mkdir()
    hub.restart()
    assert not orphan.exists()
    assert kept_blob.exists()
    assert [path.name for path in (hub.data_dir / "uploads").iterdir()] == [data["id"]]
    assert talk.complete(data["id"]).status_code == 200
    assert talk.download(kept, "kept").content == b"kept"


def test_models_and_urls_survive_a_kill(start_hub):
    hub = start_hub(cold=True)
    talk = Talk(hub)
    talk.accepted(attempt_event(talk.attempt_id, 0, "started"), metrics_event(talk.attempt_id, 1))
    data = talk.begin({"a": b"abc"})
    hub.kill()
    hub.restart()
    assert talk.send_missing(data, {"a": b"abc"}) == 1
    assert talk.get()["attempts"][0]["attempt_id"] == talk.attempt_id
    assert talk.accepted(metrics_event(talk.attempt_id, 1))["duplicates"] == 1


def test_a_database_of_a_newer_hub_is_refused(start_hub):
    hub = start_hub()
    hub.stop()
    with connected(hub.database) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(RuntimeError, match="newer"):
        hub.start()


def test_a_database_of_the_first_version_is_brought_up_to_date(tmp_path):
    data = tmp_path / "data"
    with older(data, "0001") as connection:
        connection.execute(text("INSERT INTO projects VALUES (1, 'p', 'old', 1.0)"))
        connection.execute(
            text("INSERT INTO models VALUES (1, 'm', 1, 'run', 'net', :request, 1.0, NULL, NULL, 0)"),
            {"request": '{"project":"old","meta":{"name":"net"},"config":{"epochs":5}}'},
        )
    with HubProcess(data, api_key="k" * 42) as hub:
        (model,) = hub.client().get(f"{hub.url}/v1/models").json()["data"]["results"]
        assert (model["id"], model["run_id"]) == ("m", "run")
        assert hub.client().get(f"{hub.url}/v1/models/m").json()["data"]["epochs"] == 5

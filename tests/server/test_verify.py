"""Looking at all that a hub keeps, beside it while it serves: what is wrong is found and named, and can be mended."""

import functools
import os
import threading
import time

import pytest
from hub_talk import Talk, metrics_event, sha256
from jobs import ddphub
from kept import back_up, findings, settings_of, written
from rows import connected
from sqlalchemy import text

from ddphub.server.backups.folder import BackupFolder
from ddphub.server.beside import beside
from ddphub.server.mending import mend
from ddphub.server.verify import GRACE_S, Verification


def path_of(hub, content):
    return next((hub.data_dir / "blobs").rglob(sha256(content)))


def damage(hub, content):
    with written(path_of(hub, content)) as changed:
        changed[0] ^= 1


def change(hub, statement):
    with connected(hub.database) as connection:
        connection.execute(text(statement))


def test_a_hub_at_work_is_well(start_hub):
    """What arrives, is committed and is deleted while one looks is no finding."""
    hub = start_hub()
    over, failures = threading.Event(), []

    def work():
        talk, seq = Talk(hub), 0
        try:
            while not over.is_set():
                talk.accepted(*(metrics_event(talk.attempt_id, seq + number) for number in range(10)))
                seq += 10
                gone = talk.upload({"a": os.urandom(1000), "b": b"same"})
                talk.begin({"c": b"never sent"})
                talk.http.delete(talk.url(f"/checkpoints/{gone}")).raise_for_status()
                talk.upload({"a": os.urandom(1000), "b": b"same"})
        except Exception as error:  # noqa: BLE001  # the test reports whatever it was
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            assert findings(settings_of(hub)) == []
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failures == []
    with beside(settings_of(hub)) as kept:
        looked = Verification(kept.database, kept.storage)
        assert list(looked.findings()) == []
        assert looked.models == 2
        assert looked.blobs > 2
        assert looked.bytes > 1000


def test_what_is_deleted_while_it_is_read_is_no_finding(start_hub):
    """Its row was read, and then both it and its bytes go."""
    hub = start_hub()
    talk = Talk(hub)
    gone = talk.upload({"a": os.urandom(100)})

    class Deleting:
        def __init__(self, storage):
            self.storage, self.is_first, self.one_at_a_time = storage, True, threading.Lock()

        def __getattr__(self, name):
            return getattr(self.storage, name)

        def read(self, blob):
            with self.one_at_a_time:
                if self.is_first:
                    assert talk.http.delete(talk.url(f"/checkpoints/{gone}")).status_code == 200
                self.is_first = False
            return self.storage.read(blob)

    with beside(settings_of(hub)) as kept:
        storage = Deleting(kept.storage)
        assert list(Verification(kept.database, storage).findings()) == []
    assert not storage.is_first


def test_everything_that_is_wrong_is_named(start_hub):
    hub = start_hub()
    talk = Talk(hub)
    talk.accepted(*(metrics_event(talk.attempt_id, number) for number in range(10)))
    checkpoint = talk.upload(
        {"good": b"good", "bad": b"bad bytes", "short": b"short", "long": b"long", "gone": b"gone"}
    )
    damage(hub, b"bad bytes")
    path_of(hub, b"gone").unlink()
    for content, now in ((b"short", b"shor"), (b"long", b"longer")):
        path_of(hub, content).write_bytes(now)
    stray = path_of(hub, b"good").with_name(sha256(b"stray"))
    stray.write_bytes(b"stray")
    young = stray.with_name(sha256(b"young"))
    young.write_bytes(b"young")
    os.utime(stray, (time.time() - GRACE_S - 10,) * 2)
    change(hub, "UPDATE models SET events = 11")
    change(hub, "UPDATE series SET rank0_count = 3")
    found = findings(settings_of(hub))
    assert [kind for kind, _ in found] == ["database"] * 2 + ["damaged"] * 3 + ["missing", "unreferenced"]
    told = dict(
        zip(["events", "points", "bad", "short", "long", "gone", "stray"], [what for _, what in found], strict=True)
    )
    assert "has 10 events and counts 11" in told["events"]
    assert "'loss'" in told["points"]
    for name, content, why in (
        ("bad", b"bad bytes", "another digest"),
        ("short", b"short", "4 bytes are there of 5"),
        ("long", b"long", "6 bytes are there of 4"),
        ("gone", b"gone", "not there"),
    ):
        assert sha256(content) in told[name]
        assert why in told[name]
        assert f"the checkpoint {checkpoint} of the model {talk.model_id}" in told[name]
    assert sha256(b"stray") in told["stray"]


def test_rows_that_are_gone_are_found(start_hub):
    hub = start_hub()
    talk = Talk(hub)
    talk.upload({"a": b"row is gone"})
    change(hub, f"DELETE FROM blobs WHERE sha256 = '{sha256(b'row is gone')}'")
    change(hub, f"INSERT INTO blobs (project_ref, sha256, size, created_at) VALUES (1, '{sha256(b'')}', 0, 1.0)")
    kinds = [kind for kind, _ in findings(settings_of(hub))]
    assert kinds == ["missing", "missing", "unreferenced"]


def test_a_backup_gives_back_what_was_lost(start_hub, tmp_path):
    hub = start_hub()
    talk = Talk(hub)
    checkpoint = talk.upload({"bad": b"bad bytes", "gone": b"gone", "rowless": b"rowless"})
    back_up(hub, tmp_path / "backups")
    damage(hub, b"bad bytes")
    path_of(hub, b"gone").unlink()
    change(hub, f"DELETE FROM blobs WHERE sha256 = '{sha256(b'rowless')}'")
    with beside(settings_of(hub)) as kept:
        found = list(Verification(kept.database, kept.storage).findings())
        folders = [BackupFolder(tmp_path / "nothing"), BackupFolder(tmp_path / "backups")]
        assert [mend(kept, one, folders, time.time()) for one in found] == ["mended"] * 3
    assert findings(settings_of(hub)) == []
    for name, content in (("bad", b"bad bytes"), ("gone", b"gone"), ("rowless", b"rowless")):
        assert talk.download(checkpoint, name).content == content


def test_without_a_backup_who_saves_the_same_again_heals_it(start_hub, tmp_path):
    """The hub took the damaged bytes for good ones: it asked nobody for them."""
    hub = start_hub()
    talk = Talk(hub)
    checkpoint = talk.upload({"a": b"bad bytes"})
    damage(hub, b"bad bytes")
    assert talk.begin({"a": b"bad bytes"})["missing"] == []
    with beside(settings_of(hub)) as kept:
        (found,) = Verification(kept.database, kept.storage).findings()
        assert mend(kept, found, [], time.time()) == "set aside"
    (aside,) = (hub.data_dir / "damaged").iterdir()
    assert aside.read_bytes() == bytes([b"bad bytes"[0] ^ 1]) + b"bad bytes"[1:]
    assert [kind for kind, _ in findings(settings_of(hub))] == ["missing"]
    assert talk.download(checkpoint, "a").status_code >= 400
    talk.upload({"a": b"bad bytes"})
    assert findings(settings_of(hub)) == []
    assert talk.download(checkpoint, "a").content == b"bad bytes"


def test_what_is_right_again_is_not_set_aside(start_hub):
    """Somebody put it back after it was looked at; or a disk gave other bytes only once."""
    hub = start_hub()
    checkpoint = (talk := Talk(hub)).upload({"a": b"bad bytes"})
    damage(hub, b"bad bytes")
    with beside(settings_of(hub)) as kept:
        (found,) = Verification(kept.database, kept.storage).findings()
        damage(hub, b"bad bytes")
        assert mend(kept, found, [], time.time()) == "left"
    assert list((hub.data_dir / "damaged").iterdir()) == []
    assert talk.download(checkpoint, "a").content == b"bad bytes"


def test_what_cannot_be_read_is_named_and_left_where_it_is(start_hub):
    hub = start_hub()
    Talk(hub).upload({"a": b"one", "b": b"two"})
    path = path_of(hub, b"one")
    path.rename(path.with_suffix(".away"))
    path.mkdir()  # any error but that there is none, as a disk's
    with beside(settings_of(hub)) as kept:
        found = [one for one in Verification(kept.database, kept.storage).findings() if one.is_severe]
        assert [one.kind for one in found] == ["missing"]
        assert "unreadable: " in found[0].what
        assert mend(kept, found[0], [], time.time()) == "left"
    assert path.exists()


def test_the_program_says_it_all(start_hub, tmp_path, monkeypatch, program):
    """Back up, look, lose, look, restore, look; each with the exit code that a script wants."""
    monkeypatch.chdir(tmp_path)
    hub = start_hub()
    talk = Talk(hub)
    checkpoint = talk.upload({"a": b"bytes"})
    where = ["--data", str(hub.data_dir)]
    if isinstance(hub.database, str):
        where += ["--database-url", hub.database]
    said = functools.partial(program, "hub")
    assert "1 files of checkpoints, 5 B, 1 of them new" in said("backup", "backups", *where)
    assert "0 of them new" in said("backup", "backups", *where, "--keep", "1")
    assert "sqlite" in said("backups", "backups", "--check") or isinstance(hub.database, str)
    assert "nothing is wrong" in said("verify", *where)
    path_of(hub, b"bytes").unlink()
    assert "missing: " in said("verify", *where, code=1)
    assert "mended" in said("verify", *where, "--repair", "--backups", "backups")
    assert talk.download(checkpoint, "a").content == b"bytes"
    assert "1 files of checkpoints, 5 B" in said("restore", "backups", "--data", "new")
    assert '"blobs": 1' in said("verify", "--data", "new", "--json")
    assert "not empty" in said("restore", "backups", "--data", "new", code=1)
    assert "has no backup" in said("restore", "nowhere", "--data", "other", code=1)
    assert "data" in said("verify", "--data", "nowhere", code=2)
    assert "server extra" not in ddphub("hub", "backups", "backups", check=True).stdout
    records = hub.client().get(f"{hub.url}/v1/audit").json()["data"]["results"]
    assert [one["object"].rpartition("/")[0] for one in records if one["action"] == "backup"] == [
        str(tmp_path / "backups"),
        str(tmp_path / "backups"),
    ]


@pytest.mark.parametrize("missing", ["hub.db", "secret", "hub.lock"])
def test_what_is_no_hub_is_not_made_one(tmp_path, missing):
    from ddphub.errors import SettingsError
    from ddphub.server.settings import ServerSettings

    data = tmp_path / "data"
    data.mkdir()
    for name in {"hub.db", "secret", "hub.lock"} - {missing}:
        (data / name).touch()
    before = sorted(data.iterdir())
    with pytest.raises(SettingsError), beside(ServerSettings(data=data)):
        pass
    assert sorted(data.iterdir()) == before

"""A backup made beside a hub that works, restored elsewhere, is a hub that lacks nothing."""

import gzip
import json
import os
import shutil
import stat
import threading

import pytest
from hub_process import HubProcess
from hub_talk import Talk, attempt_event, metrics_event, new_id, sha256
from hub_v1_talk import delete
from kept import back_up, findings, place, restored, settings_of, written
from rows import older, selected
from sqlalchemy import text

from ddphub.errors import BackupError, SettingsError
from ddphub.server.backups.checking import problems_of
from ddphub.server.backups.folder import BackupFolder, Manifest, _digest
from ddphub.server.backups.making import make_backup, remove_old
from ddphub.server.backups.table_files import ID_GAP, SUFFIX, highest_event, tables_of, write_table
from ddphub.server.beside import beside
from ddphub.server.directory import DataDirectory

KEY = "k" * 42


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "backups"


@pytest.fixture
def serve(tmp_path):
    """Starts a hub on what was restored."""
    started = []

    def start(settings):
        started.append(HubProcess(settings.data, api_key=KEY, arguments=("--part-size", "65536")))
        return started[-1]

    yield start
    for process in started:
        process.__exit__(None, None, None)


def known(hub, talk):
    """The same model on another hub."""
    other = Talk.__new__(Talk)
    other.hub, other.http = hub, hub.client()
    other.project, other.attempt_id, other.model_id = talk.project, talk.attempt_id, talk.model_id
    return other


def keys(talk):
    """(seq, loss) of every metrics event of rank 0, as the hub gives them out."""
    found, after = [], 0
    while page := talk.get("/metrics", params={"after": after, "limit": 1000}):
        found += [(one["seq"], one["values"]["loss"]) for one in page]
        after = page[-1]["id"]
    return found


class Writer(threading.Thread):
    """A run that sends as fast as the hub takes it: events, checkpoints, and now and then it deletes one."""

    def __init__(self, hub):
        super().__init__()
        self.talk = Talk(hub, "shared")
        self.acknowledged, self.saved, self.deleted = [], {}, set()
        self.over, self.failure = threading.Event(), None

    def run(self):
        try:
            self.talk.accepted(attempt_event(self.talk.attempt_id, 0, "started"))
            for turn in range(10_000):
                if self.over.is_set():
                    return
                events = [metrics_event(self.talk.attempt_id, 1 + turn * 20 + number) for number in range(20)]
                self.talk.accepted(*events)
                self.acknowledged += [(one["seq"], one["values"]["loss"]) for one in events]
                if turn % 3 == 0:
                    content = os.urandom(70_000)
                    self.saved[self.talk.upload({"last.pt": content}, epoch=turn)] = sha256(content)
                if turn % 9 == 8:
                    gone = next(iter(self.saved.keys() - self.deleted))
                    self.deleted.add(gone)
                    self.talk.http.delete(self.talk.url(f"/checkpoints/{gone}")).raise_for_status()
        except Exception as error:  # noqa: BLE001  # the test reports whatever it was
            self.failure = error


def test_a_backup_under_load_has_all_that_was_acknowledged(start_hub, folder, tmp_path, serve):
    """Three runs send, save and delete while it is made; it is restored elsewhere, where they go on."""
    hub = start_hub()
    writers = [Writer(hub) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.talk.wait_until(lambda writer=writer: len(writer.saved) > 2 or writer.failure)
    before = [(list(writer.acknowledged), dict(writer.saved)) for writer in writers]
    for _ in range(2):
        made = back_up(hub, folder)
    for writer in writers:
        writer.over.set()
        writer.join()
        assert writer.failure is None
    assert made.backup.manifest.damaged == []
    assert list(problems_of(BackupFolder(folder), BackupFolder(folder).all())) == []

    settings = place(tmp_path / "new")
    assert restored(folder, settings).missing == []
    assert findings(settings) == []
    copy = serve(settings)
    for writer, (acknowledged, saved) in zip(writers, before, strict=True):
        talk = known(copy, writer.talk)
        there = keys(talk)
        assert len(set(there)) == len(there)
        assert set(acknowledged) <= set(there) <= set(writer.acknowledged)
        checkpoints = {one["id"]: one["files"][0]["sha256"] for one in talk.get("/checkpoints")}
        assert saved.keys() - writer.deleted <= checkpoints.keys() <= writer.saved.keys()
        for number, digest in checkpoints.items():
            assert sha256(talk.download(number, "last.pt").content) == digest == writer.saved[number]
        # What it repeats is known, and what is new comes after all that a reader has seen.
        answer = talk.accepted(*(metrics_event(talk.attempt_id, 1 + number) for number in range(100)))
        assert answer["duplicates"] >= 60
        last = talk.get("/metrics", params={"limit": 1, "after": ID_GAP})
        talk.accepted(metrics_event(talk.attempt_id, 10**6))
        assert talk.get("/metrics", params={"limit": 1000, "after": last[0]["id"] if last else ID_GAP})
        assert talk.upload({"last.pt": b"new"}, epoch=9)
    assert findings(settings) == []


def test_only_new_bytes_are_copied_and_old_backups_go_alone(start_hub, folder):
    hub = start_hub()
    talk, other = Talk(hub), Talk(hub)
    first = talk.upload({"a": b"first", "b": b"same"})
    one = back_up(hub, folder)
    talk.upload({"a": b"second", "b": b"same"})
    other.upload({"x": b"same"})
    assert talk.http.delete(talk.url(f"/checkpoints/{first}")).status_code == 200
    two = back_up(hub, folder)
    three = back_up(hub, folder)
    assert [(made.backup.manifest.blobs, made.new_blobs) for made in (one, two, three)] == [(2, 2), (3, 1), (3, 0)]
    backups = BackupFolder(folder)
    with backups.locked():
        removed, blobs = remove_old(backups, 2)
    assert ([old.name for old in removed], blobs) == ([one.backup.name], 1)
    assert [backup.name for backup in backups.all()] == [two.backup.name, three.backup.name]
    assert {path.name for path in backups.blobs.rglob("*") if path.is_file()} == {sha256(b"second"), sha256(b"same")}
    assert list(problems_of(backups, backups.all())) == []
    with backups.locked(), pytest.raises(BackupError, match="another backup"):
        back_up(hub, folder)


def test_what_is_deleted_while_it_is_made_is_deleted_in_it(start_hub, folder, tmp_path, serve):
    """Between the tables and the bytes: the checkpoint is gone as on the hub, and what it shared stays."""
    hub = start_hub()
    talk, other = Talk(hub, "p"), Talk(hub, "p")
    entry_id = new_id()
    stays, gone = talk.upload({"a": b"shared"}), talk.upload({"a": b"shared", "b": b"own", "c": b"more"}, entry_id)
    went = other.upload({"z": b"whole model"})
    announced = talk.begin({"b": b"own"})
    assert announced["missing"] == []

    class Deleting:
        def __init__(self, storage):
            self.storage, self.one_at_a_time, self.is_first = storage, threading.Lock(), True

        def read(self, blob):
            with self.one_at_a_time:
                if self.is_first:
                    assert talk.http.delete(talk.url(f"/checkpoints/{gone}")).status_code == 200
                    assert delete(other, True).status_code == 200
                self.is_first = False
            return self.storage.read(blob)

    manifest = back_up(hub, folder, Deleting).backup.manifest
    assert manifest.damaged == []
    assert sha256(b"shared") not in {digest for _, digest in manifest.deleted}
    settings = place(tmp_path / "new")
    assert restored(folder, settings).missing == []
    assert findings(settings) == []
    copy = known(serve(settings), talk)
    assert [one["id"] for one in copy.get("/checkpoints")] == [stays]
    assert copy.download(stays, "a").content == b"shared"
    assert known(copy.hub, other).get("/checkpoints") == []
    assert went not in str(copy.get("/checkpoints"))
    done = {"id": gone, "state": "committed", "missing": []}
    assert copy.begin({"a": b"shared", "b": b"own", "c": b"more"}, entry_id) == done


def test_bytes_that_the_hub_has_lost_are_named(start_hub, folder, tmp_path):
    hub = start_hub()
    talk = Talk(hub)
    talk.upload({"a": b"good"})
    talk.upload({"a": b"rotten"})
    talk.upload({"a": b"lost"})
    blobs = {path.name: path for path in (hub.data_dir / "blobs").rglob("*") if path.is_file()}
    with written(blobs[sha256(b"rotten")]) as content:
        content[0] ^= 1
    blobs[sha256(b"lost")].unlink()
    manifest = back_up(hub, folder).backup.manifest
    assert {digest for _, digest in manifest.damaged} == {sha256(b"rotten"), sha256(b"lost")}
    assert list(problems_of(BackupFolder(folder), BackupFolder(folder).all())) == []
    settings = place(tmp_path / "new")
    assert {digest for _, digest in restored(folder, settings).missing} == {sha256(b"rotten"), sha256(b"lost")}
    assert [kind for kind, _ in findings(settings)] == ["missing", "missing"]


def test_a_damaged_backup_is_not_restored(start_hub, folder, tmp_path):
    """Whichever of its files was changed; and nothing is left that a hub or another restore would take for its own."""
    hub = start_hub()
    talk = Talk(hub)
    talk.accepted(*(metrics_event(talk.attempt_id, number) for number in range(50)))
    talk.upload({"a": b"bytes of a checkpoint", "b": b"others"})
    name = back_up(hub, folder).backup.name
    blob = BackupFolder(folder).blob(sha256(b"bytes of a checkpoint")).relative_to(folder)
    events, blobs = (f"{name}/tables/{table}{SUFFIX}" for table in ("events", "blobs"))
    for number, path in enumerate([f"{name}/manifest.json", f"{name}/secret", events, blobs, blob]):
        for cut in (False, True):
            damaged = BackupFolder(shutil.copytree(folder, tmp_path / f"damaged-{number}-{cut}"))
            with written(damaged.path / path) as content:
                content[len(content) // 2] ^= 1
                del content[-10 if cut else len(content) :]
            settings = place(tmp_path / f"new-{number}-{cut}")
            with pytest.raises(BackupError):
                restored(damaged.path, settings)
            if settings.data.exists():
                with pytest.raises(SettingsError, match="holds other files"):
                    DataDirectory(settings.data)
                with pytest.raises(BackupError, match="not empty"):
                    restored(damaged.path, settings)
            if "manifest" not in str(path):
                assert len(list(problems_of(damaged, damaged.all()))) == 1
    # A whole file that is not the one of the backup.
    swapped = BackupFolder(shutil.copytree(folder, tmp_path / "swapped"))
    rows = gzip.decompress((swapped.path / events).read_bytes()).splitlines(keepends=True)
    (swapped.path / events).write_bytes(gzip.compress(b"".join(rows[:-1])))
    with pytest.raises(BackupError, match="not the file that the manifest names"):
        restored(swapped.path, place(tmp_path / "new-swapped"))
    # Of the last one only that blob is missing.
    (missing,) = restored(damaged.path, place(tmp_path / "rest"), incomplete=True).missing
    assert missing[1] == blob.name
    assert [kind for kind, _ in findings(place(tmp_path / "rest"))] == ["missing"]


def test_one_that_was_cut_short_is_none(hub, folder):
    """A crash at any time before the end, and a folder that something else is in."""
    first = back_up(hub, folder).backup

    class Failing:
        def __init__(self, storage):
            pass

        def read(self, blob):
            raise KeyboardInterrupt

    Talk(hub).upload({"a": os.urandom(100)})
    with pytest.raises(KeyboardInterrupt):
        back_up(hub, folder, Failing)
    backups = BackupFolder(folder)
    assert [one.name for one in backups.all()] == [first.name]
    assert backups.making.exists()
    second = back_up(hub, folder).backup
    assert not backups.making.exists()
    assert [one.name for one in backups.all()] == [first.name, second.name]
    with pytest.raises(BackupError, match="has no backup 20200101T000000Z"):
        backups.find("20200101T000000Z")
    other = folder.with_name("other")
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(BackupError, match="other files"):
        back_up(hub, other)
    with pytest.raises(BackupError, match="has no backup"):
        BackupFolder(other).find()


def test_it_is_private_and_has_no_key(hub, folder):
    Talk(hub).upload({"a": b"bytes"})
    back_up(hub, folder)
    for path in [folder, *folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
        assert not path.is_file() or hub.key.encode() not in path.read_bytes()


def test_a_hub_is_never_restored_over_another(hub, folder, tmp_path):
    back_up(hub, folder)
    settings = place(tmp_path / "new")
    (tmp_path / "new").mkdir()
    restored(folder, settings)
    for target in (settings, settings_of(hub)):
        with pytest.raises(BackupError, match=r"not empty|holds bytes|has tables"):
            restored(folder, target)
    assert stat.S_IMODE((tmp_path / "new" / "secret").stat().st_mode) == 0o600
    assert (tmp_path / "new" / "secret").read_bytes() == (hub.data_dir / "secret").read_bytes()


def test_a_hub_moves_to_other_kinds_of_database_and_storage_and_back(start_hub, folder, tmp_path, new_database, s3):
    """SQLite and a folder, PostgreSQL and S3, and again the former: the same hub."""
    hub = start_hub()
    talk = Talk(hub)
    sent = [attempt_event(talk.attempt_id, 0, "started"), *(metrics_event(talk.attempt_id, n) for n in range(1, 2500))]
    for start in range(0, len(sent), 1000):
        talk.accepted(*sent[start : start + 1000])
    files = {"last.pt": os.urandom(100_000), "other": b"", "ü/\u4f60": b"text"}
    first = talk.upload(files, metrics={"loss": 0.5})
    gone = talk.upload({"a": b"gone"})
    assert talk.http.delete(talk.url(f"/checkpoints/{gone}")).status_code == 200
    announced = talk.begin({"a": b"on its way"})
    paths = ("/metrics?limit=1000", "/checkpoints", "/series", "/chart?name=loss&points=5000")
    before = [talk.get(path) for path in paths]
    back_up(hub, folder)

    url, storage = new_database(), s3.storage()
    there = place(tmp_path / "there", database_url=url, storage=storage)
    assert restored(folder, there).missing == []
    assert findings(there) == []
    arguments = ("--database-url", url, "--storage", storage, "--part-size", str(5 * 1024 * 1024))
    with HubProcess(there.data, api_key=KEY, arguments=arguments) as moved:
        other = known(moved, talk)
        assert [other.get(path) for path in paths] == before
        for name, content in files.items():
            assert other.download(first, name).content == content
        # What was on its way is asked for again, in parts of the size that it was announced with.
        assert other.get(f"/checkpoints/{announced['id']}")["state"] == "receiving"
        other.accepted(metrics_event(talk.attempt_id, 5000))
        with beside(there) as kept, (backups := BackupFolder(folder)).locked():
            made = make_backup(backups, kept.database, kept.storage, kept.directory.secret())
    assert (made.new_blobs, made.backup.manifest.blobs, made.backup.manifest.database) == (0, 3, "postgresql")
    again = place(tmp_path / "again", database_url=None)
    restored(folder, again)
    assert findings(again) == []
    seqs = selected(again.data / "hub.db", "SELECT seq FROM events ORDER BY seq")
    assert seqs == [*((number,) for number in range(2500)), (5000,)]


def test_a_backup_of_an_older_version_is_restored(folder, tmp_path, serve):
    """Its tables are made as they were, and then brought up to date."""
    with older(tmp_path / "old", "0005") as connection:
        connection.execute(text("INSERT INTO projects VALUES (1, 'p', 'old', 1.0)"))
        connection.execute(
            text(
                "INSERT INTO models (id, public_id, project_ref, run_id, name, request, created_at, events)"
                " VALUES (7, 'm', 1, 'run', 'net', '{}', 1.0, 0)"
            )
        )
        connection.execute(
            text("INSERT INTO api_keys VALUES (1, :salt, :digest, 1.0)"), {"salt": b"s" * 16, "digest": b"d" * 32}
        )
        backups = BackupFolder(folder)
        with backups.locked():
            backups.begin()
            files = {
                table.name: write_table(connection, table, backups.making / "tables" / f"{table.name}{SUFFIX}")
                for table in tables_of(connection)
            }
            (backups.making / "secret").write_bytes(b"x" * 32)
            backups.finish(
                Manifest(
                    version="0.0.5",
                    database="sqlite",
                    revision="0005",
                    began_at=1e9,
                    ended_at=1e9,
                    tables=files,
                    highest_event=highest_event(connection),
                    secret=sha256(b"x" * 32),
                    blobs=0,
                    blob_bytes=0,
                )
            )
    settings = place(tmp_path / "new")
    restored(folder, settings)
    assert findings(settings) == []
    assert selected(settings.database_url or tmp_path / "new" / "hub.db", "SELECT role, name FROM api_keys") == [
        ("admin", "the first key")
    ]
    hub = serve(settings)
    assert hub.client().get(f"{hub.url}/v1/models/m").json()["data"]["name"] == "net"


def test_a_backup_of_a_newer_version_is_refused(hub, folder, tmp_path):
    backup = back_up(hub, folder).backup
    manifest = json.loads((backup.path / "manifest.json").read_bytes())
    del manifest["sha256"]
    for change, why in (({"revision": "9999"}, "does not know"), ({"format": 2}, "newer")):
        changed = {**manifest, **change}
        (backup.path / "manifest.json").write_text(json.dumps({**changed, "sha256": _digest(changed)}))
        with pytest.raises(BackupError, match=why):
            restored(folder, place(tmp_path / f"new-{why}"))


@pytest.mark.parametrize("table", ["projects", "checkpoints"])
def test_a_backup_of_a_stranger_leads_to_no_folder_outside_of_the_hub(start_hub, folder, tmp_path, table):
    """All of its digests are right; its ids are paths."""
    hub = start_hub()
    Talk(hub).upload({"a": b"bytes"})
    backup = back_up(hub, folder).backup
    path = backup.table(table)
    head, *rows = gzip.decompress(path.read_bytes()).splitlines()
    place_of_id = json.loads(head)["columns"].index("public_id")
    changed = [json.loads(row) for row in rows]
    for row in changed:
        row[place_of_id] = "../../../outside"
    content = gzip.compress(b"".join(line + b"\n" for line in [head, *(json.dumps(row).encode() for row in changed)]))
    path.write_bytes(content)
    manifest = json.loads((backup.path / "manifest.json").read_bytes())
    del manifest["sha256"]
    manifest["tables"][table] |= {"sha256": sha256(content), "size": len(content)}
    (backup.path / "manifest.json").write_text(json.dumps({**manifest, "sha256": _digest(manifest)}))
    with pytest.raises(BackupError, match="is no id of a hub"):
        restored(folder, place(tmp_path / "deep" / "new"))
    assert list(tmp_path.rglob("outside")) == []

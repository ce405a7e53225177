"""kill -9 of a hub at every step of a checkpoint's way into an object storage."""

import contextlib
import os
import threading
import time

import pytest
import requests
from hub_talk import Talk, cut, manifest, new_id
from sqlalchemy import select, update
from storage_talk import MIB, put, swept
from storage_talk import beside as beside_hub

from ddphub.server.hub import Hub
from ddphub.server.leases import LEASE_S
from ddphub.server.settings import ServerSettings
from ddphub.server.tables import Checkpoint, Project

PART = 5 * MIB
BIG = os.urandom(PART + 17)


@pytest.fixture
def storage(s3):
    return s3.storage()


@pytest.fixture
def hub(storage, start_hub):
    return start_hub(arguments=("--part-size", str(PART), "--storage", storage))


def in_the_background(action):
    """A request whose hub may die."""

    def act():
        with contextlib.suppress(requests.RequestException):
            action()

    thread = threading.Thread(target=act)
    thread.start()
    return thread


def begin(talk, files, entry_id):
    return talk.begin(files, entry_id, part_size=PART)


def send_parts(data, files):
    for file in data["missing"]:
        for part in file["parts"]:
            assert put(part, cut(files[file["name"]], PART)[part["number"]]).status_code == 200


def check(talk, s3, storage, entry_id, files):
    """One checkpoint of this entry, whole; in the storage what it needs and, once leftovers are old, nothing else."""
    listed = talk.get("/checkpoints")
    assert [one["entry_id"] for one in listed] == [entry_id]
    swept(talk.hub, storage)
    assert len(s3.keys(storage)) == len(set(files.values()))
    assert s3.uploads(storage) == []
    for name, content in files.items():
        assert talk.download(listed[0]["id"], name).content == content


@pytest.mark.parametrize(
    "step",
    ["CreateMultipartUpload", "ListParts", "CompleteMultipartUpload", "GetObject", "the commit", "PutObject"],
)
def test_a_hub_that_is_killed_keeps_what_it_acknowledged_and_commits_the_rest_once(hub, s3, storage, step):
    talk = Talk(hub)
    acknowledged = {"before": b"before"}
    data = begin(talk, acknowledged, new_id())
    send_parts(data, acknowledged)
    assert talk.complete(data["id"]).status_code == 200
    other = Talk(hub)
    files = {"last.pt": BIG, "small": b"small", "empty": b""}
    entry_id = new_id()
    operation = "GetObject" if step == "the commit" else step
    with contextlib.ExitStack() as held:
        if step == "CreateMultipartUpload":
            s3.rules({"op": step, "hold": True})
            request = manifest(files, other.attempt_id, PART)
            thread = in_the_background(lambda: other.create(request, entry_id))
        else:
            data = begin(other, files, entry_id)
            send_parts(data, files)
            s3.rules({"op": operation, "hold": True})
            s3.control(clear=True)
            thread = in_the_background(lambda: other.complete(data["id"]))
        s3.wait_for(operation, "held")
        if step == "the commit":
            kept = held.enter_context(beside_hub(hub, storage))
            session = held.enter_context(kept.database.write())
            session.execute(select(Project.id).with_for_update(key_share=True))
            s3.control(release=True)
            s3.wait_for("PutObject", 200)  # of the empty file, the last before the commit
        hub.kill()
    s3.control(release=True)
    thread.join()
    hub.restart()
    talk.wait_until(lambda: other.get() is not None)
    data = begin(other, files, entry_id)
    send_parts(data, files)
    assert other.complete(data["id"]).json()["data"]["state"] == "committed"
    (one,) = talk.get("/checkpoints")
    assert talk.download(one["id"], "before").content == b"before"
    # All that is this hub's: two projects.
    swept(hub, storage)
    assert len(s3.keys(storage)) == 4
    assert s3.uploads(storage) == []
    (listed,) = other.get("/checkpoints")
    assert listed["entry_id"] == entry_id
    for name, content in files.items():
        assert other.download(listed["id"], name).content == content


def test_what_a_dead_process_checked_another_checks_when_its_lease_is_over(hub, s3, storage):
    """The first one is not dead, only slow: it finds the checkpoint committed, and takes nothing away."""
    talk = Talk(hub)
    files, entry_id = {"last.pt": BIG}, new_id()
    data = begin(talk, files, entry_id)
    send_parts(data, files)
    s3.rules({"op": "GetObject", "hold": True})
    thread = in_the_background(lambda: talk.complete(data["id"]))
    s3.wait_for("GetObject", "held")
    settings = settings_of(hub, storage)
    other = Hub.open(settings, first=False)
    try:
        assert other.commits.complete(data["id"])["state"] == "checking"
        with other.database.write() as session:
            until = session.scalar(select(Checkpoint.checking_until).where(Checkpoint.public_id == data["id"]))
            assert until - time.time() <= LEASE_S
            session.execute(update(Checkpoint).values(checking_until=time.time() - 1))
        assert other.commits.complete(data["id"])["state"] == "committed"
        s3.control(release=True)
        thread.join()
        check(talk, s3, storage, entry_id, files)
    finally:
        other.close()
    assert "Traceback" not in hub.log.read_text()


def settings_of(hub, storage):
    url = hub.database if isinstance(hub.database, str) else None
    return ServerSettings(data=hub.data_dir, database_url=url, storage=storage, part_size=PART, api_key=hub.key)


def test_a_lease_is_prolonged_while_its_check_goes_on(hub, s3, storage):
    talk = Talk(hub)
    files = {"last.pt": BIG}
    data = begin(talk, files, new_id())
    send_parts(data, files)
    s3.rules({"op": "GetObject", "hold": True})
    thread = in_the_background(lambda: talk.complete(data["id"]))
    s3.wait_for("GetObject", "held")

    def until():
        with beside_hub(hub, storage) as kept, kept.database.read() as session:
            return session.scalar(select(Checkpoint.checking_until).where(Checkpoint.public_id == data["id"]))

    first = until()
    talk.wait_until(lambda: until() > first)
    assert talk.get(f"/checkpoints/{data['id']}")["state"] == "checking"
    s3.control(release=True)
    thread.join()
    assert until() is None


def test_parts_that_their_storage_forgot_are_sent_again(hub, s3, storage):
    """As a bucket's rule does that ends uploads after some days."""
    talk = Talk(hub)
    files, entry_id = {"last.pt": BIG}, new_id()
    data = begin(talk, files, entry_id)
    send_parts(data, files)
    (key,) = {part["url"].partition("?")[0].split("/checkpoints/")[1] for part in data["missing"][0]["parts"]}
    (upload_id,) = s3.uploads(storage)
    s3.client.abort_multipart_upload(Bucket="checkpoints", Key=key, UploadId=upload_id)
    assert talk.complete(data["id"]).status_code == 409
    again = begin(talk, files, entry_id)
    assert len(again["missing"][0]["parts"]) == 2
    send_parts(again, files)
    assert talk.complete(data["id"]).status_code == 200
    check(talk, s3, storage, entry_id, files)


def test_a_sweep_leaves_what_others_are_at(hub, s3, storage):
    """Nothing that has a row, however old; nothing that is young, with a row or not; nothing that is not the hub's."""
    talk = Talk(hub)
    files = {"last.pt": BIG}
    kept = begin(talk, {"kept": b"kept"}, new_id())
    send_parts(kept, {"kept": b"kept"})
    assert talk.complete(kept["id"]).status_code == 200
    data = begin(talk, files, new_id())
    send_parts(data, files)
    prefix = storage.partition("?")[0].removeprefix("s3://checkpoints/")
    stray = f"{prefix}/{'p' * 20}/{'a' * 64}/{'0' * 32}"
    foreign = f"{prefix}/somebody's.txt"
    for key in (stray, foreign):
        s3.client.put_object(Bucket="checkpoints", Key=key, Body=b"x")
    orphan = s3.client.create_multipart_upload(Bucket="checkpoints", Key=stray, ChecksumAlgorithm="SHA256")["UploadId"]
    before = set(s3.keys(storage)), set(s3.uploads(storage))
    with beside_hub(hub, storage) as beside:
        beside.leftovers.sweep()
    assert (set(s3.keys(storage)), set(s3.uploads(storage))) == before
    swept(hub, storage)
    assert set(s3.keys(storage)) == before[0] - {stray}
    assert set(s3.uploads(storage)) == before[1] - {orphan}
    assert talk.complete(data["id"]).status_code == 200
    assert talk.download(data["id"], "last.pt").content == BIG

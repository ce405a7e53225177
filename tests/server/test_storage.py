"""What every storage does, and several processes of one hub do with it."""

import datetime as dt
import hashlib
import os
import threading
import time
from urllib.parse import urljoin

import boto3
import pytest
from botocore.config import Config
from hub_talk import PART_SIZE, Talk, sha256
from hub_v1_talk import V1, blobs, delete, leftovers
from s3 import ACCESS_KEY, BUCKET, SECRET_KEY
from storage_talk import MIB, beside, put, swept

from ddphub.server.directory import DataDirectory
from ddphub.server.settings import ServerSettings
from ddphub.server.signing import Signer
from ddphub.server.storage.incoming import CHUNK
from ddphub.server.storage.interface import StoredBlob, WrongBytes
from ddphub.server.storage.opening import open_storage
from ddphub.server.storage.presigning import Credentials, Presigner

PROJECT = "p" * 20


@pytest.fixture(params=["local", "s3"])
def storage(request, tmp_path):
    """An empty one of each kind."""
    address = request.getfixturevalue("s3").storage() if request.param == "s3" else None
    directory = DataDirectory(tmp_path / "data")
    opened = open_storage(ServerSettings(data=tmp_path / "data", storage=address), directory, Signer(b"s" * 32, 60))
    yield opened
    opened.close()
    directory.close()


def blob_of(content, project=PROJECT):
    return StoredBlob(project=project, sha256=sha256(content), size=len(content))


def keep(storage, content, project=PROJECT):
    """Stores bytes; their blob, as its row would say it."""
    prepared = storage.prepare(blob_of(content, project), iter([content[:3], content[3:]]))
    storage.place([prepared])
    return prepared.blob


def stored(storage):
    return {blob for blob, _ in storage.stored()}


@pytest.mark.parametrize("content", [b"", b"abc", os.urandom(MIB) * 17 + b"!"], ids=["empty", "small", "17 MiB"])
def test_bytes_come_back_as_they_were_whole_or_in_part(storage, content):
    blob = keep(storage, content)
    pieces = list(storage.read(blob))
    assert b"".join(pieces) == content
    assert all(len(piece) <= CHUNK for piece in pieces)
    assert b"".join(storage.read(blob, 1, 2)) == content[1:2]
    assert b"".join(storage.read(blob, max(0, len(content) - 5))) == content[-5:]
    assert storage.held([blob]) == {blob.sha256}
    ((found, came),) = storage.stored()
    assert found == blob
    assert abs(came - time.time()) < 3600
    storage.check()


@pytest.mark.parametrize("content", [b"abd", b"ab", b"abcd", b""])
def test_other_bytes_than_announced_are_not_kept(storage, content):
    for size in (3, 20 * MIB):
        announced = StoredBlob(project=PROJECT, sha256=sha256(b"abc"), size=size)
        with pytest.raises(WrongBytes):
            storage.prepare(announced, [content])
    assert stored(storage) == set()


def test_bytes_that_are_gone_are_said_to_be_when_they_are_asked_for(storage):
    blob = keep(storage, b"abc")
    other = keep(storage, b"abc", project="q" * 20)
    storage.remove([blob])
    storage.remove([blob])
    assert stored(storage) == {other}
    assert storage.held([blob, blob_of(b"never")]) == set()
    for lost in (blob, blob_of(b"never")):
        with pytest.raises(FileNotFoundError):
            storage.read(lost)


def test_what_was_prepared_and_dropped_is_gone(storage):
    prepared = storage.prepare(blob_of(b"abc"), [b"abc"])
    storage.drop([prepared])
    assert stored(storage) == set()
    storage.drop([prepared])


def test_signed_urls_are_those_of_aws(s3):
    """The same as botocore's, character for character but for their order."""
    client = boto3.client(
        "s3",
        endpoint_url=s3.url,
        region_name="eu-central-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        aws_session_token="token/+=",
        config=Config(signature_version="s3v4", request_checksum_calculation="when_required"),
    )
    checksum = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
    theirs = client.generate_presigned_url(
        "upload_part",
        Params={"Bucket": BUCKET, "Key": "a/b.c", "UploadId": "u/+=~ü", "PartNumber": 7, "ChecksumSHA256": checksum},
        ExpiresIn=60,
    )
    client.close()
    at = dt.datetime.strptime(theirs.partition("X-Amz-Date=")[2][:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
    ours = Presigner(base=f"{s3.url}/{BUCKET}/", region="eu-central-1").url(
        "PUT",
        "a/b.c",
        Credentials(access_key=ACCESS_KEY, secret_key=SECRET_KEY, token="token/+="),
        query={"partNumber": "7", "uploadId": "u/+=~ü"},
        headers={"x-amz-checksum-sha256": checksum},
        lifetime_s=60,
        now=at,
    )
    assert ours.partition("?")[0] == theirs.partition("?")[0]
    assert sorted(ours.partition("?")[2].split("&")) == sorted(theirs.partition("?")[2].split("&"))
    assert "***" in repr(Credentials(access_key="a", secret_key="b"))


def test_a_daily_sweep_finds_in_a_directory_what_crashes_left(start_hub):
    """Beside a hub that serves: half a part, parts of nobody, a blob without a row; and nothing that has one."""
    hub = start_hub()
    talk = Talk(hub)
    talk.upload({"kept": b"kept"})
    data = talk.begin({"a": b"abc"})
    talk.send_missing(data, {"a": b"abc"})
    (hub.data_dir / "incoming" / "half").write_bytes(b"half")
    (hub.data_dir / "uploads" / "nobody").mkdir()
    stray = hub.data_dir / "blobs" / PROJECT / "ab" / ("ab" * 32)
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"stray")
    with beside(hub) as kept:
        kept.leftovers.sweep()
    assert [path.name for path in leftovers(hub)] == ["half"]  # it is young: someone may be at it
    swept(hub)
    assert leftovers(hub) == []
    assert blobs(hub) == {sha256(b"kept")}
    assert [path.name for path in (hub.data_dir / "uploads").iterdir()] == [data["id"]]
    assert talk.complete(data["id"]).status_code == 200


def test_a_checkpoint_of_thousands_of_files_holds_up_nobody_for_long(start_hub):
    """They are in their place, and on disk, within the commit's transaction, while every other writer waits."""
    hub = start_hub()
    talk, other = Talk(hub), Talk(hub)
    files = {f"{number}.bin": b"%d" % number for number in range(1000)}
    data = talk.begin(files)
    folder = hub.data_dir / "uploads" / data["id"]
    for number, content in enumerate(files.values()):
        (folder / str(number)).write_bytes(content)
        (folder / f"{number}-0").touch()
    thread = threading.Thread(target=talk.complete, args=(data["id"],))
    thread.start()
    slowest = 0.0
    while thread.is_alive():
        before = time.monotonic()
        other.get()
        V1(hub)
        slowest = max(slowest, time.monotonic() - before)
    thread.join()
    assert talk.get(f"/checkpoints/{data['id']}")["state"] == "committed"
    assert slowest < 10


WORKERS = 2


def send_part(hub, part, content):
    return put({"headers": {}, **part, "url": urljoin(hub.url, part["url"])}, content)


def failures_of(seconds, *works):
    """What goes wrong while threads do these works again and again."""
    over, failures = threading.Event(), []

    def again(work):
        try:
            while not over.is_set():
                work()
        except Exception as error:  # noqa: BLE001  # the test reports whatever it was
            failures.append(error)
            over.set()

    threads = [threading.Thread(target=again, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    over.wait(seconds)
    over.set()
    for thread in threads:
        thread.join()
    return failures


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_workers_that_commit_and_delete_the_same_bytes_lose_none(kind, request, start_hub, new_database):
    """Two processes on PostgreSQL: models come and go that share their contents; what is listed can be read."""
    arguments = ["--workers", str(WORKERS), "--database-url", new_database()]
    part_size = PART_SIZE
    if kind == "s3":
        s3 = request.getfixturevalue("s3")
        storage, part_size = s3.storage(), 5 * MIB
        arguments += ["--storage", storage]
    hub = start_hub(arguments=(*arguments, "--part-size", str(part_size)))
    first = V1(hub)
    project_id, project = first.get()["project_id"], first.get()["project"]
    contents = {str(number): bytes([number]) * 100 for number in range(3)}

    def whole():
        model = V1(hub, projectId=project_id)
        for content in contents.values():
            model.epoch(0, content=content)
        check(model)

    def in_parts():
        model = Talk(hub, project)
        data = model.begin(contents, part_size=part_size)
        for file in data["missing"]:
            for part in file["parts"]:
                assert send_part(hub, part, contents[file["name"]]).status_code == 200
        # What the project had when it was announced stays until it is committed.
        assert model.complete(data["id"]).status_code == 200
        check(model)

    def check(model):
        for one in model.get("/checkpoints"):
            for file in one["files"]:
                answer = model.http.get(model.url(f"/checkpoints/{one['id']}/files/{file['name']}"))
                assert hashlib.sha256(answer.content).hexdigest() == file["sha256"], (answer.status_code, answer.text)
        assert delete(model, True).status_code == 200

    assert failures_of(3, whole, whole, in_parts, in_parts) == []
    assert delete(first, True).status_code == 200
    hub.stop()
    assert "Traceback" not in hub.log.read_text()
    if kind == "local":
        assert (blobs(hub), leftovers(hub)) == (set(), [])
    else:
        assert (s3.keys(storage), s3.uploads(storage)) == ([], [])

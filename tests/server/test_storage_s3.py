"""Checkpoints in an object storage: bytes go straight to it, and what is committed is what was announced."""

import io
import os
import time
import zipfile

import pytest
import requests
from hub_talk import Talk, cut, manifest, metrics_event, new_id, problem, sha256
from hub_v1_talk import V1, delete, fetch, leftovers
from jobs import ddphub as command_line
from s3 import ACCESS_KEY, BUCKET, SECRET_KEY
from storage_talk import MIB, put
from test_hub_process import peak

import ddphub
from ddphub.errors import HubRejected, HubUnavailable
from ddphub.hubs import download
from ddphub.hubs import parts as hub_parts
from ddphub.hubs.ddphub import DdphubClient

PART = 5 * MIB
BIG = os.urandom(2 * PART + 17)


@pytest.fixture
def storage(s3):
    return s3.storage()


@pytest.fixture
def hub(storage, start_hub):
    return start_hub(arguments=("--part-size", str(PART), "--storage", storage))


@pytest.fixture
def talk(hub):
    return Talk(hub)


@pytest.fixture
def browser_of():
    """Signs a browser in at a hub."""
    with requests.Session() as session:
        session.trust_env = False

        def sign_in(hub):
            answer = session.post(f"{hub.url}/sign-in", data={"key": hub.key}, allow_redirects=False)
            assert answer.status_code == 303
            return session

        yield sign_in


def send(talk, tmp_path, files, **fields):
    """Sends a checkpoint as a run does, by the client of training jobs; its id."""
    entry_id = fields.pop("entry_id", new_id())
    paths = {}
    for number, (name, content) in enumerate(files.items()):
        paths[name] = tmp_path / f"{entry_id}-{number}"
        paths[name].write_bytes(content)
    client = DdphubClient(talk.hub.url, talk.hub.key)
    request = manifest(files, talk.attempt_id, PART, **fields)
    try:
        return client.upload(talk.model_id, entry_id, request, paths).checkpoint_id
    finally:
        client.close()


def test_bytes_go_straight_from_the_node_to_the_storage(talk, s3, storage, tmp_path):
    files = {"last.pt": BIG, "shards/0": b"small", "shards/again": BIG, "empty": b""}
    checkpoint = send(talk, tmp_path, files)
    parts = s3.log("UploadPart")
    assert all(one["agent"].startswith("ddphub/") and one["status"] == 200 for one in parts)
    assert sum(one["sent"] for one in parts) == len(BIG) + len(b"small")
    by_hub = [one for one in s3.log() if "Boto" in one["agent"]]
    assert sum(one["sent"] for one in by_hub) < 10_000
    assert sum(one["got"] for one in by_hub if one["op"] == "GetObject") == len(BIG) + len(b"small")
    for name, content in files.items():
        assert talk.download(checkpoint, name).content == content


def test_nothing_of_ours_goes_to_the_storage_but_bytes(talk, s3, storage, tmp_path):
    """No API key, no cookie; and nothing of an upload is left but one object for each content."""
    files = {"last.pt": BIG, "again": BIG, "empty": b""}
    checkpoint = send(talk, tmp_path, files)
    listed = talk.get("/checkpoints")[0]
    client = DdphubClient(talk.hub.url, talk.hub.key)
    for file in client.remote_checkpoint(talk.model_id, listed).files:
        client.download(file, tmp_path / file.name)
        assert (tmp_path / file.name).read_bytes() == files[file.name]
    client.close()
    fetched = [one for one in s3.log("GetObject") if one["agent"].startswith("ddphub/")]
    assert sum(one["got"] for one in fetched) == 2 * len(BIG)  # the hub gave none of it
    for one in s3.log():
        assert talk.hub.key not in str(one["headers"])
        assert "cookie" not in one["headers"]
        assert "x-ddphub-follows-redirects" not in one["headers"]
    assert sorted(key.split("/")[2] for key in s3.keys(storage)) == sorted({sha256(BIG), sha256(b"")})
    assert s3.uploads(storage) == []
    assert [path for path in talk.hub.data_dir.rglob("*/*") if path.is_file()] == []
    assert talk.get(f"/checkpoints/{checkpoint}")["state"] == "committed"


def test_a_part_takes_its_own_bytes_and_no_others(talk, s3):
    (file,) = talk.begin({"last.pt": BIG}, part_size=PART)["missing"]
    first, second, last = file["parts"]
    content = cut(BIG, PART)
    assert (put(first, b"x" + content[0][1:]).status_code, "BadDigest" in put(first, content[0] + b"x").text) == (
        400,
        True,
    )
    assert put(first, content[1], **second["headers"]).status_code == 403
    assert put({**first, "headers": {}}, content[0]).status_code == 403
    assert put({**first, "url": first["url"].replace("partNumber=1", "partNumber=2")}, content[0]).status_code == 403
    assert (
        put({**first, "url": first["url"].replace("X-Amz-Expires=3600", "X-Amz-Expires=7200")}, content[0]).status_code
        == 403
    )
    assert put(last, content[2], **{"x-amz-acl": "public-read"}).status_code == 403
    assert s3.log("UploadPart") == [one for one in s3.log("UploadPart") if one["status"] >= 400]


def test_the_hub_takes_no_parts_itself(talk):
    url = f"{talk.hub.url}/v1/parts/{'a' * 20}/0/0?size=3&sha256={sha256(b'abc')}&expires={2**40}&signature=0"
    problem(talk.http.put(url, data=b"abc"), 403)


def test_complete_with_parts_missing_says_which(talk, s3):
    data = talk.begin({"last.pt": BIG}, part_size=PART)
    parts = data["missing"][0]["parts"]
    assert put(parts[1], cut(BIG, PART)[1]).status_code == 200
    told = problem(talk.complete(data["id"]), 409)
    assert [part["number"] for part in told["missing"][0]["parts"]] == [0, 2]
    for part in told["missing"][0]["parts"]:
        assert put(part, cut(BIG, PART)[part["number"]]).status_code == 200
    assert talk.get(f"/checkpoints/{data['id']}/parts")["missing"] == []
    assert talk.complete(data["id"]).status_code == 200


def test_parts_that_do_not_make_the_file_are_refused_and_never_committed(talk, s3, storage):
    """Each part is what was announced, and the whole is not: only reading it back tells."""
    request = manifest({"last.pt": BIG, "good": b"good"}, talk.attempt_id, PART)
    request["files"][0]["sha256"] = sha256(b"what someone else will announce")
    entry_id = new_id()
    data = talk.create(request, entry_id).json()["data"]
    for file, content in zip(data["missing"], (BIG, b"good"), strict=True):
        for part in file["parts"]:
            assert put(part, cut(content, PART)[part["number"]]).status_code == 200
    problem(talk.complete(data["id"]), 422)
    talk.hub.restart()
    problem(talk.complete(data["id"]), 422)
    problem(talk.create(request, entry_id), 422)
    assert (s3.keys(storage), s3.uploads(storage)) == ([], [])
    assert talk.get(f"/checkpoints/{data['id']}") == {"id": data["id"], "state": "receiving", "missing": []}


def test_what_the_storage_damages_is_asked_for_again(talk, s3, storage, tmp_path):
    s3.rules({"op": "UploadPart", "skip": 1, "damage": True})
    entry_id = new_id()
    with pytest.raises(HubUnavailable, match="damaged"):
        send(talk, tmp_path, {"last.pt": BIG}, entry_id=entry_id)
    assert (s3.keys(storage), talk.get("/checkpoints")) == ([], [])
    checkpoint = send(talk, tmp_path, {"last.pt": BIG}, entry_id=entry_id)
    assert talk.download(checkpoint, "last.pt").content == BIG
    assert len(s3.keys(storage)) == 1


@pytest.mark.parametrize(
    "rules",
    [
        [{"op": "UploadPart", "skip": 1, "error": [503, "SlowDown"]}],
        [{"op": "UploadPart", "skip": 1, "error": [403, "AccessDenied"]}],  # as of an URL that has expired
        [{"op": "UploadPart", "skip": 1, "error": [400, "RequestTimeout"], "times": 2}],
        [{"op": "UploadPart", "error": [400, "BadDigest"]}],  # a bit fell over on the way
        [{"op": "UploadPart", "error": [500, "InternalError"], "when": "after", "skip": 1}],
        [{"op": "GetObject", "cut": MIB}, {"op": "GetObject", "cut": 10}],
        [{"op": op, "error": [503, "SlowDown"]} for op in ("CreateMultipartUpload", "ListParts", "HeadObject")],
        [{"op": "CompleteMultipartUpload", "error": [500, "InternalError"], "when": "after"}],
    ],
)
def test_what_goes_wrong_for_a_moment_stops_no_upload(talk, s3, tmp_path, rules):
    s3.rules(*rules)
    checkpoint = send(talk, tmp_path, {"last.pt": BIG})
    assert sum(one["sent"] for one in s3.log("UploadPart")) <= len(BIG) + 2 * PART
    assert talk.download(checkpoint, "last.pt").content == BIG


def test_what_a_storage_refuses_is_no_fault_of_the_checkpoint(talk, s3, tmp_path):
    """Only bytes that are twice not what they were announced as are set aside."""
    s3.rules({"op": "UploadPart", "error": [400, "InvalidRequest"], "times": 9})
    with pytest.raises(HubUnavailable, match="InvalidRequest"):
        send(talk, tmp_path, {"last.pt": b"abc"})
    s3.rules({"op": "UploadPart", "error": [400, "BadDigest"], "times": 9})
    with pytest.raises(HubRejected, match="BadDigest"):
        send(talk, tmp_path, {"last.pt": b"abc"})


def test_an_upload_longer_than_the_life_of_its_urls_goes_on(s3, storage, start_hub, tmp_path, monkeypatch):
    hub = start_hub(arguments=("--part-size", str(PART), "--storage", storage, "--url-lifetime-s", "2"))
    talk = Talk(hub)
    put_at_once = DdphubClient._put_part

    def put_slowly(*arguments):
        put_at_once(*arguments)
        time.sleep(1.2)

    monkeypatch.setattr(DdphubClient, "_put_part", put_slowly)
    monkeypatch.setattr(hub_parts, "CONNECTIONS", 1)
    send(talk, tmp_path, {"last.pt": BIG})
    assert [one["status"] for one in s3.log("UploadPart")].count(403) >= 1


def test_a_download_is_sent_to_the_storage_only_where_no_key_goes_along(talk, s3, browser_of, tmp_path):
    checkpoint = send(talk, tmp_path, {"dir/last ü.pt": BIG})
    path = f"/checkpoints/{checkpoint}/files/dir/last ü.pt"
    keyed = talk.http.get(talk.url(path), allow_redirects=False)
    assert (keyed.status_code, keyed.content) == (200, BIG)
    part = talk.http.get(talk.url(path), headers={"range": f"bytes={PART - 5}-{PART + 4}"})
    assert (part.status_code, part.content) == (206, BIG[PART - 5 : PART + 5])
    problem(talk.http.get(talk.url(path), headers={"range": "bytes=99999999-"}), 416)
    browser = browser_of(talk.hub)
    sent_on = browser.get(talk.url(path), allow_redirects=False)
    assert (sent_on.status_code, sent_on.headers["cache-control"], sent_on.content) == (307, "no-store", b"")
    assert sent_on.headers["location"].startswith(f"{s3.url}/{BUCKET}/")
    got = browser.get(talk.url(path), headers={"range": "bytes=7-"})
    assert (got.status_code, got.content) == (206, BIG[7:])
    assert got.headers["content-disposition"] == "attachment; filename*=UTF-8''last%20%C3%BC.pt"
    assert got.headers["content-type"] == "application/octet-stream"
    head = talk.http.head(talk.url(path))
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(BIG)))
    zipped = browser.get(f"{talk.hub.url}/models/{talk.model_id}/checkpoints/{checkpoint}/archive")
    with zipfile.ZipFile(io.BytesIO(zipped.content)) as archive:
        assert archive.read("dir/last ü.pt") == BIG


def test_a_download_that_is_cut_goes_on_where_it_ended(talk, s3, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.01)
    send(talk, tmp_path, {"last.pt": BIG})
    s3.rules({"op": "GetObject", "cut": PART}, {"op": "GetObject", "cut": MIB})
    s3.control(clear=True)
    client = DdphubClient(talk.hub.url, talk.hub.key)
    (file,) = client.remote_checkpoint(talk.model_id, talk.get("/checkpoints")[0]).files
    client.download(file, tmp_path / "back")
    client.close()
    assert (tmp_path / "back").read_bytes() == BIG
    asked = [one["headers"].get("range", "") for one in s3.log("GetObject")]
    assert [first for first in asked[1:] if not first.startswith("bytes=")] == []


def test_weights_of_hub_v1_clients(hub, s3, storage):
    """They go through the hub, which sends them on in parts, and come back from the storage."""
    v1 = V1(hub)
    large = os.urandom(MIB) * 34
    before = s3.log("UploadPart")
    checkpoint = v1.epoch(0, content=large)
    assert v1.epoch(0, content=large) == checkpoint
    assert v1.epoch(1, content=large) != checkpoint
    assert len(s3.log("UploadPart")) - len(before) == 3
    v1.final(1, content=b"best")
    assert leftovers(hub) == []
    assert (len(s3.keys(storage)), s3.uploads(storage)) == (2, [])
    assert fetch(v1.get()["resume"]).content == large
    assert fetch(v1.get()["resume"], range="bytes=5-9").content == large[5:10]
    problem(v1.send({"epoch": 2, "type": "wrong"}, "last.pt"), 422)
    s3.rules({"op": "UploadPart", "error": [503, "SlowDown"], "times": 99})
    problem(v1.send({"epoch": 3, "type": "epoch", "isBest": False}, "last.pt", content=large + b"!"), 503)
    assert (leftovers(hub), len(s3.keys(storage)), s3.uploads(storage)) == ([], 2, [])


def test_deleting_removes_the_objects_that_nobody_else_needs(hub, s3, storage, tmp_path):
    one = Talk(hub)
    two, stranger = Talk(hub, one.project), Talk(hub)
    own = send(one, tmp_path, {"own": b"own", "shared": b"shared"})
    send(two, tmp_path, {"shared": b"shared"})
    send(stranger, tmp_path, {"own": b"own"})
    half = one.begin({"half": BIG}, part_size=PART)
    put(half["missing"][0]["parts"][0], cut(BIG, PART)[0])
    assert len(s3.keys(storage)) == 3
    assert one.http.delete(one.url(f"/checkpoints/{own}")).status_code == 200
    assert sorted(key.split("/")[2] for key in s3.keys(storage)) == sorted([sha256(b"shared"), sha256(b"own")])
    assert delete(one, True).status_code == 200
    assert s3.uploads(storage) == []
    assert delete(two, True).status_code == 200
    assert [key.split("/")[2] for key in s3.keys(storage)] == [sha256(b"own")]
    assert stranger.download(stranger.get("/checkpoints")[0]["id"], "own").content == b"own"


def test_a_model_deleted_while_its_checkpoint_is_read_back_leaves_nothing(s3, storage, start_hub):
    hub = start_hub(arguments=("--part-size", str(PART), "--storage", storage, "--inline-check-bytes", "0"))
    talk = Talk(hub)
    data = talk.begin({"last.pt": BIG}, part_size=PART)
    for part in data["missing"][0]["parts"]:
        put(part, cut(BIG, PART)[part["number"]])
    s3.rules({"op": "GetObject", "hold": True})
    assert talk.complete(data["id"]).status_code == 202
    s3.wait_for("GetObject", "held")
    assert delete(talk, True).status_code == 200
    s3.control(release=True)
    talk.wait_until(lambda: not s3.keys(storage) and not s3.uploads(storage))
    hub.stop()
    assert "Traceback" not in hub.log.read_text()


def test_a_storage_that_does_not_answer_stops_nothing_else(hub, s3, talk):
    """Events go on; who sends a checkpoint is told to come again."""
    operations = ("CreateMultipartUpload", "HeadBucket", "ListParts", "HeadObject", "GetObject")
    s3.rules(*({"op": op, "error": [503, "SlowDown"], "times": 99} for op in operations))
    answer = talk.create(manifest({"a": b"abc"}, talk.attempt_id, PART), new_id())
    assert int(problem(answer, 503)["status"]) == int(answer.status_code)
    assert answer.headers["retry-after"] == "5"
    assert talk.accepted(metrics_event(talk.attempt_id, 0))["accepted"] == 1
    assert talk.http.get(f"{hub.url}/readyz").status_code == 503
    hub.restart()
    assert talk.accepted(metrics_event(talk.attempt_id, 1))["accepted"] == 1
    s3.rules()
    talk.wait_until(lambda: talk.http.get(f"{hub.url}/readyz").status_code == 200)
    log = hub.log.read_text()
    assert "SlowDown" in log
    assert not any(secret in log for secret in (SECRET_KEY, ACCESS_KEY, "X-Amz", "uploadId"))


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("s3://no-such-bucket/p?endpoint={url}&region=us-east-1", "there is no such bucket"),
        ("s3://AKIA:secret@bucket/p", "credentials come from the environment"),
        ("s3://bucket/p?endpoint={url}&secret=abc", "credentials come from the environment"),
        ("s3://bucket/../p", "without . and .."),
        ("s3://Bucket", "this is no bucket"),
        ("s3://bucket/p q", "this is no prefix"),
        ("s3://bucket?endpoint=ftp://host", "expected an endpoint"),
        ("s3://bucket?endpoint=http://user:word@host", "expected an endpoint"),
        ("s3://bucket?region=a b", "this is no region"),
        ("https://bucket.s3.amazonaws.com", "expected s3://"),
        ("", "expected s3://"),
    ],
)
def test_a_wrong_address_is_an_error_that_shows_no_secret(s3, start_hub, storage, said):
    with pytest.raises(RuntimeError, match="ended with 2") as error:
        start_hub(arguments=("--storage", storage.format(url=s3.url)))
    assert said in str(error.value)
    assert not any(secret in str(error.value) for secret in ("AKIA", "word@", "abc", "Traceback"))


def test_a_storage_takes_no_small_parts_and_no_hub_of_another_kind(s3, storage, start_hub):
    with pytest.raises(RuntimeError, match=r"part_size=65536.* 5 MiB or more"):
        start_hub(arguments=("--part-size", "65536", "--storage", storage))
    local = start_hub("local")
    Talk(local).upload({"a": b"abc"})
    local.stop()
    with pytest.raises(RuntimeError, match="checkpoints are in the data directory"):
        start_hub("local", arguments=("--storage", storage))
    far = start_hub("far", arguments=("--storage", storage))
    V1(far).epoch(0)
    far.stop()
    with pytest.raises(RuntimeError, match="checkpoints are in an object storage"):
        start_hub("far")


def test_a_file_of_too_many_parts_is_refused_with_what_to_do(talk):
    request = manifest({"last.pt": b""}, talk.attempt_id, PART)
    size = PART * 10_001
    request["files"] = [{"name": "last.pt", "size": size, "sha256": "0" * 64, "parts": ["1" * 64] * 10_001}]
    assert "larger --part-size" in problem(talk.create(request, new_id()), 422)["detail"]


def test_ten_thousand_parts_are_asked_for_at_a_time(talk):
    """80 GB in parts of 8 MiB, and 5 MiB here; the rest when they are there. URLs are made in a fraction of a ms."""
    request = manifest({"one": b"", "two": b""}, talk.attempt_id, PART)
    for number, count in enumerate((9_999, 3)):
        parts, digest = [str(number) * 64] * count, f"{number}a" * 32
        request["files"][number] |= {"size": PART * count, "sha256": digest, "parts": parts}
    data = talk.create(request, new_id()).json()["data"]
    assert [len(file["parts"]) for file in data["missing"]] == [9_999, 1]
    assert "10000 parts or more" in problem(talk.complete(data["id"]), 409)["detail"]


def test_the_memory_of_the_hub_does_not_grow_with_a_file(s3, storage, start_hub, tmp_path):
    """64 MiB up in parts, back, and again whole as HUB v1 clients send it."""
    hub = start_hub(arguments=("--part-size", str(8 * MIB), "--storage", storage), cold=True)
    talk = Talk(hub)
    warm = talk.begin({"warm": b"warm"}, part_size=8 * MIB)
    put(warm["missing"][0]["parts"][0], b"warm")
    assert talk.complete(warm["id"]).status_code == 200
    V1(hub).epoch(0, content=os.urandom(MIB) * 33)
    before = peak(hub.pid)
    large = os.urandom(MIB) * 64
    parts = cut(large, 8 * MIB)
    data = talk.begin({"last.pt": large}, part_size=8 * MIB)
    for part in data["missing"][0]["parts"]:
        assert put(part, parts[part["number"]]).status_code == 200
    assert talk.complete(data["id"]).status_code == 200
    with talk.http.get(talk.url(f"/checkpoints/{data['id']}/files/last.pt"), stream=True) as answer:
        assert sum(len(chunk) for chunk in answer.iter_content(MIB)) == len(large)
    V1(hub).epoch(0, content=large)
    assert peak(hub.pid) - before < 32 * MIB


def test_a_run_delivers_and_another_goes_on_from_what_the_storage_has(hub, s3, tmp_path):
    """A training script and `ddphub pull`, as people use them."""
    settings = {"project": "nets", "run_id": "one", "hub": hub.url, "api_key": hub.key, "dir": tmp_path / "runs"}
    path = tmp_path / "last.pt"
    path.write_bytes(BIG)
    with ddphub.init(**settings) as run:
        assert run.save_checkpoint(path, epoch=3)
    assert sum(one["sent"] for one in s3.log("UploadPart")) == len(BIG)
    with ddphub.init(**{**settings, "dir": tmp_path / "elsewhere"}) as again:
        found = again.latest_checkpoint()
        assert found.read_bytes() == BIG
        model_id = again.model_id
    done = command_line("pull", model_id, "-o", str(tmp_path / "pulled"), hub=hub)
    assert "epoch 3" in done.stdout
    assert (tmp_path / "pulled").read_bytes() == BIG
    assert all(hub.key not in str(one) for one in s3.log())

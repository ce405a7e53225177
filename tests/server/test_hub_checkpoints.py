"""Checkpoints: committed once, whole, and with the bytes that were announced."""

import os
import threading

import pytest
import requests
from hub_talk import PART_SIZE, Talk, cut, file_manifest, manifest, new_id, problem, sha256

BIG = os.urandom(3 * PART_SIZE + 17)


def blob_files(hub):
    return sorted(path for path in (hub.data_dir / "blobs").rglob("*") if path.is_file())


def test_a_checkpoint_goes_up_in_parts_and_comes_back_as_it_was(talk):
    files = {"last.pt": BIG, "shards/0.bin": b"small", "shards/empty": b""}
    data = talk.begin(files, metrics={"loss": 0.5, "worst": "NaN"})
    assert data["state"] == "receiving"
    assert [(file["name"], len(file["parts"])) for file in data["missing"]] == [("last.pt", 4), ("shards/0.bin", 1)]
    assert data.keys() == {"id", "state", "missing"}
    talk.send_missing(data, files)
    done = talk.complete(data["id"])
    assert done.status_code == 200
    assert done.json()["data"] == {"id": data["id"], "state": "committed", "missing": []}
    assert talk.complete(data["id"]).json() == done.json()
    for name, content in files.items():
        assert talk.download(data["id"], name).content == content
    (listed,) = talk.get("/checkpoints")
    assert (listed["id"], listed["attempt"], listed["attempt_id"]) == (data["id"], 1, talk.attempt_id)
    assert (listed["epoch"], listed["step"], listed["kind"], listed["name"]) == (3, 30, "epoch", "last.pt")
    assert listed["metrics"] == {"loss": 0.5, "worst": "NaN"}
    assert listed["files"] == [
        {"name": name, "size": len(content), "sha256": sha256(content)} for name, content in files.items()
    ]
    assert listed["committed_at"] > 0
    assert talk.get()["checkpoints"] == 1
    assert talk.get()["has_last_weights"] is True


def test_a_checkpoint_is_not_listed_or_given_out_before_its_commit(talk):
    data = talk.begin({"last.pt": b"abc"})
    talk.send_missing(data, {"last.pt": b"abc"})
    assert talk.get("/checkpoints") == []
    problem(talk.download(data["id"], "last.pt"), 404)


def test_the_same_entry_finds_its_checkpoint_and_new_urls_for_what_is_missing(talk):
    entry_id, files = new_id(), {"last.pt": BIG}
    first = talk.begin(files, entry_id)
    parts = cut(BIG)
    assert talk.put(first["missing"][0]["parts"][1]["url"], parts[1]).status_code == 200
    again = talk.begin(files, entry_id)
    assert again["id"] == first["id"]
    assert [part["number"] for part in again["missing"][0]["parts"]] == [0, 2, 3]
    assert talk.get(f"/checkpoints/{first['id']}/parts").keys() == again.keys()
    talk.send_missing(again, files)
    assert talk.get(f"/checkpoints/{first['id']}")["missing"] == []
    assert talk.complete(first["id"]).status_code == 200
    assert talk.begin(files, entry_id) == {"id": first["id"], "state": "committed", "missing": []}
    assert len(talk.get("/checkpoints")) == 1


@pytest.mark.parametrize("change", [{"epoch": 4}, {"name": "best.pt"}, {"metrics": {"a": 1}}, {"kind": "best"}])
def test_the_same_entry_with_another_manifest_is_refused(talk, change):
    entry_id = new_id()
    talk.begin({"last.pt": b"abc"}, entry_id)
    problem(talk.create(manifest({"last.pt": b"abc"}, talk.attempt_id) | change, entry_id), 422)
    problem(talk.create(manifest({"last.pt": b"abd"}, talk.attempt_id), entry_id), 422)


def test_the_same_entry_in_another_model_is_another_checkpoint(hub):
    entry_id = new_id()
    assert Talk(hub).begin({"a": b"1"}, entry_id)["id"] != Talk(hub).begin({"a": b"1"}, entry_id)["id"]


def test_complete_with_parts_missing_says_which(talk):
    files = {"last.pt": BIG, "b": b"b"}
    data = talk.begin(files)
    talk.put(data["missing"][0]["parts"][0]["url"], cut(BIG)[0])
    missing = problem(talk.complete(data["id"]), 409)["missing"]
    assert [(file["name"], [part["number"] for part in file["parts"]]) for file in missing] == [
        ("last.pt", [1, 2, 3]),
        ("b", [0]),
    ]
    talk.send_missing({"missing": missing}, files)
    assert talk.complete(data["id"]).status_code == 200


def test_a_file_that_the_project_holds_is_not_asked_for_again(hub):
    one = Talk(hub)
    one.upload({"last.pt": BIG})
    before = blob_files(hub)
    same_project = Talk(hub, one.project)
    data = same_project.begin({"again.pt": BIG, "new": b"new"})
    assert [file["name"] for file in data["missing"]] == ["new"]
    same_project.send_missing(data, {"new": b"new"})
    assert same_project.complete(data["id"]).status_code == 200
    assert same_project.download(data["id"], "again.pt").content == BIG
    assert len(blob_files(hub)) == len(before) + 1
    assert len(Talk(hub).begin({"last.pt": BIG})["missing"]) == 1


def test_two_files_with_the_same_bytes_are_sent_once(talk):
    files = {"a/model.bin": BIG, "b/model.bin": BIG, "c": b""}
    data = talk.begin(files)
    assert [file["name"] for file in data["missing"]] == ["a/model.bin"]
    talk.send_missing(data, files)
    assert talk.complete(data["id"]).status_code == 200
    assert talk.download(data["id"], "b/model.bin").content == BIG


def test_a_checkpoint_of_empty_files_needs_no_parts(talk):
    data = talk.begin({"a": b"", "b": b""})
    assert data["missing"] == []
    assert talk.complete(data["id"]).status_code == 200
    assert talk.download(data["id"], "b").content == b""


def test_two_requests_to_complete_commit_once(talk):
    files = {"last.pt": os.urandom(40 * PART_SIZE)}
    data = talk.begin(files)
    talk.send_missing(data, files)
    barrier = threading.Barrier(4)
    answers = []

    def complete():
        client = talk.hub.client()
        barrier.wait()
        answers.append(client.post(talk.url(f"/checkpoints/{data['id']}/complete")))

    threads = [threading.Thread(target=complete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.json()["data"]["state"] for answer in answers} <= {"checking", "committed"}
    assert {(answer.status_code, answer.json()["data"]["state"]) for answer in answers} <= {
        (200, "committed"),
        (202, "checking"),
    }
    talk.wait_until(lambda: talk.complete(data["id"]).status_code == 200)
    assert len(talk.get("/checkpoints")) == 1
    assert not (talk.hub.data_dir / "uploads" / data["id"]).exists()


def test_a_large_checkpoint_is_checked_after_the_answer(start_hub):
    hub = start_hub(arguments=("--part-size", str(PART_SIZE), "--inline-check-bytes", "0"))
    talk = Talk(hub)
    data = talk.begin({"last.pt": BIG})
    talk.send_missing(data, {"last.pt": BIG})
    answer = talk.complete(data["id"])
    assert (answer.status_code, answer.json()["data"]["state"]) == (202, "checking")
    talk.wait_until(lambda: talk.get(f"/checkpoints/{data['id']}")["state"] == "committed")
    assert talk.complete(data["id"]).status_code == 200
    assert talk.download(data["id"], "last.pt").content == BIG


@pytest.mark.parametrize("inline", [True, False])
def test_parts_that_do_not_make_the_file_are_refused_and_never_committed(start_hub, inline):
    """Each part is right and the whole is not: the manifest contradicts itself, whether or not the check waits."""
    limit = str(2**30 if inline else 0)
    hub = start_hub(arguments=("--part-size", str(PART_SIZE), "--inline-check-bytes", limit))
    talk = Talk(hub)
    request = manifest({"last.pt": BIG}, talk.attempt_id)
    request["files"][0]["sha256"] = sha256(b"something else")
    entry_id = new_id()
    data = talk.create(request, entry_id).json()["data"]
    talk.send_missing(data, {"last.pt": BIG})
    answer = talk.complete(data["id"])
    if inline:
        problem(answer, 422)
    else:
        assert answer.status_code == 202
        talk.wait_until(lambda: talk.get(f"/checkpoints/{data['id']}")["state"] == "receiving")
    # Nothing is asked for that could not be taken.
    assert talk.get(f"/checkpoints/{data['id']}")["missing"] == []
    problem(talk.complete(data["id"]), 422)
    problem(talk.create(request, entry_id), 422)
    assert talk.get("/checkpoints") == []
    assert blob_files(hub) == []


def test_a_part_that_was_damaged_on_the_hub_is_asked_for_again(talk):
    data = talk.begin({"last.pt": BIG})
    talk.send_missing(data, {"last.pt": BIG})
    with (talk.hub.data_dir / "uploads" / data["id"] / "0").open("r+b") as file:
        file.seek(2 * PART_SIZE)
        file.write(b"x" * PART_SIZE)
    problem(talk.complete(data["id"]), 409)
    missing = talk.get(f"/checkpoints/{data['id']}")
    assert [one["number"] for one in missing["missing"][0]["parts"]] == [2]
    talk.send_missing(missing, {"last.pt": BIG})
    assert talk.complete(data["id"]).status_code == 200
    assert talk.download(data["id"], "last.pt").content == BIG


def test_a_blob_that_vanished_is_asked_for_again(hub):
    talk = Talk(hub)
    content = os.urandom(100)
    before = set(blob_files(hub))
    talk.upload({"a": content})
    (blob,) = set(blob_files(hub)) - before
    blob.unlink()
    assert "lost" in problem(talk.download(talk.get("/checkpoints")[0]["id"], "a"), 500)["detail"]
    talk.upload({"b": content})
    assert talk.download(talk.get("/checkpoints")[0]["id"], "a").content == content


# Signed URLs ---------------------------------------------------------------------------------------------------------


def test_a_part_may_be_sent_again_even_after_the_commit(talk):
    data = talk.begin({"a": b"abc"})
    url = data["missing"][0]["parts"][0]["url"]
    assert talk.put(url, b"abc").status_code == 200
    assert talk.put(url, b"abc").status_code == 200
    assert talk.complete(data["id"]).status_code == 200
    assert talk.put(url, b"abc").status_code == 200
    assert not (talk.hub.data_dir / "uploads" / data["id"]).exists()


def test_a_url_that_the_hub_did_not_sign_is_refused(talk):
    data = talk.begin({"a": b"abc", "b": b"abd"})
    url = data["missing"][0]["parts"][0]["url"]
    signature = url.partition("signature=")[2]
    forged = [
        url.replace("size=3", "size=4"),
        url.replace(sha256(b"abc"), sha256(b"abcd")),
        url.replace("expires=", "expires=9"),
        url.replace("/0/0?", "/1/0?"),
        url.replace("/0/0?", "/0/1?"),
        url.replace(data["id"], "x" * 20),
        url.replace(signature, "0" * 64),
        url.replace(signature, "%C3%A9"),
    ]
    for one in forged:
        problem(talk.put(one, b"abc"), 403)
    problem(talk.put(url.partition("?")[0], b"abc"), 422)
    problem(talk.put(url.replace("/0/0?", "/x/0?"), b"abc"), 422)
    problem(requests.get(talk.hub.url + url), 405)
    assert len(talk.get(f"/checkpoints/{data['id']}")["missing"]) == 2


def test_an_expired_url_is_refused_and_a_fresh_one_works(start_hub):
    hub = start_hub(arguments=("--part-size", str(PART_SIZE), "--url-lifetime-s", "1"))
    talk = Talk(hub)
    data = talk.begin({"a": b"abc"})
    url = data["missing"][0]["parts"][0]["url"]
    talk.wait_until(lambda: talk.put(url, b"abc").status_code == 403)
    assert "expired" in problem(talk.put(url, b"abc"), 403)["detail"]
    fresh = talk.get(f"/checkpoints/{data['id']}")
    if fresh["missing"]:
        talk.send_missing(fresh, {"a": b"abc"})
    assert talk.complete(data["id"]).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_part_with_other_bytes_is_refused(talk, chunked):
    data = talk.begin({"a": b"abc"})
    url = data["missing"][0]["parts"][0]["url"]
    for content, with_length, without in ((b"ab", 400, 400), (b"abcd", 400, 413), (b"xyz", 422, 422), (b"", 400, 400)):
        body = iter([content]) if chunked else content
        problem(talk.put(url, body), without if chunked else with_length)
    assert len(talk.get(f"/checkpoints/{data['id']}")["missing"]) == 1
    assert list((talk.hub.data_dir / "incoming").iterdir()) == []


# Manifests -----------------------------------------------------------------------------------------------------------

FILE = file_manifest("a", b"abc")

WRONG_FILES = {
    "no files": [],
    "not a list": {"a": FILE},
    "not an object": ["a"],
    "no name": [{name: value for name, value in FILE.items() if name != "name"}],
    "a name twice": [FILE, FILE],
    "a folder that is a file": [FILE, FILE | {"name": "a/b"}],
    "a deep folder that is a file": [FILE, FILE | {"name": "a/b/c"}],
    "size negative": [FILE | {"size": -1}],
    "size a bool": [FILE | {"size": True}],
    "size beyond 64 bits": [FILE | {"size": 2**63}],
    "size huge": [FILE | {"size": 2**62}],
    "sha256 in capitals": [FILE | {"sha256": FILE["sha256"].upper()}],
    "sha256 missing": [FILE | {"sha256": None}],
    "sha256 of another file": [FILE | {"sha256": sha256(b"x")}],
    "too many parts": [FILE | {"parts": FILE["parts"] * 2}],
    "too few parts": [FILE | {"parts": []}],
    "parts not a list": [FILE | {"parts": "ab"}],
    "a part that is no sha256": [FILE | {"parts": ["x"]}],
    "an empty file with another sha256": [FILE | {"size": 0, "parts": []}],
    "one sha256 with two sizes": [FILE, FILE | {"name": "b", "size": 4}],
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_files_that_cannot_be_are_refused(talk, name):
    request = manifest({"a": b"abc"}, talk.attempt_id) | {"files": WRONG_FILES[name]}
    problem(talk.create(request, new_id()), 422)
    assert talk.get()["attempts"] == []


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "..", "../x", "a/../../x", "a//b", "a/", ".", "", "a\\b", "a\x00", "a\nb", "\ud800", "x" * 256, 3],
)
def test_hostile_file_names_are_refused(talk, name):
    request = manifest({"a": b"abc"}, talk.attempt_id)
    request["files"][0]["name"] = name
    problem(talk.create(request, new_id()), 422)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "other"},
        {"kind": None},
        {"attempt_id": "x"},
        {"epoch": 1.5},
        {"epoch": 2**63},
        {"step": True},
        {"name": "../x"},
        {"name": None},
        {"metrics": []},
        {"metrics": {"a": "text"}},
        {"metrics": None},
        {"files": None},
    ],
)
def test_a_manifest_of_another_shape_is_refused(talk, change):
    problem(talk.create(manifest({"a": b"abc"}, talk.attempt_id) | change, new_id()), 422)


def test_an_entry_id_is_needed(talk):
    request = manifest({"a": b"abc"}, talk.attempt_id)
    problem(talk.http.post(talk.url("/checkpoints"), json=request), 422)
    problem(talk.create(request, "not-an-entry-id"), 422)


def test_checkpoints_of_other_models_are_not_found(hub):
    one, other = Talk(hub), Talk(hub)
    checkpoint_id = one.upload({"a": b"abc"})
    for answer in (
        other.http.get(other.url(f"/checkpoints/{checkpoint_id}")),
        other.http.get(other.url(f"/checkpoints/{checkpoint_id}/parts")),
        other.complete(checkpoint_id),
        other.download(checkpoint_id, "a"),
        one.download(checkpoint_id, "b"),
        one.download(checkpoint_id, "..%2f..%2fhub.db"),
    ):
        problem(answer, 404)


def test_checkpoints_are_listed_in_order_page_by_page_or_by_entry(talk):
    entries = [new_id() for _ in range(5)]
    ids = [talk.upload({"a": bytes([index])}, entry_id) for index, entry_id in enumerate(entries)]
    first = talk.get("/checkpoints?limit=2")
    rest = talk.get(f"/checkpoints?after={first[-1]['id']}")
    assert [one["id"] for one in first + rest] == ids
    assert [one["id"] for one in talk.get(f"/checkpoints?entry_id={entries[3]}")] == [ids[3]]
    # One that is gone by now has no place in the order: an empty page would look like the end.
    problem(talk.http.get(talk.url(f"/checkpoints?after={'0' * 20}")), 404)


def test_the_newest_checkpoints_are_asked_for_directly(v1):
    ids = [v1.epoch(epoch, best=epoch == 1) for epoch in range(4)]
    assert [one["id"] for one in v1.get("/checkpoints?order=desc&limit=2")] == [ids[3], ids[2]]
    assert [one["id"] for one in v1.get(f"/checkpoints?order=desc&after={ids[1]}")] == [ids[0]]
    assert [one["id"] for one in v1.get("/checkpoints?kind=epoch&order=desc&limit=1")] == [ids[3]]
    assert [one["id"] for one in v1.get("/checkpoints?kind=best")] == [ids[1]]
    problem(v1.http.get(v1.url("/checkpoints?order=up")), 422)


# Downloads -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(hub):
    """A model with one committed file."""
    talk = Talk(hub)
    talk.kept = talk.upload({'weights/last é".pt': BIG, "empty": b""})
    return talk


NAME = "weights/last%20%C3%A9%22.pt"


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        (f"bytes={PART_SIZE - 1}-{PART_SIZE}", PART_SIZE - 1, PART_SIZE + 1),
        ("bytes=5-", 5, len(BIG)),
        ("bytes=-7", len(BIG) - 7, len(BIG)),
        (f"bytes=-{len(BIG) * 2}", 0, len(BIG)),
        (f"bytes=100-{10**18}", 100, len(BIG)),
    ],
)
def test_a_range_is_answered_with_its_bytes(kept, wanted, start, end):
    answer = kept.download(kept.kept, NAME, range=wanted)
    assert answer.status_code == 206
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(BIG)}"
    assert int(answer.headers["content-length"]) == end - start
    assert answer.content == BIG[start:end]


@pytest.mark.parametrize("wanted", ["bytes=5-4", "bytes=-", "bytes=a-b", "items=0-1", "bytes=0-1,4-5", "bytes=²-3"])
def test_a_range_that_is_none_is_answered_with_the_whole_file(kept, wanted):
    answer = kept.download(kept.kept, NAME, range=wanted.encode("latin-1"))
    assert answer.status_code == 200
    assert answer.content == BIG


@pytest.mark.parametrize("wanted", [f"bytes={len(BIG)}-", "bytes=-0", f"bytes={10**18}-{10**18}"])
def test_a_range_outside_the_file_is_a_416(kept, wanted):
    answer = kept.download(kept.kept, NAME, range=wanted)
    problem(answer, 416)
    assert answer.headers["content-range"] == f"bytes */{len(BIG)}"


def test_the_etag_is_the_sha256_and_saves_the_bytes(kept):
    answer = kept.download(kept.kept, NAME)
    etag = f'"{sha256(BIG)}"'
    assert answer.headers["etag"] == etag
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    for value in (etag, f'"x", W/{etag}', "*"):
        same = kept.download(kept.kept, NAME, if_none_match=value)
        assert (same.status_code, same.content) == (304, b"")
    assert kept.download(kept.kept, NAME, if_none_match='"x"').status_code == 200
    assert kept.download(kept.kept, NAME, range="bytes=0-1", if_range=etag).status_code == 206
    assert kept.download(kept.kept, NAME, range="bytes=0-1", if_range='"x"').content == BIG
    head = kept.http.head(kept.url(f"/checkpoints/{kept.kept}/files/{NAME}"))
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(BIG)))


def test_a_file_name_cannot_break_out_of_its_header(kept):
    disposition = kept.download(kept.kept, NAME).headers["content-disposition"]
    assert disposition == "attachment; filename*=UTF-8''last%20%C3%A9%22.pt"


def test_an_empty_file_has_no_range(kept):
    assert kept.download(kept.kept, "empty").content == b""
    problem(kept.download(kept.kept, "empty", range="bytes=0-"), 416)

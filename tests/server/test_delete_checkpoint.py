"""Deleting one checkpoint: it stays deleted, and nobody else loses a byte."""

import os
import threading

import pytest
from hub_talk import PART_SIZE, Talk, manifest, new_id, problem, sha256
from hub_v1_talk import V1, blobs, delete, fetch, leftovers

MIB = 1024 * 1024


def delete_one(talk, checkpoint_id):
    return talk.http.delete(talk.url(f"/checkpoints/{checkpoint_id}"))


def test_a_deleted_checkpoint_is_found_nowhere(hub, browser, talk):
    kept = talk.upload({"last.pt": b"kept"}, kind="best")
    gone = talk.upload({"last.pt": b"gone"}, epoch=4)
    signed = talk.get()["resume"]
    assert fetch(signed).content == b"gone"
    entry_id = talk.get("/checkpoints")[1]["entry_id"]
    assert delete_one(talk, gone).json() == {"success": True, "message": "", "data": {}}
    assert [one["id"] for one in talk.get("/checkpoints")] == [kept]
    assert talk.get("/checkpoints", params={"entry_id": entry_id}) == []
    data = talk.get()
    assert data["checkpoints"] == 1
    assert gone not in (data["resume"] or "")
    for answer in (talk.download(gone, "last.pt"), fetch(signed), delete_one(talk, gone)):
        problem(answer, 404)
    assert gone not in browser.get(f"{hub.url}/models/{talk.model_id}").text
    assert talk.download(kept, "last.pt").content == b"kept"


def test_a_checkpoint_of_another_model_is_not_deleted(hub, talk):
    other = Talk(hub, talk.project)
    checkpoint_id = other.upload({"last.pt": b"x"})
    problem(delete_one(talk, checkpoint_id), 404)
    problem(delete_one(talk, "nobody"), 404)
    assert other.download(checkpoint_id, "last.pt").content == b"x"
    delete(other, False)
    problem(delete_one(other, checkpoint_id), 404)


def test_one_that_is_still_arriving_is_not_deleted(talk):
    data = talk.begin({"last.pt": b"abc"})
    problem(delete_one(talk, data["id"]), 409)
    talk.send_missing(data, {"last.pt": b"abc"})
    assert talk.complete(data["id"]).json()["data"]["state"] == "committed"
    assert delete_one(talk, data["id"]).status_code == 200


@pytest.mark.parametrize("restarts", [False, True])
def test_a_repeat_does_not_bring_it_back(start_hub, restarts):
    """What a run does whose journal lost the receipt, in whichever step of its upload that was."""
    hub = start_hub()
    talk = Talk(hub)
    files, entry_id = {"last.pt": b"again"}, new_id()
    checkpoint_id = talk.upload(files, entry_id)
    delete_one(talk, checkpoint_id)
    if restarts:
        hub.restart()
    done = {"id": checkpoint_id, "state": "committed", "missing": []}
    assert talk.begin(files, entry_id) == done
    assert talk.complete(checkpoint_id).json()["data"] == done
    assert talk.get(f"/checkpoints/{checkpoint_id}") == done
    problem(talk.create(manifest({"last.pt": b"other"}, talk.attempt_id), entry_id), 422)
    assert talk.get("/checkpoints") == []
    assert blobs(hub) == set()
    # The same bytes as another entry are another save, which somebody wants.
    assert talk.download(talk.upload(files), "last.pt").content == b"again"
    assert delete(talk, True).status_code == 200
    assert blobs(hub) == set()


def test_a_part_that_comes_late_leaves_nothing(start_hub):
    hub = start_hub()
    talk = Talk(hub)
    files = {"last.pt": os.urandom(PART_SIZE + 1)}
    data = talk.begin(files)
    (file,) = data["missing"]
    talk.send_missing(data, files)
    talk.complete(data["id"])
    delete_one(talk, data["id"])
    assert talk.put(file["parts"][0]["url"], files["last.pt"][:PART_SIZE]).status_code == 200
    assert blobs(hub) == set()
    assert not leftovers(hub)
    assert list((hub.data_dir / "uploads").iterdir()) == []


def test_a_repeat_by_a_hub_v1_client_does_not_bring_it_back(start_hub):
    hub = start_hub()
    v1 = V1(hub)
    checkpoint_id = v1.epoch(0)
    delete_one(v1, checkpoint_id)
    assert blobs(hub) == set()
    assert v1.epoch(0) == checkpoint_id
    assert v1.get("/checkpoints") == []
    assert blobs(hub) == set()
    assert v1.get()["resume"] is None
    assert v1.epoch(1) != checkpoint_id


def test_bytes_that_others_need_stay(start_hub):
    hub = start_hub()
    one, two, stranger = Talk(hub, "p"), Talk(hub, "p"), Talk(hub, "q")
    shared, own, promised = b"shared", b"own", b"promised"
    gone = one.upload({"a": shared, "b": own, "c": promised})
    stays = one.upload({"a": shared})
    theirs = two.upload({"x": shared})
    strangers = stranger.upload({"x": own})
    announced = two.begin({"c": promised})
    assert announced["missing"] == []
    assert delete_one(one, gone).status_code == 200
    assert sha256(own) not in {path.name for path in (hub.data_dir / "blobs" / one.get()["project_id"]).rglob("*")}
    assert two.complete(announced["id"]).json()["data"]["state"] == "committed"
    for talk, checkpoint_id, name, content in (
        (one, stays, "a", shared),
        (two, theirs, "x", shared),
        (two, announced["id"], "c", promised),
        (stranger, strangers, "x", own),
    ):
        assert talk.download(checkpoint_id, name).content == content


def test_bytes_whose_rows_are_gone_are_removed_at_the_next_start(start_hub):
    """A crash after the rows went and before the bytes did."""
    hub = start_hub()
    talk = Talk(hub)
    gone, kept = talk.upload({"a": b"gone"}), talk.upload({"a": b"kept"})
    (blob,) = (hub.data_dir / "blobs").rglob(sha256(b"gone"))
    delete_one(talk, gone)
    hub.stop()
    blob.write_bytes(b"gone")
    hub.start()
    assert blobs(hub) == {sha256(b"kept")}
    assert talk.download(kept, "a").content == b"kept"


def test_a_download_that_has_begun_goes_on(start_hub):
    hub = start_hub()
    talk = Talk(hub)
    content = os.urandom(MIB) * 24
    checkpoint_id = talk.upload({"a": content})
    url = talk.url(f"/checkpoints/{checkpoint_id}/files/a")
    with talk.http.get(url, stream=True) as answer:
        begun = answer.raw.read(1024)
        assert delete_one(talk, checkpoint_id).status_code == 200
        assert begun + answer.raw.read() == content


def test_deleting_never_takes_bytes_that_others_commit_at_that_moment(start_hub):
    """Two runs commit the same bytes over and over, and delete their checkpoints."""
    hub = start_hub()
    failures, over = [], threading.Event()
    contents = [bytes([number]) * 100 for number in range(3)]

    def work():
        try:
            talk = Talk(hub, "shared")
            while not over.is_set():
                files = {str(number): content for number, content in enumerate(contents)}
                checkpoint_id = talk.upload(files)
                for name, content in files.items():
                    answer = talk.download(checkpoint_id, name)
                    assert answer.content == content, (answer.status_code, answer.text)
                assert delete_one(talk, checkpoint_id).status_code == 200
        except Exception as error:  # noqa: BLE001  # the test reports whatever it was
            failures.append(error)
            over.set()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    over.wait(4)
    over.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert blobs(hub) == set()

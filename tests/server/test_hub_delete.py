"""Deleting models: nothing of them is found, and nobody else loses a byte."""

import os
import threading

import pytest
from hub_talk import PART_SIZE, Talk, manifest, metrics_event, new_id, problem, sha256
from hub_v1_talk import BYTES, V1, at_once, blobs, delete, fetch, leftovers
from test_hub_process import MIB


@pytest.mark.parametrize("hard", [False, True])
def test_a_deleted_model_is_found_nowhere(hub, browser, hard):
    v1 = V1(hub)
    v1.beat()
    v1.metrics({"0": {"a": 1}})
    checkpoint_id = v1.epoch(0)
    begun = v1.create(manifest({"a": b"abc"}, new_id()), new_id()).json()["data"]
    url = v1.get()["resume"]
    total = v1.http.get(f"{hub.url}/v1/models", params={"limit": 1}).json()["data"]["total"]
    assert delete(v1, hard).json() == {"success": True, "message": "", "data": {}}
    for answer in (
        v1.http.get(v1.url()),
        v1.http.get(v1.url("/metrics")),
        v1.http.get(v1.url("/checkpoints")),
        v1.http.get(v1.url(f"/checkpoints/{checkpoint_id}")),
        v1.http.get(v1.url(f"/checkpoints/{checkpoint_id}/files/last.pt")),
        v1.http.patch(v1.url(), json={}),
        v1.http.post(v1.url("/stop")),
        v1.http.post(f"{hub.url}/v1/agent/heartbeat/models/{v1.model_id}", json={}),
        v1.metrics({"0": {"a": 1}}),
        v1.send({"epoch": 0, "type": "epoch"}, "last.pt"),
        v1.events(metrics_event(new_id(), 0)),
        v1.complete(begun["id"]),
        v1.http.get(f"{hub.url}/v1/models", params={"last_doc_id": v1.model_id}),
        fetch(url),
        delete(v1, False),
    ):
        problem(answer, 404)
    assert browser.get(f"{hub.url}/models/{v1.model_id}").status_code == 404
    after = v1.http.get(f"{hub.url}/v1/models", params={"limit": 1}).json()["data"]
    assert after["total"] == total - 1
    assert v1.model_id not in browser.get(hub.url).text
    assert delete(v1, True).status_code == (404 if hard else 200)


@pytest.mark.parametrize("hard", [False, True])
def test_the_run_id_of_a_deleted_model_is_free(talk, hard):
    run_id = talk.get()["run_id"]
    body = {"project": talk.project, "meta": {"name": "net"}}
    delete(talk, hard)
    answers = [
        talk.http.post(f"{talk.hub.url}/v1/models", json=body, headers={"Idempotency-Key": run_id}) for _ in range(2)
    ]
    first, second = (answer.json()["data"]["id"] for answer in answers)
    assert first == second != talk.model_id


def test_a_hard_delete_removes_the_bytes_that_nobody_else_has(start_hub):
    hub = start_hub()
    one = V1(hub)
    project_id = one.get()["project_id"]
    two, stranger, announced = V1(hub, projectId=project_id), Talk(hub), V1(hub, projectId=project_id)
    own, shared, joined, promised = (os.urandom(50) for _ in range(4))
    for content in (own, shared, joined, promised):
        one.epoch(0, content=content)
    two.epoch(0, content=shared)
    stranger.upload({"last.pt": own})
    data = announced.begin({"a": promised})
    assert data["missing"] == []
    half = one.begin({"half": b"half"})
    one.send_missing(half, {"half": b"half"})
    theirs = stranger.get()["project_id"]
    assert delete(one, True).status_code == 200
    kept = {path.relative_to(hub.data_dir / "blobs").parts[0::2] for path in blob_paths(hub)}
    assert kept == {(project_id, sha256(shared)), (project_id, sha256(promised)), (theirs, sha256(own))}
    assert not (hub.data_dir / "uploads" / half["id"]).exists()
    assert fetch(two.get()["resume"]).content == shared
    assert announced.complete(data["id"]).status_code == 200
    again = V1(hub, projectId=project_id)
    again.epoch(0, content=own)
    assert fetch(again.get()["resume"]).content == own


def blob_paths(hub):
    return [path for path in (hub.data_dir / "blobs").rglob("*") if path.is_file()]


def test_a_soft_delete_keeps_the_bytes_until_a_hard_one(start_hub):
    hub = start_hub()
    v1 = V1(hub)
    v1.epoch(0)
    delete(v1, False)
    hub.restart()
    assert blobs(hub) == {sha256(BYTES)}
    assert delete(v1, True).status_code == 200
    assert blobs(hub) == set()


def test_bytes_whose_rows_are_gone_are_removed_at_the_next_start(start_hub):
    """A crash after the rows went and before the bytes did."""
    hub = start_hub()
    v1, kept = V1(hub), V1(hub)
    v1.epoch(0)
    kept.epoch(0, content=b"kept")
    (blob,) = (hub.data_dir / "blobs").rglob(sha256(BYTES))
    delete(v1, True)
    hub.stop()
    blob.write_bytes(BYTES)
    stray = hub.data_dir / "blobs" / ("p" * 20) / "ab"
    stray.mkdir(parents=True)
    (stray / ("ab" * 32)).write_bytes(b"stray")
    hub.restart()
    assert blobs(hub) == {sha256(b"kept")}
    assert fetch(kept.get()["resume"]).content == b"kept"


def test_a_new_checkpoint_does_not_inherit_what_was_known_of_a_deleted_one(start_hub):
    """The database gives a deleted row's number again."""
    hub = start_hub(arguments=("--part-size", str(PART_SIZE)))
    talk = Talk(hub)
    request = manifest({"last.pt": BYTES}, talk.attempt_id)
    request["files"][0]["sha256"] = sha256(b"something else")
    data = talk.create(request, new_id()).json()["data"]
    talk.send_missing(data, {"last.pt": BYTES})
    problem(talk.complete(data["id"]), 422)
    delete(talk, True)
    after = Talk(hub, talk.project)
    after.upload({"last.pt": BYTES})
    assert fetch(after.get()["resume"]).content == BYTES


def test_deleting_models_never_takes_bytes_that_others_commit_at_that_moment(start_hub):
    """Two clients commit the same bytes over and over while models that have them are deleted."""
    hub = start_hub(arguments=("--part-size", str(PART_SIZE)))
    first = V1(hub)
    project_id = first.get()["project_id"]
    first_project = first.get()["project"]
    contents = [bytes([number]) * 100 for number in range(3)]
    over, failures = threading.Event(), []

    def uploads():
        while not over.is_set():
            model = V1(hub, projectId=project_id)
            for content in contents:
                model.epoch(0, content=content)
            check(model)

    def parts():
        while not over.is_set():
            model = Talk(hub, first_project)
            files = {str(number): content for number, content in enumerate(contents)}
            data = model.begin(files)
            model.send_missing(data, files)
            assert model.complete(data["id"]).status_code == 200
            check(model)

    def check(model):
        for one in model.get("/checkpoints"):
            for file in one["files"]:
                answer = model.http.get(model.url(f"/checkpoints/{one['id']}/files/{file['name']}"))
                assert sha256(answer.content) == file["sha256"], (answer.status_code, answer.text)
        assert delete(model, True).status_code == 200

    def guarded(work):
        try:
            work()
        except Exception as error:  # noqa: BLE001  # the test reports whatever it was
            failures.append(error)
            over.set()

    threads = [threading.Thread(target=guarded, args=(work,)) for work in (uploads, parts)]
    for thread in threads:
        thread.start()
    over.wait(6)
    over.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert delete(first, True).status_code == 200
    assert blobs(hub) == set()


@pytest.mark.parametrize("moment", ["at once", "one file is joined"])
def test_a_model_deleted_while_its_checkpoint_is_checked_leaves_nothing(start_hub, moment):
    hub = start_hub(arguments=("--part-size", str(8 * MIB), "--inline-check-bytes", "0"))
    talk = Talk(hub)
    files = {name: os.urandom(MIB) * 24 + name.encode() for name in "ab"}
    data = talk.begin(files, part_size=8 * MIB)
    talk.send_missing(data, files, part_size=8 * MIB)
    assert talk.complete(data["id"]).status_code == 202
    talk.wait_until(lambda: moment == "at once" or blobs(hub))
    assert delete(talk, True).status_code == 200
    talk.wait_until(lambda: not blobs(hub) and not leftovers(hub))
    assert list((hub.data_dir / "uploads").iterdir()) == []
    after = Talk(hub, talk.project)
    after.upload(files, part_size=8 * MIB)
    hub.stop()
    assert "Traceback" not in hub.log.read_text()
    assert blobs(hub) == {sha256(content) for content in files.values()}


def test_bytes_that_two_checks_put_in_their_place_stay_for_the_one_that_commits(start_hub):
    """One has joined the shared file and goes on with the next when the other's model is deleted."""
    hub = start_hub(arguments=("--part-size", str(8 * MIB), "--inline-check-bytes", "0"))
    kept = Talk(hub)
    gone = Talk(hub, kept.project)
    begun = {}
    for model in (kept, gone):
        files = {"shared": b"shared", "own": os.urandom(MIB) * 64}
        begun[model] = model.begin(files, part_size=8 * MIB)["id"]
        model.send_missing(model.get(f"/checkpoints/{begun[model]}"), files, part_size=8 * MIB)
    assert kept.complete(begun[kept]).status_code == 202
    kept.wait_until(lambda: sha256(b"shared") in blobs(hub))
    assert gone.complete(begun[gone]).status_code == 202
    assert delete(gone, True).status_code == 200
    kept.wait_until(lambda: kept.get(f"/checkpoints/{begun[kept]}")["state"] == "committed")
    assert kept.download(begun[kept], "shared").content == b"shared"
    kept.wait_until(lambda: len(blobs(hub)) == 2)


def test_the_same_model_deleted_at_once_is_deleted_once(v1):
    v1.epoch(0)
    answers = at_once(4, lambda: delete(v1, True).status_code)
    assert sorted(answers) == [200, 404, 404, 404]

"""HUB v1: weights come whole in one form, are kept once, and are given out to clients without a key."""

import itertools
import os
import secrets
import socket
import threading
import time
from urllib.parse import urlsplit

import psutil
import pytest
import requests
from hub_talk import Talk, problem, sha256
from hub_v1_talk import BYTES, V1, at_once, blobs, fetch, leftovers
from test_hub_process import MIB, peak, reset_peak

# Uploads -------------------------------------------------------------------------------------------------------------


def test_weights_become_committed_checkpoints(v1):
    ids = [v1.epoch(0), v1.epoch(1, best=True, content=b"best"), v1.final(2, content=b"final")]
    kept = v1.get("/checkpoints")
    assert [one["id"] for one in kept] == ids
    assert [(one["kind"], one["epoch"], one["name"], one["metrics"]) for one in kept] == [
        ("epoch", 0, "last.pt", {}),
        ("best", 1, "last.pt", {}),
        ("final", 2, "best.pt", {"map": 0.5}),
    ]
    assert kept[0]["files"] == [{"name": "last.pt", "size": len(BYTES), "sha256": sha256(BYTES)}]
    assert kept[2]["committed_at"] > 0
    assert v1.http.get(v1.url(f"/checkpoints/{ids[0]}/files/last.pt")).content == BYTES
    assert v1.get()["checkpoints"] == 3
    assert leftovers(v1.hub) == []


def test_the_same_weights_again_are_the_same_checkpoint(v1):
    first = v1.epoch(0)
    assert v1.epoch(0) == first
    assert len({v1.epoch(1), v1.epoch(0, content=b"other"), v1.final(0), first}) == 4
    assert v1.final(0) == v1.final(0)
    assert len(v1.get("/checkpoints")) == 4
    assert v1.get()["events"] == 2  # started and finished once


def test_the_same_weights_at_once_are_one_checkpoint(v1):
    assert len(set(at_once(4, lambda: v1.epoch(5)))) == 1
    assert len(v1.get("/checkpoints")) == 1
    assert leftovers(v1.hub) == []


def test_a_project_holds_the_same_bytes_once(hub):
    talk = Talk(hub)
    content = os.urandom(100)
    before = blobs(hub)
    talk.upload({"last.pt": content})
    project_id = talk.get()["project_id"]
    same = V1(hub, projectId=project_id)
    same.epoch(0, content=content)
    same.final(1, content=content)
    assert blobs(hub) - before == {sha256(content)}
    other = os.urandom(100)
    same.epoch(2, content=other)
    data = talk.begin({"again": other})
    assert data["missing"] == []
    assert talk.complete(data["id"]).status_code == 200


def test_bytes_that_vanished_from_the_disk_come_back_with_the_next_upload(v1):
    content = os.urandom(100)
    checkpoint_id = v1.epoch(0, content=content)
    (blob,) = (v1.hub.data_dir / "blobs").rglob(sha256(content))
    blob.unlink()
    assert v1.epoch(0, content=content) == checkpoint_id
    assert fetch(v1.get()["resume"]).content == content


@pytest.mark.parametrize("map_value", ["nan", "inf", "1e-3"])
def test_any_number_is_a_map(v1, map_value):
    v1.final(0, map=map_value)
    assert v1.get("/checkpoints")[0]["metrics"]["map"] in {"NaN", "Infinity", 0.001}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"epoch": 0},
        {"type": "epoch"},
        {"epoch": 0, "type": "other"},
        {"epoch": -1, "type": "epoch"},
        {"epoch": "x", "type": "epoch"},
        {"epoch": "1" * 19, "type": "epoch"},
        {"epoch": 0, "type": "epoch", "isBest": "yes"},
        {"epoch": 0, "type": "final", "map": "high"},
        {"epoch": [0, 1], "type": "epoch"},
        {"epoch": 0, "type": "epoch", "isBest": b"\xff"},
    ],
)
def test_a_form_that_does_not_say_what_it_is_is_refused(v1, fields):
    check_refused(v1, v1.send(fields, "last.pt"), 422)


@pytest.mark.parametrize("files", [(), ("last.pt", "best.pt")])
def test_a_form_has_one_file(v1, files):
    check_refused(v1, v1.send({"epoch": 0, "type": "epoch"}, *files), 422)


@pytest.mark.parametrize(
    "fields",
    [{"epoch": "0" * 2000, "type": "epoch"}, {str(number): "x" for number in range(40)}, {"n" * 65: "x"}],
)
def test_a_form_past_a_limit_is_refused(v1, fields):
    answer = v1.send(fields, "last.pt")
    check_refused(v1, answer, answer.status_code)
    assert answer.status_code in {413, 422}


def check_refused(v1, answer, status):
    problem(answer, status)
    assert v1.get("/checkpoints") == []
    assert v1.get()["attempts"] == []
    assert leftovers(v1.hub) == []


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "b" * 300,
        "multipart/mixed; boundary=b",
    ],
)
def test_a_body_of_another_type_is_refused(v1, kind):
    headers = {} if kind is None else {"content-type": kind}
    check_refused(v1, v1.http.post(v1.url("/upload"), data=b"--b--\r\n", headers=headers), 422)


HEAD = b'--b\r\nContent-Disposition: form-data; name="epoch"\r\n\r\n4\r\n'
TYPE = b'--b\r\nContent-Disposition: form-data; name="type"\r\n\r\nepoch\r\n'
FILE = b'--b\r\nContent-Disposition: form-data; name="x"; filename="../../hub.db"\r\n\r\n'
END = b"\r\n--b--\r\n"


def post_raw(v1, body, **headers):
    sent = {"content-type": "multipart/form-data; boundary=b", **headers}
    return v1.http.post(v1.url("/upload"), data=body, headers=sent)


NO_FORMS = {
    "nothing": b"",
    "no boundary": b"hello",
    "another boundary": (HEAD + TYPE + FILE + BYTES + END).replace(b"--b", b"--c"),
    "cut in the file": HEAD + TYPE + FILE + BYTES,
    "cut in a header": HEAD + TYPE + FILE[:-9],
    "cut in the last boundary": HEAD + TYPE + FILE + BYTES + END[:-4],
    "a part without a name": HEAD + TYPE + FILE.replace(b'name="x"; ', b"") + BYTES + END,
    "a part that is no form data": HEAD + TYPE + FILE.replace(b"form-data", b"attachment") + BYTES + END,
    "a header that never ends": b"--b\r\nx: " + b"y" * 100_000,
    "a hundred headers": b"--b\r\n" + b"x: y\r\n" * 100 + b"\r\n" + END,
    "a header with NUL": b"--b\r\n\0: x\r\n\r\n" + END,
}


@pytest.mark.parametrize("body", NO_FORMS.values(), ids=NO_FORMS.keys())
def test_what_is_no_whole_form_is_refused(v1, body):
    answer = post_raw(v1, body)
    check_refused(v1, answer, answer.status_code)
    assert answer.status_code in {400, 422}


@pytest.mark.parametrize("order", list(itertools.permutations([HEAD, TYPE, FILE + BYTES + b"\r\n"])))
def test_fields_come_in_any_order_and_no_file_is_named_by_the_client(v1, order):
    assert post_raw(v1, b"".join(order) + b"--b--\r\n").status_code == 200
    (kept,) = v1.get("/checkpoints")
    assert (kept["name"], kept["epoch"]) == ("last.pt", 4)
    assert fetch(v1.get()["resume"]).content == BYTES


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_a_form_is_read_however_it_is_cut(v1, step):
    """The file holds what looks like a boundary at many places."""
    tricky = (b"\r\n--b" + b"\r\n-" + b"\r\n--" + b"--b--" + b"\r\r\n--bx") * 5 + b"\r"
    tricky = tricky.replace(b"\r\n--b", b"\r\n--c")
    body = HEAD + TYPE + FILE + tricky + END
    answer = post_raw(v1, (body[start : start + step] for start in range(0, len(body), step)))
    assert answer.status_code == 200, answer.text
    assert fetch(v1.get()["resume"]).content == tricky


def test_a_client_that_goes_away_leaves_nothing_behind(v1):
    address = urlsplit(v1.hub.url)
    head = (
        f"POST /v1/models/{v1.model_id}/upload HTTP/1.1\r\nHost: x\r\nx-api-key: {v1.hub.key}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000000\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode() + HEAD + TYPE + FILE + b"x" * 5000)
        v1.wait_until(lambda: leftovers(v1.hub))
    v1.wait_until(lambda: not leftovers(v1.hub))
    assert v1.get("/checkpoints") == []


def test_a_kill_at_any_moment_of_an_upload_leaves_it_whole_or_not_at_all(start_hub):
    """Killed while the bytes arrive, and around the commit; the client's next try ends with one checkpoint."""
    hub = start_hub()
    v1 = V1(hub)
    content = os.urandom(MIB) * 16
    for delay in (0.0, 0.01, 0.03, 0.06, 0.1):
        sent = content + secrets.token_bytes(8)
        before = len(v1.get("/checkpoints"))
        thread = threading.Thread(target=send_quietly, args=(v1, sent))
        thread.start()
        v1.wait_until(lambda: leftovers(hub) or not thread.is_alive())  # noqa: B023  # this turn's thread
        time.sleep(delay)
        hub.kill()
        thread.join()
        hub.restart()
        assert leftovers(hub) == []
        kept = {file["sha256"] for one in v1.get("/checkpoints") for file in one["files"]}
        print(f"killed after {delay} s: {'committed' if sha256(sent) in kept else 'nothing'}")
        assert blobs(hub) == kept
        v1.epoch(0, content=sent)
        assert len(v1.get("/checkpoints")) == before + 1
        assert fetch(v1.get()["resume"]).content == sent


def send_quietly(v1, content):
    try:
        V1.epoch(v1, 0, content=content)
    except (requests.RequestException, AssertionError) as error:
        print(f"the client saw {type(error).__name__}")


def test_an_upload_of_300_mib_does_not_grow_the_memory(start_hub):
    """The hub's peak of resident memory rises by less than 64 MiB."""
    hub = start_hub()
    v1 = V1(hub)
    v1.epoch(0, content=os.urandom(MIB))
    v1.http.get(v1.get()["resume"])
    before = psutil.Process(hub.pid).memory_info().rss
    reset_peak(hub.pid)
    piece = os.urandom(MIB)

    def body():
        yield HEAD + TYPE + FILE
        for _ in range(300):
            yield piece
        yield END

    began = time.monotonic()
    assert post_raw(v1, body()).status_code == 200
    seconds = time.monotonic() - began
    size = 0
    with requests.get(v1.get()["resume"], stream=True) as answer:
        for chunk in answer.iter_content(MIB):
            size += len(chunk)
    assert size == 300 * MIB
    grown = peak(hub.pid) - before
    print(f"peak RSS grew by {grown / MIB:.1f} MiB from {before / MIB:.1f} MiB; {300 / seconds:.0f} MiB/s up")
    assert grown < 64 * MIB


# Downloads -----------------------------------------------------------------------------------------------------------


def test_weights_are_downloaded_without_a_key(v1):
    v1.epoch(0)
    v1.epoch(1, content=b"newer")
    data = v1.get()
    assert data["resume"].startswith(f"{v1.hub.url}/v1/downloads/")
    assert urlsplit(data["resume"]).query == ""
    assert data["resume"].endswith("-last.pt")
    assert (data["has_last_weights"], data["has_best_weights"], data["weights"]) == (True, False, None)
    answer = fetch(data["resume"])
    assert answer.content == b"newer"
    assert answer.headers["etag"] == f'"{sha256(b"newer")}"'
    v1.final(2, content=b"final")
    data = v1.get()
    assert data["weights"].endswith("-best.pt")
    assert data["has_best_weights"] is True
    assert fetch(data["weights"]).content == b"final"
    assert fetch(data["resume"]).content == b"newer"
    partly = fetch(data["weights"], range="bytes=1-2")
    assert (partly.status_code, partly.content) == (206, b"in")
    assert requests.head(data["weights"]).headers["content-length"] == "5"


def test_the_best_weights_so_far_are_the_weights_until_the_final_ones(v1):
    v1.epoch(0, best=True, content=b"best")
    v1.epoch(1, content=b"last")
    data = v1.get()
    assert fetch(data["weights"]).content == b"best"
    assert fetch(data["resume"]).content == b"last"


def test_two_files_never_have_one_name(v1):
    """Clients reuse what lies in their folder under a URL's name."""
    v1.epoch(0)
    first = v1.get()["resume"].rsplit("/", 1)[1]
    v1.epoch(1, content=b"newer")
    assert v1.get()["resume"].rsplit("/", 1)[1] != first


def test_checkpoints_of_other_clients_are_found_too(talk):
    assert talk.get()["resume"] is None
    talk.upload({"shard-0": b"0", "shard-1": b"1"}, name="folder")
    assert (talk.get()["resume"], talk.get()["has_last_weights"]) == (None, False)
    talk.upload({"deep/é last.pt": b"abc"}, name="deep/é last.pt")
    talk.begin({"never.pt": b"x"}, name="never.pt")
    data = talk.get()
    assert fetch(data["resume"]).content == b"abc"
    talk.upload({"best.pt": b"best"}, name="best.pt", kind="best")
    assert fetch(talk.get()["weights"]).content == b"best"


def test_a_url_that_the_hub_did_not_sign_is_refused(v1, hub):
    v1.epoch(0)
    other = V1(hub)
    other.epoch(0)
    url = v1.get()["resume"]
    *_, checkpoint, number, expires, signature, name = url.split("/")
    theirs = other.get()["resume"].split("/")[-5]
    for old, new in (
        (f"/{checkpoint}/", f"/{theirs}/"),
        (f"/{number}/{expires}", f"/1/{expires}"),
        (expires, str(int(expires) + 1)),
        (signature, "0" * 64),
        (signature, "%C3%A9"),
        (name, "last.pt"),
    ):
        problem(fetch(url.replace(old, new)), 403)
    problem(fetch(url.replace(expires, "x")), 422)
    problem(requests.put(url, data=b"x"), 405)


def test_an_expired_url_is_refused(start_hub):
    v1 = V1(start_hub(arguments=("--url-lifetime-s", "1")))
    v1.epoch(0)
    url = v1.get()["resume"]
    v1.wait_until(lambda: fetch(url).status_code == 403)
    assert "expired" in problem(fetch(url), 403)["detail"]


@pytest.mark.parametrize("host", ["[", "a b", "x:y", "é", "", "evil.example/path", "u@h"])
def test_any_host_header_is_answered(v1, host):
    v1.epoch(0)
    answer = v1.http.get(v1.url(), headers={"host": host.encode()})
    assert answer.status_code in {200, 400}
    if answer.status_code == 200:
        assert "/v1/downloads/" in answer.json()["data"]["resume"]


def test_no_secret_is_in_the_log(start_hub):
    hub = start_hub()
    v1 = V1(hub)
    v1.epoch(0)
    url = v1.get()["resume"]
    fetch(url)
    fetch(url[:-1])
    post_raw(v1, b"--b\r\n\0")
    next((hub.data_dir / "blobs").rglob(sha256(BYTES))).unlink()
    problem(fetch(url), 500)
    hub.stop()
    log = hub.log.read_text()
    assert sha256(BYTES) in log
    assert hub.key not in log
    assert url.split("/")[-2] not in log

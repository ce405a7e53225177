"""Parts whose request ends early: the hub keeps what came, and takes the rest by another request."""

import os
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest
import requests
from hub_talk import PART_SIZE, Talk, cut, manifest, new_id, problem, sha256

from ddphub.hubs.ddphub import DdphubClient
from ddphub.server.directory import DataDirectory
from ddphub.server.storage.interface import ArrivingFile
from ddphub.server.storage.local import LocalStorage

CONTENT = os.urandom(2 * PART_SIZE + 17)
FILES = {"last.pt": CONTENT}
SENT = PART_SIZE // 3


@pytest.fixture
def talk(start_hub):
    return Talk(start_hub(arguments=("--part-size", str(PART_SIZE))))


def leave_some(talk, data, number, content, received, **headers):
    """Has the hub keep the first bytes of a part. What it has not read when it learns of the end is lost."""
    for pause in (0.1, 0.5, 2, 8):
        part = missing(talk, data)[number]
        send_some(talk, part, content, pause, **headers)
        if talk.hub.is_running and any(_kept(talk, data, number) == received for _ in range(100)):
            return
    raise AssertionError(f"the hub keeps {missing(talk, data)[number]}")


def _kept(talk, data, number):
    time.sleep(0.01)
    return missing(talk, data)[number].get("received")


def send_some(talk, part, content, pause=0.1, **headers):
    """A PUT whose client goes away in the middle."""
    given = "".join(f"{name}: {value}\r\n" for name, value in ({"content-length": PART_SIZE} | headers).items())
    with socket.create_connection(urlsplit(talk.hub.url).netloc.split(":")) as connection:
        connection.sendall(f"PUT {part['url']} HTTP/1.1\r\nhost: x\r\n{given}\r\n".encode() + content)
        time.sleep(pause)


def missing(talk, data):
    return [part for file in talk.get(f"/checkpoints/{data['id']}")["missing"] for part in file["parts"]]


def put_rest(talk, part, content, start=None, **headers):
    start = part["received"] if start is None else start
    headers = {"content-range": f"bytes {start}-{len(content) - 1}/{len(content)}"} | headers
    return requests.put(talk.hub.url + part["url"], content[start:], headers=headers, timeout=20)


@pytest.fixture
def begun(talk):
    """A checkpoint of three parts; of the first one some has come."""
    data = talk.begin(FILES)
    leave_some(talk, data, 0, CONTENT[:SENT], SENT)
    return data


def test_the_rest_of_a_part_makes_it_whole(talk, begun):
    one, two, three = missing(talk, begun)
    assert ("received" in two, "received" in three) == (False, False)
    assert put_rest(talk, one, cut(CONTENT)[0]).status_code == 200
    assert [part["number"] for part in missing(talk, begun)] == [1, 2]
    talk.send_missing(talk.get(f"/checkpoints/{begun['id']}"), FILES)
    assert talk.complete(begun["id"]).status_code == 200
    assert talk.download(begun["id"], "last.pt").content == CONTENT


def test_a_rest_that_ends_early_is_kept_too(talk, begun):
    told = {"content-range": f"bytes {SENT}-{PART_SIZE - 1}/{PART_SIZE}", "content-length": PART_SIZE - SENT}
    leave_some(talk, begun, 0, CONTENT[SENT : 2 * SENT], 2 * SENT, **told)
    (one, *_) = missing(talk, begun)
    assert put_rest(talk, one, cut(CONTENT)[0]).status_code == 200


def test_fewer_bytes_than_it_has_may_be_relied_on(talk, begun):
    (one, *_) = missing(talk, begun)
    assert put_rest(talk, one, cut(CONTENT)[0], start=SENT - 1000).status_code == 200


def test_more_bytes_than_it_has_are_asked_for_again(talk, begun):
    (one, *_) = missing(talk, begun)
    problem(put_rest(talk, one, cut(CONTENT)[0], start=SENT + 1), 409)
    problem(put_rest(talk, missing(talk, begun)[1] | {"received": 5}, cut(CONTENT)[1]), 409)
    (one, *_) = missing(talk, begun)
    assert requests.put(talk.hub.url + one["url"], cut(CONTENT)[0]).status_code == 200


@pytest.mark.parametrize(
    "wrong",
    [
        "bytes 5-9/65536",
        "bytes 0-65535/*",
        "bytes */65536",
        "5-65535/65536",
        "bytes 65536-65535/65536",
        "bytes x-65535/65536",
        "",
    ],
)
def test_a_range_that_is_not_the_end_of_the_part_is_refused(talk, begun, wrong):
    (one, *_) = missing(talk, begun)
    problem(put_rest(talk, one, cut(CONTENT)[0], **{"content-range": wrong}), 400)
    assert missing(talk, begun)[0]["received"] == SENT


def test_two_that_send_the_same_rest_do_not_mix(talk, begun):
    (one, *_) = missing(talk, begun)
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(put_rest(talk, one, cut(CONTENT)[0]).status_code))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200, 409, 409, 409]
    talk.send_missing(talk.get(f"/checkpoints/{begun['id']}"), FILES)
    assert talk.complete(begun["id"]).status_code == 200
    assert talk.download(begun["id"], "last.pt").content == CONTENT


def test_first_bytes_that_were_damaged_cost_one_part_and_nothing_else(talk, tmp_path):
    """Our own client: it believes the hub, is told that the digest is wrong, and sends the whole part."""
    entry_id = new_id()
    data = talk.begin(FILES, entry_id)
    leave_some(talk, data, 0, CONTENT[:SENT], SENT)
    (kept,) = (talk.hub.data_dir / "uploads" / data["id"]).glob("*.some")
    kept.write_bytes(b"\0" * SENT)
    path = tmp_path / "last.pt"
    path.write_bytes(CONTENT)
    client = DdphubClient(talk.hub.url, talk.hub.key)
    receipt = client.upload(talk.model_id, entry_id, manifest(FILES, talk.attempt_id), {"last.pt": path})
    client.close()
    assert receipt.checkpoint_id == data["id"]
    assert sha256(talk.download(data["id"], "last.pt").content) == sha256(CONTENT)


def test_nothing_is_kept_of_a_checkpoint_that_was_committed_meanwhile(talk, begun):
    (one, *_) = missing(talk, begun)
    talk.send_missing(talk.get(f"/checkpoints/{begun['id']}"), FILES)
    assert talk.complete(begun["id"]).status_code == 200
    problem(put_rest(talk, one, cut(CONTENT)[0]), 409)
    send_some(talk, one, CONTENT[:SENT])
    talk.wait_until(lambda: not list((talk.hub.data_dir / "incoming").iterdir()))
    assert list((talk.hub.data_dir / "uploads").iterdir()) == []


def test_bytes_have_come_when_they_are_committed_however_long_their_parts_took(talk):
    """A verification takes bytes without a row that came long ago for ones that nobody is about to commit."""
    data = talk.begin(FILES)
    talk.send_missing(data, FILES)
    (file,) = talk.hub.data_dir.glob("uploads/*/0")
    os.utime(file, (1, 1))
    assert talk.complete(data["id"]).status_code == 200
    (blob,) = talk.hub.data_dir.glob("blobs/*/*/*")
    assert time.time() - blob.stat().st_mtime < 3600


def test_who_looks_while_parts_are_forgotten_sees_none(tmp_path, monkeypatch):
    """As when two requests complete a checkpoint at the same time."""
    directory = DataDirectory(tmp_path)
    folder = tmp_path / "uploads" / "one"
    folder.mkdir(parents=True)
    (folder / "0-0").touch()
    scandir = os.scandir

    class Gone(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    def forgotten_meanwhile(path):
        found = Gone(scandir(path))
        (folder / "0-0").unlink()
        return found

    file = ArrivingFile(
        checkpoint="one", project="p", number=0, name="a", size=1, sha256="0" * 64, part_size=1, parts=("0" * 64,)
    )
    storage = LocalStorage(directory, None)
    assert storage.arrived([file]) == {0: {0}}
    monkeypatch.setattr("ddphub.server.storage.local.os.scandir", forgotten_meanwhile)
    assert storage.arrived([file]) == {0: set()}

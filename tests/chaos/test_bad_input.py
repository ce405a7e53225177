"""What nobody should send, and files as a failing disk leaves them: sentences, never a traceback or a hang."""

import contextlib
import gzip
import http.client
import io
import json
import logging
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from hub_process import HubProcess
from hypothesis import given
from hypothesis import strategies as st
from jobs import ddphub as command_line
from server.hub_talk import PART_SIZE, Talk, attempt_event, manifest, metrics_event, rank_event

import ddphub
from chaos import strategies
from chaos.strategies import budget, mutations
from ddphub import cli
from ddphub.checkpoints.staging import Slot, StagingArea
from ddphub.distributed import relay
from ddphub.errors import JournalError
from ddphub.events import expand, to_json
from ddphub.session import loop
from ddphub.session.folder import RunFolder, RunInfo
from ddphub.session.journal import Journal
from ddphub.session.lines import LineWriter

KEY = "k" * 42
SECONDS = 20
"""Nothing takes longer, on a busy machine too."""

ATTEMPT, OTHER = "a" * 32, "b" * 32
EVENTS = [
    metrics_event(ATTEMPT, 0, values={"loss": 0.5, "bad": "NaN"}),
    attempt_event(ATTEMPT, 1, "started"),
    rank_event(ATTEMPT, 2, 1, "joined"),
    {"attempt_id": ATTEMPT, "rank": 1, "seq": 0, "time": 1.0, "kind": "log", "level": "info", "message": "hello"},
    {"attempt_id": ATTEMPT, "rank": 1, "seq": 1, "time": 1.0, "kind": "checkpoint", "state": "staged", "name": "x"},
]
FILES = {"last.pt": b"weights", "dir/empty": b""}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Its log is read at the end: a traceback in it fails the last test."""
    with HubProcess(
        tmp_path_factory.mktemp("hub") / "data", api_key=KEY, arguments=("--part-size", str(PART_SIZE))
    ) as process:
        yield process
        assert "Traceback" not in process.log.read_text()


@pytest.fixture(scope="module")
def talk(hub):
    return Talk(hub)


# Requests.


def ask(hub, method, target, body=None, headers=None):
    """One request as bytes go; the status, the headers and the body."""
    connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=SECONDS)
    with contextlib.closing(connection):
        connection.request(method, target, body, {"x-api-key": KEY, **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def check_answer(hub, method, target, body=None, headers=None):
    """The hub answers in its own words, and never with a failure of its own; returns the status."""
    status, got, content = ask(hub, method, target, body, headers)
    assert status < 500, content
    if status >= 400 and method != "HEAD":
        assert got["content-type"] == "application/problem+json"
        told = json.loads(content)
        assert (told["status"], told["success"]) == (status, False)
        assert told["message"] == told["detail"] != ""
        assert len(content) < 10_000
    elif got["content-type"] == "application/json":
        assert json.loads(content)["success"] is True
    return status


def encode(value, how):
    """JSON as clients write it, or worse."""
    if how == "utf-8":
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    text = json.dumps(value)
    if how == "twice":  # each key twice
        return (text[:-1] + ", " + text[1:] if len(text) > 2 and text[0] == "{" else text).encode()
    if how == "utf-16":
        return text.encode("utf-16")
    if how == "cut":
        return text.encode()[:-1]
    return text.encode()


def in_url(text):
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


encodings = st.sampled_from(["ascii"] * 6 + ["utf-8", "utf-8", "twice", "utf-16", "cut"])
# What a client's library lets through: latin-1 without line ends.
header_texts = st.one_of(
    st.sampled_from(strategies.NASTY_TEXTS), st.text(st.characters(max_codepoint=255), max_size=30)
).map(lambda text: "".join(one for one in text if one.isprintable() and ord(one) < 256))


def check_readable(hub, talk):
    """Whatever the hub took, it can show."""
    for path in ("", "/events?limit=10000", "/metrics?limit=10000", "/checkpoints"):
        assert check_answer(hub, "GET", f"/v1/models/{talk.model_id}{path}") == 200
    assert check_answer(hub, "GET", f"/models/{talk.model_id}", headers=talk.browser) == 200


@pytest.fixture(scope="module")
def browser(hub, talk):
    """A browser that has signed in."""
    status, headers, _ = ask(hub, "POST", "/sign-in", urlencode({"key": KEY}).encode())
    assert status == 303
    talk.browser = {"cookie": headers["set-cookie"].partition(";")[0]}


@budget(60)
@given(batch=mutations(EVENTS), how=encodings)
def test_any_batch_of_events_is_answered(hub, talk, browser, batch, how):
    """And what is taken can be read back."""
    status = check_answer(hub, "POST", f"/v1/models/{talk.model_id}/events", encode(batch, how))
    if status == 200:
        check_readable(hub, talk)


@budget(60)
@given(
    request=mutations(manifest(FILES, ATTEMPT)),
    how=encodings,
    entry_id=st.one_of(st.integers(0, 2**128 - 1).map("{:032x}".format), header_texts),
)
def test_any_manifest_is_answered(hub, talk, browser, request, how, entry_id):
    status = check_answer(
        hub, "POST", f"/v1/models/{talk.model_id}/checkpoints", encode(request, how), {"Idempotency-Key": entry_id}
    )
    if status == 200:
        check_readable(hub, talk)


@budget(40)
@given(
    request=mutations({"project": "p", "meta": {"name": "n"}, "config": {"epochs": 5, "batchSize": 1}}),
    how=encodings,
    run_id=header_texts,
)
def test_any_registration_is_answered(hub, talk, browser, request, how, run_id):
    status, _, content = ask(
        hub, "POST", "/v1/models", encode(request, how), {"Idempotency-Key": run_id} if run_id else {}
    )
    assert status in {200, 400, 422}, content
    if status == 200:
        model_id = json.loads(content)["data"]["id"]
        assert check_answer(hub, "GET", f"/v1/models/{model_id}") == 200
        assert check_answer(hub, "GET", f"/models/{model_id}", headers=talk.browser) == 200
        assert check_answer(hub, "GET", "/v1/models?limit=1000") == 200
        assert check_answer(hub, "GET", "/", headers=talk.browser) == 200


@budget(20)
@given(request=mutations({"agent": "a", "agentId": None, "attempt_id": ATTEMPT}), how=encodings)
def test_any_heartbeat_is_answered(hub, talk, request, how):
    check_answer(hub, "POST", f"/v1/agent/heartbeat/models/{talk.model_id}", encode(request, how))


parameters = st.dictionaries(
    st.sampled_from(
        ["limit", "after", "kind", "rank", "name", "entry_id", "project", "last_doc_id", "before", "wrong"]
    ),
    st.one_of(
        strategies.texts, strategies.numbers.map(str), st.sampled_from(["true", "1", "0x1", "\uff11", "1_0", " 1"])
    ),
    max_size=4,
)
PLACES = (
    "",
    "/events",
    "/metrics",
    "/checkpoints",
    "/checkpoints/{}",
    "/checkpoints/{}/parts",
    "/checkpoints/{}/files/{}",
)


@budget(80)
@given(data=st.data(), query=parameters, name=strategies.texts)
def test_any_path_and_query_is_answered(hub, talk, browser, data, query, name):
    """Names that leave a folder, numbers past every range, text that is none."""
    method = data.draw(st.sampled_from(["GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]))
    model = data.draw(st.sampled_from([Talk(hub).model_id, in_url(name)]))  # one of its own: DELETE deletes it
    place = data.draw(
        st.sampled_from(
            ["/", "/sign-in", "/healthz", f"/models/{model}", "/v1/models", "/v1/capabilities", f"/{in_url(name)}"]
        )
        | st.sampled_from([f"/v1/models/{model}{place.format(in_url(name), in_url(name))}" for place in PLACES])
    )
    pairs = {key: value.encode("utf-8", "surrogatepass") for key, value in query.items()}
    check_answer(hub, method, f"{place}?{urlencode(pairs)}", headers=talk.browser)


@budget(40)
@given(data=st.data())
def test_any_part_request_is_answered(hub, talk, data):
    """A signed URL with one of its pieces replaced, and any body."""
    entry_id = secrets.token_hex(16)
    begun = talk.begin({"f": b"x" * 100}, entry_id)
    url = begun["missing"][0]["parts"][0]["url"] if begun["missing"] else f"/v1/parts/{begun['id']}/0/0?size=1&sha256=0"
    path, _, query = url.partition("?")
    pieces = path.split("/")[3:]
    pairs = dict(pair.split("=") for pair in query.split("&"))
    nasty = st.one_of(strategies.texts, strategies.numbers.map(str))
    place = data.draw(st.sampled_from([None, *range(3), *pairs]))
    if isinstance(place, int):
        pieces[place] = in_url(data.draw(nasty))
    elif place is not None:
        pairs[place] = in_url(data.draw(nasty))
    body = data.draw(st.one_of(st.just(b"x" * 100), st.binary(max_size=200)))
    target = f"/v1/parts/{'/'.join(pieces)}?" + "&".join(f"{key}={value}" for key, value in pairs.items())
    check_answer(hub, "PUT", target, body)


HEADERS = (
    "x-api-key",
    "authorization",
    "cookie",
    "content-type",
    "content-encoding",
    "range",
    "if-range",
    "if-none-match",
)


@budget(60)
@given(headers=st.dictionaries(st.sampled_from(HEADERS), header_texts, max_size=4), unit=st.booleans())
def test_any_header_is_answered(hub, talk, headers, unit):
    if "range" in headers and unit:
        headers["range"] = "bytes=" + headers["range"]
    checkpoint_id = talk.upload({"f": b"0123456789"}, "f" * 32)
    path = f"/v1/models/{talk.model_id}/checkpoints/{checkpoint_id}/files/f"
    status = check_answer(hub, "GET", path, headers=headers)
    assert status in {200, 206, 304, 401, 416}
    check_answer(hub, "POST", f"/v1/models/{talk.model_id}/events", b"[]", headers)


BODIES = {
    "an array of 2 million": b"[" * 2_000_000,
    "an object of 400,000": b'{"a":' * 400_000,
    "a number of a million digits": b"[" + b"9" * 1_000_000 + b"]",
    "a float out of range": b'[{"time":1e999}]',
    "NaN": b"[NaN]",
    "nothing": b"",
    "NUL": b"\0" * 100,
    "a byte order mark": b"\xef\xbb\xbf[]",
    "half a character": b'["\xf0\x9f"]',
    "more than 4 MiB": b" " * (4 * 1024 * 1024 + 1) + b"[]",
    "2 million empty objects": b"[" + b"{}," * 1_300_000 + b"{}]",
    "gzip": gzip.compress(b"[]"),
    "a long key": b'{"' + b"k" * 3_000_000 + b'":1}',
    "40,000 keys": json.dumps({str(number): number for number in range(40_000)}).encode(),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_body_past_every_limit_is_refused_soon(hub, talk, body):
    """At each place that takes JSON."""
    for place, key in (
        ("/v1/models", "run"),
        (f"/v1/models/{talk.model_id}/events", "x"),
        (f"/v1/models/{talk.model_id}/checkpoints", "0" * 32),
        (f"/v1/agent/heartbeat/models/{talk.model_id}", "x"),
    ):
        began = time.monotonic()
        headers = {"Idempotency-Key": key, "content-encoding": "gzip" if body[:2] == b"\x1f\x8b" else "identity"}
        status = check_answer(hub, "POST", place, body, headers)
        # An object of unknown fields is taken where fields are optional.
        assert status in {400, 413, 422} or (status == 200 and body[:1] in {b"", b"{"})
        assert time.monotonic() - began < SECONDS


RAW = {
    "a length that is no number": "POST {events} HTTP/1.1\r\nContent-Length: x\r\n\r\n[]",
    "a negative length": "POST {events} HTTP/1.1\r\nContent-Length: -1\r\n\r\n[]",
    "a length past 64 bits": "POST {events} HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n[]",
    "a length that only Unicode takes for a number": "POST {events} HTTP/1.1\r\nContent-Length: \xb2\r\n\r\n[]",
    "two lengths": "POST {events} HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n[]",
    "a body that ends early": "POST {events} HTTP/1.1\r\nContent-Length: 1000\r\n\r\n[]",
    "a part that ends early": "PUT {part} HTTP/1.1\r\nContent-Length: 100\r\n\r\nxx",
    "a chunk without a size": "POST {events} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n[]\r\n0\r\n\r\n",
    "a chunked part": "PUT {part} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    "a length and chunks": "POST {events} HTTP/1.1\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "another encoding": "POST {events} HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n[]",
    "NUL in a header": "GET /healthz HTTP/1.1\r\nx-api-key: \0\r\n\r\n",
    "a header without a name": "GET /healthz HTTP/1.1\r\n: x\r\n\r\n",
    "a long header": "GET /healthz HTTP/1.1\r\nx-api-key: " + "x" * 200_000 + "\r\n\r\n",
    "a long path": "GET /" + "x" * 200_000 + " HTTP/1.1\r\n\r\n",
    "bytes in the path": "GET /v1/models/\xff\xfe HTTP/1.1\r\n\r\n",
    "half an escape in the path": "GET /v1/models/%f HTTP/1.1\r\n\r\n",
    "NUL in the path": "GET /v1/models/%00 HTTP/1.1\r\n\r\n",
    "a path with another host": "GET http://example.org/v1/models HTTP/1.1\r\n\r\n",
    "no path": "GET  HTTP/1.1\r\n\r\n",
    "no protocol": "GET /healthz\r\n\r\n",
    "a protocol of the future": "GET /healthz HTTP/9.9\r\n\r\n",
    "a web socket": "GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: eDEyMzQ1Njc4OTAxMjM0NQ==\r\n\r\n",
    "TLS": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "line feeds alone": "GET /healthz HTTP/1.1\nHost: x\n\n",
    "an unknown method": "BREW /healthz HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("text", RAW.values(), ids=RAW.keys())
def test_what_is_hardly_http_is_answered_or_cut_off(hub, talk, text):
    """The hub goes on, and keeps nothing of it."""
    part = talk.begin({"g": b"y" * 100}, "e" * 32)["missing"][0]["parts"][0]["url"]
    text = text.replace("{events}", f"/v1/models/{talk.model_id}/events").replace("{part}", part)
    text = text.replace(" HTTP/1.1\r\n", f" HTTP/1.1\r\nHost: x\r\nx-api-key: {KEY}\r\n", 1)
    with socket.create_connection(("127.0.0.1", hub.port), SECONDS) as connection:
        with contextlib.suppress(OSError):  # refused before all of it was read
            connection.sendall(text.encode("latin-1"))
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(OSError):
            while piece := connection.recv(65536):
                answer += piece
    assert not answer or (answer.startswith(b"HTTP/1.1 ") and answer[9:10] in b"234"), answer[:200]
    assert ask(hub, "GET", "/healthz")[0] == 200
    assert talk.begin({"g": b"y" * 100}, "e" * 32)["missing"]


# Files.


@contextlib.contextmanager
def fifo_watch(fifo):
    """Lets whoever waits for the other end of a fifo go, and fails; None: there is none."""
    hung, over = [], threading.Event()

    def unblock():
        while fifo is not None and not over.wait(0.2) and fifo.is_fifo():
            with contextlib.suppress(OSError):
                os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
                hung.append(fifo)

    watch = threading.Thread(target=unblock)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()
    assert not hung, f"somebody waited for {fifo}"


def run_cli(*arguments, hub=None, fifo=None):
    """The command line in this process: exit code, and all that it said. A traceback is an exception here."""
    said, code = io.StringIO(), 0
    handler = logging.StreamHandler(said)
    root = logging.getLogger()
    root.addHandler(handler)
    environ = {"DDPHUB_URL": hub.url, "DDPHUB_API_KEY": hub.key} if hub else {}
    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            fifo_watch(fifo),
        ):
            patch.setattr(sys, "argv", ["ddphub", *map(str, arguments)])
            patch.setattr(loop, "FIRST_PAUSE", 0.01)
            for name, value in environ.items():
                patch.setenv(name, value)
            cli.main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        root.removeHandler(handler)
    text = said.getvalue()
    text.encode()  # a terminal takes it
    return code, text


def batches(attempt, rank, count):
    """Batches of two events each."""
    for number in range(count):
        texts = [to_json({"time": 1.0, "kind": "log", "message": f"{rank}-{number}-{i}"}) for i in range(2)]
        yield relay.pack(attempt, rank, 2 * number, texts).text


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A run of two attempts that waits for delivery, with a bit of everything that a run directory may hold."""
    folder = RunFolder(tmp_path_factory.mktemp("template") / "run")
    folder.create()
    RunInfo("run", "damage", "net", attempts=[ATTEMPT, OTHER], config={"lr": 0.1}).save(folder.run_json)
    for path, attempt, rank, count in (
        (folder.relay_file(ATTEMPT), ATTEMPT, 0, 5),
        (folder.relay_file(OTHER), OTHER, 0, 3),
        (folder.rank_file(ATTEMPT, 1), ATTEMPT, 1, 2),
    ):
        writer = LineWriter(path)
        writer.append(batches(attempt, rank, count))
        writer.close()
    area = StagingArea(folder.staging)
    source = folder.path.parent / "last.pt"
    source.write_bytes(b"weights" * 100)
    sent = area.stage(Slot(ATTEMPT, "epoch", 0, None, "last.pt"), source, {"loss": 1.0}).entry
    sealed = area.stage(Slot(ATTEMPT, "epoch", 1, None, "last.pt"), source, {"loss": 1.0}).entry
    source.write_bytes(b"final weights")
    area.stage(Slot(ATTEMPT, "final", None, None, "last.pt"), source, {"loss": 1.0})
    area.seal(sealed, PART_SIZE)
    area.remove(sent.entry_id)
    journal = Journal(folder.journal)
    first_line = folder.relay_file(ATTEMPT).read_bytes().index(b"\n") + 1
    journal.append(
        {"record": "offset", "spool": folder.relay_file(ATTEMPT).name, "offset": first_line},
        {"record": "receipt", "entry_id": sent.entry_id, "checkpoint_id": "c", "model_id": "m", "at": 1.0},
        durable=True,
    )
    journal.close()
    killed = (
        "import os, signal, sys; from pathlib import Path; from ddphub.checkpoints.staging import Slot, StagingArea\n"
        f"with StagingArea(Path(sys.argv[1])).write(Slot('{OTHER}', 'epoch', 7, None, 'last.pt'), {{}}) as pending:\n"
        "    pending.path.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", killed, folder.staging], check=False).returncode == -signal.SIGKILL
    return folder


class Copy:
    """A run directory of a test's own, with another run id: another model on the hub."""

    numbers = iter(range(1_000_000))

    def __init__(self, template, root):
        self.id = f"run-{next(self.numbers)}"
        self.folder = RunFolder(root / self.id)
        shutil.copytree(template.path, self.folder.path)
        info = RunInfo.load(self.folder.run_json)
        info.run_id = info.project = self.id  # projects share bytes
        info.save(self.folder.run_json)
        entries = {entry.slot.kind: entry for entry in StagingArea(self.folder.staging).entries()}
        self.sealed, self.unsealed = entries["epoch"], entries["final"]
        (claim,) = StagingArea(self.folder.staging).pending_claims()
        entry = self.sealed.folder
        self.files = {
            "run.json": self.folder.run_json,
            "delivered.jsonl": self.folder.journal,
            "relay": self.folder.relay_file(ATTEMPT),
            "rank": self.folder.rank_file(ATTEMPT, 1),
            "checkpoint.json": entry / "checkpoint.json",
            "digest.json": entry / "digest.json",
            "owner.json": entry / "owner.json",
            "bytes": entry / "files" / "last.pt",
            "slot": self.folder.staging / "slots" / f"{self.sealed.slot.key}.json",
            "claim": self.folder.staging / "incoming" / claim.entry_id / "owner.json",
        }

    def good_events(self):
        """Keys of the events in every whole line beyond what the journal has, read as the format says."""
        found = set()
        for path in (self.folder.relay_file(OTHER), self.files["relay"], self.files["rank"]):
            lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
            for line in lines:
                checksum, _, text = line.partition(b" ")
                if checksum == b"%08x" % zlib.crc32(text):
                    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                        found |= {(one["attempt_id"], one["rank"], one["seq"]) for one in expand(json.loads(text))}
        return found - {(ATTEMPT, 0, 0), (ATTEMPT, 0, 1)}  # acknowledged, says the journal


KINDS = ("empty", "cut", "flip", "binary", "mutated", "json", "deep", "directory", "loop", "fifo")
LINES = ("delivered.jsonl", "relay", "rank")


# Not as many as there are bytes: a time in a file may be a digit shorter the next time.
places = st.integers(0, 10**6)


def as_lines(values):
    """Lines whose checksums are right."""
    texts = [json.dumps(value) for value in values]
    return b"".join(b"%08x %b\n" % (zlib.crc32(text.encode()), text.encode()) for text in texts)


def damage(draw, target, path, kind):
    """What happens to one file; returns its new bytes, None when it is no file any more."""
    content = path.read_bytes()
    if kind in {"directory", "loop", "fifo"}:
        path.rename(path.with_name("was-" + path.name))
        {"directory": path.mkdir, "loop": lambda: path.symlink_to(path.name), "fifo": lambda: os.mkfifo(path)}[kind]()
        return None
    if kind == "cut":
        content = content[: draw(places) % len(content)]
    elif kind == "flip":
        place = draw(places) % (len(content) * 8)
        content = bytearray(content)
        content[place // 8] ^= 1 << place % 8
    elif kind == "binary":
        content = random.Random(draw(st.integers(0, 99))).randbytes(500) + b"\n"
    elif kind == "deep":
        text = b"[" * 100_000
        content = b"%08x %b\n" % (zlib.crc32(text), text) if target in LINES else text
    elif kind in {"mutated", "json"}:
        if target in LINES:
            known = [json.loads(line.partition(b" ")[2]) for line in content.splitlines()]
            some = [draw(strategies.values) if kind == "json" else draw(mutations(value)) for value in known[:2]]
            content = as_lines([known[0], *some, *known[2:]])
        elif target != "bytes":
            value = draw(strategies.values if kind == "json" else mutations(json.loads(content)))
            content = json.dumps(value).encode()
    else:
        content = b""
    path.write_bytes(content)
    return bytes(content)


def must_be_named(target, kind):
    """Whether somebody has to be told: the file cannot be used, and something that it held is not delivered."""
    if kind in {"directory", "loop", "fifo"}:
        return target in {"run.json", "checkpoint.json", "bytes", *LINES}
    if target in {"run.json", "checkpoint.json"}:
        return kind in {"empty", "binary", "deep", "json"}
    if target in LINES:
        return kind in {"binary", "deep"}
    return target == "bytes" and kind in {"empty", "cut", "flip", "binary", "deep"}


def check_commands(copy, target, kind, hub):
    """status, status --json and two syncs; what they said."""
    path = copy.files[target]
    fifo = path if kind == "fifo" else None
    before = path.read_bytes() if path.is_file() else None
    wanted = copy.good_events()
    said = ""
    codes = []
    for command in (("status",), ("status", "--json"), ("sync",), ("sync",)):
        code, text = run_cli(*command, copy.folder.path.parent, hub=hub, fifo=fifo)
        assert code in {0, 1}, text
        codes.append(code)
        said += text
    if must_be_named(target, kind):
        assert path.name in said or (target == "bytes" and copy.sealed.entry_id in said), said
        assert codes[2:] == [1, 1] or target in LINES, said
    if must_be_named(target, kind):  # nothing that cannot be read is deleted
        assert os.path.lexists(path)
        assert before is None or path.read_bytes()[: len(before)] == before
    return wanted, said


def on_hub(talk, copy):
    """The model that a run made: keys of its events, and entry ids."""
    models = [
        one
        for one in talk.http.get(f"{talk.hub.url}/v1/models?limit=1000").json()["data"]["results"]
        if one["run_id"] == copy.id
    ]
    if not models:
        return set(), set()
    base = f"{talk.hub.url}/v1/models/{models[0]['id']}"
    events = talk.http.get(f"{base}/events?limit=1000").json()["data"]
    checkpoints = talk.http.get(f"{base}/checkpoints").json()["data"]
    return {(one["attempt_id"], one["rank"], one["seq"]) for one in events}, {one["entry_id"] for one in checkpoints}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "target", ["run.json", *LINES, "checkpoint.json", "digest.json", "owner.json", "bytes", "slot", "claim"]
)
def test_a_damaged_file_is_named_and_the_rest_delivered(hub, talk, template, tmp_path, target, kind):
    """No command fails, waits or deletes what it cannot read."""

    @budget(3 if kind in {"cut", "flip", "mutated", "json"} else 1)
    @given(data=st.data())
    def try_one(data):
        copy = Copy(template, tmp_path / str(next(Copy.numbers)))
        damage(data.draw, target, copy.files[target], kind)
        wanted, said = check_commands(copy, target, kind, hub)
        if target == "run.json":
            return
        events, entries = on_hub(talk, copy)
        if target in {"relay", "rank"} and kind in {"mutated", "json"}:
            # The hub refuses an event that the right checksum does not make right.
            wanted = {key for key in wanted if key[0] == OTHER}
        # A journal that cannot be opened holds everything up; one that lies with a right checksum is believed.
        if not (target == "delivered.jsonl" and kind in {"directory", "loop", "fifo", "mutated", "json"}):
            assert wanted <= events, said
            assert copy.unsealed.entry_id in entries, said
        if target in {"slot", "owner.json", "claim", *LINES[1:]}:
            assert copy.sealed.entry_id in entries, said

    try_one()


def is_run_json(path):
    """Whether it can be taken for one; then it is written anew."""
    try:
        return bool(RunInfo.load(path))
    except JournalError:
        return False


@pytest.mark.parametrize("kind", ["empty", "mutated", "json", "deep", "directory", "loop", "fifo"])
@pytest.mark.parametrize("target", ["run.json", "delivered.jsonl", "relay", "checkpoint.json", "claim"])
def test_a_run_starts_again_beside_a_damaged_file(template, tmp_path, target, kind):
    """It goes on, with the damaged file set aside; or says at its start which file is in the way."""

    @budget(3 if kind in {"mutated", "json"} else 1)
    @given(data=st.data())
    def try_one(data):
        copy = Copy(template, tmp_path / str(next(Copy.numbers)))
        path = copy.files[target]
        content = damage(data.draw, target, path, kind)
        is_kept = content is not None and (target != "run.json" or not is_run_json(path))
        weights = tmp_path / "last.pt"
        weights.write_bytes(b"new weights")
        said = io.StringIO()
        with contextlib.redirect_stderr(said), fifo_watch(path if kind == "fifo" else None):
            try:
                run = ddphub.init(
                    project=copy.id, name="net", dir=copy.folder.path.parent, run_id=copy.id, mode="offline"
                )
            except ddphub.SettingsError as refusal:
                assert target == "run.json"
                assert content is None
                told = str(refusal)
                assert "run.json" in told
                return
            run.log({"loss": 1.0})
            run.save_checkpoint(weights, epoch=1)
            run.finish()
        assert "Traceback" not in said.getvalue()
        code, text = run_cli("status", "--json", copy.folder.path, fifo=path if kind == "fifo" else None)
        if target == "delivered.jsonl" and content is None:
            assert (code, "delivered.jsonl" in text) == (1, True)
            return
        assert code == 0, text
        assert json.loads(text[text.index('{"run_id') :].splitlines()[0])["events"]["reported"] >= 12
        if is_kept:
            assert content in {one.read_bytes()[: len(content)] for one in path.parent.iterdir() if one.is_file()}

    try_one()


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_credentials_are_named(hub, template, tmp_path, kind):
    """They count as empty; a key from the environment still works."""

    @budget(4 if kind in {"mutated", "json", "flip"} else 1)
    @given(data=st.data())
    def try_one(data):
        copy = Copy(template, tmp_path / str(next(Copy.numbers)))
        path = Path(os.environ["XDG_CONFIG_HOME"]) / "ddphub" / "credentials.json"
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"default": hub.url, "keys": {hub.url: hub.key}}))
        damage(data.draw, "credentials", path, kind)
        fifo = path if kind == "fifo" else None
        code, text = run_cli("sync", copy.folder.path, fifo=fifo)
        assert code in {0, 1, 2}
        if kind in {"empty", "cut", "binary", "deep", "directory", "loop", "fifo"}:
            assert code != 0
            assert path.name in text
        code, text = run_cli("sync", copy.folder.path, hub=hub, fifo=fifo)
        assert code == 0, text
        assert kind != "directory" or path.is_dir()

    try_one()


@pytest.mark.parametrize("name", ["session.lock", "staging/staging.lock"])
@pytest.mark.parametrize("kind", ["directory", "loop", "fifo"])
def test_a_lock_file_that_is_none_is_named(hub, template, tmp_path, name, kind):
    copy = Copy(template, tmp_path)
    path = copy.folder.path / name
    path.touch()
    damage(None, name, path, kind)
    code, text = run_cli("sync", copy.folder.path, hub=hub, fifo=path if kind == "fifo" else None)
    assert code in {0, 1}
    assert code == 0 or path.name in text


@pytest.mark.parametrize(
    ("target", "kind"), [("run.json", "deep"), ("relay", "fifo"), ("checkpoint.json", "binary"), ("bytes", "empty")]
)
def test_the_program_says_it_too(hub, template, tmp_path, target, kind):
    """As a process of its own, which pytest does not help."""
    copy = Copy(template, tmp_path)
    damage(lambda _: 0, target, copy.files[target], kind)
    for command in ("status", "sync"):
        done = command_line(command, str(copy.folder.path), hub=hub, check=False, timeout=150)
        assert done.returncode == 1 if command == "sync" or target == "run.json" else done.returncode == 0
        assert "Traceback" not in done.stderr + done.stdout
    assert copy.files[target].name in done.stderr + done.stdout
    assert os.path.lexists(copy.files[target])

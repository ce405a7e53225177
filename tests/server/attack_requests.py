"""Requests that nobody's client sends: malformed, oversized, forged, replayed, smuggled."""

import json
import re
import secrets
import time
from dataclasses import dataclass, field

from hub_talk import manifest, metrics_event, new_id, sha256

ABOVE = "../" * 8 + "etc/passwd"
DEEP = "[" * 200_000 + "]" * 200_000
EVENTS = "/v1/models/{model_id}/events"
CHECKPOINTS = "/v1/models/{model_id}/checkpoints"
NAMES = {
    "above": ABOVE,
    "absolute": "/etc/passwd",
    "backslashes": "..\\..\\secret",
    "dots in the middle": "a/../../b",
    "a dot": ".",
    "empty": "",
    "NUL": "a\0b",
    "half a surrogate pair": "a\ud800",
    "too long": "n" * 5000,
    "a line break": "a\r\nSet-Cookie: x=1",
}
"""Names that no file, project, model or user may have."""


@dataclass(frozen=True)
class Attack:
    """One request of a client with a good key for the hub; `expected` are the statuses that refuse it."""

    name: str
    method: str
    path: str
    expected: tuple[int, ...]
    body: object = None
    headers: dict = field(default_factory=dict)


def attacks(victim):
    """All of them.

    Args:
        victim: ids as in `World.victim`.
    """
    return [*_bodies(victim), *_names(victim), *_ids(), *_numbers(victim), *_signed(victim), *_methods()]


def _bodies(victim):
    one = metrics_event(victim["attempt_id"], 50)
    cases = {
        "no JSON": (b"{nonsense", 400),
        "not UTF-8": (b'["\xff\xfe"]', 400),
        "NaN": (b'[{"time": NaN}]', 400),
        "deep": (DEEP.encode(), 400),
        "an object where a list is expected": (b"{}", 422),
        "a number": (b"7", 422),
        "null": (b"null", 422),
        "a list of lists": (b"[[]]", 422),
        "too many events": (json.dumps([{}] * 1001).encode(), 413),
        "too many bytes": (b" " * (4 * 1024 * 1024 + 1), 413),
        "NUL in a text": (json.dumps([one | {"kind": "log", "message": "a\0b"}]).encode(), 422),
        "NUL in a name": (json.dumps([one | {"values": {"a\0b": 1.0}}]).encode(), 422),
        "half a surrogate pair": (b'[{"kind": "\\ud800"}]', 422),
        "a rank below zero": (json.dumps([one | {"rank": -1}]).encode(), 422),
        "a rank that is a bool": (json.dumps([one | {"rank": True}]).encode(), 422),
        "a huge rank": (json.dumps([one | {"rank": 2**63}]).encode(), 422),
        "a huge seq": (json.dumps([one | {"seq": 10**400}]).encode(), 422),
        "a number of thousands of digits": (b'[{"seq": ' + b"9" * 5000 + b"}]", 400),
        "a huge time": (
            b'[{"attempt_id": "' + b"a" * 32 + b'", "rank": 0, "seq": 1, "time": 1e999, "kind": "x"}]',
            422,
        ),
        "a step that is a text": (json.dumps([one | {"step": "1; DROP TABLE events"}]).encode(), 422),
        "too many values": (json.dumps([one | {"values": dict.fromkeys(map(str, range(1001)), 1)}]).encode(), 422),
        "a value that is an object": (json.dumps([one | {"values": {"a": {}}}]).encode(), 422),
        "an attempt that is SQL": (json.dumps([one | {"attempt_id": "' OR 1=1 --"}]).encode(), 422),
        "a key with other content": (json.dumps([metrics_event(victim["attempt_id"], 2, step=77)]).encode(), 422),
    }
    for name, (body, status) in cases.items():
        yield Attack(f"events: {name}", "POST", EVENTS, (status,), body)
    for name, body in {"a list": b"[]", "no JSON": b"{", "deep": DEEP.encode(), "a text": b'"x"'}.items():
        for path in ("/v1/models", "/v1/users", "/v1/keys", "/v1/projects/{project_id}/retention", CHECKPOINTS):
            method = "PUT" if path.endswith("retention") else "POST"
            yield Attack(f"{path}: {name}", method, path, (400, 422), body)
    zipped = {"Content-Encoding": "gzip"}
    yield Attack("events: compressed", "POST", EVENTS, (400, 415, 422), b"\x1f\x8b\x08\0\0\0\0\0\0\3", zipped)
    for what in ("role", "grants", "disabled"):
        yield Attack(f"a user with a wrong {what}", "PATCH", "/v1/users/{user_id}", (422,), json.dumps({what: "x"}))
    for key in (
        {"role": "root"},
        {"expires_at": 1},
        {"expires_at": True},
        {"run_id": "r"},
        {"project": 7},
        {"scope": "*"},
    ):
        yield Attack(f"a key with {key}", "POST", "/v1/keys", (422,), json.dumps({"name": "x"} | key))


def _names(victim):
    attempt = victim["attempt_id"]
    for what, name in NAMES.items():
        listed = manifest({"a": b"x"}, attempt)
        listed["files"][0]["name"] = name
        with_key = {"Idempotency-Key": new_id()}
        yield Attack(f"a file's name: {what}", "POST", CHECKPOINTS, (422,), json.dumps(listed), with_key)
        if what == "a dot":
            continue  # it is no file's name, and what is no file may be called so
        named = json.dumps({"project": "p", "meta": {"name": name}})
        if what != "absolute":  # clients of HUB v1 name a model by the path of its file
            yield Attack(f"a model's name: {what}", "POST", "/v1/models", (422,), named)
        yield Attack(f"a project's name: {what}", "POST", "/v1/models", (422,), json.dumps({"project": name}))
        yield Attack(f"a user's name: {what}", "POST", "/v1/users", (422,), json.dumps({"name": name}))
    twice = manifest({"a": b"x"}, attempt)
    twice["files"] *= 2
    lying = manifest({"a": b"x"}, attempt)
    lying["files"][0]["size"] = 10**15
    for what, request in {
        "no files": manifest({}, attempt),
        "a file twice": twice,
        "a size that its parts do not have": lying,
        "no kind": manifest({"a": b"x"}, attempt, kind="root"),
        "an attempt that is none": manifest({"a": b"x"}, "x" * 32),
        "a huge epoch": manifest({"a": b"x"}, attempt, epoch=2**64),
        "a digest that is none": {
            **listed,
            "files": [{"name": "a", "size": 1, "sha256": "z" * 64, "parts": ["z" * 64]}],
        },
        "a digest with a path": {
            **listed,
            "files": [{"name": "a", "size": 1, "sha256": "../" * 21 + "a", "parts": ["a"]}],
        },
    }.items():
        yield Attack(
            f"a checkpoint with {what}", "POST", CHECKPOINTS, (422,), json.dumps(request), {"Idempotency-Key": new_id()}
        )
    for run_id in ("", "../../x", "a b", "a" * 200, "x/../y"):
        yield Attack(f"the run id {run_id[:8]!r}", "POST", "/v1/models", (422,), b"{}", {"Idempotency-Key": run_id})
        yield Attack(
            f"the entry id {run_id[:8]!r}",
            "POST",
            CHECKPOINTS,
            (422,),
            json.dumps(manifest({"a": b"x"}, attempt)),
            {"Idempotency-Key": run_id},
        )


def _ids():
    for what in (
        "..",
        "%2e%2e",
        "..%2f..%2fsecret",
        "%00",
        "' OR '1'='1",
        "a" * 3000,
        "%252e%252e%252f",
        "\N{SNOWMAN}",
    ):
        for place in (
            "/v1/models/" + what,
            f"/v1/models/{{model_id}}/checkpoints/{what}",
            f"/v1/models/{{model_id}}/checkpoints/{{checkpoint_id}}/files/{what}",
            f"/v1/projects/{what}/retention",
            f"/models/{what}/checkpoints/{what}/archive",
            f"/static/1/{what}",
            f"/static/1/{what}/server/auth.py",
        ):
            yield Attack(f"an id {what[:20]} in {place[:40]}", "GET", place, (303, 401, 404, 414, 422, 501))
    for what in ("../../../../secret", "..%2f..%2f..%2fsecret", "%2e%2e/%2e%2e/hub.db", "....//hub.db", "/etc/passwd"):
        place = f"/v1/models/{{model_id}}/checkpoints/{{checkpoint_id}}/files/{what}"
        yield Attack(f"the file {what}", "GET", place, (404,))


def _numbers(victim):
    for query in (
        "limit=0",
        "limit=-1",
        "limit=99999999999999999999",
        "after=-1",
        "after=1e3",
        "rank=-1",
        "rank=x",
        "newest=maybe",
    ):
        yield Attack(f"events?{query}", "GET", f"{EVENTS}?{query}", (422,))
    for query in (
        "name=",
        "name=loss&points=1",
        "name=loss&from=nan",
        "name=loss&from=2&to=1",
        "name=loss&ranks=0-99999999",
        "name=loss&show=all",
        "name=a%00b",
    ):
        yield Attack(f"chart?{query}", "GET", f"/v1/models/{{model_id}}/chart?{query}", (422,))
    yield Attack(
        "a range beyond the file",
        "GET",
        "/v1/models/{model_id}/checkpoints/{checkpoint_id}/files/last.pt",
        (416,),
        None,
        {"Range": "bytes=999999999-"},
    )


def _signed(victim):
    part, download = victim["part_url"], victim["download_url"]
    right = secrets.token_bytes(1)
    for what, url in {
        "a longer life": re.sub(r"expires=(\d+)", lambda found: f"expires={int(found[1]) + 9999}", part),
        "an expired one": re.sub(r"expires=\d+", f"expires={int(time.time()) - 10}", part),
        "another part": re.sub(r"/0/0\?", "/0/1?", part),
        "another file": re.sub(r"/0/0\?", "/1/0?", part),
        "another checkpoint": part.replace(victim["waiting_id"], victim["checkpoint_id"]),
        "another size": re.sub(r"size=\d+", "size=1", part),
        "other bytes": re.sub(r"sha256=[0-9a-f]+", f"sha256={sha256(right)}", part),
        "another signature": re.sub(r"signature=[0-9a-f]+", "signature=" + "0" * 64, part),
        "a signature of something else": re.sub(r"signature=[0-9a-f]+", "signature=" + download.split("/")[-2], part),
    }.items():
        yield Attack(f"a part's URL with {what}", "PUT", url, (403,), right)
    yield Attack("a part's URL without a signature", "PUT", re.sub(r"&signature=.*", "", part), (422,), right)
    size = int(re.search(r"size=(\d+)", part)[1])
    yield Attack("a part of other bytes", "PUT", part, (422,), bytes(size))
    yield Attack("a part that is too short", "PUT", part, (400,), bytes(size - 1))
    yield Attack("a part that is too long", "PUT", part, (400, 413), bytes(size + 1))
    for method in ("GET", "POST", "DELETE"):
        yield Attack(f"{method} of a part's URL", method, part, (405,))
    pieces = download.split("/")  # "", v1, downloads, checkpoint, number, expires, signature, name
    for what, (place, text) in {
        "another checkpoint": (3, victim["waiting_id"]),
        "another file": (4, "1"),
        "a longer life": (5, str(int(pieces[5]) + 9999)),
        "another signature": (6, "0" * 64),
        "another name": (7, "other.pt"),
    }.items():
        url = "/".join([*pieces[:place], text, *pieces[place + 1 :]])
        yield Attack(f"a download's URL with {what}", "GET", url, (403,))


def _methods():
    for header in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
        yield Attack(
            f"{header} of a POST",
            "POST",
            "/v1/models/{model_id}/checkpoints/{checkpoint_id}",
            (405,),
            b"",
            {header: "DELETE"},
        )
    yield Attack(
        "_method of a form", "POST", "/models/{model_id}/nothing?_method=DELETE", (404, 405), b"_method=DELETE"
    )
    for method in ("TRACE", "CONNECT", "PROPFIND", "OPTIONS", "PUT"):
        yield Attack(f"{method} of a model", method, "/v1/models/{model_id}", (405,))
    yield Attack(
        "a rewritten path",
        "GET",
        "/sign-inn",
        (404,),
        None,
        {"X-Original-URL": "/v1/users", "X-Rewrite-URL": "/v1/users"},
    )

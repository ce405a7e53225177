"""What an attacker may try: each attempt is answered 4xx, changes nothing and shows nothing of what is not theirs."""

import hashlib
import http.client
import re
import socket
from urllib.parse import quote

import pytest
from attack_requests import attacks
from attack_routes import STRENGTH, enumerated, routes
from attack_world import World, changes
from fastapi import FastAPI
from hub_process import HubProcess
from hub_talk import PART_SIZE, manifest, new_id

from ddphub.server.app import create_app
from ddphub.server.hub import Hub
from ddphub.server.settings import ServerSettings

KEY = "k" * 42
ARGUMENTS = ("--part-size", str(PART_SIZE), "--trusted-proxy", "127.0.0.1", "--rate-limit", "0")

NO_KEY = ("no key", "unknown", "short", "the prefix alone", "revoked", "expired", "of a disabled user")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with HubProcess(tmp_path_factory.mktemp("attacked") / "hub", KEY, arguments=ARGUMENTS) as hub:
        yield World(hub)
        assert "Traceback" not in hub.log.read_text()


@pytest.fixture
def unchanged(world):
    """Whatever the test tries, nothing is stored, changed or removed."""
    before = world.kept()
    yield
    assert changes(before, world.kept()) == []


def test_each_route_of_the_hub_is_among_those_that_are_attacked(world, tmp_path):
    hub = Hub.open(ServerSettings(data=tmp_path / "hub"))
    try:
        app = create_app(hub)
        while not isinstance(app, FastAPI):
            app = app._app
        found = set(enumerated(app))
    finally:
        hub.close()
    attacked = {(route.method, route.path) for route in routes(world.victim)}
    assert found == attacked


def send(world, route, key=None, cookies=None):
    """The route's request."""
    path = (route.asked or route.path).format(**world.victim)
    body = {"json": route.json} if route.json is not None else {"data": route.form, "files": route.files}
    return world.ask(route.method, path, key=key, cookies=cookies, headers=route.headers, **body)


def refusal(route, strength):
    """What may be answered to who can do no more than `strength` with the victim; None where it is allowed."""
    if strength in route.says:
        said = route.says[strength]
        return said if isinstance(said, tuple) else (said,)
    if strength >= STRENGTH[route.need]:
        return None
    if strength < 0:
        return (303,) if route.is_whole_page else (401,)
    if strength == 0 and route.need != "hub":
        return (404,)
    return (403,)


def attempts(world, name, key=None, cookies=None):
    """Tries every route that is not allowed; sentences about what was answered wrongly."""
    strength, wrong = World.strength.get(name, -1), []
    for route in routes(world.victim):
        if route.is_page != (cookies is not None) and strength >= 0:
            continue
        expected = refusal(route, strength)
        if expected is None and (route.method not in {"GET", "HEAD"} or strength > 0):
            continue
        answer = send(world, route, key, cookies)
        if expected is not None and answer.status_code not in expected:
            wrong.append(f"{route.name}: {answer.status_code} and not {expected}: {answer.text[:200]}")
        if strength <= 0 and route.need != "signed" and (shown := world.shows(answer, name)):
            wrong.append(f"{route.name}: {answer.status_code} shows {shown}")
        if expected == (303,) and not answer.headers["location"].startswith("/sign-in"):
            wrong.append(f"{route.name}: leads to {answer.headers['location']}")
    return wrong


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("name", NO_KEY)
def test_without_a_good_key_nothing_is_read_or_changed(world, name):
    assert attempts(world, name, key=world.keys.get(name)) == []


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("name", World.strength)
def test_a_key_does_what_its_role_allows_and_no_more(world, name):
    assert attempts(world, name, key=world.keys[name]) == []
    assert attempts(world, name, cookies=world.cookies[name]) == []


@pytest.mark.usefixtures("unchanged")
def test_a_cookie_opens_no_route_of_the_api_that_changes_something(world):
    wrong = []
    for route in routes(world.victim):
        if route.method not in {"GET", "HEAD"} and not route.is_page and route.need != "signed":
            answer = send(world, route, cookies=world.cookies["admin of the project"])
            if answer.status_code != 401:
                wrong.append(f"{route.name}: {answer.status_code}")
    assert wrong == []


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}])
def test_a_form_of_another_site_changes_nothing(world, headers):
    wrong = []
    for route in routes(world.victim):
        if route.method == "POST" and route.is_page:
            path = (route.asked or route.path).format(**world.victim)
            answer = world.ask(
                "POST", path, data=route.form, headers=headers, cookies=world.cookies["admin of the project"]
            )
            if answer.status_code != 403:
                wrong.append(f"{route.name}: {answer.status_code}")
    assert wrong == []


def test_the_same_requests_come_through_for_who_may_send_them(world):
    """Else the tests above would show nothing: a path that is misspelt is a 404, too."""
    own, wrong = World(world.hub), []
    # What removes things comes last, and what holds others after them.
    for route in sorted(
        routes(own.victim), key=lambda one: (one.method == "DELETE", "delete" in one.path, -len(one.path))
    ):
        cookies = own.sign_in(KEY) if route.is_page else None
        answer = send(own, route, key=None if route.is_page else KEY, cookies=cookies)
        not_here = answer.status_code == 501 and route.need == "any"
        no_bytes = answer.status_code == 400 and route.method == "PUT" and route.need == "signed"
        if answer.status_code >= 400 and not (not_here or no_bytes):
            wrong.append(f"{route.name}: {answer.status_code} {answer.text[:200]}")
    assert wrong == []


def send_as_it_is(world, attack, key):
    """The attack's request with a path that nobody tidies up; (status, text)."""
    path = quote(attack.path.format(**world.victim), safe="/?&=%'+.,:;~!*@$")
    headers = {"x-api-key": key, "content-type": "application/json"} | world.address() | attack.headers
    body = attack.body.encode() if isinstance(attack.body, str) else attack.body
    connection = http.client.HTTPConnection("127.0.0.1", world.hub.port, timeout=60)
    try:
        connection.request(attack.method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")
    finally:
        connection.close()


@pytest.mark.usefixtures("unchanged")
def test_what_no_client_sends_is_refused_and_stored_nowhere(world):
    tried = attacks(world.victim)
    assert len(tried) >= 100
    wrong = []
    for attack in tried:
        status, text = send_as_it_is(world, attack, KEY)
        if status not in attack.expected:
            wrong.append(f"{attack.name}: {status} and not {attack.expected}: {text[:200]}")
    assert wrong == []


def raw(world, request):
    """Bytes as they are; all that comes back until the hub closes the connection, or has nothing more to say."""
    with socket.create_connection(("127.0.0.1", world.hub.port), timeout=60) as connection:
        connection.sendall(request)
        answer = b""
        connection.settimeout(1.0)
        try:
            while block := connection.recv(65536):
                answer += block
        except TimeoutError:
            pass
        except ConnectionResetError:
            pass
        return answer


def smuggled(world):
    """Requests that hide another one, or that two servers would read differently."""
    model, key = world.victim["model_id"], f"x-api-key: {KEY}\r\n"
    hidden = f"POST /v1/models/{model}/stop HTTP/1.1\r\nHost: h\r\n{key}Content-Length: 0\r\n\r\n"
    head = f"POST /v1/models/{model}/events HTTP/1.1\r\nHost: h\r\n{key}Content-Type: application/json\r\n"
    chunked = f"0\r\n\r\n{hidden}"
    short = "2\r\n[]\r\n0\r\n\r\n"
    return {
        "both lengths": f"{head}Content-Length: {len(chunked)}\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}",
        "both lengths, the other way": f"{head}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n{chunked}",
        "two lengths": f"{head}Content-Length: 2\r\nContent-Length: {2 + len(hidden)}\r\n\r\n[]{hidden}",
        "a list of lengths": f"{head}Content-Length: 2, {2 + len(hidden)}\r\n\r\n[]{hidden}",
        "a length with a sign": f"{head}Content-Length: +2\r\n\r\n[]{hidden}",
        "a length below zero": f"{head}Content-Length: -1\r\n\r\n[]{hidden}",
        "a length that is hex": f"{head}Content-Length: 0x2\r\n\r\n[]{hidden}",
        "an unknown coding": f"{head}Transfer-Encoding: xchunked\r\n\r\n{short}{hidden}",
        "two codings": f"{head}Transfer-Encoding: chunked, identity\r\n\r\n{short}{hidden}",
        "two coding headers": f"{head}Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n\r\n{short}{hidden}",
        "a hidden coding": f"{head}Transfer-Encoding:\x0bchunked\r\nContent-Length: 2\r\n\r\n[]{hidden}",
        "a space before the colon": f"{head}Content-Length : 2\r\n\r\n[]{hidden}",
        "a folded header": f"{head}X-Folded: a\r\n Content-Length: 0\r\nContent-Length: x\r\n\r\n{hidden}",
        "a chunk that is too large": f"{head}Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFFFFFFFF\r\n[]{hidden}",
        "a chunk that is below zero": f"{head}Transfer-Encoding: chunked\r\n\r\n-2\r\n[]\r\n{hidden}",
        "no host": f"GET /v1/models/{model} HTTP/1.1\r\n{key}\r\n",
        "two hosts": f"GET /v1/models/{model} HTTP/1.1\r\nHost: a\r\nHost: b\r\n{key}\r\n",
        "NUL in a header": f"GET /v1/models/{model} HTTP/1.1\r\nHost: h\r\nx-api-key: {KEY}\0\r\n\r\n",
        "a bare CR in a header": f"GET /v1/models/{model} HTTP/1.1\r\nHost: h\r\nX: a\rb: c\r\n{key}\r\n",
        "a version that is none": f"DELETE /v1/models/{model} HTTP/x.1\r\nHost: h\r\n{key}\r\n",
        "no version": f"GET /v1/models/{model}\r\n\r\n",
        "a path with a space": f"GET /v1/models/{model} x HTTP/1.1\r\nHost: h\r\n{key}\r\n",
        "TLS": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + "\x00" * 64 + "\r\n\r\n",
        "a header of a megabyte": f"GET / HTTP/1.1\r\nHost: h\r\nX: {'a' * 2**20}\r\n\r\n",
        "very many headers": "GET / HTTP/1.1\r\nHost: h\r\n" + "X: a\r\n" * 50_000 + "\r\n",
    }


@pytest.mark.usefixtures("unchanged")
def test_no_request_hides_in_another(world):
    wrong = []
    for name, request in smuggled(world).items():
        answer = raw(world, request.encode("latin-1"))
        statuses = re.findall(rb"HTTP/1\.1 (\d+)", answer)
        if len(statuses) > 1 or any(not status.startswith(b"4") for status in statuses):
            wrong.append(f"{name}: {statuses}")
    assert wrong == []
    assert world.ask("GET", f"/v1/models/{world.victim['model_id']}", key=KEY).status_code == 200


@pytest.mark.usefixtures("unchanged")
def test_nothing_that_was_sent_becomes_a_header_of_the_answer(world):
    crlf = "%0d%0aSet-Cookie:%20injected=1%0d%0a"
    file = f"/v1/models/{world.victim['model_id']}/checkpoints/{world.victim['checkpoint_id']}/files/"
    for path in (f"/models/{crlf}", f"/sign-in?next=/{crlf}", f"/?search={crlf}", file + f"last.pt{crlf}"):
        answer = world.ask("GET", path, headers={"X-Request-Id": "a b\tinjected=1"})
        assert "set-cookie" not in answer.headers
        assert answer.headers["x-request-id"] != "a b\tinjected=1"
        assert all(ord(character) >= 32 for value in answer.headers.values() for character in value)
        assert answer.status_code in {200, 303, 401, 404}
    assert world.ask("GET", "/", headers={"Host": "evil.example"}).headers["location"].startswith("/sign-in")


@pytest.mark.usefixtures("unchanged")
def test_a_forged_cookie_opens_nothing(world):
    ((name, good),) = world.cookies["admin of the project"].items()
    ((_, other),) = world.cookies["reader"].items()
    half = len(good) // 2
    last = "0" if good[-1] != "0" else "1"
    ended = world.sign_in(world.keys["reader"])
    assert world.ask("POST", "/sign-out", cookies=ended).status_code == 303
    forged = {
        "empty": "",
        "a word": "admin",
        "without its end": good[:-1],
        "another last letter": good[:-1] + last,
        "two halves": good[:half] + other[half:],
        "the other halves": other[:half] + good[half:],
        "twice": good + good,
        "a key": world.keys["admin of the project"],
        "one that was signed out": ended[name],
        "a huge one": "a" * 4000,
    }
    wrong = []
    for what, cookie in forged.items():
        for method, path, expected in (
            ("GET", "/", 303),
            ("GET", "/parts/models", 401),
            ("GET", f"/v1/models/{world.victim['model_id']}", 401),
            ("POST", f"/models/{world.victim['model_id']}/stop", 401),
        ):
            answer = world.ask(method, path, cookies={name: cookie})
            if answer.status_code != expected:
                wrong.append(f"{what}: {method} {path}: {answer.status_code}")
    assert wrong == []


def test_bytes_of_another_project_must_be_sent_to_be_had(world):
    """Who knows a digest learns neither that another project has the bytes nor what they are."""
    known = manifest(world.files, world.other.attempt_id)
    entry = {"Idempotency-Key": new_id()}
    key = world.keys["writer of another project"]
    begun = world.ask("POST", f"/v1/models/{world.other.model_id}/checkpoints", key=key, json=known, headers=entry)
    data = begun.json()["data"]
    parts = [part["number"] for part in data["missing"][0]["parts"]]
    assert parts == list(range(len(known["files"][0]["parts"])))
    place = f"/v1/models/{world.other.model_id}/checkpoints/{data['id']}"
    assert world.ask("POST", place + "/complete", key=key).status_code == 409
    assert world.ask("GET", place + "/files/last.pt", key=key).status_code == 404
    # Nor do parts that were sent to the one count for the other.
    again = world.talk.begin(world.files)
    assert again["missing"] == []
    still = world.ask("GET", place + "/parts", key=key).json()["data"]["missing"]
    assert [part["number"] for part in still[0]["parts"]] == parts


def test_a_part_that_is_sent_again_after_the_commit_changes_nothing(world):
    own = world.other
    files = {"last.pt": b"x" * PART_SIZE}
    data = own.begin(files)
    url = data["missing"][0]["parts"][0]["url"]
    assert own.put(url, files["last.pt"]).status_code == 200
    assert own.complete(data["id"]).status_code == 200
    before = world.kept()
    assert own.put(url, files["last.pt"]).status_code in {200, 403, 404, 409}
    assert own.put(url, b"y" * PART_SIZE).status_code in {403, 404, 409, 422}
    after = world.kept()
    assert [name for name in changes(before, after) if not name.startswith("uploads/")] == []
    stored = own.download(data["id"], "last.pt")
    assert hashlib.sha256(stored.content).hexdigest() == hashlib.sha256(files["last.pt"]).hexdigest()

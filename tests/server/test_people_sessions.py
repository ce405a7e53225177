"""Signing in, staying signed in, and waiting after many wrong keys."""

import hashlib
import re
import time

import postgres
import pytest
import requests
from hub_talk import Talk, problem
from rows import older
from sqlalchemy import func, select, text
from test_people import People

from ddphub.server import throttle
from ddphub.server.database import Database
from ddphub.server.keys import Keys, new_key
from ddphub.server.known_keys import HELD_S, Holders
from ddphub.server.principal import Principal
from ddphub.server.problems import Problem
from ddphub.server.signing import Signer
from ddphub.server.tables import ApiKey, AuditRecord, SignInFailures
from ddphub.server.throttle import MOST, Throttle, client_of


def signed_in(hub, key):
    browser = requests.Session()
    browser.trust_env = False
    answer = browser.post(f"{hub.url}/sign-in", data={"key": key}, allow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    return browser


def is_in(hub, browser):
    return browser.get(f"{hub.url}/", allow_redirects=False).status_code == 200


def test_a_session_ends_with_a_sign_out_everywhere(hub):
    browser = signed_in(hub, hub.key)
    with requests.Session() as thief:
        thief.trust_env = False
        thief.cookies.update(browser.cookies)
        assert is_in(hub, thief)
        browser.post(f"{hub.url}/sign-out", allow_redirects=False)
        assert not is_in(hub, thief)
        problem(thief.get(f"{hub.url}/parts/models"), 401)
    told = [one["action"] for one in People(hub).audit() if one["who"] == "the settings' key"]
    assert {"sign-in", "sign-out"} <= set(told)


def test_a_session_ends_with_its_key_or_its_user(hub):
    people = People(hub)
    user = people.user((None, "reader"))
    for end in (
        lambda made: people.http.delete(people.url(f"/keys/{made['id']}")),
        lambda _: people.http.patch(people.url(f"/users/{user['id']}"), json={"disabled": True}),
    ):
        made, _ = people.key(user=user["name"])
        browser = signed_in(hub, made["key"])
        assert is_in(hub, browser)
        assert end(made).status_code == 200
        assert not is_in(hub, browser)
    with requests.Session() as late:
        answer = late.post(f"{hub.url}/sign-in", data={"key": made["key"]}, allow_redirects=False)
        assert answer.headers["location"] == "/sign-in?wrong=true"


def test_a_session_lives_through_a_restart_and_ends_with_the_settings_key(start_hub):
    hub = start_hub(arguments=("--trusted-proxy", "127.0.0.1"))
    for scheme in ("http", "https"):
        headers = {"x-forwarded-proto": scheme}
        cookie = requests.post(f"{hub.url}/sign-in", data={"key": hub.key}, headers=headers, allow_redirects=False)
        assert ("Secure" in cookie.headers["set-cookie"]) is (scheme == "https")
    made, _ = People(hub).key()
    of_settings, of_key = signed_in(hub, hub.key), signed_in(hub, made["key"])
    hub.restart()
    assert is_in(hub, of_settings)
    hub._given_key = "n" * 42
    hub.restart()
    assert not is_in(hub, of_settings)
    assert is_in(hub, of_key)


def test_a_page_shows_what_its_visitor_may_see_and_do(hub):
    people, mine, other = People(hub), Talk(hub), Talk(hub)
    for talk in (mine, other):
        talk.upload({"last.pt": talk.project.encode()})
        talk.http.patch(talk.url(), json={"tags": [f"tag-of-{talk.project}"]})
    run_id = mine.get()["run_id"]
    neighbour = Talk(hub, mine.project)
    keys = {role: people.key(project=mine.project, role=role)[0]["key"] for role in ("reader", "writer", "admin")}
    keys["reporter"] = people.key(project=mine.project, run_id=run_id)[0]["key"]
    for role, key in keys.items():
        browser = signed_in(hub, key)
        for path in ("/", f"/?project={other.project}", f"/compare?models={mine.model_id},{other.model_id}"):
            page = browser.get(hub.url + path)
            assert page.status_code == 200
            assert other.model_id not in re.sub(r"models=[^\"]*", "", page.text)
            assert f"tag-of-{other.project}" not in page.text
        for path in ("", "/parts/status", "/checkpoints/x/archive"):
            assert browser.get(f"{hub.url}/models/{other.model_id}{path}").status_code == 404
        assert (neighbour.model_id in browser.get(f"{hub.url}/").text) is (role != "reporter")
        shown = browser.get(f"{hub.url}/models/{mine.model_id}").text
        assert ('id="notes-field"' in shown) is (role in {"writer", "admin"})
        assert ("data-address" in shown) is (role == "admin")
        checkpoint = mine.get("/checkpoints")[0]["id"]
        for path, needed in (("stop", {"writer", "admin"}), ("labels", {"writer", "admin"})):
            answer = browser.post(f"{hub.url}/models/{mine.model_id}/{path}", allow_redirects=False)
            assert answer.status_code == (303 if role in needed else 403)
            problem(browser.post(f"{hub.url}/models/{other.model_id}/{path}"), 404)
        if role != "admin":
            problem(browser.post(f"{hub.url}/models/{mine.model_id}/checkpoints/{checkpoint}/delete"), 403)
    assert other.get()["stop_requested"] is False
    assert mine.get()["checkpoints"] == 1


@pytest.fixture
def clock(monkeypatch):
    """A clock that only goes when it is told to."""

    class Clock:
        now = 1_800_000_000.0

        def time(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(throttle, "time", clock)
    return clock


@pytest.fixture
def database(tmp_path):
    database = Database(postgres.database_of(tmp_path / "data") or tmp_path / "hub.db")
    yield database
    database.close()


def waits(guard, address):
    try:
        guard.check(address)
    except Problem as told:
        return int(told.headers["retry-after"])
    return 0


def test_ten_wrong_keys_have_to_wait_and_each_further_one_twice_as_long(database, clock):
    guard = Throttle(database)
    for number in range(MOST):
        assert waits(guard, "10.0.0.1") == 0
        guard.note("10.0.0.1", b"%d" % number)
        clock.now += 200
    clock.now -= 200
    seen = []
    for number in range(MOST, MOST + 6):
        seen.append(waits(guard, "10.0.0.1"))
        clock.now += seen[-1]
        assert waits(guard, "10.0.0.1") == 0
        guard.note("10.0.0.1", b"%d" % number)
    assert seen == [61, 121, 241, 481, 901, 901]
    assert waits(guard, "10.0.0.2") == 0
    # Who sent none for as long as it had to wait, and five minutes, begins anew.
    clock.now += 1300
    guard.note("10.0.0.1", b"new")
    assert waits(guard, "10.0.0.1") == 0
    with database.read() as session:
        assert session.scalars(select(SignInFailures.count)).all() == [1]


def test_one_wrong_key_is_one_however_often_it_comes_and_by_whatever_process(database, clock):
    guards = [Throttle(database) for _ in range(3)]
    for _ in range(20):
        for guard in guards:
            guard.note("10.0.0.1", b"the same")
    assert [waits(guard, "10.0.0.1") for guard in guards] == [0, 0, 0]
    for number in range(MOST - 1):
        guards[number % 2].note("10.0.0.1", b"%d" % number)
    # The process that saw the last of them knows, and the others as soon as they see one more.
    assert waits(guards[0], "10.0.0.1") == 61
    guards[2].note("10.0.0.1", b"one more")
    assert waits(guards[2], "10.0.0.1") == 121
    with database.read() as session:
        refused = select(func.count()).where(AuditRecord.action == "key.refused")
        assert session.scalar(refused) == MOST + 1


def test_a_network_of_ipv6_is_one_client():
    assert client_of("2001:db8::1") == client_of("2001:db8::ffff:2") != client_of("2001:db8:0:1::1")
    assert client_of("::ffff:10.0.0.1") == client_of("::ffff:10.0.0.1") != client_of("::ffff:10.0.0.2")
    assert client_of("10.0.0.1") != client_of("10.0.0.2")
    assert client_of("testclient") == "testclient"


def test_who_guesses_waits_and_who_is_known_does_not(start_hub):
    hub = start_hub()
    people = People(hub)
    made, known = people.key()
    assert known.get(people.url("/capabilities")).status_code == 200
    browser = signed_in(hub, made["key"])
    fresh, stranger = people.key()
    stale = people.of(new_key())
    for _ in range(3 * MOST):
        problem(stale.get(people.url("/capabilities")), 401)
    for number in range(MOST - 1):
        if number % 2:
            problem(people.of(new_key()).get(people.url("/capabilities")), 401)
        else:
            answer = requests.post(f"{hub.url}/sign-in", data={"key": f"guess {number}"}, allow_redirects=False)
            assert answer.headers["location"] == "/sign-in?wrong=true"
    for session in (people.of(new_key()), stranger, stale):
        told = session.get(people.url("/capabilities"))
        assert "try again in" in problem(told, 429)["detail"]
        assert 0 < int(told.headers["retry-after"]) <= 61
    for key in ("another guess", fresh["key"]):
        page = requests.post(f"{hub.url}/sign-in", data={"key": key}, allow_redirects=False)
        assert (page.status_code, page.headers["content-type"]) == (429, "text/html; charset=utf-8")
        assert 0 < int(page.headers["retry-after"]) <= 61
        assert "try again in" in page.text
    for session in (known, people.http):
        assert session.get(people.url("/capabilities")).status_code == 200
    assert is_in(hub, browser)
    told = [one["action"] for one in people.audit()]
    assert told.count("key.refused") == MOST
    assert told.count("address.blocked") == 1


def test_a_key_in_use_goes_on_where_its_address_waits_also_after_a_restart(start_hub):
    hub = start_hub()
    people = People(hub)
    made, job = people.key()
    assert job.get(people.url("/capabilities")).status_code == 200
    for _ in range(MOST):
        people.of(new_key()).get(people.url("/capabilities"))
    hub.restart()
    problem(people.of(new_key()).get(people.url("/capabilities")), 401)
    guess = people.of(made["key"][:6] + new_key()[6:])
    problem(people.of(new_key()).get(people.url("/capabilities")), 429)
    assert {job.get(people.url("/capabilities")).status_code for _ in range(3)} == {200}
    problem(guess.get(people.url("/capabilities")), 429)


def test_who_lost_the_admins_key_has_the_hub_make_one_more(start_hub):
    hub = start_hub(api_key=None)
    first = hub.key
    hub.restart()
    assert hub.key == first
    for made in People(hub).http.get(f"{hub.url}/v1/keys").json()["data"]["results"]:
        People(hub).http.delete(f"{hub.url}/v1/keys/{made['id']}")
    hub.stop()
    hub._arguments = ("--new-admin-key",)
    hub.start()
    assert hub.key != first
    assert hub.said[1:] == [f"export DDPHUB_URL={hub.url}", f"export DDPHUB_API_KEY={hub.key}", hub.said[-1]]
    people = People(hub)
    assert [one["action"] for one in people.audit()] == ["key.add", "key.revoke", "key.add"]
    problem(people.of(first).get(f"{hub.url}/v1/capabilities"), 401)


def test_only_digests_of_keys_are_stored(start_hub):
    hub = start_hub(api_key=None)
    made, http = People(hub).key()
    assert http.get(f"{hub.url}/v1/capabilities").status_code == 200
    hub.stop()
    everything = b"".join(path.read_bytes() for path in hub.data_dir.rglob("*") if path.is_file())
    for key in (hub.key, made["key"]):
        assert key.encode() not in everything + hub.log.read_bytes()
    database = Database(hub.database)
    with database.read() as session:
        rows = session.scalars(select(ApiKey).order_by(ApiKey.id)).all()
    database.close()
    assert [(row.prefix, len(row.salt), len(row.digest)) for row in rows] == [
        (hub.key[:6], 16, 32),
        (made["key"][:6], 16, 32),
    ]
    assert all(time.time() - row.last_used_at < 60 for row in rows)


def test_a_key_of_an_older_hub_stays_good_for_everything(start_hub, tmp_path):
    key, salt = new_key(), b"s" * 16
    with older(tmp_path / "data", "0005") as connection:
        values = {"salt": salt, "digest": hashlib.sha256(salt + key.encode()).digest(), "time": 1.0}
        connection.execute(
            text("INSERT INTO api_keys (salt, digest, created_at) VALUES (:salt, :digest, :time)"), values
        )
    people = People(start_hub(api_key=None))
    http = people.of(key)
    (listed,) = http.get(people.url("/keys")).json()["data"]["results"]
    assert (listed["prefix"], listed["role"], listed["project"]) == (key[:6], "admin", None)
    assert http.get(people.url("/users")).status_code == 200
    problem(people.of(new_key()).get(people.url("/users")), 401)


def test_others_know_of_a_revocation_at_once_on_this_machine_and_within_a_second_elsewhere(database, tmp_path):
    signer = Signer(b"s" * 32, 60)
    here, beside, elsewhere = (
        Keys(database, signer, Throttle(database), None, tmp_path / name) for name in ("a", "a", "b")
    )
    key, bystander = new_key(), new_key()
    for one in (key, bystander):
        here.add(one)
    began = time.monotonic()
    assert here.find(key, "10.0.0.1") == beside.find(key, "10.0.0.1") == elsewhere.find(key, "10.0.0.1")
    with here.changing() as session:
        row = session.scalars(select(ApiKey).where(ApiKey.prefix == key[:6])).one()
        row.revoked_at = time.time()
    for keys in (here, beside):
        with pytest.raises(Problem, match="revoked"):
            keys.find(key, "10.0.0.1")
    while True:
        known_for = time.monotonic() - began
        try:
            elsewhere.find(key, "10.0.0.1")
        except Problem:
            break
        assert known_for < 2 * HELD_S
        time.sleep(0.05)
    assert elsewhere.find(bystander, "10.0.0.1").is_admin


def test_what_was_read_before_a_change_is_good_no_longer(tmp_path):
    holders, holder = Holders(tmp_path / "shared"), Principal.of_the_hub("test")
    before = holders.changes
    holders.forget()
    holders.put(b"tag", holder, before)
    assert holders.get(b"tag") is None
    holders.put(b"tag", holder, holders.changes)
    assert holders.get(b"tag") == holder
    expired = Principal(who="test", role="reader", expires_at=time.time() - 1)
    holders.put(b"tag", expired, holders.changes)
    assert holders.get(b"tag") is None

"""The pages for keys, people and the audit log, as browsers without scripts use them."""

import html
import re

import pytest
from hub_talk import Talk, new_id, problem
from test_people import People
from test_people_sessions import signed_in

FORM = {"sec-fetch-site": "same-origin"}
HOSTILE = "<b onload=x>'\"& \u202e"


def shown(answer, status=200):
    assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8"), answer.text
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.text)))


@pytest.fixture
def admin(hub, browser):
    """Posts forms as the hub's admin, and reads pages."""

    class Admin:
        def get(self, path, status=200):
            return shown(browser.get(hub.url + path), status)

        def post(self, path, http=browser, **fields):
            return http.post(hub.url + path, data=fields, headers=FORM, allow_redirects=False)

        def done(self, path, to, **fields):
            answer = self.post(path, **fields)
            assert (answer.status_code, answer.headers.get("location")) == (303, to), answer.text

    return Admin()


def key_in(answer):
    return re.search(r'<code id="new-key">([A-Za-z0-9]{42})</code>', answer.text).group(1)


def test_an_admin_adds_a_user_grants_and_takes_back(hub, admin):
    people, talk = People(hub), Talk(hub)
    name = f"Ada <b>&{new_id()[:6]}"
    admin.done("/people", "/people", name=name, role="reader", project=talk.project)
    assert f"{name} " in admin.get("/people")
    user = next(one for one in people.http.get(people.url("/users")).json()["data"]["results"] if one["name"] == name)
    assert user["grants"] == [{"project": talk.project, "role": "reader"}]
    made = admin.post("/keys", name="laptop", role="writer", user=name, days="7")
    assert "A new key: laptop" in shown(made)
    assert made.headers["cache-control"] == "no-store"
    http = people.of(key_in(made))
    problem(http.post(talk.url("/stop")), 403)
    admin.done(f"/people/{user['id']}/grant", "/people", role="writer", project=talk.project)
    assert http.post(talk.url("/stop")).status_code == 200
    admin.done(f"/people/{user['id']}/grant", "/people", role="reader", project="")
    assert f"writer in {talk.project}" in admin.get("/people")
    admin.done(f"/people/{user['id']}/grant", "/people", role="", project=talk.project)
    problem(http.post(talk.url("/stop")), 403)
    for what, status in (("disable", 401), ("enable", 200), ("remove", 401)):
        admin.done(f"/people/{user['id']}/{what}", "/people")
        assert http.get(talk.url()).status_code == status
    for path, fields in (
        ("/people", {"name": name}),
        ("/people", {"name": "a/b"}),
        (f"/people/{user['id']}/grant", {"role": "owner"}),
        ("/people/nobody/grant", {"role": "reader"}),
    ):
        assert "Not done: " in shown(admin.post(path, **fields), admin.post(path, **fields).status_code)
    told = admin.get("/audit")
    for words in ("user.add", "user.change", "user.remove", "key.add", "the settings' key", "127.0.0.1", name):
        assert words in told
    assert key_in(made) not in told


def test_a_user_makes_and_revokes_keys_and_sees_no_others(hub, admin):
    people, talk = People(hub), Talk(hub)
    user = people.user((talk.project, "writer"))
    own, _ = people.key(user=user["name"], name="first")
    stranger, _ = people.key(name="of somebody else")
    browser = signed_in(hub, own["key"])
    page = browser.get(f"{hub.url}/keys")
    assert "first" in shown(page)
    assert "of somebody else" not in page.text
    assert 'value="admin"' not in page.text
    assert f"<option>{talk.project}</option>" in page.text
    made = admin.post("/keys", http=browser, name=HOSTILE[:12].replace("/", ""), project=talk.project, run_id="run-1")
    assert "<b onload" not in made.text
    key = key_in(made)
    assert create_run(people, key, talk.project, "run-1") == 200
    for fields, status in (
        ({"name": ""}, 422),
        ({"name": "x", "days": "0"}, 422),
        ({"name": "x", "days": "-1"}, 422),
        ({"name": "x", "role": "admin"}, 403),
        ({"name": "x", "project": Talk(hub).project}, 404),
        ({"name": "x", "user": "someone"}, 403),
    ):
        answer = admin.post("/keys", http=browser, **fields)
        assert "Not made: " in shown(answer, status)
        assert "new-key" not in answer.text
    number = next(one["id"] for one in people.audit()[::-1] if one["action"] == "key.add")
    ours = next(one for one in people.audit() if one["id"] == number)["object"]
    assert admin.post(f"/keys/{stranger['id']}/revoke", http=browser).status_code == 404
    assert admin.post(f"/keys/{ours}/revoke", http=browser).status_code == 303
    assert create_run(people, key, talk.project, "run-1") == 401
    assert f"key-{ours}" not in browser.get(f"{hub.url}/keys").text
    assert f"key-{ours}" in browser.get(f"{hub.url}/keys?every=true").text
    for path in ("/people", "/audit"):
        assert "admin" in shown(browser.get(hub.url + path, headers={"accept": "text/html"}), 403)
        assert f'href="{path}"' not in page.text
    assert admin.post("/people", http=browser, name="x").status_code == 403
    of_run = signed_in(hub, people.key(project=talk.project, run_id="run-2")[0]["key"])
    assert "Make a key" not in shown(of_run.get(f"{hub.url}/keys"))


def create_run(people, key, project, run_id):
    body = {"project": project, "meta": {"name": "net"}}
    return people.of(key).post(people.url("/models"), json=body, headers={"Idempotency-Key": run_id}).status_code


@pytest.mark.parametrize("path", ["/keys", "/keys/k/revoke", "/people", "/people/u/grant", "/people/u/remove"])
def test_a_form_needs_a_page_of_this_hub_and_a_visitor(hub, browser, path):
    people = People(hub)
    before = len(people.audit())
    for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "http://elsewhere.example"}, {"origin": "null"}):
        assert browser.post(hub.url + path, data={"name": "x"}, headers=headers).status_code == 403
    assert people.of("").post(hub.url + path, data={"name": "x"}).status_code == 401
    # A key in a header is for programs: forms are for people who signed in.
    assert people.http.post(hub.url + path, data={"name": "x"}).status_code == 401
    assert len(people.audit()) == before


def test_pages_lead_to_the_form(hub):
    visitor = People(hub).of("")
    for path in ("/keys", "/people", "/audit?before=7"):
        answer = visitor.get(hub.url + path, allow_redirects=False)
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/sign-in?next=")


def test_the_audit_log_goes_back_page_by_page(hub, admin):
    people = People(hub)
    for _ in range(105):
        people.key()
    first = admin.get("/audit")
    assert "Older" in first
    oldest = people.audit()[-100]["id"]
    assert "Newest" in admin.get(f"/audit?before={oldest}")

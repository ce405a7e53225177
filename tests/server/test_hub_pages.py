"""Pages: for people who signed in, with everything escaped and nothing from elsewhere."""

import re

import pytest
import requests
from hub_talk import Talk, attempt_event, metrics_event, problem, rank_event, sha256

HOSTILE = "<script>alert('1')</script>\"&"


def test_a_page_without_signing_in_leads_to_the_form(hub, talk):
    for path in ("/", f"/models/{talk.model_id}", "/models/nobody"):
        answer = requests.get(hub.url + path, allow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    assert "API key" in requests.get(f"{hub.url}/").text


@pytest.mark.parametrize(
    "form", [{}, {"key": ""}, {"key": "wrong" * 9}, {"key": "\ud800".encode("utf-8", "surrogatepass")}]
)
def test_a_wrong_key_gives_no_cookie(hub, form):
    answer = requests.post(f"{hub.url}/sign-in", data=form, allow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?wrong=true")
    assert "set-cookie" not in answer.headers
    assert "does not know" in requests.get(f"{hub.url}/sign-in?wrong=true").text


def test_the_form_takes_no_large_body(hub):
    problem(requests.post(f"{hub.url}/sign-in", data={"key": "k" * 10_000}), 413)


def test_the_cookie_is_signed_and_kept_from_scripts(hub):
    answer = requests.post(f"{hub.url}/sign-in", data={"key": hub.key}, allow_redirects=False)
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert hub.key not in cookie
    value = re.match("ddphub_session=([^;]+)", cookie).group(1)
    expires, _, signature = value.partition(".")
    forged = ["", "x", f"{int(expires) + 1}.{signature}", f"{expires}.{'0' * 64}", f"1.{signature}", f"{expires}."]
    for one in forged:
        answer = requests.get(f"{hub.url}/", headers={"cookie": f"ddphub_session={one}"}, allow_redirects=False)
        assert answer.status_code == 303


def test_a_cookie_reads_files_and_nothing_else_of_the_api(hub, browser, talk):
    checkpoint_id = talk.upload({"a": b"abc"})
    assert browser.get(talk.url(f"/checkpoints/{checkpoint_id}/files/a")).content == b"abc"
    for method, path in (("GET", ""), ("POST", "/stop"), ("GET", "/checkpoints"), ("POST", "/events")):
        problem(browser.request(method, talk.url(path)), 401)


def test_a_cookie_of_another_hub_or_key_is_refused(start_hub):
    hub = start_hub()
    with requests.Session() as browser:
        browser.post(f"{hub.url}/sign-in", data={"key": hub.key})
        assert browser.get(f"{hub.url}/", allow_redirects=False).status_code == 200
        hub.restart()
        assert browser.get(f"{hub.url}/", allow_redirects=False).status_code == 200
        hub._given_key = "n" * 42
        hub.restart()
        assert browser.get(f"{hub.url}/", allow_redirects=False).status_code == 303


def test_the_list_shows_every_model_and_escapes_its_names(hub, browser):
    talk = Talk(hub, "<b>project</b>".replace("/", ""))
    answer = talk.http.post(f"{hub.url}/v1/models", json={"project": "<i>", "meta": {"name": "<img src=x onerror=1>"}})
    assert answer.status_code == 200
    page = browser.get(f"{hub.url}/").text
    assert f'href="/models/{talk.model_id}"' in page
    assert "&lt;img src=x onerror=1&gt;" in page
    assert "<img" not in page
    assert "<b>" not in page


def test_more_models_than_fit_are_on_the_next_page(hub, browser):
    project = Talk(hub).project
    oldest = Talk(hub, project).model_id
    for _ in range(100):
        Talk(hub, project)
    first = browser.get(f"{hub.url}/").text
    assert oldest not in first
    older = re.search(r'href="(/\?before=[A-Za-z0-9]+)"', first).group(1)
    assert oldest in browser.get(hub.url + older).text


def test_a_models_page_shows_what_was_stored_escaped(hub, browser, talk):
    hostile = HOSTILE.replace("/", "")
    talk.accepted(
        attempt_event(talk.attempt_id, 0, "started", host=HOSTILE),
        rank_event(talk.attempt_id, 1, 1, "joined", host=HOSTILE),
        metrics_event(talk.attempt_id, 2, values={HOSTILE: 0.125, "values": 3, "bad": "NaN", "done": True}, epoch=4),
        attempt_event(talk.attempt_id, 3, "failed", reason=HOSTILE),
    )
    checkpoint_id = talk.upload({f"dir/{hostile}": b"abc"}, name=hostile)
    answer = browser.get(f"{hub.url}/models/{talk.model_id}")
    page = answer.text
    assert answer.status_code == 200
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<td>0.125</td>" in page
    assert "NaN" in page
    assert "failed" in page
    assert sha256(b"abc") in page
    assert checkpoint_id in page
    (link,) = re.findall(r'href="(/v1/[^"]+)"', page)
    assert browser.get(hub.url + link).content == b"abc"


def test_pages_load_nothing_from_elsewhere_and_say_so(hub, browser, talk):
    for path in ("/", f"/models/{talk.model_id}", "/sign-in"):
        answer = browser.get(hub.url + path)
        assert answer.headers["content-security-policy"].startswith("default-src 'self'")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"
        assert not re.search(r'(?:href|src)="(?!/)', answer.text)
        assert "style=" not in answer.text
    assert browser.get(f"{hub.url}/style.css").headers["content-type"].startswith("text/css")


def test_only_the_newest_hundred_points_are_on_the_page(hub, browser, talk):
    talk.accepted(*[metrics_event(talk.attempt_id, seq, values={"m": seq + 0.5}) for seq in range(150)])
    page = browser.get(f"{hub.url}/models/{talk.model_id}").text.partition("Last 100 points")[2]
    assert "m = 149.5" in page
    assert "m = 50.5" in page
    assert "m = 49.5" not in page


def test_a_page_of_a_model_that_is_not_there_is_a_404(hub, browser):
    problem(browser.get(f"{hub.url}/models/nobody"), 404)


def test_no_page_describes_the_api_with_scripts_from_elsewhere(hub):
    for path in ("/docs", "/redoc", "/openapi.json"):
        problem(requests.get(hub.url + path), 404)

"""Keys, people and the audit log in a real browser: making and revoking a key, on a desk and on a phone."""

import pytest
import requests
from browser import PHONE, WIDE
from hub_process import KEY, HubProcess
from test_use import CONTRASTS, SMALL, WIDER

LONG = "ein-sehr-langer-name-" * 6


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with HubProcess(tmp_path_factory.mktemp("hub") / "data", api_key=KEY) as process:
        for name in ("ada", LONG):
            body = {
                "name": name,
                "grants": [{"project": "birds", "role": "writer"}, {"project": LONG, "role": "reader"}],
            }
            assert requests.post(f"{process.url}/v1/users", json=body, headers={"x-api-key": KEY}).status_code == 200
            body = {"name": name, "user": name, "project": LONG, "run_id": "r" * 128}
            assert requests.post(f"{process.url}/v1/keys", json=body, headers={"x-api-key": KEY}).status_code == 200
        yield process


def status_of(hub, key):
    return requests.get(f"{hub.url}/v1/capabilities", headers={"x-api-key": key}).status_code


def test_a_key_is_made_shown_once_copied_and_revoked(browser, hub):
    browser.sign_in(hub)
    browser.one("a[href='/keys']").click()
    browser.one("input[name=name]").send_keys("for a laptop")
    browser.one("input[name=user]").send_keys("ada")
    browser.one("form.fields button.main").click()
    key = browser.wait(lambda: browser.text("#new-key"), what="the key")
    assert status_of(hub, key) == 200
    browser.one("[data-copy-from=new-key]").click()
    browser.wait(lambda: browser.text("[data-copy-from=new-key]") == "copied", what="the copy")
    browser.open(f"{hub.url}/keys")
    assert key not in browser.driver.page_source
    browser.one("tbody tr [data-opens=revoke-dialog]").click()
    browser.wait(lambda: "for a laptop of ada" in browser.text("#revoke-dialog[open]"), what="the question")
    browser.one("#revoke-dialog .grave").click()
    browser.wait(lambda: "for a laptop" not in browser.text("main"), what="the key to go")
    assert status_of(hub, key) == 401
    browser.one("a[href='/audit']").click()
    browser.wait(lambda: "key.revoke" in browser.text("main"), what="the record")
    assert browser.complaints() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pages_can_be_read_and_fit_a_phone(browser, hub, scheme):
    browser.scheme(scheme)
    browser.sign_in(hub)
    for path in ("/keys", "/people", "/audit"):
        browser.open(hub.url + path)
        for size in (WIDE, PHONE):
            browser.resize(size)
            assert browser.run("return document.documentElement.scrollWidth") <= size[0], browser.run(WIDER, size[0])
        assert browser.run(SMALL) == [], path
        assert browser.run(CONTRASTS) == [], path
    assert browser.complaints() == []

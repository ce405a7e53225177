"""Pages: for people who signed in, with everything escaped and nothing from elsewhere."""

import io
import re
import zipfile
from html.parser import HTMLParser

import pytest
import requests
from hub_talk import Talk, attempt_event, metrics_event, new_id, problem, rank_event, sha256

HOSTILE = "<script>alert('1')</script>\"&\u202e\u200f' onload=x"
"""A text; names have none of the marks that turn the direction of writing, and these have no slash."""

HOSTILE_NAME = "<script>alert('1')<script>\"&\u05d0' onload=x"


def text_of(answer):
    """What a page shows, without its tags."""
    assert answer.status_code == 200, answer.text[:500]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", answer.text))


class Tags(HTMLParser):
    """What tags and attributes a browser finds in a page."""

    def __init__(self, text):
        super().__init__()
        self.names, self.attributes = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}


@pytest.fixture
def part(hub, browser, talk):
    """One part of the model's page, asked for as an open page does."""

    def ask(name, **options):
        return browser.get(f"{hub.url}/models/{talk.model_id}/parts/{name}", **options)

    return ask


def test_a_page_without_signing_in_leads_to_the_form_and_back(hub, talk):
    answer = requests.get(f"{hub.url}/", allow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    for path in (f"/models/{talk.model_id}?log_rank=3", "/models/nobody", "/compare?models=a,b"):
        with requests.Session() as visitor:
            assert "API key" in visitor.get(hub.url + path).text
            form = visitor.get(hub.url + path)
            place = re.search(r'name="next" value="([^"]*)"', form.text).group(1)
            sent = visitor.post(form.url, data={"key": hub.key, "next": place}, allow_redirects=False)
            assert (sent.status_code, sent.headers["location"]) == (303, path)


@pytest.mark.parametrize(
    "place",
    [
        "//elsewhere.example/",
        "https://elsewhere.example/",
        "/\\elsewhere.example",
        "/\t/elsewhere.example",
        "\\\\elsewhere.example",
        "javascript:alert(1)",
        "/\r\nset-cookie: a=b",
        "",
        "models",
        "/\u2044elsewhere",
    ],
)
def test_after_signing_in_a_visitor_stays_on_this_hub(hub, place):
    answer = requests.post(f"{hub.url}/sign-in", data={"key": hub.key, "next": place}, allow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert "elsewhere" not in requests.get(f"{hub.url}/sign-in", params={"next": place}).text


@pytest.mark.parametrize(
    "form", [{}, {"key": ""}, {"key": "wrong" * 9}, {"key": "\ud800".encode("utf-8", "surrogatepass")}]
)
def test_a_wrong_key_gives_no_cookie(hub, form):
    answer = requests.post(f"{hub.url}/sign-in", data=form, allow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?wrong=true")
    assert "set-cookie" not in answer.headers
    assert "does not know" in requests.get(f"{hub.url}/sign-in?wrong=true").text
    again = requests.post(f"{hub.url}/sign-in", data={"key": "wrong", "next": "/compare"})
    assert 'value="/compare"' in again.text


def test_the_form_takes_no_large_body(hub):
    problem(requests.post(f"{hub.url}/sign-in", data={"key": "k" * 10_000}), 413)
    problem(requests.post(f"{hub.url}/sign-in", data="&".join(f"f{n}=" for n in range(200))), 400)


def test_the_cookie_is_signed_and_kept_from_scripts(hub):
    answer = requests.post(f"{hub.url}/sign-in", data={"key": hub.key}, allow_redirects=False)
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert hub.key not in cookie
    name, value = re.match("(ddphub_session_[0-9a-f]{8})=([^;]+)", cookie).groups()
    number, _, signature = value.partition(".")
    forged = ["", "x", f"{'0' * 32}.{signature}", f"{number}.{'0' * 64}", f".{signature}", f"{number}.", number]
    for one in forged:
        answer = requests.get(f"{hub.url}/", headers={"cookie": f"{name}={one}"}, allow_redirects=False)
        assert answer.status_code == 303


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


def test_who_signs_out_is_out(hub, browser):
    answer = browser.post(f"{hub.url}/sign-out", allow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    assert browser.get(f"{hub.url}/", allow_redirects=False).status_code == 303


def test_a_cookie_changes_nothing_through_the_api(hub, browser, talk):
    checkpoint_id = talk.upload({"a": b"abc"})
    assert browser.get(talk.url(f"/checkpoints/{checkpoint_id}/files/a")).content == b"abc"
    for method, path in (
        ("POST", "/stop"),
        ("POST", "/events"),
        ("PATCH", ""),
        ("DELETE", ""),
        ("DELETE", f"/checkpoints/{checkpoint_id}"),
    ):
        problem(browser.request(method, talk.url(path)), 401)


@pytest.mark.parametrize("path", ["stop", "labels", "checkpoints/c/delete"])
def test_a_change_needs_the_cookie_and_a_page_of_this_hub(hub, browser, talk, path):
    url = f"{hub.url}/models/{talk.model_id}/{path}"
    problem(requests.post(url), 401)
    for headers in (
        {"sec-fetch-site": "cross-site", "origin": hub.url},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"origin": "http://elsewhere.example"},
        {"origin": "null"},
        {"origin": hub.url.replace("127.0.0.1", "localhost")},
    ):
        problem(browser.post(url, headers=headers), 403)
        problem(browser.post(f"{hub.url}/sign-out", headers=headers), 403)
    assert talk.get()["stop_requested"] is False
    assert browser.get(f"{hub.url}/", allow_redirects=False).status_code == 200


@pytest.mark.parametrize("origin", ["origin", "sec-fetch-site"])
def test_a_form_of_this_hub_stops_labels_and_deletes(hub, browser, talk, part, origin):
    headers = {"origin": hub.url} if origin == "origin" else {"sec-fetch-site": "same-origin", "origin": "null"}
    url = f"{hub.url}/models/{talk.model_id}"
    talk.accepted(attempt_event(talk.attempt_id, 0, "started"))
    checkpoint_id = talk.upload({"a": b"abc"})
    assert "Stop" in text_of(part("status"))
    assert checkpoint_id in part("checkpoints").text
    form = {"notes": f"line\r\n{HOSTILE}", "tags": f"{HOSTILE_NAME}, b,, b "}
    for path, fields in (("stop", {}), ("labels", form), (f"checkpoints/{checkpoint_id}/delete", {})):
        answer = browser.post(f"{url}/{path}", data=fields, headers=headers, allow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, f"/models/{talk.model_id}")
    shown = talk.get()
    assert shown["stop_requested"] is True
    assert shown["notes"] == f"line\n{HOSTILE}"
    assert sorted(shown["tags"]) == sorted(["b", HOSTILE_NAME])
    assert shown["checkpoints"] == 0
    assert "asked to stop" in text_of(part("status"))
    assert "None yet" in text_of(part("checkpoints"))
    assert "<script" not in part("labels").text
    assert "&lt;script&gt;" in part("labels").text
    problem(browser.post(f"{url}/labels", data={"tags": "a\x01"}, headers=headers), 422)


def test_the_list_shows_every_model_and_escapes_its_names(hub, browser):
    talk = Talk(hub, "<b>project</b>".replace("/", ""))
    answer = talk.http.post(f"{hub.url}/v1/models", json={"project": "<i>", "meta": {"name": "<img src=x onerror=1>"}})
    assert answer.status_code == 200
    page = browser.get(f"{hub.url}/").text
    assert f'href="/models/{talk.model_id}"' in page
    assert "&lt;img src=x onerror=1&gt;" in page
    assert "<img" not in page
    assert "<b>" not in page


def test_the_list_is_found_by_its_address(hub, browser):
    project = Talk(hub).project
    running, failed = Talk(hub, project), Talk(hub, project)
    running.accepted(attempt_event(running.attempt_id, 0, "started"))
    failed.accepted(attempt_event(failed.attempt_id, 0, "failed", reason="ValueError: <no>\nTraceback\n  here"))
    failed.http.patch(failed.url(), json={"tags": ["a&b"], "notes": "look at the lamp"})

    def listed(**query):
        page = browser.get(f"{hub.url}/", params=query).text
        assert page.count("<tbody>") <= 1
        return [one for one in (running.model_id, failed.model_id) if f"/models/{one}" in page]

    assert listed(project=project) == [running.model_id, failed.model_id]
    assert listed(project=project, state="failed") == listed(tag="a&b") == [failed.model_id]
    assert listed(search="the LAMP") == listed(search="a&b") == [failed.model_id]
    assert listed(project=project, search=running.model_id) == []
    for nothing in ({"state": "odd"}, {"project": "odd"}, {"search": "odd odd"}):
        assert listed(**nothing) == []
        assert "No model matches" in browser.get(f"{hub.url}/", params=nothing).text
    page = text_of(browser.get(f"{hub.url}/", params={"project": project}))
    assert "ValueError: &lt;no&gt;" in page
    assert "Traceback" not in page
    assert browser.get(f"{hub.url}/", params={"after": "nobody"}).status_code == 200


def test_the_best_of_a_model_is_its_most_telling_metric(hub, browser):
    talk = Talk(hub)
    values = [
        {"train/loss": 3.0, "val/loss": 2.5, "accuracy": 0.25, "system/score": 9.0},
        {"train/loss": 2.0, "val/loss": 2.25, "accuracy": 0.75},
        {"train/loss": 1.0, "val/loss": 4.5, "accuracy": 0.5},
    ]
    talk.accepted(*[metrics_event(talk.attempt_id, seq, values=one) for seq, one in enumerate(values)])
    page = browser.get(f"{hub.url}/", params={"project": talk.project})
    assert "0.75 accuracy" in text_of(page)
    assert page.text.count("<polyline") == 1
    summary = text_of(browser.get(f"{hub.url}/models/{talk.model_id}/parts/summary"))
    assert "val/loss 4.5 2 2.25 4.5 3" in summary


def test_more_models_than_fit_are_on_the_next_page(hub, browser):
    project = Talk(hub).project
    oldest = Talk(hub, project).model_id
    for _ in range(50):
        Talk(hub, project)
    first = browser.get(f"{hub.url}/").text
    assert oldest not in first
    older = re.search(r'href="(/\?after=[A-Za-z0-9]+)"', first).group(1)
    assert oldest in browser.get(hub.url + older).text


def test_a_hub_without_models_says_what_to_paste_and_keeps_the_key(start_hub):
    hub = start_hub()
    with requests.Session() as browser:
        page = browser.post(f"{hub.url}/sign-in", data={"key": hub.key}).text
    assert f"export DDPHUB_URL={hub.url}\n" in page
    assert '<pre id="paste-python" tabindex="0">import ddphub\n\nrun = ddphub.init(project=' in page
    assert "\nread -rs DDPHUB_API_KEY; export DDPHUB_API_KEY</pre>" in page
    assert hub.key not in page


def test_a_models_page_shows_what_was_stored_escaped(hub, browser, talk):
    key = {"attempt_id": talk.attempt_id, "rank": 0, "time": 1_700_000_000.0}
    console = {"kind": "console", "stream": "stderr", "lines": [f"\x1b[31m{HOSTILE}\x1b[0m\x07"], "left_out": 3}
    talk.accepted(
        attempt_event(talk.attempt_id, 0, "started", host=HOSTILE),
        rank_event(talk.attempt_id, 1, 1, "joined", host=HOSTILE),
        metrics_event(
            talk.attempt_id, 2, values={f"{HOSTILE_NAME}/": 0.125, "values": 3, "bad": "NaN", "done": True}, epoch=4
        ),
        key | {"seq": 3} | console,
        key | {"seq": 4, "kind": "log", "level": "info", "message": HOSTILE},
        attempt_event(talk.attempt_id, 5, "failed", reason=f"Traceback:\n{HOSTILE}"),
    )
    talk.http.patch(talk.url(), json={"config": {HOSTILE: {HOSTILE: HOSTILE}}, "meta": {"name": HOSTILE_NAME}})
    checkpoint_id = talk.upload({f"dir/{HOSTILE_NAME}": b"abc"}, name=HOSTILE_NAME)
    answer = browser.get(f"{hub.url}/models/{talk.model_id}")
    page = answer.text
    assert answer.status_code == 200
    assert page.count("<script") == page.count("<script src=") + page.count('<script type="module" src=')
    assert page.count("&lt;script&gt;alert(") >= 12
    assert "onload" not in Tags(page).attributes
    assert "\x1b" not in page
    assert "\x07" not in page
    assert sha256(b"abc") in page
    assert checkpoint_id in page
    assert "(3 lines are missing here)" in page
    link = re.search(r'class="download" href="(/v1/[^"]+)"', page).group(1)
    assert browser.get(hub.url + link).content == b"abc"
    delivery = browser.get(f"{hub.url}/models/{talk.model_id}/parts/delivery").text
    assert "6 events received, none missing" in text_of(browser.get(f"{hub.url}/models/{talk.model_id}/parts/delivery"))
    assert "<script" not in delivery


def test_more_checkpoints_than_fit_are_on_the_next_page(talk, part):
    made = [talk.upload({"a": b"%d" % number}) for number in range(22)]
    shown = re.findall('<tr id="checkpoint-([A-Za-z0-9]+)">', part("checkpoints").text)
    assert shown == made[:1:-1]
    assert 'href="?checkpoints_from=20" data-turns="checkpoints"' in part("checkpoints").text
    older = part("checkpoints", params={"checkpoints_from": 20}).text
    assert re.findall('<tr id="checkpoint-([A-Za-z0-9]+)">', older) == made[1::-1]
    assert part("checkpoints", params={"checkpoints_from": 10**6}).status_code == 200


def test_a_checkpoint_of_several_files_is_one_zip(hub, browser, talk):
    files = {"a/b.pt": b"x" * 150_000, "a/empty": b"", "\u00fcber": b"c"}
    address = f"{hub.url}/models/{talk.model_id}/checkpoints/{talk.upload(files)}/archive"
    answer = browser.get(address)
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == files
    assert requests.get(address, allow_redirects=False).status_code == 303
    waiting = talk.begin({"a": b"abc"})["id"]
    problem(browser.get(f"{hub.url}/models/{talk.model_id}/checkpoints/{waiting}/archive"), 404)


def test_a_part_that_has_not_changed_is_not_sent_again(hub, talk, part):
    for name in ("status", "tiles", "ranks", "checkpoints", "attempts", "log", "summary", "labels", "delivery"):
        first = part(name)
        assert first.status_code == 200
        assert float(first.headers["poll-after"]) >= 2
        again = part(name, headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    before = part("summary")
    talk.accepted(metrics_event(talk.attempt_id, 0, values={"loss": 0.5}))
    talk.wait_until(lambda: part("summary", headers={"if-none-match": before.headers["etag"]}).status_code == 200)
    problem(part("odd"), 404)
    problem(requests.get(f"{hub.url}/models/{talk.model_id}/parts/status"), 401)


def test_the_log_is_the_newest_lines_of_the_chosen_rank_and_stream(talk, part):
    def say(seq, rank, stream, lines):
        key = {"attempt_id": talk.attempt_id, "rank": rank, "seq": seq, "time": 1_700_000_000.0 + seq}
        talk.accepted(key | {"kind": "console", "stream": stream, "lines": lines, "left_out": 0})

    for seq in range(5):
        say(seq, 0, "stdout", [f"zero {100 * seq + number}" for number in range(100)])
    say(5, 0, "stderr", ["alarm"])
    say(0, 3, "stdout", ["three"])
    who = r'<span class="who" title="2023-11-14 22:13:2\d UTC">(\d+)</span>'
    shown = re.findall(rf'<div id="(line-\d+-\d+)" class="(\w+)">{who}([^<]*)</div>', part("log").text)
    assert len(shown) == 400 == len({one[0] for one in shown})
    assert [one[1:] for one in shown[-3:]] == [
        ("stdout", "0", "zero 499"),
        ("stderr", "0", "alarm"),
        ("stdout", "3", "three"),
    ]
    assert "alarm" in (only := part("log", params={"log_stream": "stderr"}).text)
    assert "zero" not in only
    assert "three" in (only := part("log", params={"log_rank": "3", "log_stream": ""}).text)
    assert "zero" not in only
    assert "Nothing was printed yet by this rank" in text_of(part("log", params={"log_rank": "9"}))
    problem(part("log", params={"log_rank": "-1"}), 422)


def test_the_worst_ranks_come_first_and_more_than_fit_are_on_the_next_page(talk, part):
    ranks = [rank_event(talk.attempt_id, number + 1, number, "joined") for number in range(120)]
    lost = rank_event(talk.attempt_id, 200, 77, "lost", time=1_800_000_000.0)
    talk.accepted(attempt_event(talk.attempt_id, 0, "started", world_size=120), *ranks, lost)
    first = re.findall(r'<tr id="rank-(\d+)">', part("ranks").text)
    assert first[0] == "77"
    last = re.findall(r'<tr id="rank-(\d+)">', part("ranks", params={"ranks_from": "100"}).text)
    assert last == [str(number) for number in range(100, 120)]
    tiles = part("tiles").text
    assert tiles.count('<li class="tile ') == 120
    assert tiles.count('<li class="tile silent" title="rank 77: silent, n77"') == 1
    assert "1 silent" in text_of(part("tiles"))


def test_a_rank_that_is_done_is_behind_nobody(talk, part):
    steps = [metrics_event(talk.attempt_id, 9, rank=rank, step=step) for rank, step in ((1, 5), (2, 50))]
    left = rank_event(talk.attempt_id, 3, 1, "left", time=1_800_000_000.0)
    talk.accepted(attempt_event(talk.attempt_id, 0, "started", world_size=3), *steps, left)
    row = re.search(r'<tr id="rank-1">(.*?)</tr>', part("ranks").text, re.DOTALL).group(1)
    assert "done" in row
    assert '<td class="number">5</td><td class="number"></td>' in row


@pytest.mark.parametrize(
    ("epochs", "epoch", "shown"),
    [(6, 0, "epoch 1 of 6"), (6, 5, "epoch 6 of 6"), (6, 6, "epoch 6 of 6"), (6, 7, "epoch 7"), (None, 5, "epoch 5")],
)
def test_epochs_are_counted_as_people_do(hub, browser, talk, part, epochs, epoch, shown):
    talk.http.patch(talk.url(), json={"config": {"epochs": epochs}}).raise_for_status()
    talk.accepted(metrics_event(talk.attempt_id, 0, values={"loss": 1}, epoch=epoch))
    in_list = browser.get(f"{hub.url}/parts/models", params={"project": talk.project}).text
    for row in (part("status").text, in_list):
        assert re.search(rf"{shown}\b(?! of)", row)
        assert re.findall(r'<progress max="6" value="(\d)"', row) == ([shown[6]] if "of" in shown else [])
        assert (f'title="epoch {epoch} as the program counts"' in row) == ("of" in shown)


def test_a_hole_in_what_arrived_is_in_the_delivery_report(talk, part):
    warning = {"attempt_id": talk.attempt_id, "rank": 0, "seq": 0, "time": 1.0, "kind": "log", "level": "warning"}
    talk.accepted(*[metrics_event(talk.attempt_id, seq, rank=1) for seq in (0, 1, 4)])
    talk.accepted(warning | {"message": "2 <events> were dropped"})
    assert "4 events received, 2 not yet" in text_of(part("delivery"))
    assert "2 &lt;events&gt; were dropped" in text_of(part("delivery"))
    assert re.search(
        r"<td class=.number.>1</td><td class=.number.>3</td><td class=.number.>2</td>", part("delivery").text
    )


def test_models_are_compared_side_by_side(hub, browser):
    first, second = Talk(hub), Talk(hub)
    second.http.patch(second.url(), json={"config": {"lr": 0.5, "odd": HOSTILE}, "meta": {"name": "second"}})
    first.accepted(metrics_event(first.attempt_id, 0, values={"accuracy": 0.25, HOSTILE_NAME: 1}))
    second.accepted(metrics_event(second.attempt_id, 0, values={"accuracy": 0.5}))
    chosen = {"models": [first.model_id, second.model_id]}
    answer = browser.get(f"{hub.url}/compare", params=chosen, allow_redirects=False)
    address = f"/compare?models={first.model_id},{second.model_id}"
    assert (answer.status_code, answer.headers["location"]) == (303, address)
    page = browser.get(hub.url + address)
    assert "<script>" not in page.text
    assert text_of(page).count("≠") == 2  # lr and odd; epochs and batchSize are the same
    assert re.search(r'<strong class="best">★ most 0.5</strong>', page.text)
    assert f'href="/compare?models={second.model_id}"' in page.text
    assert "not here" not in text_of(page)
    assert "1 of these models is not here" in text_of(browser.get(f"{hub.url}/compare?models=nobody,{first.model_id}"))
    assert "Choose models" in text_of(browser.get(f"{hub.url}/compare"))
    assert browser.get(f"{hub.url}/parts/compare?models={first.model_id}").headers["etag"]


def test_pages_load_nothing_from_elsewhere_and_say_so(hub, browser, talk):
    found = set()
    for path in ("/", f"/models/{talk.model_id}", f"/compare?models={talk.model_id}", "/sign-in"):
        answer = browser.get(hub.url + path)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'self'")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"
        assert not re.search(r'(?:href|src|action|data-fragment)="(?![/#?"])', answer.text)
        assert "style" not in (tags := Tags(answer.text)).names
        assert not [name for name in tags.attributes if name == "style" or name.startswith("on")]
        found |= set(re.findall(r'(?:href|src)="(/static/[^"]+)"', answer.text))
    assert {one.rpartition("/")[2] for one in found} >= {"page.css", "live.js", "theme.js", "uPlot.iife.min.js"}
    for one in found:
        answer = requests.get(hub.url + one)
        kind = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}[one.rpartition(".")[2]]
        assert answer.headers["content-type"].partition(";")[0] == kind
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert not re.search(rb"https?://(?!www\.w3\.org/|github\.com/)", answer.content)


@pytest.mark.parametrize(
    "path",
    [
        "../assets.py",
        "..%2Fassets.py",
        "%2e%2e/assets.py",
        "/etc/passwd",
        "%2Fetc%2Fpasswd",
        "vendor",
        "",
        "page.css%00",
    ],
)
def test_only_files_of_the_pages_are_served(hub, path):
    url = f"{hub.url}/static/x/"
    with requests.Session() as http:
        request = requests.Request("GET", url).prepare()
        request.url = url + path
        assert http.send(request).status_code == (422 if "%00" in path else 404)


def test_a_file_by_an_old_address_is_the_newest_and_not_kept(hub):
    answer = requests.get(f"{hub.url}/static/{new_id()}/page.css")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-cache")


def test_a_page_of_a_model_that_is_not_there_is_a_404(hub, browser):
    answer = browser.get(f"{hub.url}/models/nobody")
    assert answer.status_code == 404
    assert "The hub has no such model" in answer.text
    problem(browser.get(f"{hub.url}/models/nobody/parts/status"), 404)


def test_no_page_describes_the_api_with_scripts_from_elsewhere(hub):
    for path in ("/docs", "/redoc", "/openapi.json"):
        problem(requests.get(hub.url + path), 404)

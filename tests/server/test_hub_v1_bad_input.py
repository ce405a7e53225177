"""HUB v1's requests as nobody should send them: answered in the hub's own words, never with a failure of its own."""

import json
from urllib.parse import quote

import pytest
from chaos.strategies import budget, mutations, texts
from hub_process import HubProcess
from hub_v1_talk import REQUEST, V1, leftovers
from hypothesis import given
from hypothesis import strategies as st

METRICS = {"metrics": {"0": '{"loss": 0.5, "bad": NaN}', "7": "{}"}, "type": "metrics"}
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="epoch"\r\n\r\n4\r\n'
    b'--b\r\nContent-Disposition: form-data; name="type"\r\n\r\nepoch\r\n'
    b'--b\r\nContent-Disposition: form-data; name="last.pt"; filename="last.pt"\r\n\r\nweights\r\n--b--\r\n'
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Its hub's log is read at the end: a traceback in it fails the last test."""
    with HubProcess(tmp_path_factory.mktemp("hub") / "data", api_key="k" * 42) as process:
        yield V1(process)
        assert "Traceback" not in process.log.read_text()


def check(model, answer):
    """Never a failure, and whatever was taken can be shown."""
    assert answer.status_code < 500, answer.text
    assert answer.json()["success"] is (answer.status_code == 200)
    if answer.status_code == 200:
        for path in ("", "/metrics?limit=10000", "/checkpoints"):
            model.get(path)
    else:
        assert answer.json()["message"]
        assert len(answer.content) < 10_000


def send(model, method, value):
    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return model.http.request(method, model.url(), data=body)


@budget(60)
@given(request=mutations(METRICS))
def test_any_metrics_are_answered(model, request):
    check(model, send(model, "POST", request))


@budget(60)
@given(values=mutations({"loss": 0.5, "train/box": 1}), key=texts)
def test_any_values_of_an_epoch_are_answered(model, values, key):
    for epoch in ("1", key):
        check(model, send(model, "POST", {"metrics": {epoch: json.dumps(values)}}))


@budget(60)
@given(request=mutations(REQUEST | {"projectId": None, "datasetId": "x"}))
def test_any_model_and_any_change_is_answered(model, request):
    body = json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass")
    answer = model.http.post(f"{model.hub.url}/v1/models", data=body)
    check(model, answer)
    if answer.status_code == 200:
        check(V1.known(model.hub, answer.json()["data"]["id"]), answer)
    check(model, send(model, "PATCH", request))


@st.composite
def forms(draw):
    """A form with bytes flipped, dropped, doubled or put in."""
    form = bytearray(FORM)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(form) - 1))
        length = draw(st.sampled_from([0, 1, 2, 5, 40]))
        put = draw(
            st.one_of(st.binary(max_size=8), st.sampled_from([b"--b", b"\r\n", b"\r\n--b--", b'"', b"\0", FORM]))
        )
        form[start : start + length] = put
    return bytes(form)


@budget(100)
@given(
    form=forms(), kind=st.sampled_from(["multipart/form-data; boundary=b"] * 5 + ["multipart/form-data; boundary=-"])
)
def test_any_form_is_answered_and_leaves_nothing_half(model, form, kind):
    check(model, model.http.post(model.url("/upload"), data=form, headers={"content-type": kind}))
    assert leftovers(model.hub) == []


@budget(60)
@given(
    fields=st.dictionaries(st.sampled_from(["epoch", "type", "isBest", "map"]), texts | st.sampled_from(["0", "final"]))
)
def test_any_fields_are_answered(model, fields):
    sent = {name: text.encode("utf-8", "surrogatepass") for name, text in fields.items()}
    check(model, model.send(sent, "best.pt", content=b"weights"))


@budget(40)
@given(data=st.data())
def test_any_download_is_answered(model, data):
    model.epoch(0, content=b"weights")
    pieces = model.get()["resume"].removeprefix(model.hub.url).split("/")
    place = data.draw(st.integers(3, len(pieces) - 1))
    pieces[place] = quote(data.draw(texts).encode("utf-8", "surrogatepass"), safe="")
    answer = model.http.get(model.hub.url + "/".join(pieces))
    if place == 4 and answer.status_code == 200:  # many zeros are a zero
        assert answer.content == b"weights"
        return
    assert answer.status_code in {403, 404, 422}
    check(model, answer)

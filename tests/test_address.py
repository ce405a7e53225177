"""What `hub=` and `model=` may say."""

import pytest

from ddphub.address import HubAddress, ModelAddress
from ddphub.config import Settings
from ddphub.errors import SettingsError

KEY = "k" * 42
ID = "m" * 20


@pytest.mark.parametrize(
    ("text", "environ", "hub"),
    [
        ("http://127.0.0.1:8765/", {}, "http://127.0.0.1:8765"),
        ("https://platform.ultralytics.com", {}, "platform+https://platform.ultralytics.com"),
        ("https://api.ultralytics.com", {}, "hub-v1+https://api.ultralytics.com"),
        ("https://hub.ultralytics.com", {}, "hub-v1+https://api.ultralytics.com"),
        ("platform", {}, "platform+https://platform.ultralytics.com"),
        ("platform", {"ULTRALYTICS_PLATFORM_URL": "http://p:1/"}, "platform+http://p:1"),
        ("hub-v1", {}, "hub-v1+https://api.ultralytics.com"),
        ("hub-v1", {"ULTRALYTICS_HUB_API": "http://h:1"}, "hub-v1+http://h:1"),
        ("platform+http://p:1", {"ULTRALYTICS_PLATFORM_URL": "http://other"}, "platform+http://p:1"),
        ("hub-v1+http://h:1/", {}, "hub-v1+http://h:1"),
        # Old clients may be sent to our hub by their variable: it stays a ddphub hub.
        ("http://ours:1", {"ULTRALYTICS_HUB_API": "http://ours:1"}, "http://ours:1"),
    ],
)
def test_a_hub_is_named_or_follows_from_its_url(text, environ, hub):
    assert str(HubAddress.parse(text, "argument", environ)) == hub
    assert str(HubAddress.parse(hub, "run.json", {})) == hub, "what is written down says the same anywhere"


@pytest.mark.parametrize("text", ["plattform", "platform+", "platform+hub", "hub-v1+ftp://h", "hub-v2+http://h", "", 7])
def test_what_names_no_hub_is_refused(text):
    with pytest.raises(SettingsError, match="platform, hub-v1"):
        HubAddress.parse(text, "argument", {})


def test_a_wrong_variable_of_a_named_service_is_named():
    with pytest.raises(SettingsError, match="ULTRALYTICS_PLATFORM_URL"):
        HubAddress.parse("platform", "argument", {"ULTRALYTICS_PLATFORM_URL": "here"})


@pytest.mark.parametrize(
    ("text", "environ", "model"),
    [
        (ID, {}, ModelAddress(ID, None, None)),
        ("66f000000000000000000001", {}, ModelAddress("66f000000000000000000001", None, None)),
        (f"{KEY}_{ID}", {}, ModelAddress(ID, None, KEY)),
        (f"https://hub.ultralytics.com/models/{ID}", {}, ModelAddress(ID, "hub-v1+https://api.ultralytics.com", None)),
        (f"http://hub:1/models/{ID}", {}, ModelAddress(ID, "http://hub:1", None)),
        (f"http://hub:1/models/{ID}/?api_key={KEY}", {}, ModelAddress(ID, "http://hub:1", KEY)),
        (
            f"http://web:1/models/{ID}",
            {"ULTRALYTICS_HUB_WEB": "http://web:1/", "ULTRALYTICS_HUB_API": "http://api:1"},
            ModelAddress(ID, "hub-v1+http://api:1", None),
        ),
    ],
)
def test_a_model_is_named_as_hub_clients_name_it(text, environ, model):
    assert ModelAddress.parse(text, "argument", environ) == model


@pytest.mark.parametrize("text", [f"{KEY}x_{ID}", f"http://hub/model/{ID}", "http://hub/models/a/b", "../x", "", 7])
def test_what_names_no_model_is_refused_and_not_shown(text):
    with pytest.raises(SettingsError) as raised:
        ModelAddress.parse(text, "argument", {})
    assert KEY not in str(raised.value)


def resolve(environ=None, **given):
    return Settings.resolve({"project": "p", "mode": "disabled", **given}, {"HOME": "/nowhere", **(environ or {})})


def test_a_model_brings_its_hub_and_key():
    settings = resolve(model=f"http://hub:1/models/{ID}?api_key={KEY}")
    assert (settings.hub, settings.model, settings.api_key) == ("http://hub:1", ID, KEY)
    assert KEY not in repr(settings)
    assert resolve(model=ID, hub="hub-v1+http://h").hub == "hub-v1+http://h"
    assert resolve(model=f"{KEY}_{ID}", hub="hub-v1").api_key == KEY


def test_a_model_on_another_hub_than_the_given_one_is_refused():
    with pytest.raises(SettingsError, match="the model is on http://hub:1"):
        resolve(model=f"http://hub:1/models/{ID}", hub="http://hub:2")


def test_the_key_of_a_service_comes_before_the_hubs():
    variables = {"ULTRALYTICS_API_KEY": "ul", "DDPHUB_API_KEY": "dd"}
    assert resolve(variables, hub="platform").api_key == "ul"
    assert resolve(variables, hub="http://hub").api_key == "dd"
    assert resolve(variables, hub="platform", api_key="given").api_key == "given"
    assert resolve({"DDPHUB_API_KEY": "dd"}, hub="platform").api_key == "dd"

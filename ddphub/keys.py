"""Which hub is meant, and the key that belongs to it: a key never goes to a hub that nobody chose it for."""

from collections.abc import Mapping
from typing import Final

from ddphub.address import HubAddress, ModelAddress
from ddphub.config import Credentials, check_key, service_variable
from ddphub.errors import SettingsError

_NO_HUB: Final = "no hub is named: pass --hub URL, set DDPHUB_URL, or ddphub login --url URL"


class MissingSettingError(SettingsError):
    """Something must be chosen and was not: there is no wrong value to show, the sentence says it all."""

    def __str__(self) -> str:
        return self.expected


def hub_and_key(
    named: str | None, chosen: str | None, environ: Mapping[str, str], *, source: str
) -> tuple[str, str | None]:
    """Which hub, and the key that belongs to it.

    Args:
        named: the hub that a run.json, or a model's URL, names: such a text may come from anyone.
        chosen: the hub that the user chose, which comes first.
        environ: the environment: DDPHUB_URL, DDPHUB_API_KEY, and where the credentials file is.
        source: what names the hub, for errors: "the run".

    Raises:
        SettingsError: no hub is known, or the only key at hand is for another one.
    """
    credentials = Credentials.load(environ)
    configured = environ.get("DDPHUB_URL")
    configured = str(HubAddress.parse(configured, "DDPHUB_URL", environ)) if configured else None
    hub = chosen or named or configured or credentials.default_hub
    if hub is None:
        raise MissingSettingError("hub", None, source, _NO_HUB)
    hub = str(HubAddress.parse(hub, source, {}))
    variable = service_variable(hub)
    if variable and environ.get(variable):
        service = hub.partition("+")[0]
        if hub in {chosen, configured, str(HubAddress.parse(service, "the environment", environ))}:
            return hub, _checked(environ[variable], variable)
    if hub in {chosen, configured} or (configured is None and hub == credentials.default_hub):
        if environ.get("DDPHUB_API_KEY"):
            return hub, _checked(environ["DDPHUB_API_KEY"], "DDPHUB_API_KEY")
        return hub, _checked(credentials.key_for(hub), "the credentials file")
    key = credentials.key_for(hub)
    if key is None and environ.get("DDPHUB_API_KEY"):
        how = f"pass --hub {hub} to use the key there"
        if configured is None:
            text = f"the key in DDPHUB_API_KEY has no DDPHUB_URL beside it: {how}"
            raise MissingSettingError("hub", None, source, text)
        raise SettingsError("hub", hub, source, f"DDPHUB_API_KEY is for {configured}: {how}")
    return hub, _checked(key, "the credentials file")


def hub_of_model(model: ModelAddress, chosen: str | None, environ: Mapping[str, str]) -> tuple[str, str | None]:
    """The hub that has a model, and its key.

    Args:
        model: as the user wrote it. The URL of its page names its hub, and chooses it where DDPHUB_URL chooses none.
        chosen: the hub that the user chose beside it.
        environ: the environment.

    Raises:
        SettingsError: as `hub_and_key`; or the model is on another hub than the one that was chosen.
    """
    if chosen is not None:
        chosen = str(HubAddress.parse(chosen, "--hub", environ))
        if model.hub not in {None, chosen}:
            raise SettingsError("hub", chosen, "--hub", f"the model is on {model.hub}")
    elif not environ.get("DDPHUB_URL"):
        chosen = model.hub
    if model.api_key is not None:
        hub = chosen or model.hub or hub_and_key(None, None, environ, source="the model")[0]
        return hub, _checked(model.api_key, "MODEL")
    return hub_and_key(model.hub, chosen, environ, source="the model")


def why_refused(hub: str, key: str | None) -> str:
    """What to do about a hub that does not take a key, or the lack of one."""
    if key is None:
        variable = service_variable(hub) or "DDPHUB_API_KEY"
        return f"{hub} wants a key, and none is set: {variable}, or ddphub login --url {hub}"
    return f"{hub} does not know the key: pass the key, set DDPHUB_API_KEY or run `ddphub login`"


def _checked(key: str | None, source: str) -> str | None:
    check_key(key, source)
    return key

"""Which hub is meant, and the key that belongs to it: a key never goes to a hub that nobody chose it for."""

from collections.abc import Mapping
from typing import Final

from ddphub.address import HubAddress, ModelAddress
from ddphub.config import Credentials, check_key, service_variable
from ddphub.errors import SettingsError

_WHICH: Final = "which hub is it? Pass its URL, with --hub on the command line, or set DDPHUB_URL"


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
        raise SettingsError("hub", None, source, f"{source} names no hub: {_WHICH}")
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
        whose = f"DDPHUB_API_KEY is for {configured}" if configured else "DDPHUB_API_KEY names no hub"
        raise SettingsError("hub", hub, source, f"{whose}: pass --hub {hub} to use the key there")
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


def _checked(key: str | None, source: str) -> str | None:
    check_key(key, source)
    return key

"""Which client speaks to which hub."""

from ddphub.address import HubAddress
from ddphub.hubs.client import HubClient


def connect(hub: str, api_key: str | None) -> HubClient:
    """A client of a hub; asks nothing yet.

    Args:
        hub: as run.json holds it, see `ddphub.address`.
        api_key: the key for it.

    Raises:
        SettingsError: `hub` names none.
    """
    address = HubAddress.parse(hub, "run.json", {})
    match address.service:
        case "platform":
            from ddphub.hubs.ultralytics_platform import PlatformClient  # noqa: PLC0415  # only the one that is used

            return PlatformClient(address.url, api_key)
        case "hub-v1":
            from ddphub.hubs.ultralytics_hub import HubV1Client  # noqa: PLC0415  # only the one that is used

            return HubV1Client(address.url, api_key)
        case "ddphub":
            from ddphub.hubs.ddphub import DdphubClient  # noqa: PLC0415  # only the one that is used

            return DdphubClient(address.url, api_key)

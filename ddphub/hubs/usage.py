"""Where usage events go: an endpoint of the user's own that speaks the GA4 Measurement Protocol."""

from collections.abc import Sequence
from typing import Any, Final

import requests

TIMEOUT: Final = (5.0, 10.0)
"""Seconds to connect, and between two bytes of the answer."""


def post_usage(url: str, client_id: str, events: Sequence[dict[str, Any]]) -> None:
    """Sends events once; what does not arrive is gone.

    https://developers.google.com/analytics/devguides/collection/protocol/ga4/reference

    Args:
        url: the endpoint with its query, a secret.
        client_id: random, of this process.
        events: `{"name": str, "params": {...}}` each.

    Raises:
        requests.RequestException: it did not work.
    """
    requests.post(
        url,
        json={"client_id": client_id, "events": list(events)},
        timeout=TIMEOUT,
        allow_redirects=False,  # a redirect would carry them to someone else
    )

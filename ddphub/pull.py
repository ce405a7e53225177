"""Fetching a checkpoint of any model: what `ddphub pull` does."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ddphub.address import ModelAddress
from ddphub.errors import HubModelGone, HubUnauthorized, SettingsError
from ddphub.hubs import wire
from ddphub.hubs.client import HubClient, RemoteCheckpoint
from ddphub.hubs.connect import connect
from ddphub.keys import MissingSettingError, hub_of_model, why_refused
from ddphub.latest import download_checkpoint


def pull(
    model: str, *, hub: str | None, kinds: Sequence[str], output: Path | None, environ: Mapping[str, str] | None = None
) -> tuple[RemoteCheckpoint, Path]:
    """Fetches the newest checkpoint of a model, checked against the hub's sha256.

    Args:
        model: its id, or the URL of its page.
        hub: the hub, where `model` is an id; DDPHUB_URL or the one of `ddphub login` by default.
        kinds: which kinds of checkpoint will do.
        output: see `save`.
        environ: the environment.

    Returns:
        The checkpoint, and where it is now.

    Raises:
        SettingsError: a setting is wrong, or something is in the way.
        HubError: the hub does not have it, or does not answer.
        OSError: it cannot be written.
    """
    environ = os.environ if environ is None else environ
    for kind in kinds:
        if kind not in wire.KINDS:
            raise SettingsError("kind", kind, "--kind", f"expected one of {', '.join(wire.KINDS)}")
    address = ModelAddress.parse(model, "MODEL", environ)
    url, key = hub_of_model(address, hub, environ)
    client = connect(url, key)
    try:
        found = client.newest_checkpoint(address.model_id, kinds)
        if found is None:
            rest = [kind for kind in wire.KINDS if kind not in kinds]
            has = [kind for kind in rest if client.newest_checkpoint(address.model_id, [kind])]
            wanted = f"{' or '.join(kinds)} checkpoint; it has: {', '.join(has) or 'none at all'}"
            raise HubModelGone(f"the model {address.model_id} on {url} has no {wanted if rest else 'checkpoint'}")
        return found, save(client, found, output)
    except HubUnauthorized as error:
        if key is not None:
            raise
        raise HubUnauthorized(f"{why_refused(url, key)} ({error})") from error
    finally:
        client.close()


def save(client: HubClient, checkpoint: RemoteCheckpoint, output: Path | None) -> Path:
    """Fetches a checkpoint that the hub has; it appears whole, with the size and sha256 that the hub told.

    Args:
        client: the hub.
        checkpoint: which.
        output: the file, or for a checkpoint of several files the folder; one that is there is replaced only if it is
            a file that is named so. By default the checkpoint's name, in the working directory.

    Returns:
        Where it is now.

    Raises:
        SettingsError: something is in the way.
        HubError: the hub does not give it.
        OSError: it cannot be written.
    """
    target = output or Path(checkpoint.name)
    is_file = len(checkpoint.files) == 1
    if os.path.lexists(target) and (output is None or not is_file or not target.is_file()):
        if output is None:
            raise MissingSettingError("output", None, "-o", f"{target} is there already: name another with -o PATH")
        raise SettingsError("output", str(target), "-o", "is there already: name another place")
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    if is_file:
        client.download(checkpoint.files[0], target)
    else:
        download_checkpoint(client, checkpoint, target)
    return target

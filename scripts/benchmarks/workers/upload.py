"""Uploads a file as a contestant's documentation says: what it took, and the most memory that it took.

    python upload.py CONTESTANT '{"url": ..., "key": ..., "folder": ..., "warm": ..., "file": ...}'

`warm` is a small file that goes first: imports, connections and registrations are no part of an upload. `folder` keeps
what a contestant needs to go on after a kill. What fails is tried again, as its caller would.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, Final

CHUNK: Final = 8 * 1024 * 1024
"""Bytes of a request of tuspy, as of a part of ours. Its default is one request, which has the whole file in memory."""

PAUSE: Final = 1.0
"""Seconds until what failed is tried again."""

TRIES: Final = 20

Upload = Callable[[str], dict[str, float]]
"""Sends a file; figures that the contestant alone knows."""


@contextmanager
def ddphub(*, url: str, key: str, folder: str) -> Iterator[Upload]:
    """Staged by `run.checkpoint()`, sent by the session's thread: from its first request to the receipt."""
    package = importlib.import_module("ddphub")
    staging = importlib.import_module("ddphub.checkpoints.staging").StagingArea
    client = importlib.import_module("ddphub.hubs.ddphub").DdphubClient
    delivery = importlib.import_module("ddphub.session.delivery").Delivery

    spans: dict[str, list[tuple[float, float]]] = {}
    for owner, name in ((staging, "seal"), (client, "upload"), (delivery, "_settle")):
        _time(owner, name, spans)
    limits = {"metrics": 3600.0, "ckpt": 0.0, "heartbeat": 3600.0}
    saved = 0

    def upload(file: str) -> dict[str, float]:
        nonlocal saved
        saved += 1
        spans.clear()
        with run.checkpoint(epoch=saved) as path, Path(file).open("rb") as source, path.open("wb") as target:
            while os.copy_file_range(source.fileno(), target.fileno(), 2**30):
                pass
        while "_settle" not in spans:
            time.sleep(0.005)
        digest_s = sum(end - begin for begin, end in spans["seal"])
        return {"seconds": spans["upload"][-1][1] - spans["upload"][0][0], "digest_s": digest_s}

    with package.init(
        project="bench", run_id="upload", hub=url, api_key=key, dir=folder, rate_limits=limits, console="off"
    ) as run:
        yield upload


def _time(owner: type, name: str, spans: dict[str, list[tuple[float, float]]]) -> None:
    """Notes begin and end of each call of a method."""
    call = getattr(owner, name)

    def timed(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401  # whatever the method takes
        began = time.perf_counter()
        try:
            return call(*arguments, **options)
        finally:
            spans.setdefault(name, []).append((began, time.perf_counter()))

    setattr(owner, name, timed)


@contextmanager
def hub_sdk(*, url: str, key: str, folder: str) -> Iterator[Upload]:  # noqa: ARG001  # as all
    """`model.upload_model`, to the HUB v1 API of the same hub."""
    os.environ |= {"ULTRALYTICS_HUB_API": url, "HUB_API_KEY": key}
    model = importlib.import_module("hub_sdk").HUBClient().model()
    model.create_model({"meta": {"name": "bench"}, "config": {}, "dataset": {"name": "bench"}})
    epoch = 0

    def upload(file: str) -> dict[str, float]:
        nonlocal epoch
        epoch += 1
        answer = model.upload_model(epoch, file)
        if answer is None or answer.status_code != 200:
            raise OSError(f"not uploaded: {answer}")
        return {}

    yield upload


@contextmanager
def mlflow(*, url: str, key: str, folder: str) -> Iterator[Upload]:  # noqa: ARG001  # as all
    """`mlflow.log_artifact`, through the server."""
    package = importlib.import_module("mlflow")
    package.set_tracking_uri(url)
    package.set_experiment("bench")

    def upload(file: str) -> dict[str, float]:
        package.log_artifact(file)
        return {}

    with package.start_run():
        yield upload


@contextmanager
def tuspy(*, url: str, key: str, folder: str) -> Iterator[Upload]:  # noqa: ARG001  # as all
    """An uploader that remembers where it sends to."""
    client = importlib.import_module("tusclient.client").TusClient(url)
    with closing(importlib.import_module("tusclient.storage.filestorage").FileStorage(f"{folder}-tus.json")) as storage:

        def upload(file: str) -> dict[str, float]:
            told = {"filename": Path(file).name, "filetype": "application/octet-stream"}  # which the server wants
            client.uploader(file, chunk_size=CHUNK, store_url=True, url_storage=storage, metadata=told).upload()
            return {}

        yield upload


CONTESTANTS: Final[dict[str, Callable[..., AbstractContextManager[Upload]]]] = {
    "ddphub": ddphub,
    "hub-sdk": hub_sdk,
    "mlflow": mlflow,
    "tuspy": tuspy,
}


def main(contestant: str, given: str) -> None:
    """Sends the small file, then the large one."""
    where = json.loads(given)
    warm, file = where.pop("warm"), where.pop("file")
    with CONTESTANTS[contestant](**where) as upload:
        insist(upload, warm)
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on (proc(5))
        began = time.perf_counter()
        more = insist(upload, file)
        seconds = time.perf_counter() - began
        memory = resident("VmHWM") - before
    print(json.dumps({"seconds": seconds, "memory_mib": memory / 2**20, **more}))


def insist(upload: Upload, file: str) -> dict[str, float]:
    """Sends a file, and again where that fails.

    Raises:
        Exception: of the last try.
    """
    for tries_left in reversed(range(TRIES)):
        try:
            return upload(file)
        except Exception as error:  # each contestant has errors of its own
            print(f"again: {error!r}"[:300], file=sys.stderr)
            if not tries_left:
                raise
            time.sleep(PAUSE)
    raise AssertionError


def resident(field: str, process: int | str = "self") -> int:
    """Bytes of a process: VmRSS now, VmHWM at most."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main(*sys.argv[1:])

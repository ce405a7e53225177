"""Uploads a file, and downloads one where a URL is given; prints by how many bytes memory grew at most, and the result.

memory_program.py HUB KEY FILE [SHA256]: with a sha256 the file is uploaded as a ddphub checkpoint and fetched again.
"""

import hashlib
import json
import re
import sys
from pathlib import Path

from ddphub.hubs.client import Registration
from ddphub.hubs.connect import connect


def memory(name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def main() -> None:
    hub, key, file = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    client = connect(hub, key)
    attempt = "a" * 32
    model_id = client.register(Registration("run", "p", "n", {}, attempts=(attempt,)))
    size = file.stat().st_size
    about = {"name": file.name, "size": size, "sha256": "", "parts": []}
    if client.is_idempotent:
        with file.open("rb") as content:
            about["sha256"] = hashlib.file_digest(content, "sha256").hexdigest()
            content.seek(0)
            about["parts"] = [
                hashlib.sha256(part).hexdigest() for part in iter(lambda: content.read(client.part_size), b"")
            ]
    small = file.with_name("small")
    small.write_bytes(b"1")
    request = {"attempt_id": attempt, "epoch": 0, "step": None, "kind": "best", "name": file.name, "metrics": {}}
    if not client.is_idempotent:  # once in small, so that what libraries load is not counted
        client.upload(model_id, "1" * 32, {**request, "files": [{**about, "name": "small"}]}, {"small": small})
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = memory("VmRSS")
    client.upload(model_id, "e" * 32, {**request, "files": [about]}, {file.name: file})
    if client.is_idempotent:
        newest = client.newest_checkpoint(model_id, ("best",))
        client.download(newest.files[0], file.with_name("fetched"))
    print(json.dumps({"grew": memory("VmHWM") - before}))


if __name__ == "__main__":
    main()

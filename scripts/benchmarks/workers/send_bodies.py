"""Sends prepared bodies one after the other over one connection: `CONTESTANT URL FILE RUN`, headers as JSON on stdin.

Says `ready` once it has read them and waits for another line: several of these begin at one moment. What it prints last
is when it began and ended, by a clock that all processes share.
"""

import http.client
import json
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit


def main() -> None:
    """Sends them."""
    _, url, file, run = sys.argv[1:]
    place = urlsplit(url)
    headers = {"content-type": "application/json", **json.loads(sys.stdin.readline())}
    bodies = [line.replace(b'"RUN"', f'"{run}"'.encode(), 1) for line in Path(file).read_bytes().splitlines()]
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=120)
    connection.connect()
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    for body in bodies:
        connection.request("POST", place.path, body, headers)
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{answer.status}: {said[:500]!r}")
    print(json.dumps({"began": began, "ended": time.monotonic()}))


if __name__ == "__main__":
    main()

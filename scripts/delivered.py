"""Says whether the hub has everything that a run generated, by the run directory's account and by the hub's.

```
ddphub status --json | python scripts/delivered.py http://127.0.0.1:8765
```

Reads one run on standard input; the key is DDPHUB_API_KEY. Exit code 0 when both accounts agree, else 1.
"""

import json
import os
import sys
import urllib.request
from typing import Any


def ask(hub: str, model_id: str) -> dict[str, Any]:
    """What the hub tells of a model.

    Raises:
        OSError: the hub does not answer, or not with success.
    """
    request = urllib.request.Request(f"{hub}/v1/models/{model_id}", headers={"x-api-key": os.environ["DDPHUB_API_KEY"]})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the hub is on this machine
    with direct.open(request, timeout=30) as response:
        data: dict[str, Any] = json.load(response)["data"]
    return data


def differences(run: dict[str, Any], model: dict[str, Any]) -> list[str]:
    """What is missing, in words.

    Args:
        run: one line of `ddphub status --json`.
        model: the hub's account.
    """
    events, checkpoints = run["events"], run["checkpoints"]
    expected = {
        "events reported": (events["reported"] > 0, True),
        "events pending": (events["pending"], 0),
        "events set aside": (events["set_aside"], 0),
        "events on the hub": (model["events"], events["reported"]),
        "checkpoints staged": (checkpoints["staged"] > 0, True),
        "checkpoints pending": (checkpoints["pending"], 0),
        "checkpoints set aside": (checkpoints["set_aside"], 0),
        "checkpoints refused": (checkpoints["refused"], 0),
        "checkpoints uploaded": (checkpoints["uploaded"], checkpoints["staged"] - checkpoints["superseded"]),
        "checkpoints on the hub": (model["checkpoints"], checkpoints["uploaded"]),
        "the run's state on the hub": (model["state"], "finished"),
    }
    found = [f"{what}: {is_so}, expected {wanted}" for what, (is_so, wanted) in expected.items() if is_so != wanted]
    return [*found, *run["problems"]]


def main() -> int:
    """The exit code."""
    (run,) = map(json.loads, sys.stdin)
    if run["model_id"] is None:
        print("the run never reached the hub")
        return 1
    found = differences(run, ask(sys.argv[1], run["model_id"]))
    for difference in found:
        print(f"NOT DELIVERED  {difference}")
    if not found:
        kept = run["events"]["delivered"], run["checkpoints"]["uploaded"]
        print("the hub has all {} events and {} checkpoints".format(*kept))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

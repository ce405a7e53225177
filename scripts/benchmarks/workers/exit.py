"""A training that has nothing left to send, and exits.

    exit.py CONTESTANT REPORTER STEPS

Says "logged", waits for a line, says at which time of CLOCK_MONOTONIC its last step ended, finishes, and exits.
"""

import json
import os
import sys
import time

import torch
from reporters import REPORTERS


def say(text: str) -> None:
    """Past the stream that a reporter may capture: this is no line of a training, to be sent."""
    os.write(1, f"{text}\n".encode())


def main(reporter: str, steps: int) -> None:
    """One training."""
    run = REPORTERS[reporter]()
    weights = torch.randn(100, 100)
    for step in range(steps):
        loss = float((weights @ weights).mean())
        run.log({"loss": loss}, step=step)
        time.sleep(0.005)
    say("logged")
    sys.stdin.readline()
    say(json.dumps({"last_step": time.clock_gettime(time.CLOCK_MONOTONIC)}))
    run.finish()


if __name__ == "__main__":
    main(sys.argv[2], int(sys.argv[3]))

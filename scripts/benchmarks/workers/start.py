"""Starts a run in a process that has imported torch, as a training has.

    start.py CONTESTANT REPORTER

Prints the seconds that the contestant's import took, and the seconds from there until its run had begun.
"""

import importlib
import json
import os
import sys
import time

import torch  # noqa: F401  # the training's own, before the clock starts
from reporters import REPORTERS


def main(contestant: str, reporter: str) -> None:
    """One start."""
    began = time.perf_counter()
    module = importlib.import_module(contestant)
    if contestant == "ddphub":
        _ = module.init  # what brings in most of it: a module's names are imported when they are used
    imported = time.perf_counter()
    REPORTERS[reporter]()
    started = time.perf_counter()
    os.write(1, f"{json.dumps({'import': imported - began, 'init': started - imported})}\n".encode())
    os._exit(0)  # how it ends is not measured here, and takes long without a hub


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

"""Serves a TCPStore, as torchrun's agent does, so that a test can stop it."""

import argparse
import time
from pathlib import Path

from torch.distributed import TCPStore

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--port", type=int, required=True)
arguments = parser.parse_args()
store = TCPStore("127.0.0.1", arguments.port, is_master=True, wait_for_workers=False)
(arguments.out / "store").write_text("up")
time.sleep(150)

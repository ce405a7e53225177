"""Rank 1 leaves long before rank 0."""

import argparse
import time

import ddphub

parser = argparse.ArgumentParser()
parser.add_argument("--out")
parser.parse_args()

run = ddphub.init(project="tests", name="early", rate_limits={"metrics": 0.2})
run.log({"loss": 1.0})
if run.topology.rank == 0:
    time.sleep(4)
    run.log({"loss": 0.5})
run.finish()

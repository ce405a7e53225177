"""The command line of `scripts/chaos`."""

import argparse
import sys


def main() -> int:
    """The exit code: 0 when nothing was lost, doubled or torn."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="random runs")
    parser.add_argument("--seed", type=int, default=1, help="the same seed plans the same faults")
    parser.add_argument("--first", type=int, default=0, help="number of the first run: repeats a run of a seed")
    parser.add_argument("--at-once", type=int, default=3, help="runs at a time")
    parser.add_argument("--every-step", action="store_true", help="crash at every step instead")
    parser.add_argument("--only", action="append", default=[], help="with --every-step: a scenario; may be repeated")
    arguments = parser.parse_args()
    if arguments.every_step:
        from chaos import every_step

        return every_step.main(arguments.only)
    from chaos import random_runs

    return random_runs.main(arguments.runs, arguments.seed, arguments.at_once, arguments.first)


if __name__ == "__main__":
    sys.exit(main())

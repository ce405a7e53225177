"""Saying something to the person who started the job."""

import contextlib
import sys


def tell(lines: list[str]) -> None:
    """Writes lines to stderr, where a program's output is not disturbed."""
    with contextlib.suppress(Exception):  # stderr may be closed, none, or an object of the program's that raises
        sys.stderr.write("".join(f"ddphub: {line}\n" for line in lines))
        sys.stderr.flush()

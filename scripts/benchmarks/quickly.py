"""What `--quick` does to turns of slow starters: it runs them at once, as their times say nothing anyway."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from benchmarks.figures import Measured

Turns = Mapping[str, Callable[[], Measured]]


@contextlib.contextmanager
def at_once(turns: Turns) -> Iterator[dict[str, Callable[[], Measured]]]:
    """The same turns, all under way: each gives what it measured once, when it is called.

    Args:
        turns: contestant -> a turn.
    """
    with ThreadPoolExecutor(3) as pool:
        yield {name: pool.submit(turn).result for name, turn in turns.items()}

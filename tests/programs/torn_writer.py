"""Rewrites one file for ever; every block of a version carries its number, so that any mixture shows.

Where the file is gone it waits for it to come back: the path may be a link that the test points elsewhere.
"""

import argparse
import mmap
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

BLOCK = 4096
BLOCKS = 2048


def content(version: int, blocks: int = BLOCKS) -> bytes:
    """All bytes of a version; its length depends on the version too."""
    return version.to_bytes(8, "little") * (BLOCK // 8) * (blocks + version % 3)


def version_of(data: bytes, blocks: int = BLOCKS) -> int | None:
    """Which version this is, every byte of it; None for anything else."""
    version = int.from_bytes(data[:8], "little")
    return version if data == content(version, blocks) else None


def pieces(data: bytes, count: int) -> Iterator[bytes]:
    """The data in `count` pieces, with a pause between them."""
    size = -(-len(data) // count)
    for start in range(0, len(data), size):
        if start and count < 10:
            time.sleep(random.choice([0, 0.001, 0.02]))
        yield data[start : start + size]


def rewrite(path: Path, data: bytes, count: int = 64) -> None:
    with path.open("r+b", buffering=0) as file:
        for piece in pieces(data, count):
            file.write(piece)
        file.truncate(len(data))


def rewrite_with_pauses(path: Path, data: bytes) -> None:
    rewrite(path, data, 3)


def truncate_and_rewrite(path: Path, data: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        for piece in pieces(data, 3):
            file.write(piece)


def rewrite_through_memory(path: Path, data: bytes) -> None:
    with path.open("r+b", buffering=0) as file:
        file.truncate(len(data))
        shared = mmap.mmap(file.fileno(), len(data))
    with shared:  # the file is closed already: only the mapping is left
        for piece in pieces(data, 3):
            shared.write(piece)


def rename_over(path: Path, data: bytes) -> None:
    path = path.resolve(strict=True)
    other = path.with_name("next")
    other.write_bytes(data)
    other.replace(path)


WRITERS: dict[str, Callable[[Path, bytes], None]] = {
    "in place": rewrite,
    "with pauses": rewrite_with_pauses,
    "truncate": truncate_and_rewrite,
    "mmap": rewrite_through_memory,
    "rename": rename_over,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("how", choices=WRITERS)
    arguments = parser.parse_args()
    version, parent = 0, os.getppid()
    while os.getppid() == parent:
        version += 1
        began = time.monotonic()
        try:
            WRITERS[arguments.how](arguments.path, content(version))
        except (FileNotFoundError, NotADirectoryError):
            time.sleep(0.001)
        # In proportion, so that a slow machine leaves the file alone as often as a quick one.
        time.sleep((time.monotonic() - began) * random.choice([0, 0, 0.5, 2, 5]))


if __name__ == "__main__":
    main()

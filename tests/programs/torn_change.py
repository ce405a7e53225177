"""Does to a file, or to a folder's files, what standard input says, one change a line, and says when it is done."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from torn_writer import content

BLOCKS = 32
OLD, NEW = 1, 2


def files(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]


def truncate(path: Path) -> None:
    for file in files(path):
        os.truncate(file, 100)


def rewrite(path: Path) -> None:
    for file in files(path):
        with file.open("r+b") as opened:
            opened.write(content(NEW, BLOCKS))


def rewrite_with_old_times(path: Path) -> None:
    """As `rsync --inplace --times` or a person's script may."""
    for file in files(path):
        old = file.stat()
        with file.open("r+b") as opened:
            opened.write(content(NEW, BLOCKS)[: old.st_size])
        os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))


def rename_over(path: Path) -> None:
    for file in files(path):
        other = path.with_name("next")
        other.write_bytes(content(NEW, BLOCKS))
        other.replace(file)


def delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_half(path: Path) -> None:
    """Pauses in the middle of a rewrite until it is told to go on."""
    with files(path)[0].open("r+b", buffering=0) as opened:
        opened.write(content(NEW, BLOCKS)[:50_000])
        print("half", flush=True)
        sys.stdin.readline()
        opened.write(content(NEW, BLOCKS)[50_000:])


CHANGES: dict[str, Callable[[Path], None]] = {
    "truncate": truncate,
    "rewrite": rewrite,
    "rewrite with old times": rewrite_with_old_times,
    "rename over": rename_over,
    "delete": delete,
    "write half": write_half,
}


def main() -> None:
    for line in sys.stdin:
        change, _, path = line.rstrip("\n").partition("|")
        try:
            CHANGES[change](Path(path))
        except (FileNotFoundError, NotADirectoryError):
            time.sleep(0)  # it came too late
        print("done", flush=True)


if __name__ == "__main__":
    main()

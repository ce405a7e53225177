"""Small file systems of a test's own; each is unmounted when its block ends. Root only."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import needs


@contextmanager
def tmpfs(folder: Path, *options: str) -> Iterator[Path]:
    """A file system in memory at `folder`: `tmpfs(folder, "size=1m", "nr_inodes=50")`."""
    needs.root()
    with _mounted(["mount", "-t", "tmpfs", "-o", ",".join(("mode=0700", *options)), "tmpfs"], folder):
        yield folder


@contextmanager
def disk(folder: Path, kind: str, megabytes: int) -> Iterator[Path]:
    """An `ext4` file system, or `xfs` with reflinks (300 MB at least), in a file beside `folder`."""
    needs.root()
    needs.programs(f"mkfs.{kind}")
    image = folder.with_name(folder.name + ".img")
    with image.open("wb") as file:
        file.truncate(megabytes * 1024 * 1024)
    options = {"ext4": ["-q", "-F"], "xfs": ["-q", "-m", "reflink=1"]}[kind]
    try:
        _run([f"mkfs.{kind}", *options, str(image)])
        with _mounted(["mount", "-o", "loop", str(image)], folder):
            yield folder
    finally:
        image.unlink()


@contextmanager
def second_view(folder: Path, of: Path) -> Iterator[Path]:
    """The directory `of` once more at `folder`, through FUSE: locks taken in one do not exclude in the other."""
    needs.root()
    needs.programs("bindfs", "fusermount3")
    with _mounted(["bindfs", str(of)], folder):
        yield folder


def remount(folder: Path, *options: str) -> None:
    """Changes a mounted file system's options, as `remount(folder, "ro")`."""
    _run(["mount", "-o", ",".join(("remount", *options)), str(folder)])


@contextmanager
def _mounted(command: list[str], folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    _run([*command, str(folder)])
    try:
        yield
    finally:
        # Lazily: a process that the test killed may take a moment to let its files go.
        _run(["umount", "--lazy", str(folder)])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        # A container without the right to mount is no machine for these tests.
        needs.without(f"{' '.join(command)}: {done.stderr.strip()}")

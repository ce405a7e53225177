"""How the bytes of a checkpoint get into the staging area."""

import os
import secrets
import time

import mounts
import pytest

from ddphub.checkpoints import copying
from ddphub.checkpoints.lease import Busy, unwritten

MIB = 1024 * 1024
SIZE = 40 * MIB + 17
"""Several ranges, the last of them no whole block."""


@pytest.fixture(scope="module")
def xfs(tmp_path_factory):
    with mounts.disk(tmp_path_factory.mktemp("disk") / "xfs", "xfs", 400) as folder:
        yield folder


@pytest.fixture(params=["reflinks", "none"])
def place(request, tmp_path):
    """A folder on a file system that can share blocks, and on one that cannot."""
    if request.param == "none":
        return tmp_path
    return request.getfixturevalue("xfs")


@pytest.fixture
def copy(place):
    """Copies a file there; the source's path, and the target's afterwards."""
    made = []

    def copied(content, *, end=SIZE, during=lambda _source, _done: None):
        """Only what comes before `end` is on the disk."""
        source, target = place / f"{secrets.token_hex(4)}.pt", place / f"{secrets.token_hex(4)}.copy"
        made.extend([source, target])
        with source.open("wb", buffering=0) as file:
            file.write(content[:end])
            os.fsync(file)
            file.write(content[end:])
        with source.open("rb") as read, target.open("wb") as written, unwritten(read.fileno(), source) as watch:

            class Watched:
                leased = watch.leased

                def __call__(self):
                    during(source, os.fstat(written.fileno()).st_size)
                    watch()

            copying.copy_bytes(read.fileno(), written.fileno(), len(content), Watched())
        return source, target

    yield copied
    for path in made:
        path.unlink(missing_ok=True)


def is_unwritten(path):
    with path.open("rb") as file:
        return copying._is_unwritten(file.fileno(), 0, SIZE)


def used(path):
    """Bytes that the file system has no longer, once all is on the disk. XFS frees removed files a moment later."""
    counts = [-1]
    while len(counts) < 50:
        os.sync()
        found = os.statvfs(path)
        counts.append((found.f_blocks - found.f_bfree) * found.f_frsize)
        if counts[-1] == counts[-2]:
            break
        time.sleep(0.1)
    return counts[-1]


@pytest.mark.parametrize("size", [0, 1, 4096, 4 * MIB, SIZE])
@pytest.mark.parametrize("is_on_disk", [True, False])
def test_the_copy_is_the_source(copy, size, is_on_disk):
    content = os.urandom(size)
    source, target = copy(content, end=SIZE if is_on_disk else 0)
    assert source.read_bytes() == target.read_bytes() == content


@pytest.mark.parametrize("place", ["reflinks"], indirect=True)
def test_blocks_on_the_disk_are_shared(copy, place):
    before = used(place)
    copy(os.urandom(SIZE))
    assert used(place) - before < 1.2 * SIZE


@pytest.mark.parametrize("place", ["reflinks"], indirect=True)
def test_a_save_does_not_wait_until_the_file_is_on_the_disk(copy, place):
    """To share blocks that are in memory alone, the kernel would write them first: these are copied instead."""
    source, target = copy(os.urandom(SIZE), end=0)
    assert is_unwritten(source)
    with source.open("rb") as read, target.open("r+b") as written:
        copying.clone(read.fileno(), written.fileno())
    assert not is_unwritten(source)  # what would have happened


@pytest.mark.parametrize("place", ["reflinks"], indirect=True)
def test_what_is_on_the_disk_is_shared_beside_what_is_not(copy, place):
    """A file that someone appended to."""
    before = used(place)
    content = os.urandom(SIZE)
    source, target = copy(content, end=16 * MIB)
    assert is_unwritten(source)
    assert target.read_bytes() == content
    # Ranges of 4, 8 and 16 MiB: the third has both kinds.
    assert used(place) - before == pytest.approx(2 * SIZE - 12 * MIB, abs=2 * MIB)


@pytest.mark.parametrize("place", ["reflinks"], indirect=True)
def test_a_kernel_that_cannot_be_asked_shows_by_the_time_it_takes(copy, place, monkeypatch):
    """Sharing that holds the caller is given up after the first range."""
    monkeypatch.setattr(copying, "_CACHESTAT", 100_000)
    monkeypatch.setattr(copying, "SLOW", 0.0)
    before = used(place)
    content = os.urandom(SIZE)
    _, target = copy(content)
    assert target.read_bytes() == content
    assert used(place) - before > 2 * SIZE - 8 * MIB


@pytest.mark.parametrize("missing", [("copy_file_range",), ("sendfile",), ("copy_file_range", "sendfile")])
def test_what_does_not_work_is_done_in_another_way(copy, monkeypatch, missing):
    """An error, or 0 for no reason, as some file systems give."""

    def refuse(*_):
        raise OSError(38, "not here")

    content = os.urandom(SIZE)
    for replacement in (refuse, lambda *_: 0):
        for name in missing:
            monkeypatch.setattr(os, name, replacement)
        for end in (0, SIZE):
            _, target = copy(content, end=end)
            assert target.read_bytes() == content


@pytest.mark.parametrize("is_on_disk", [True, False])
def test_a_writer_is_noticed_between_two_ranges(copy, is_on_disk):
    """Its opening the file breaks the lease, so what it writes is not taken."""
    seen = []

    def write(source, done):
        seen.append(done)
        with pytest.raises(BlockingIOError):
            os.open(source, os.O_WRONLY | os.O_NONBLOCK)

    with pytest.raises(Busy, match="opened for writing"):
        copy(os.urandom(SIZE), end=SIZE if is_on_disk else 0, during=write)
    assert len(seen) == 1

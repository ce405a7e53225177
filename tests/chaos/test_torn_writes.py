"""A file is rewritten, cut, replaced or deleted while it is saved: one whole version of it is staged, or nothing."""

import itertools
import os
import select
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import mounts
import pytest
from jobs import PROGRAMS, wait_until

import ddphub
from ddphub.checkpoints.staging import StagingArea

sys.path.insert(0, str(PROGRAMS))
from torn_change import BLOCKS, CHANGES, NEW, OLD
from torn_writer import WRITERS, content, version_of


@contextmanager
def fuse(folder):
    """Through FUSE: a lease there sees whoever writes through the same mount, and nobody else."""
    (folder.parent / "under").mkdir()
    with mounts.second_view(folder, folder.parent / "under") as view:
        yield view


FILE_SYSTEMS = {
    "ext4": lambda folder: mounts.disk(folder, "ext4", 128),
    "xfs": lambda folder: mounts.disk(folder, "xfs", 300),
    "tmpfs": lambda folder: mounts.tmpfs(folder, "size=128m"),
    "fuse": fuse,
}
PLACES = [*((kind, how) for kind in ("ext4", "xfs") for how in WRITERS), ("tmpfs", "mmap")]
ENOUGH = 5


class Saves:
    """An offline run in a folder; it looks at every byte of each save, and counts."""

    def __init__(self, folder):
        self.run = ddphub.init(project="tests", name="torn", mode="offline", dir=folder / "runs")
        self.area = StagingArea(folder / "runs" / self.run.id / "staging")
        self.counts = Counter()
        self.versions = set()
        self.number = 0

    def save(self, path):
        """Saves what lies at a path; the entry's id, or None for a refused save."""
        self.number += 1
        return self.run.save_checkpoint(path, step=self.number)

    def write(self, work):
        """Saves what `work(path)` writes inside `run.checkpoint()`; likewise."""
        self.number += 1
        with self.run.checkpoint(step=self.number, name="last.pt") as path:
            work(path)
        return next((entry.entry_id for entry in self.area.entries()), None)

    def take(self, entry_id):
        """What was staged, as file name -> bytes, and it is removed again; None for a refused save."""
        assert not list(self.area.folder.glob("incoming/*")), "nothing half-done is left"
        assert [entry.entry_id for entry in self.area.entries()] == ([entry_id] if entry_id else [])
        self.counts["accepted" if entry_id else "refused"] += 1
        if entry_id is None:
            return None
        (entry,) = self.area.entries()
        staged = {file.name: entry.file_path(file.name).read_bytes() for file in entry.files}
        assert [len(data) for data in staged.values()] == [file.size for file in entry.files]
        self.area.remove(entry_id)
        return staged

    def version(self, entry_id):
        """The version that was staged, every byte of it; None for a refused save."""
        staged = self.take(entry_id)
        if staged is None:
            return None
        (data,) = staged.values()
        version = version_of(data)
        assert version is not None, f"save {self.number} is a mixture of {blocks_of(data)}"
        self.versions.add(version)
        return version

    def refusals_reported(self):
        """How many refused saves the run's report knows of."""
        self.run.finish()
        status = subprocess.run(
            [sys.executable, "-c", "from ddphub.cli import main; main()", "status", str(self.area.folder.parent)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return f"{self.counts['refused']} refused" in status.stdout


def blocks_of(data):
    return Counter(int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 4096))


@contextmanager
def rewriting(path, how):
    """Another process rewrites the file in a loop."""
    writer = subprocess.Popen([sys.executable, PROGRAMS / "torn_writer.py", path, how])
    try:
        yield
    finally:
        writer.kill()
        writer.wait()


@pytest.fixture
def one_try(monkeypatch):
    """Saves give up at the first writer that they notice, so that many saves take a moment."""
    monkeypatch.setattr("ddphub.checkpoints.snapshot.PAUSES", (0.0,))


@pytest.mark.parametrize(("kind", "how"), [*PLACES, ("fuse", "with pauses")])
def test_a_file_that_is_rewritten_all_the_time_is_saved_whole_or_refused(tmp_path, one_try, kind, how):
    """Hundreds of versions go by; each accepted save is one of them, byte for byte, and a closed file is accepted."""
    with FILE_SYSTEMS[kind](tmp_path / "disk") as disk:
        path = disk / "last.pt"
        path.write_bytes(content(0))
        saves = Saves(disk if kind != "fuse" else tmp_path)
        with rewriting(path, how):
            until = time.monotonic() + 60
            while not enough(saves, how) and time.monotonic() < until:
                saves.version(saves.save(path))
        print(f"{kind}, {how}: {dict(saves.counts)}")
        assert enough(saves, how)
        path.write_bytes(content(7))
        assert saves.version(saves.save(path)) == 7, "a closed file is accepted"
        assert saves.refusals_reported()


@pytest.mark.parametrize(("kind", "how"), PLACES)
def test_a_file_that_is_still_rewritten_when_its_block_ends_is_staged_whole_or_refused(tmp_path, one_try, kind, how):
    """`run.checkpoint()` keeps the written file itself: whoever is still at it has it refused, or comes too late."""
    with FILE_SYSTEMS[kind](tmp_path / "disk") as disk:
        link, new_link = tmp_path / "current", tmp_path / "new"
        saves = Saves(disk)

        def work(path):
            path.write_bytes(content(0))
            new_link.symlink_to(path)
            new_link.replace(link)
            wait_until(lambda: path.read_bytes()[:8] != bytes(8), what="the writer")

        with rewriting(link, how):
            until = time.monotonic() + 60
            while not enough(saves, how) and time.monotonic() < until:
                saves.version(saves.write(work))
        print(f"{kind}, {how}: {dict(saves.counts)}")
        assert enough(saves, how)
        last = saves.write(lambda path: path.write_bytes(content(7)))
        assert saves.version(last) == 7, "a closed file is accepted"
        assert saves.refusals_reported()


def enough(saves, how):
    """Both outcomes often enough; a writer that renames is in nobody's way."""
    refused = saves.counts["refused"] if how != "rename" else ENOUGH
    return min(saves.counts["accepted"], refused, len(saves.versions)) >= ENOUGH


def test_a_file_that_was_closed_on_another_mount_is_saved_as_it_is_there(tmp_path):
    """FUSE may show a stale size for a moment: the save tries again until what it sees holds still."""
    with fuse(tmp_path / "disk") as disk:
        saves = Saves(tmp_path)
        for number in range(1, 6):
            (tmp_path / "under" / "last.pt").write_bytes(content(number))
            assert saves.version(saves.save(disk / "last.pt")) == number
        saves.run.finish()


OLD_BYTES, NEW_BYTES = content(OLD, BLOCKS), content(NEW, BLOCKS)
CHANGED = {
    "truncate": OLD_BYTES[:100],
    "rewrite": NEW_BYTES,
    "rewrite with old times": NEW_BYTES[: len(OLD_BYTES)],
    "rename over": NEW_BYTES,
    "delete": None,
    "write half": NEW_BYTES,
}
"""What a file holds once its change is through."""

AUDITED = {"open", "os.rename", "os.chmod", "os.listdir", "os.scandir", "fcntl.fcntl", "fcntl.ioctl"}


class Changer:
    """Another process that makes a change just before this thread's `number`-th file operation."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, PROGRAMS / "torn_change.py"], stdin=-1, stdout=-1, bufsize=0, env=os.environ
        )
        self._thread = threading.get_ident()
        self._left = 0
        self._order = b""
        sys.addaudithook(self._audit)

    def _audit(self, event, _arguments):
        if self._left and event in AUDITED and threading.get_ident() == self._thread:
            self.step()

    def step(self):
        """One more operation is about to happen."""
        if self._left and threading.get_ident() == self._thread:
            self._left -= 1
            if not self._left:
                self._process.stdin.write(self._order)
                self._await_reply_or_block()

    def _await_reply_or_block(self):
        # Whoever opens a leased file for writing waits until the lease is given back, which this thread will do.
        for _ in range(5000):
            if select.select([self._process.stdout], [], [], 0.001)[0] or "BREAKING" in Path("/proc/locks").read_text():
                return
        raise AssertionError("the change neither came about nor waits for the lease")

    @contextmanager
    def at(self, number, change, path):
        """Makes the change within the block; gives a list that holds True afterwards if the block has come that far."""
        self._order, self._left = f"{change}|{path}\n".encode(), number
        met = []
        try:
            yield met
        finally:
            met.append(self._left == 0)
            if self._left == 0 and self._process.stdout.readline() == b"half\n":
                self._process.stdin.write(b"\n")
                assert self._process.stdout.readline() == b"done\n"
            self._left = 0

    def close(self):
        self._process.communicate()


@pytest.fixture
def changer(monkeypatch):
    made = Changer()

    def counted(function):
        def call(*arguments, **options):
            made.step()
            return function(*arguments, **options)

        return call

    for name in ("copy_file_range", "sendfile", "pread", "fstat"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    # Several pieces a file, and no long waits.
    monkeypatch.setattr("ddphub.checkpoints.copying.KERNEL_PIECE", 64 * 1024)
    monkeypatch.setattr("ddphub.checkpoints.copying.PLAIN_PIECE", 64 * 1024)
    monkeypatch.setattr("ddphub.checkpoints.snapshot.PAUSES", (0.0, 0.001))
    yield made
    made.close()


def write_old(path, shape):
    """A new file, or folder of two, of the old version."""
    if shape == "folder":
        path.mkdir(exist_ok=True)
    for file in [path / "a", path / "b"] if shape == "folder" else [path]:
        file.unlink(missing_ok=True)
        file.write_bytes(OLD_BYTES)


SHAPES = [
    *(("saved", "file", change) for change in CHANGES),
    *(("written", "file", change) for change in CHANGES),
    *(("saved", "folder", change) for change in ("rewrite", "rewrite with old times", "rename over")),
    *(("written", "folder", change) for change in ("rewrite", "rename over")),
    *(("saved from elsewhere", "file", change) for change in ("rewrite", "write half")),
]


@pytest.mark.parametrize(("how", "shape", "change"), SHAPES)
def test_a_change_at_any_point_of_a_save_leaves_the_old_the_new_or_nothing(tmp_path, changer, how, shape, change):
    """Before every file operation of a save in turn: what is staged is all old or all new, or the save is refused."""
    with mounts.tmpfs(tmp_path / "memory") as memory:
        source = (memory if how == "saved from elsewhere" else tmp_path) / "last.pt"
        saves, outcomes = Saves(tmp_path), Counter()
        for number in itertools.count(1):
            if how == "written":
                with saves.run.checkpoint(step=number, name="last.pt") as path:
                    write_old(path, shape)
                    during = changer.at(number, change, path)
                    met = during.__enter__()
                during.__exit__(None, None, None)
                entry_id = next((entry.entry_id for entry in saves.area.entries()), None)
            else:
                write_old(source, shape)
                saves.number = number
                with changer.at(number, change, source) as met:
                    entry_id = saves.save(source)
            staged = saves.take(entry_id)
            found = {None} if staged is None else set(staged.values())
            assert found in ({OLD_BYTES}, {CHANGED[change]}, {None}), f"operation {number}"
            outcomes[{OLD_BYTES: "old", None: "refused"}.get(found.pop(), "new")] += 1
            if met == [False]:
                break
    print(f"{how}, {shape}, {change}: {number - 1} points, {dict(outcomes)}")
    assert saves.refusals_reported()
    assert outcomes["old"], "what nothing happened to is accepted"
    assert outcomes["refused" if change in {"delete", "write half"} else "new"]

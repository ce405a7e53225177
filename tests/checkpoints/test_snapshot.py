"""Copies that nobody was writing while they were made."""

import fcntl
import itertools
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ddphub.checkpoints.entry import StagedFile
from ddphub.checkpoints.lease import Busy, take_lease, unwritten
from ddphub.checkpoints.snapshot import check_unchanged, find_files, snapshot
from ddphub.checkpoints.staging import StagingArea
from ddphub.errors import StagingError

MIB = 1024 * 1024


def open_files() -> set[str]:
    return {str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}


def test_a_file_is_copied_under_its_own_name(tmp_path):
    """A file arrives whole, under its name, with mode 0600, and is no link to the source."""
    source = tmp_path / "last.pt"
    source.write_bytes(os.urandom(3 * MIB + 17))
    source.chmod(0o444)
    assert snapshot(source, tmp_path / "copy") == [StagedFile("last.pt", 3 * MIB + 17)]
    copy = tmp_path / "copy" / "last.pt"
    assert copy.read_bytes() == source.read_bytes()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert copy.stat().st_nlink == source.stat().st_nlink == 1


def test_a_folder_is_copied_with_what_is_below_it(tmp_path):
    """Files get relative POSIX names, links to files arrive as files, empty folders and empty files are no trouble."""
    source = tmp_path / "sharded"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "empty").mkdir()
    (source / ".metadata").write_bytes(b"meta")
    (source / "deep" / "er" / "0.distcp").write_bytes(b"0" * 100)
    (source / "deep" / "none").write_bytes(b"")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"linked")
    (source / "link").symlink_to(elsewhere)
    target = tmp_path / "copy"
    assert snapshot(source, target) == [
        StagedFile(".metadata", 4),
        StagedFile("deep/er/0.distcp", 100),
        StagedFile("deep/none", 0),
        StagedFile("link", 6),
    ]
    assert (target / "link").read_bytes() == b"linked"
    assert not (target / "link").is_symlink()
    assert stat.S_IMODE((target / "deep" / "er").stat().st_mode) == 0o700


def test_a_source_that_is_a_link_is_followed(tmp_path):
    """`latest -> epoch3.pt` is copied as a file called `latest`; a link to a folder as that folder."""
    (tmp_path / "epoch3.pt").write_bytes(b"3")
    (tmp_path / "latest").symlink_to("epoch3.pt")
    assert snapshot(tmp_path / "latest", tmp_path / "copy") == [StagedFile("latest", 1)]
    assert not (tmp_path / "copy" / "latest").is_symlink()


def test_another_file_system_is_no_trouble(tmp_path):
    """Where blocks cannot be shared nor copied in the kernel, the bytes arrive all the same."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        source = Path(folder) / "last.pt"
        source.write_bytes(os.urandom(5 * MIB + 1))
        snapshot(source, tmp_path / "copy")
        assert (tmp_path / "copy" / "last.pt").read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("kind", "inside"),
    [
        *itertools.product(["named pipe", "socket", "device", "link to nothing"], [False, True]),
        ("link to a folder", True),
    ],
)
def test_special_files_are_refused(tmp_path, monkeypatch, kind, inside):
    """A pipe, a socket, a device or a dead link is named and refused, without waiting for it."""
    folder = tmp_path / "source"
    folder.mkdir()
    monkeypatch.chdir(folder)  # a socket's path must be short
    path = folder / "x"
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("x")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "link to nothing":
        path.symlink_to("nowhere")
    else:
        path.symlink_to(tmp_path)
    expected = "does not exist" if kind == "link to nothing" and not inside else kind
    with pytest.raises(StagingError, match=f"{re.escape(str(path))}.* {expected}"):
        snapshot(folder if inside else path, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_nothing_to_copy_is_refused(tmp_path):
    """A missing source and a folder without files are named, with what was expected."""
    with pytest.raises(StagingError, match=r"missing\.pt does not exist: expected"):
        snapshot(tmp_path / "missing.pt", tmp_path / "copy")
    (tmp_path / "empty" / "folder").mkdir(parents=True)
    with pytest.raises(StagingError, match="empty is a folder without files: expected"):
        snapshot(tmp_path / "empty", tmp_path / "copy")


def test_names_that_no_hub_takes_are_refused(tmp_path):
    """A file name with a line break or a backslash is refused before anything is copied."""
    for name in ("a\nb", "a\\b"):
        folder = tmp_path / str(len(name.encode())) / name.encode().hex()
        folder.mkdir(parents=True)
        (folder / name).write_bytes(b"1")
        with pytest.raises(StagingError, match="file name must not"):
            snapshot(folder, tmp_path / "copy")


def test_a_folder_that_changes_is_noticed(tmp_path):
    """A file that comes, goes or is rewritten after the folder was looked at makes the copy start again."""
    (tmp_path / "a").write_bytes(b"1")
    found = find_files(tmp_path)
    check_unchanged(tmp_path, found)
    (tmp_path / "b").write_bytes(b"2")
    with pytest.raises(Busy, match="was changed"):
        check_unchanged(tmp_path, found)
    found = find_files(tmp_path)
    (tmp_path / "c").write_bytes(b"1")
    (tmp_path / "c").replace(tmp_path / "a")
    with pytest.raises(Busy, match="was changed"):
        check_unchanged(tmp_path, found)


def test_a_folder_is_not_copied_into_itself(tmp_path):
    """A source that holds the staging area is refused."""
    (tmp_path / "last.pt").write_bytes(b"1")
    with pytest.raises(StagingError, match="holds the staging area"):
        snapshot(tmp_path, tmp_path / ".ddphub" / "copy")


def test_a_file_that_stays_open_for_writing_is_refused(tmp_path):
    """Whoever keeps the file open is told to close it; nothing is left behind, no descriptor either."""
    source = tmp_path / "last.pt"
    before = open_files()
    with source.open("wb") as writer:
        writer.write(b"half")
        writer.flush()
        with pytest.raises(StagingError, match=r"is open for writing .* after its writer has closed it"):
            snapshot(source, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    assert open_files() == before
    snapshot(source, tmp_path / "copy")


def test_a_writer_breaks_the_lease(tmp_path):
    """Someone who opens the file for writing while it is read is noticed, and waits until the lease is given back."""
    source = tmp_path / "last.pt"
    source.write_bytes(b"old")
    fd = os.open(source, os.O_RDONLY)
    with pytest.raises(Busy, match="opened for writing"), unwritten(fd, source) as check:
        check()
        writer = subprocess.Popen([sys.executable, "-c", f"open({str(source)!r}, 'r+b').write(b'new')"])
        while writer.poll() is None:
            check()
            assert os.pread(fd, 3, 0) == b"old"
    assert writer.wait() == 0
    assert source.read_bytes() == b"new"
    os.close(fd)


def test_a_child_forked_meanwhile_does_not_keep_the_lease(tmp_path, run_python):
    """After the copy a writer need not wait, although a child shares the open file."""
    program = """
import os, sys, fcntl
from pathlib import Path
from ddphub.checkpoints.lease import unwritten
path = Path(sys.argv[1])
fd = os.open(path, os.O_RDONLY)
ready, done = os.pipe(), os.pipe()
with unwritten(fd, path):
    child = os.fork()
    if child == 0:
        os.close(done[1])
        os.read(done[0], 1)
        os._exit(0)
os.close(fd)
# Would fail with EWOULDBLOCK while a lease is held.
os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
os.close(done[1])
os.waitpid(child, 0)
"""
    source = tmp_path / "last.pt"
    source.write_bytes(b"1")
    run_python(program, source)


def test_a_lease_never_uses_sigio(tmp_path):
    """The break signal is one that is ignored, and nobody owns it: either alone keeps SIGIO away."""
    path = tmp_path / "last.pt"
    path.write_bytes(b"1")
    with path.open("rb") as file:
        assert take_lease(file.fileno(), path)
        assert fcntl.fcntl(file, fcntl.F_GETSIG) == signal.SIGURG
        assert fcntl.fcntl(file, fcntl.F_GETOWN) == 0


SIGNALS = """
import fcntl, os, signal, subprocess, sys, threading
from pathlib import Path
from ddphub.checkpoints.lease import Busy, unwritten
path, guarded, seen = Path(sys.argv[1]), sys.argv[2] == "guarded", []
if sys.argv[3] == "handlers":
    for number in (signal.SIGURG, signal.SIGIO):
        signal.signal(number, lambda number, frame: seen.append(number))
spare = [os.open(path, os.O_RDONLY) for _ in range(20)]
for fd in spare[::2]:
    os.close(fd)

def hold():
    fd = os.open(path, os.O_RDONLY)
    if not guarded:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        wait(lambda: None)
        return
    try:
        with unwritten(fd, path) as check:
            wait(check)
    except Busy:
        print("broken")

def wait(check):
    writer = subprocess.Popen([sys.executable, "-c", f"open({str(path)!r}, 'r+b').close()"])
    while writer.poll() is None:
        check()

thread = threading.Thread(target=hold)
thread.start()
thread.join()
print(seen)
"""


@pytest.mark.parametrize("handlers", ["handlers", "defaults"])
def test_a_broken_lease_sends_no_signal(tmp_path, run_python, handlers):
    """In any thread, whatever descriptors are open: the process neither dies nor sees SIGIO or SIGURG."""
    path = tmp_path / "last.pt"
    path.write_bytes(b"1")
    assert run_python(SIGNALS, path, "guarded", handlers) == "broken\n[]\n"


def test_a_lease_with_its_own_signal_kills(tmp_path):
    """What the test above guards against happens: with SIGIO left as it is, the process dies."""
    path = tmp_path / "last.pt"
    path.write_bytes(b"1")
    done = subprocess.run([sys.executable, "-c", SIGNALS, path, "bare", "defaults"], check=False, capture_output=True)
    assert done.returncode == -signal.SIGIO


def test_without_a_lease_size_and_times_are_compared(run_python):
    """A file of another user can have no lease: it is copied, and a change while it is read is noticed."""
    program = """
import os, sys
from pathlib import Path
from ddphub.checkpoints.lease import Busy, take_lease, unwritten
from ddphub.checkpoints.snapshot import snapshot
folder = Path(sys.argv[1])
path = folder / "last.pt"
path.write_bytes(b"1" * 1000)
writer = os.open(path, os.O_WRONLY | os.O_APPEND)
if os.geteuid() == 0:
    os.chown(folder, 65534, 65534)
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
else:
    sys.exit("needs root")
fd = os.open(path, os.O_RDONLY)
assert not take_lease(fd, path)
assert snapshot(path, folder / "copy")[0].size == 1000
try:
    with unwritten(fd, path) as check:
        check()
        os.write(writer, b"2")
except Busy as problem:
    print(problem)
"""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    with tempfile.TemporaryDirectory() as folder:
        assert run_python(program, folder) == f"{folder}/last.pt was changed\n"


REWRITER = """
import random, sys, time
path, size, pattern = sys.argv[1], int(sys.argv[2]), 0
half = size // 2
while True:
    pattern = pattern % 250 + 1
    with open(path, random.choice(["wb", "r+b"]) if pattern > 1 else "wb", buffering=0) as file:
        file.write(bytes([pattern]) * half)
        time.sleep(random.choice([0, 0, 0.001, 0.05]))
        file.write(bytes([pattern]) * half)
    print(pattern, flush=True)
    time.sleep(random.random() * 0.06)
"""


def test_no_accepted_copy_is_torn(tmp_path, slot):
    """While another process rewrites a file in place, again and again, every staged copy is one of its versions."""
    size, rounds = 32 * MIB, 20
    source = tmp_path / "last.pt"
    area = StagingArea(tmp_path / "staging")
    accepted = refused = 0
    with subprocess.Popen([sys.executable, "-c", REWRITER, source, str(size)], stdout=subprocess.PIPE) as writer:
        try:
            writer.stdout.readline()
            drain = subprocess.Popen(["cat"], stdin=writer.stdout, stdout=subprocess.DEVNULL)
            for number in range(rounds):
                try:
                    entry = area.stage(slot(number), source, {}).entry
                except StagingError:
                    refused += 1
                    continue
                data = entry.file_path("last.pt").read_bytes()
                assert (len(data), data.count(data[:1])) == (size, size), f"copy {number} is torn"
                area.remove(entry.entry_id)
                accepted += 1
        finally:
            writer.kill()
    drain.wait()
    print(f"{accepted} accepted, {refused} refused")
    assert accepted > 0

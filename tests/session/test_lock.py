"""session.lock: one process at a time, given back by the kernel, and never in the way of a fork."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading

import pytest
from jobs import wait_until

from ddphub.session.lock import SessionLock

HOLDER = """
import os, sys, time
from pathlib import Path
from ddphub.session.lock import SessionLock

lock = SessionLock(Path(sys.argv[1]))
print(lock.acquire(), flush=True)
if "fork" in sys.argv and os.fork() == 0:
    print(f"child {os.getpid()}", flush=True)
    time.sleep(600)
for line in sys.stdin:
    lock.release()
    print("released", flush=True)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "session.lock"


@pytest.fixture
def hold(path):
    """Starts processes that take the lock and keep it until told."""
    started = []

    def start(*options):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process, process.stdout.readline().strip() == "True"

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_lock_is_taken_once(path):
    """Taking it again is fine for its holder, and one release gives it back."""
    one, other = SessionLock(path), SessionLock(path)
    assert one.acquire()
    assert one.acquire()
    assert not other.acquire()
    one.release()
    assert other.acquire()
    assert not one.acquire()
    other.release()
    other.release()


def test_the_file_stays_and_is_for_its_owner_alone(path):
    """A deleted lock file would let two processes hold locks on two files of one name."""
    lock = SessionLock(path)
    assert lock.acquire()
    inode = path.stat().st_ino
    lock.release()
    assert path.stat().st_ino == inode
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_two_processes_take_turns(path, hold):
    """The second gets it when the first lets go."""
    holder, held = hold()
    assert held
    lock = SessionLock(path)
    assert not lock.acquire()
    assert not hold()[1]
    holder.stdin.write("release\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "released\n"
    assert lock.acquire()
    lock.release()


@pytest.mark.parametrize("options", [(), ("fork",)], ids=["alone", "with a forked child"])
def test_a_killed_holder_gives_it_back(path, hold, options):
    """Also when a child that it had forked (a DataLoader worker) lives on."""
    holder, held = hold(*options)
    assert held
    if options:
        assert holder.stdout.readline().startswith("child ")
    lock = SessionLock(path)
    assert not lock.acquire()
    holder.kill()
    holder.wait()
    wait_until(lock.acquire, what="the lock")
    lock.release()


def test_any_thread_may_release_it(path):
    """The delivery thread takes it, the main thread ends the session."""
    lock, other = SessionLock(path), SessionLock(path)
    taken = []
    thread = threading.Thread(target=lambda: taken.append(lock.acquire()))
    thread.start()
    thread.join()
    assert taken == [True]
    assert not other.acquire()
    lock.release()
    assert other.acquire()
    other.release()


def test_a_folder_that_is_not_there_is_an_os_error_or_made(tmp_path):
    """Nothing waits, and a lock that was not taken is not held."""
    (tmp_path / "file").write_text("")
    lock = SessionLock(tmp_path / "file" / "session.lock")
    with pytest.raises(OSError, match="file"):
        lock.acquire()
    lock.release()


FORKS = """
import os, sys, threading, time
from pathlib import Path
from ddphub.session.lock import SessionLock

other = SessionLock(Path(sys.argv[1]))
stop = threading.Event()
tries = 0

def keep_trying():
    global tries
    while not stop.is_set():
        assert not other.acquire()
        tries += 1

thread = threading.Thread(target=keep_trying)
thread.start()
while not tries:
    time.sleep(0.001)
for _ in range(20):
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
stop.set()
thread.join()
print("forked", flush=True)
"""


def test_a_fork_does_not_wait_for_the_lock(path, hold):
    """A thread that asks again and again for a lock that another process keeps does not hold up os.fork."""
    _, held = hold()
    assert held
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(path)], capture_output=True, text=True, timeout=150, check=False
    )
    assert done.stdout == "forked\n", done.stderr


FORKING_HOLDER = """
import os, sys
from pathlib import Path
from ddphub.session.lock import SessionLock

lock = SessionLock(Path(sys.argv[1]))
assert lock.acquire()
for _ in range(20):
    child = os.fork()
    if child == 0:
        os._exit(SessionLock(Path(sys.argv[1])).acquire())
    _, status = os.waitpid(child, 0)
    assert status == 0, status
assert lock.acquire()
assert not SessionLock(Path(sys.argv[1])).acquire()
print("still held", flush=True)
"""


def test_a_holder_may_fork(path):
    """A child neither has the lock nor takes it from its parent by ending."""
    done = subprocess.run(
        [sys.executable, "-c", FORKING_HOLDER, str(path)], capture_output=True, text=True, timeout=150, check=False
    )
    assert done.stdout == "still held\n", done.stderr

"""Leaving on SIGTERM, in real processes: whatever the main thread sits in, the callback runs and the process ends."""

import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from ddphub.session.preemption import SignalWatch

PRELUDE = r"""
import ctypes, os, signal, sys, threading, time
from ddphub.session.preemption import SignalWatch

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\n").encode())  # whole, whichever thread says it

def watch(leave=lambda number, ends: say("left", number)):
    made = SignalWatch(leave)
    assert made.install()
    return made

def sit(seconds=600):
    time.sleep(seconds)
"""


class Child:
    """A program in a process of its own, read line by line."""

    def __init__(self, program, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-c", PRELUDE + textwrap.dedent(program), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._patience = threading.Timer(90, self.process.kill)
        self._patience.daemon = True
        self._patience.start()

    def line(self):
        return self.process.stdout.readline().rstrip("\n")

    def tell(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def end(self):
        """The exit status, as subprocess has it, and the lines that were left."""
        lines, errors = self.process.communicate()
        self._patience.cancel()
        self.errors = errors
        return self.process.returncode, lines.splitlines()


@pytest.fixture
def child():
    started = []

    def start(program, *arguments):
        started.append(Child(program, *arguments))
        return started[-1]

    yield start
    for made in started:
        made.process.kill()
        made.end()


SITS = {
    "sleep": "say('ready'); time.sleep(600)",
    "python": "say('ready')\nwhile True: pass",
    "a Python lock": "lock = threading.Lock(); lock.acquire(); say('ready'); lock.acquire()",
    # Neither EINTR nor the interpreter gets in: the Python handler never runs.
    "a C call": (
        "mutex = ctypes.create_string_buffer(128); libc = ctypes.CDLL(None); libc.pthread_mutex_init(mutex, None)\n"
        "libc.pthread_mutex_lock(mutex); say('ready'); libc.pthread_mutex_lock(mutex)"
    ),
    "read": "say('ready'); os.read(os.pipe()[0], 1)",
    "join": "thread = threading.Thread(target=sit, daemon=True); thread.start(); say('ready'); thread.join()",
}


@pytest.mark.parametrize("sits", SITS.values(), ids=SITS)
def test_the_callback_runs_and_the_process_ends_by_the_signal(child, sits):
    """Wherever the main thread sits; who started the process sees that SIGTERM ended it."""
    running = child(f"watch()\n{sits}")
    assert running.line() == "ready"
    running.terminate()
    assert running.end() == (-signal.SIGTERM, ["left 15"])


BARRIER = """
import torch.distributed as dist
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
dist.barrier()
if rank == 0:
    watch()
    threading.Timer(1.0, say, ["in the barrier"]).start()
    dist.barrier()
say("ready")
sit()
"""


def test_a_collective_that_never_completes_does_not_hold_it_up(child, tmp_path):
    """The peer is alive and does not come: only a thread can do anything."""
    rank_1, rank_0 = child(BARRIER, 1, tmp_path / "store"), child(BARRIER, 0, tmp_path / "store")
    assert rank_1.line() == "ready"
    assert rank_0.line() == "in the barrier"
    rank_0.terminate()
    assert rank_0.end() == (-signal.SIGTERM, ["left 15"])


def test_a_callback_that_fails_does_not_keep_the_process(child):
    """It is said, and the process ends all the same."""
    running = child(
        """
        def leave(number, ends):
            raise ValueError("a bug")
        watch(leave); say("ready"); sit()
        """
    )
    assert running.line() == "ready"
    running.terminate()
    assert running.end() == (-signal.SIGTERM, [])
    assert "a bug" in running.errors


def test_more_signals_do_not_call_twice_or_end_early(child):
    """An impatient scheduler repeats itself; what is being saved is still saved."""
    running = child(
        """
        def leave(number, ends):
            say("leaving"); sys.stdin.readline(); say("left", number)
        watch(leave); say("ready"); sit()
        """
    )
    assert running.line() == "ready"
    running.terminate()
    assert running.line() == "leaving"
    for _ in range(5):
        running.terminate()
        time.sleep(0.05)
    assert running.process.poll() is None
    running.tell("go on")
    assert running.end() == (-signal.SIGTERM, ["left 15"])


def test_a_handler_that_was_there_before_is_called(child):
    """Once, in the main thread, and whether the process ends is its business."""
    running = child(
        """
        told = threading.Event()
        def mine(number, frame):
            say("mine", number, threading.current_thread() is threading.main_thread())
        signal.signal(signal.SIGTERM, mine)
        watch(lambda number, ends: told.set())
        say("ready")
        while not told.wait(0.1): pass
        time.sleep(0.3)
        say("goes on")
        """
    )
    assert running.line() == "ready"
    running.terminate()
    assert running.end() == (0, ["mine 15 True", "goes on"])


def test_a_handler_that_exits_ends_the_process_its_way(child):
    """sys.exit(7) in it is exit code 7."""
    running = child(
        """
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(7))
        watch(lambda number, ends: None); say("ready"); sit()
        """
    )
    assert running.line() == "ready"
    running.terminate()
    assert running.end() == (7, [])


def test_a_signal_that_is_ignored_stays_ignored(child):
    """`trap '' TERM` in a batch script means that the job goes on: the run must not end under it."""
    running = child(
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        made = watch(); say("ready"); sys.stdin.readline()
        time.sleep(0.3)
        say("goes on")
        made.remove()
        say(signal.getsignal(signal.SIGTERM) == signal.SIG_IGN)
        """
    )
    assert running.line() == "ready"
    running.terminate()
    running.tell("go on")
    assert running.end() == (0, ["goes on", "True"])


def test_other_signals_are_none_of_ours(child):
    """SIGUSR1's own handler runs; nothing is left."""
    running = child(
        """
        signal.signal(signal.SIGUSR1, lambda number, frame: say("usr1"))
        watch(); os.kill(os.getpid(), signal.SIGUSR1); time.sleep(0.3); say("goes on")
        """
    )
    assert running.end() == (0, ["usr1", "goes on"])


def test_asyncio_handlers_are_called_once(child):
    """A loop that had the wakeup descriptor before gets every signal, and gets it once."""
    running = child(
        """
        import asyncio
        async def main():
            calls = []
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGTERM, calls.append, 1)
            loop.add_signal_handler(signal.SIGUSR1, calls.append, 2)
            made = watch()
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.5)
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.sleep(0.5)
            made.remove()
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.sleep(0.5)
            say(calls)
        asyncio.run(main())
        """
    )
    assert running.end() == (0, ["left 15", "[1, 2, 2]"])


def test_a_wakeup_descriptor_that_someone_takes_later_costs_nothing(child):
    """The handler in the main thread still reaches the thread."""
    running = child(
        """
        import socket
        watch()
        theirs = socket.socketpair()
        theirs[1].setblocking(False)
        signal.set_wakeup_fd(theirs[1].fileno())
        say("ready"); sit()
        """
    )
    assert running.line() == "ready"
    running.terminate()
    assert running.end() == (-signal.SIGTERM, ["left 15"])


def test_two_watches_both_leave(child):
    """A library that brought a copy of its own: both callbacks run, each once."""
    running = child(
        """
        together = threading.Barrier(2)
        def leave(name):
            def go(number, ends):
                say(name); together.wait(30)
            return go
        watch(leave("first")); watch(leave("second")); say("ready"); sit()
        """
    )
    assert running.line() == "ready"
    running.terminate()
    status, lines = running.end()
    assert status == -signal.SIGTERM
    assert sorted(lines) == ["first", "second"]


def test_a_removed_watch_leaves_the_process_as_it_was(child):
    """Handler, wakeup descriptor, threads and open files; many times over."""
    running = child(
        """
        def mine(number, frame): say("mine")
        signal.signal(signal.SIGTERM, mine)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            watch().remove()
        deadline = time.monotonic() + 30
        while (threading.active_count(), len(os.listdir("/proc/self/fd"))) != (1, before):
            if time.monotonic() > deadline:
                say(threading.active_count(), before, os.listdir("/proc/self/fd")); break
            time.sleep(0.01)
        say(signal.getsignal(signal.SIGTERM) is mine, signal.set_wakeup_fd(-1))
        os.kill(os.getpid(), signal.SIGTERM)
        """
    )
    assert running.end() == (0, ["True -1", "mine"])


def test_removing_does_not_fail_when_the_earlier_wakeup_descriptor_is_gone(child):
    """Its owner has closed it in between; `finish` never raises."""
    running = child(
        """
        import socket
        theirs = socket.socketpair()
        theirs[1].setblocking(False)
        signal.set_wakeup_fd(theirs[1].fileno())
        made = watch()
        theirs[0].close(); theirs[1].close()
        made.remove()
        say("removed", signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
        """
    )
    assert running.end() == (0, ["removed True"])


def test_a_handler_that_someone_set_later_is_not_taken_away(child):
    """`remove` gives back what is still ours."""
    running = child(
        """
        def theirs(number, frame): say("theirs")
        made = watch()
        signal.signal(signal.SIGTERM, theirs)
        made.remove()
        say(signal.getsignal(signal.SIGTERM) is theirs)
        """
    )
    assert running.end() == (0, ["True"])


LIVE_RUN = """
from ddphub import process

class Live:
    def on_signal(self, number, *, ends): say("left", number)
    def on_failure(self, kind, error, trace): say("failed", error)
    def on_exit(self): say("exit")
    def on_fork(self): pass

process.enter(Live(), "run-1")
"""


def test_a_forked_child_that_gets_the_signal_does_not_trigger_the_parent(child):
    """It ends by the signal as if we were not there; the parent still watches its own."""
    running = child(
        LIVE_RUN
        + """
for _ in range(10):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, b"x")
        sit()
    os.read(reader, 1)
    os.kill(pid, signal.SIGTERM)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM, status
time.sleep(0.3)
say("ready")
sit()
"""
    )
    assert running.line() == "ready"
    running.terminate()
    assert running.end() == (-signal.SIGTERM, ["left 15"])


def test_a_subprocess_that_gets_the_signal_does_not_trigger_the_parent(child):
    """It has handlers and descriptors of its own."""
    running = child(
        LIVE_RUN
        + """
import subprocess
for close_fds in (True, False):
    other = subprocess.Popen([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(600)"],
                             stdout=subprocess.PIPE, close_fds=close_fds)
    other.stdout.readline()
    other.terminate()
    assert other.wait() == -signal.SIGTERM
time.sleep(0.3)
say("ready")
sit()
"""
    )
    assert running.line() == "ready"
    running.terminate()
    assert running.end() == (-signal.SIGTERM, ["left 15"])


def test_outside_the_main_thread_nothing_is_taken():
    """Python allows handlers in the main thread only; the run is not marked, but nothing breaks."""
    before = signal.getsignal(signal.SIGTERM)
    answers = []

    def use():
        made = SignalWatch(print)
        answers.append(made.install())
        made.remove()

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert answers == [False]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_watch_that_was_not_installed_leaves_no_open_socket():
    """`install` outside the main thread is False, and `remove` there does nothing else but tidy up."""
    import gc
    import warnings

    def use():
        made = SignalWatch(print)
        made.install()
        made.remove()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        gc.collect()
    assert not [one for one in caught if issubclass(one.category, ResourceWarning)]

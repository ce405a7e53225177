"""Starts Python programs by forking a process that has imported their modules already.

A hub imports for a second before it serves, and each rank of a job imports torch; the suite starts hundreds of either.
A program from a nursery is a process of its own, with the environment, folder, umask, priority, network and files that
its test gives it, and runs as `python ARGUMENTS` would; it only skips the imports. Tests that are about a program's
start start it in the ordinary way.

The nursery is this file run as a program. It has one thread, so that a fork is a whole copy. It ends when its test
process does, and what it forked ends with it.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

ASKS = "_NURSERY_CONTROL"
"""In a forked program's environment, where it may ask for more: the file descriptor by which it does."""

LARGEST_REQUEST = 1 << 20

_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1


class Nursery:
    """A process that has imported what programs need; it is started when the first program is.

    Args:
        modules: what to import.
        environment: variables that count when Python starts or a module is imported.
    """

    def __init__(self, *modules, environment=None):
        self._modules = modules
        self._environment = environment or {}
        self._control = None
        self._process = None

    def fits(self, environment):
        """Whether a program of this environment would find Python and what was imported as they are in the nursery."""
        return _looked_at(environment) == _looked_at({**os.environ, **self._environment})

    @classmethod
    def of_this_process(cls):
        """The nursery that this process was forked from, when it was started with `may_ask`."""
        made = cls()
        made._control = socket.socket(fileno=int(os.environ.pop(ASKS)))
        made._control.set_inheritable(False)
        atexit.register(made._control.close)
        return made

    def start(self, arguments, *, environment, stdout=1, stderr=2, new_session=False, may_ask=False):
        """Starts `python ARGUMENTS`; a Forked.

        Args:
            arguments: what python would get: `-m MODULE`, `-c CODE` or a path, before it `-u` at most.
            environment: all of it.
            stdout: a file descriptor.
            stderr: a file descriptor.
            new_session: as of `subprocess.Popen`.
            may_ask: whether it may start programs from the nursery too: `of_this_process` in it.
        """
        self.open()
        # There is no way to ask for the umask alone.
        umask = os.umask(0o077)
        os.umask(umask)
        request = {
            "arguments": list(map(str, arguments)),
            "environment": environment,
            "folder": str(Path.cwd()),
            "umask": umask,
            "priority": os.getpriority(os.PRIO_PROCESS, 0),
            "new_session": new_session,
            "may_ask": may_ask,
        }
        reports, reporter = os.pipe()
        with os.fdopen(reporter, "wb"), Path("/proc/thread-self/ns/net").open() as network:
            self._ask(request, reporter, stdout, stderr, network.fileno())
        return Forked(reports)

    def find(self, *arguments):
        """The pids of programs that run and have these arguments, one after the other."""
        if self._control is None:
            return []
        reports, reporter = os.pipe()
        with os.fdopen(reporter, "wb"):
            self._ask({"find": list(map(str, arguments))}, reporter)
        with os.fdopen(reports) as lines:
            return [int(line) for line in lines]

    def open(self):
        """Starts the nursery, unless it runs; it stays in this thread's network, whatever that of its programs is."""
        if self._control is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGEST_REQUEST)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), *self._modules],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # numpy's threads would be there at the fork.
                env={**os.environ, **self._environment, "OPENBLAS_NUM_THREADS": "1"},
            )
        self._control = ours
        atexit.register(self.close)

    def close(self):
        """Ends the nursery and what it forked."""
        if self._process is not None:
            self._control.close()
            self._process.wait()
            self._control = self._process = None

    def _ask(self, request, *files):
        socket.send_fds(self._control, [json.dumps(request).encode()], files)


def _looked_at(environment):
    names = ("PYTHON", "LC_", "LANG", "LD_", "OMP_", "MKL_", "TERM", "COLUMNS", "NO_COLOR", "FORCE_COLOR", "_TYPER_")
    return {name: value for name, value in environment.items() if name.startswith(names)}


class Forked:
    """A process that a nursery forked; used as a `subprocess.Popen` is.

    Args:
        reports: where the process writes its pid and, when it has ended, the nursery its exit code.
    """

    def __init__(self, reports):
        self._reports = os.fdopen(reports, "rb", buffering=0)
        self._told = b""
        self.returncode = None
        while b"\n" not in self._told:
            if not self._read():
                self._reports.close()
                raise RuntimeError("the nursery ended before it forked; pytest's stderr says why")
        self.pid = int(self._told.partition(b"\n")[0])

    def _read(self):
        more = self._reports.read(64)
        self._told += more
        return more

    def poll(self):
        """The exit code; None while the process runs."""
        return self._ended(0)

    def wait(self, timeout=None):
        """Waits for the exit code."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return code

    def _ended(self, timeout):
        if self.returncode is not None:
            return self.returncode
        until = None if timeout is None else time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self._reports, selectors.EVENT_READ)
            while self._told.count(b"\n") < 2:
                if not selector.select(None if until is None else max(0.0, until - time.monotonic())):
                    return None
                if not self._read():
                    # The nursery is gone, and what it forked with it.
                    self._told += b"%d\n" % -signal.SIGKILL
        self._reports.close()
        self.returncode = int(self._told.split(b"\n")[1])
        return self.returncode

    def send_signal(self, number):
        """Sends a signal, unless the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ends at this moment
                os.kill(self.pid, number)

    def terminate(self):
        """Sends SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self):
        """Sends SIGKILL."""
        self.send_signal(signal.SIGKILL)


# The nursery itself --------------------------------------------------------------------------------------------------


class _Parent:
    """Forks what is asked for.

    Args:
        control: where the test process asks; the nursery ends with it.
    """

    def __init__(self, control):
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ, self._answer)
        self._first = control
        self._running = {}

    def serve(self):
        """Returns in forked processes alone, with the request that each is."""
        while True:
            for key, _ in self._selector.select():
                request = key.data(key.fileobj)
                if request is not None:
                    return request

    def _answer(self, control):
        message, files, _, _ = socket.recv_fds(control, LARGEST_REQUEST, 4)
        if not message:
            if control is self._first:
                os._exit(0)
            self._selector.unregister(control)
            control.close()
            return None
        request = json.loads(message)
        if "find" in request:
            (reporter,) = files
            _report(reporter, *(pid for pid, had in self._running.items() if _contains(had, request["find"])))
            os.close(reporter)
            return None
        return self._fork(request, files)

    def _fork(self, request, files):
        reporter, *others = files
        ours = theirs = None
        if request["may_ask"]:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            request["environment"][ASKS] = str(theirs.fileno())
            theirs.set_inheritable(True)
        pid = os.fork()
        if pid == 0:
            for key in self._selector.get_map().values():
                if isinstance(key.data, _Ended):
                    os.close(key.fd)
                    os.close(key.data.reporter)
                else:
                    key.fileobj.close()
            self._selector.close()
            if ours is not None:
                ours.close()
                theirs.detach()
            _become(request, *others)
            _report(reporter, os.getpid())
            os.close(reporter)
            return request
        for file in others:
            os.close(file)
        if ours is not None:
            theirs.close()
            self._selector.register(ours, selectors.EVENT_READ, self._answer)
        self._running[pid] = request["arguments"]
        self._selector.register(
            os.pidfd_open(pid), selectors.EVENT_READ, _Ended(self._selector, self._running, pid, reporter)
        )
        return None


class _Ended:
    """What is done when a forked process has ended."""

    def __init__(self, selector, running, pid, reporter):
        self.reporter = reporter
        self._selector, self._running, self._pid = selector, running, pid

    def __call__(self, descriptor):
        _, status = os.waitpid(self._pid, 0)
        del self._running[self._pid]
        self._selector.unregister(descriptor)
        os.close(descriptor)
        _report(self.reporter, os.waitstatus_to_exitcode(status))
        os.close(self.reporter)


def _contains(arguments, wanted):
    return any(arguments[index : index + len(wanted)] == wanted for index in range(len(arguments)))


def _report(reporter, *numbers):
    with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
        os.write(reporter, b"".join(b"%d\n" % number for number in numbers))


def _become(request, stdout, stderr, network):
    libc = ctypes.CDLL(None, use_errno=True)
    # The parent ends with its test process, whatever ends that.
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The test may be in another network than the nursery; only root can go there.
    if os.fstat(network).st_ino != Path("/proc/self/ns/net").stat().st_ino and libc.setns(network, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.close(network)
    for file, place in ((stdout, 1), (stderr, 2)):
        os.dup2(file, place)
        os.close(file)
    if request["new_session"]:
        os.setsid()
    for name in ("torch", "numpy.random"):
        if name in sys.modules:
            sys.modules[name].seed()  # programs of one nursery would draw the same numbers
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    os.chdir(request["folder"])
    os.umask(request["umask"])
    if os.getpriority(os.PRIO_PROCESS, 0) != request["priority"]:
        os.setpriority(os.PRIO_PROCESS, 0, request["priority"])


def _run(arguments, libraries):
    """As `python ARGUMENTS`; returns what must live until the interpreter ends."""
    if arguments[0] == "-u":
        arguments = arguments[1:]
        for name, file in (("stdout", 1), ("stderr", 2)):
            stream = getattr(sys, name)
            raw = io.FileIO(file, "w", closefd=False)
            setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, stream.errors, write_through=True))
    kind, *rest = arguments
    if kind == "-m":
        sys.path[:] = [str(Path.cwd()), *libraries]
        sys.argv = rest
        for name in (rest[0], f"{rest[0]}.__main__"):
            sys.modules.pop(name, None)  # or runpy warns that it was imported
        return runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    if kind == "-c":
        sys.path[:] = ["", *libraries]
        sys.argv = [kind, *rest[1:]]
        code = compile(rest[0], "<string>", "exec")
    else:
        sys.path[:] = [str(Path(kind).parent.absolute()), *libraries]
        sys.argv = arguments
        main.__file__ = kind
        code = compile(Path(kind).read_bytes(), kind, "exec")
    try:
        exec(code, vars(main))
    except Exception as error:  # noqa: BLE001  # a program's may be any
        # Without the nursery's own lines.
        error.__traceback__ = error.__traceback__.tb_next
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(1)
    return main


def main():
    control = socket.socket(fileno=int(sys.argv[1]))
    libraries = sys.path[1:]
    sys.path.insert(1, str(Path.cwd()))  # as with -m
    for module in sys.argv[2:]:
        importlib.import_module(module)
    threads = [path.name for path in Path("/proc/self/task").iterdir()]
    if len(threads) != 1:
        sys.exit(f"{sys.argv[2:]} made {len(threads) - 1} threads, which a fork would lack")
    # Objects that no collection visits stay on pages that are shared.
    gc.collect()
    gc.freeze()
    _kept = _run(_Parent(control).serve()["arguments"], libraries)


if __name__ == "__main__":
    main()

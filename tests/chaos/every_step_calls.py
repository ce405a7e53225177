"""Stops a process right before its k-th system call that changes a file or talks, and kills it there.

The process asks the kernel (seccomp, SECCOMP_RET_USER_NOTIF) to stop it at the calls below; its parent is told of each
one, counts, and lets it go on or kills it. This sees what Python, SQLite and torch do alike, and it counts over all
threads. strace's `-e inject=write:signal=KILL:when=K` counts for each thread on its own: of two threads that write
three times each, one after the other, K = 1, 2, 3 kill the first, K = 4 nobody: no write of the second is tried.

To die before call k + 1 is to die after call k. A call that only reads leaves nothing, so to die before it is to die
before the next one that changes something; with one exception, below.

| counted | why |
| --- | --- |
| open with O_CREAT or O_TRUNC, mkdir, rename, link, symlink, unlink, rmdir | names in folders |
| write, pwrite, writev, truncate, fallocate, copy_file_range, sendfile, splice, FICLONE, FICLONERANGE | bytes |
| chmod, utimensat | what a reader may open |
| fsync, fdatasync, msync | nothing for a SIGKILL, but the places where the program believes that something is safe |
| flock, leases | what other processes may do meanwhile |
| connect, accept, send, shutdown | what the other side has heard |
| recv, on a client's side | the other side works on a request whose sender is dead before the answer is read |

Not counted: other opens, reads, stat; close (what it lets go, death lets go too); SQLite's fcntl locks and mapped
memory (both die with the process, and hub.db-shm is made anew); file descriptors 1 and 2, and those of this harness.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

CONTROL: Final = 1000
"""File descriptor of the socket to the parent."""

RECORD: Final = 1001
"""File descriptor of what a scenario writes down for itself."""

_UNWATCHED: Final = (1, 2, CONTROL, RECORD)


def _table(text: str) -> dict[str, int]:
    return {name: int(number) for name, number in (pair.split(":") for pair in text.split())}


# Numbers of x86-64, from its asm/unistd_64.h.
_OPENS: Final = _table("open:2 openat:257 creat:85")
_PATHS: Final = _table("""
    rename:82 renameat:264 renameat2:316 link:86 linkat:265 symlink:88 symlinkat:266 unlink:87 unlinkat:263
    rmdir:84 mkdir:83 mkdirat:258 truncate:76 chmod:90 fchmodat:268 fchmodat2:452 utimensat:280
""")
_FILES: Final = _table("""
    write:1 pwrite64:18 writev:20 pwritev:296 pwritev2:328 ftruncate:77 fallocate:285 copy_file_range:326 sendfile:40
    splice:275 fchmod:91 fsync:74 fdatasync:75 msync:26 flock:73 fcntl:72 ioctl:16
""")
_TALK: Final = _table("""
    connect:42 accept:43 accept4:288 sendto:44 sendmsg:46 sendmmsg:307 shutdown:48 recvfrom:45 recvmsg:47
""")
_HEARD: Final = ("recvfrom", "recvmsg")
_NAMES: Final = {number: name for table in (_OPENS, _PATHS, _FILES, _TALK) for name, number in table.items()}
_PATH_ARGUMENT: Final = {"openat": 1, "unlinkat": 1, "mkdirat": 1, "renameat": 1, "renameat2": 1, "fchmodat": 1}

_FICLONES: Final = frozenset({0x40049409, 0x4020940D})
_F_SETLEASE: Final = 1024

# From linux/seccomp.h, linux/audit.h and linux/filter.h.
_SYS_SECCOMP: Final = 317
_SET_MODE_FILTER: Final = 1
_NEW_LISTENER: Final = 1 << 3
_ALLOW: Final = 0x7FFF0000
_USER_NOTIF: Final = 0x7FC00000
_X86_64: Final = 0xC000003E
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_AT_NUMBER, _AT_ARCH, _AT_FIRST_ARGUMENT = 0, 4, 16
_NOTIF_RECV: Final = 0xC0502100
_NOTIF_SEND: Final = 0xC0182101
_CONTINUE: Final = 1
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def missing() -> str | None:
    """Why processes cannot be stopped at their calls here; None when they can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "needs Linux on x86-64"
    try:
        actions = Path("/proc/sys/kernel/seccomp/actions_avail").read_text()
    except OSError:
        actions = ""
    return (
        None if "user_notif" in actions else "needs seccomp with user_notif: Linux 5.5, and a container that allows it"
    )


def die_with_parent() -> None:
    """In a forked child: no orphan stays when the harness is ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def submit(control: socket.socket) -> None:
    """In a forked child with one thread: from now on the parent is asked before each call."""
    library = ctypes.CDLL(None, use_errno=True)
    code = _filter()
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(buffer))
    library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    listener = library.syscall(_SYS_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, ctypes.byref(program))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    socket.send_fds(control, [b"?"], [listener])
    os.close(listener)
    assert control.recv(1) == b"!"


def _filter() -> bytes:
    def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("HBBI", code, if_true, if_false, value)

    allow, ask = instruction(_RETURN, _ALLOW), instruction(_RETURN, _USER_NOTIF)
    program = [instruction(_LOAD, _AT_ARCH), instruction(_EQUAL, _X86_64, 1, 0), allow]
    program += [instruction(_LOAD, _AT_FIRST_ARGUMENT)]
    for descriptor in _UNWATCHED:
        program += [instruction(_EQUAL, descriptor, 0, 1), allow]
    program += [instruction(_LOAD, _AT_NUMBER)]
    for number in _NAMES:
        program += [instruction(_EQUAL, number, 0, 1), ask]
    return b"".join([*program, allow])


@dataclass
class Watched:
    """What came of a watched process.

    Attributes:
        calls: the names of its calls, in order.
        killed_at: the call before which it was killed; None when it was left alone.
        stuck: it did not end in time, and was killed for that.
    """

    calls: list[str] = field(default_factory=list)
    killed_at: str | None = None
    stuck: bool = False


def watch(
    pid: int,
    control: socket.socket,
    kill_before: int,
    *,
    client: bool,
    meanwhile: Callable[[], None] = lambda: None,
    timeout: float = 60.0,
) -> Watched:
    """In the parent: lets a process run, and kills it before its `kill_before`-th call (from 1; 0: never).

    Args:
        pid: the process, which has called or will call `submit`.
        control: the other end of its socket.
        kill_before: which call.
        client: whether what it hears counts.
        meanwhile: called again and again.
        timeout: seconds until it counts as stuck.
    """
    _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
    if not descriptors:
        raise RuntimeError("the process ended before it could be watched")
    (listener,) = descriptors
    result = Watched()
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    until = time.monotonic() + timeout
    control.send(b"!")
    try:
        while True:
            meanwhile()
            if time.monotonic() > until:
                result.stuck = True
                os.kill(pid, signal.SIGKILL)
                break
            events = poll.poll(50)
            if not events:
                continue
            if not events[0][1] & select.POLLIN:
                break  # it has ended
            call = _receive(listener)
            if call is None:
                continue
            number, name, arguments, thread = call
            if _counts(name, arguments, client=client):
                result.calls.append(name)
                if len(result.calls) == kill_before:
                    # It is still inside the call, which has not begun.
                    result.killed_at = f"{name} {_place(name, arguments, thread)}".strip()
                    os.kill(pid, signal.SIGKILL)
                    break
            _answer(listener, number)
    finally:
        os.close(listener)
    return result


def _receive(listener: int) -> tuple[int, str, list[int], int] | None:
    buffer = bytearray(80)
    try:
        fcntl.ioctl(listener, _NOTIF_RECV, buffer)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.EINTR}:  # its thread died meanwhile
            return None
        raise
    number, thread, _, call, _, _, *arguments = struct.unpack("QIIiIQ6Q", buffer)
    return number, _NAMES[call], arguments, thread


def _answer(listener: int, number: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        fcntl.ioctl(listener, _NOTIF_SEND, bytearray(struct.pack("QqiI", number, 0, 0, _CONTINUE)))


def _counts(name: str, arguments: list[int], *, client: bool) -> bool:
    match name:
        case "open":
            return bool(arguments[1] & (os.O_CREAT | os.O_TRUNC))
        case "openat":
            return bool(arguments[2] & (os.O_CREAT | os.O_TRUNC))
        case "ioctl":
            return arguments[1] in _FICLONES
        case "fcntl":
            return arguments[1] == _F_SETLEASE
        case _:
            return client or name not in _HEARD


def _place(name: str, arguments: list[int], thread: int) -> str:
    """The file that a call is about, for people."""
    try:
        if name in _OPENS or name in _PATHS:
            with Path(f"/proc/{thread}/mem").open("rb") as memory:
                memory.seek(arguments[_PATH_ARGUMENT.get(name, 0)])
                text = memory.read1(200).partition(b"\0")[0].decode()
        else:
            text = str(Path(f"/proc/{thread}/fd/{arguments[0]}").readlink())
    except (OSError, ValueError):
        return ""
    return "/".join(text.split("/")[-3:])

"""Kills a child at its k-th file operation, or makes that fail, for every k there is, and looks at what it left.

Operations that only read do not count: to die before one is to die before the next that writes.
A program, not a test: forking is safe here because nothing has started a thread. Prints the number of kills.
"""

import errno
import itertools
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ddphub.checkpoints.staging import Entry, Slot, StagingArea
from ddphub.errors import StagingError

AUDITED = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "fcntl.ioctl"}
UNAUDITED = ("pwrite", "copy_file_range", "sendfile", "fsync")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
MET = 3
SLOT = Slot("a" * 32, "epoch", 1, None, "last.pt")
DATA = {"0": b"0" * 100_000, "deep/1": b"1" * 10}


def kill() -> None:
    """End this process as nothing can prevent."""
    os.kill(os.getpid(), signal.SIGKILL)


class FullDisk(OSError):
    """Reaches the caller only from its own operations inside a `write` block."""


def fill_disk() -> None:
    """Fail as an operation on a full disk does."""
    raise FullDisk(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt() -> None:
    """What Ctrl-C does."""
    raise KeyboardInterrupt


def at_operation(number: int, happen: Callable[[], None]) -> None:
    """Make something happen once, before this process's `number`-th file operation."""
    numbers = itertools.count(1)

    def step() -> None:
        if next(numbers) == number:
            happen()

    def counted(function: Callable) -> Callable:
        def call(*arguments: object, **options: object) -> object:
            step()
            return function(*arguments, **options)

        return call

    for name in UNAUDITED:
        setattr(os, name, counted(getattr(os, name)))

    def audit(event: str, arguments: tuple) -> None:
        if event in AUDITED or (event == "open" and arguments[2] & WRITES):
            step()

    sys.addaudithook(audit)


def run_child(do: Callable[[], object], number: int | None = None) -> int:
    """The exit code of a child that does something, and is killed at its `number`-th operation."""
    child = os.fork()
    if child == 0:
        try:
            if number is not None:
                at_operation(number, kill)
            do()
        except BaseException:  # noqa: BLE001 - the child must not go on as its parent
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in {0, MET, -signal.SIGKILL}, status
    return status


def run_failing(do: Callable[[], object], check: Callable[[], None], happen: Callable[[], None], number: int) -> int:
    """The exit code of a child to which something happens at its `number`-th operation; it checks what it left."""
    state = "waiting"

    def meet() -> None:
        nonlocal state
        if state == "waiting":
            state = "met"
            happen()

    def child() -> None:
        nonlocal state
        at_operation(number, meet)
        with suppress(StagingError, KeyboardInterrupt, FullDisk):
            do()
        met, state = state == "met", "over"
        check()
        os._exit(MET if met else 0)

    return run_child(child)


def write_source(folder: Path) -> None:
    for name, data in DATA.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def write(area: StagingArea) -> None:
    with area.write(SLOT, {"loss": 1}) as pending:
        write_source(pending.path)


def fail(area: StagingArea) -> None:
    try:
        area.stage(SLOT, area.folder / "missing", {})
    except StagingError:
        return
    raise AssertionError("expected a refusal")


def stop_in_block(area: StagingArea) -> None:
    """Leave the claim of a process that died."""
    with area.write(SLOT, {}) as pending:
        write_source(pending.path)
        os.kill(os.getpid(), signal.SIGKILL)


def check_whole(entry: Entry) -> None:
    assert {file.name: entry.file_path(file.name).read_bytes() for file in entry.files} == DATA


def check_clean(area: StagingArea) -> None:
    """Nothing is left beside entries and slots, and every slot is that of an entry that is or was there."""
    assert not list(area.folder.glob("incoming/*"))
    assert not list(area.folder.glob("slots/*.tmp"))
    assert area.recover() == area.broken() == area.pending_claims() == []
    assert area.used() == sum(entry.size for entry in area.entries())


def check_stage(area: StagingArea, source: Path, recover: bool) -> None:
    """After a killed save: nothing, or the whole entry; the slot can be staged and then is there once."""
    before = area.entries()
    if recover:
        area.recover()
        check_clean(area)
        assert area.entries() == before
    for entry in before:
        check_whole(entry)
    staged = area.stage(SLOT, source, {})
    assert staged.new is not bool(before), (staged, before)
    assert area.entries() == [staged.entry]
    check_whole(staged.entry)
    area.recover()
    check_clean(area)
    again = area.stage(SLOT, source, {})
    assert (again.entry, again.new) == (staged.entry, False)


def check_removed(area: StagingArea, source: Path, recover: bool) -> None:
    """After a killed removal: the whole entry or none, its slot taken for ever, and the removal can be repeated."""
    before = area.entries()
    for entry in before:
        check_whole(entry)
    entry_id = area.stage(SLOT, source, {}).entry_id
    if recover:
        area.recover()
        check_clean(area)
    area.remove(entry_id)
    assert area.entries() == []
    check_clean(area)
    again = area.stage(SLOT, source, {})
    assert (again.entry_id, again.entry, again.new) == (entry_id, None, False)


def check_sealed(area: StagingArea, source: Path, recover: bool) -> None:
    """After a killed sealing: the entry as it was, with its digest or without."""
    (entry,) = area.entries()
    digest = area.digest(entry)
    assert digest in {None, area.seal(entry, 1000)}
    check_stage(area, source, recover)


def main(folder: Path, name: str, how: Callable[[], None]) -> None:
    stage = lambda area: area.stage(SLOT, source, {"loss": 1})  # noqa: E731 - one line of the table below
    remove = lambda area: [area.remove(entry.entry_id) for entry in area.entries()]  # noqa: E731 - the same
    seal = lambda area: [area.seal(entry, 1000) for entry in area.entries()]  # noqa: E731 - the same
    nothing = lambda area: None  # noqa: ARG005, E731 - the same
    prepare, do, check = {
        "stage": (nothing, stage, check_stage),
        "write": (nothing, write, check_stage),
        "fail": (nothing, fail, check_stage),
        "take over": (stop_in_block, stage, check_stage),
        "recover": (stop_in_block, StagingArea.recover, check_stage),
        "write when taken": (stage, write, check_stage),
        "remove": (stage, remove, check_removed),
        "seal": (stage, seal, check_sealed),
    }[name]
    source = folder / "source"
    write_source(source)
    area = StagingArea(folder / "staging", budget=1_000_000)
    count = 0
    for number, recover in ((number, recover) for number in itertools.count(1) for recover in (False, True)):
        run_child(lambda: prepare(area))
        try:
            if how is kill:
                status = run_child(lambda: do(area), number)
                check(area, source, recover)
            else:
                # Afterwards the same process, alive, finds what it left.
                status = run_failing(lambda: do(area), lambda r=recover: check(area, source, r), how, number)
        except BaseException:
            print(f"{name}: {how.__name__} at operation {number}", file=sys.stderr)
            raise
        shutil.rmtree(area.folder, ignore_errors=True)
        if status == 0:
            break
        count += 1
    print(count)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], {"kill": kill, "full": fill_disk, "interrupt": interrupt}[sys.argv[3]])

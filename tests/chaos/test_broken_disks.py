"""The disk under a run, under `ddphub sync` or the hub is full or broken: training goes on, the safe stays safe."""

import contextlib
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager

import mounts
import needs
import postgres
import psutil
import pytest
from hub_process import HubProcess
from jobs import HubView, Job, ddphub, wait_until

from ddphub.checkpoints.staging import StagingArea

STEPS, EPOCHS = 60, 4


class Training(Job):
    """tests/programs/disk_train.py with its run directory on a disk of its own; its records are elsewhere."""

    def __init__(self, folder, disk, hub, hold, *, ranks=0, epochs=EPOCHS, environment=None, **arguments):
        environment = {"DDPHUB_DIR": str(disk / "runs"), **(environment or {})}
        arguments |= {"hold": ",".join(map(str, hold)), "epochs": epochs}
        super().__init__(folder, "disk_train.py", hub=hub, ranks=ranks, environment=environment, **arguments)
        self.runs = disk / "runs"
        self.run_folder = self.runs / "run"
        self.ranks, self.epochs = max(1, ranks), epochs

    def held(self, point):
        """Waits until every rank is at a point."""
        for rank in range(self.ranks):
            wait_until((self.folder / f"held-{point}-{rank}").exists, what=f"rank {rank} at {point}:\n{self.text}")

    def go(self, point):
        (self.folder / f"go-{point}").touch()

    def refused(self):
        """The epochs whose save was refused, by the program's record."""
        return [epoch for epoch, _, entry_id in self._saved() if entry_id == "None"]

    def accepted(self):
        return [(int(epoch), sha256) for epoch, sha256, entry_id in self._saved() if entry_id != "None"]

    def _saved(self):
        return [line.split() for line in (self.folder / "saved.txt").read_text().splitlines()]

    def logged(self):
        return sorted(
            (rank, int(step))
            for rank in range(self.ranks)
            for step in (self.folder / f"logged-{rank}.txt").read_text().split()
        )

    def trained(self):
        """Training did not notice: every step and save is done, finish returned, the exit code is 0."""
        self.succeed()
        assert "Traceback" not in self.text, self.text
        assert self.logged() == [(rank, step) for rank in range(self.ranks) for step in range(self.epochs * STEPS)]
        assert [epoch for epoch, *_ in self._saved()] == [str(epoch) for epoch in range(self.epochs)]
        assert sorted((self.folder / "finished.txt").read_text().split()) == [str(rank) for rank in range(self.ranks)]
        return self


def delivered(training, hub, lost=(), superseded=(), cut=False):
    """After a `sync` on a disk that works again: what the program's record says is there, once; nothing else."""
    done = ddphub("sync", str(training.run_folder), hub=hub)
    assert "everything is delivered" in done.stdout
    view = HubView(hub)
    there = sorted((rank, step) for _, rank, step in view.logged())
    assert there == [one for one in training.logged() if one not in lost]
    assert done.returncode == 0
    wanted = [one for one in training.accepted() if one[0] not in superseded]
    assert view.saved() == wanted
    status = training.status()
    # Whoever asks is told why saves were refused, and of nothing else.
    assert [one for one in status["problems"] if " refused, " not in one and not (cut and " and no end" in one)] == []
    assert status["checkpoints"]["uploaded"] == len(wanted)
    clean(training.run_folder)
    assert not list(training.run_folder.glob("staging/*/files/*")), "delivered bytes are deleted"
    return status


def clean(run_folder):
    """Nothing half-done is left."""
    left = [path for path in run_folder.rglob("*") if re.search(r"\.tmp$|^\.run-|^\.removing", path.name)]
    assert left == []
    assert not list(run_folder.glob("staging/incoming/*"))


def fill(disk):
    """Takes the disk's last byte."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1024 * 1024, 65536, 4096, 512):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)
        os.fsync(file.fileno())
    return filler


def use_up_inodes(disk):
    """Takes the disk's last inode."""
    folder = disk / "many"
    folder.mkdir()
    with contextlib.suppress(OSError):
        for number in range(10_000):
            (folder / str(number)).touch()
    return folder


def empty(path):
    subprocess.run(["rm", "-rf", path], check=True)


DISKS = {
    "tmpfs": (lambda folder: mounts.tmpfs(folder, "size=8m"), fill),
    "ext4": (lambda folder: mounts.disk(folder, "ext4", 16), fill),
    "inodes": (lambda folder: mounts.tmpfs(folder, "size=8m", "nr_inodes=100"), use_up_inodes),
}


@pytest.mark.parametrize("kind", DISKS)
def test_a_disk_that_is_full_for_a_while_costs_the_saves_of_that_while(tmp_path, own_hub, kind):
    """Events wait in memory and are written when there is room again; refused saves are named; nothing else is lost."""
    make, use_up = DISKS[kind]
    with make(tmp_path / "disk") as disk:
        training = Training(tmp_path, disk, own_hub, [1, 3])
        try:
            training.held(1)
            wait_until(lambda: len(HubView(own_hub).checkpoints()) == 1, what="the first upload")
            filler = use_up(disk)
            training.go(1)
            training.held(3)
            clean(training.run_folder)
            empty(filler)
            training.go(3)
            training.trained()
        finally:
            training.end()
        assert training.refused() == ["1", "2"]
        assert training.text.count("checkpoint last.pt is not reported") == 2
        assert training.text.count("the disk is full") >= 2
        assert "2 refused" in training.text
        assert "events are lost" not in training.text
        assert delivered(training, own_hub)["checkpoints"]["refused"] == 2


@pytest.mark.parametrize("point", [0, 3])
def test_a_disk_that_stays_full_costs_what_came_after(tmp_path, own_hub, point):
    """From the start on, or at the end: what was on disk before is delivered, the rest is counted in the report."""
    with mounts.tmpfs(tmp_path / "disk", "size=8m") as disk:
        training = Training(tmp_path, disk, own_hub, [point], finish_timeout=6)
        try:
            training.held(point)
            if point:
                wait_until(lambda: len(HubView(own_hub).logged()) == point * STEPS, what="delivery")
                wait_until(lambda: len(HubView(own_hub).checkpoints()) == point, what="delivery")
            filler = fill(disk)
            training.go(point)
            training.trained()
        finally:
            training.end()
        assert training.refused() == [str(epoch) for epoch in range(point, EPOCHS)]
        told = re.search(r"(\d+) events are lost: the disk did not take them", training.text)
        assert told
        assert "No space left on device" in training.text
        ddphub("status", str(training.run_folder))
        empty(filler)
        ddphub("sync", str(training.run_folder), hub=own_hub)
        there = {(rank, step) for _, rank, step in HubView(own_hub).logged()}
        lost = [one for one in training.logged() if one not in there]
        assert there >= {(0, step) for step in range(point * STEPS)}
        # The others are what became of saves and of rank 0.
        assert len(lost) <= int(told[1]) <= len(lost) + len(training.refused()) + 4
        # The process may end between a write of which the disk took a part and taking that back.
        delivered(training, own_hub, lost, cut=True)


def test_a_disk_that_is_full_at_the_start_is_a_wrong_setting(tmp_path, own_hub):
    """`init` says so before training starts, and leaves nothing behind that looks like a run."""
    with mounts.tmpfs(tmp_path / "disk", "size=1m") as disk:
        filler = fill(disk)
        training = Training(tmp_path, disk, own_hub, [])
        assert training.wait() == 1
        assert "SettingsError: dir" in training.text
        assert "No space left on device" in training.text
        assert not list(training.runs.rglob("*.json"))
        clean(disk)
        empty(filler)
        Training(tmp_path, disk, own_hub, [], bytes=100).trained()


def test_a_byte_budget_costs_saves_and_no_events(tmp_path, own_hub):
    """What does not fit is refused with the budget's name; the report counts it."""
    with mounts.tmpfs(tmp_path / "disk", "size=8m") as disk:
        training = Training(tmp_path, disk, own_hub, [], environment={"DDPHUB_STAGING_BUDGET": "99999"}).trained()
        assert training.refused() == [str(epoch) for epoch in range(EPOCHS)]
        assert training.text.count("is not reported: the checkpoint of 100000 bytes does not fit") == EPOCHS
        assert delivered(training, own_hub)["checkpoints"]["refused"] == EPOCHS


def test_a_full_disk_does_not_hold_back_what_is_staged(tmp_path, own_hub):
    """What waits for its turn, not sealed yet, when the disk fills up is delivered all the same, not set aside."""
    with mounts.tmpfs(tmp_path / "disk", "size=8m") as disk:
        training = Training(tmp_path, disk, own_hub, [1, "end"], finish_timeout=10, ckpt=900)
        try:
            training.held(1)
            wait_until(lambda: len(HubView(own_hub).checkpoints()) == 1, what="the first upload")
            training.go(1)
            training.held("end")
            wait_until(lambda: len(HubView(own_hub).logged()) == EPOCHS * STEPS, what="events")
            filler = fill(disk)
            training.go("end")
            training.trained()
        finally:
            training.end()
        assert "set aside in" not in training.text
        assert training.refused() == []
        assert [epoch for epoch, _ in HubView(own_hub).saved()] == [0, 3]
        empty(filler)
        assert delivered(training, own_hub, superseded=[1, 2])["checkpoints"]["set_aside"] == 0


def test_a_file_system_that_goes_away_and_comes_back_costs_nothing_else(tmp_path, own_hub):
    """The FUSE daemon under the run directory dies and is started again: every handle is stale, every event arrives."""
    needs.root()
    needs.programs("bindfs", "fusermount3")
    under, disk = tmp_path / "under", tmp_path / "disk"
    under.mkdir()
    with mounts.second_view(disk, under):
        training = Training(tmp_path, disk, own_hub, [1, 2, 3])
        try:
            training.held(1)
            wait_until(lambda: len(HubView(own_hub).checkpoints()) == 1, what="the first upload")
            os.kill(daemon_of(disk), 9)
            wait_until(lambda: is_dead(disk), what="the end of the file system")
            training.go(1)
            training.held(2)
            subprocess.run(["umount", "--lazy", disk], check=True)
            training.go(2)
            training.held(3)
            hidden = [path for path in disk.rglob("*") if path.is_file()]
            subprocess.run(["bindfs", under, disk], check=True)
            training.go(3)
            training.trained()
        finally:
            training.end()
        assert hidden == [], "nothing is written beneath the mount point, where it would be lost from sight"
        assert training.refused() == ["1", "2"]
        assert delivered(training, own_hub)["checkpoints"]["refused"] == 2


def is_dead(disk):
    try:
        disk.stat()
    except OSError:
        return True
    return False


def daemon_of(disk):
    """The pid of the bindfs process that serves a mount point."""
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "bindfs" and str(disk) in process.info["cmdline"]:
            return process.pid
    raise AssertionError("no bindfs serves this")


def test_a_disk_that_turns_read_only_keeps_what_it_had(tmp_path, own_hub):
    """After an error ext4 takes no write any more. What was safe is delivered once the disk is mounted again."""
    with mounts.disk(tmp_path / "disk", "ext4", 16) as disk:
        training = Training(tmp_path, disk, own_hub, [0, 2], finish_timeout=6)
        try:
            training.held(0)
            wait_until(lambda: training.status()["model_id"], what="registration")
            own_hub.stop()
            training.go(0)
            training.held(2)
            wait_until(lambda: training.status()["events"]["reported"] >= 2 * STEPS + 4, what="the spool")
            for fd_path in training.run_folder.rglob("*"):
                sync(fd_path)
            mounts.remount(disk, "abort")
            training.go(2)
            training.trained()
        finally:
            training.end()
        assert training.refused() == ["2", "3"]
        assert training.text.count("checkpoint last.pt is not reported") == 2
        ddphub("status", str(training.run_folder))
        assert ddphub("sync", str(training.run_folder), hub=own_hub, check=False).returncode == 1
        own_hub.start()
        refusal = ddphub("sync", str(training.run_folder), hub=own_hub, check=False)
        assert refusal.returncode == 1
        assert "Read-only file system" in refusal.stdout + refusal.stderr
        subprocess.run(["umount", disk], check=True)
        subprocess.run(["mount", "-o", "loop", f"{disk}.img", disk], check=True)
        lost = [(0, step) for step in range(2 * STEPS, EPOCHS * STEPS)]
        delivered(training, own_hub, lost)


def sync(path):
    """What is safe is on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


# What a disk may answer: system calls that strace lets fail, the files that are meant, whether the save is refused.
MKDIR, RENAME, UNLINK = "?mkdir,?mkdirat", "?rename,?renameat,?renameat2", "?unlink,?unlinkat,?rmdir"
FAULTS = {
    "events": [
        (["write,ftruncate:error=EIO"], "relay", None),
        (["fdatasync:error=ESTALE"], None, None),
        (["read,pread64:error=EIO"], "relay", None),
        (["?fstat,?newfstatat:error=ESTALE"], "relay", None),
    ],
    "saves": [
        ([f"{MKDIR},pwrite64:error=EDQUOT"], None, "the disk quota is used up"),
        (["ioctl,copy_file_range,sendfile:error=EIO"], None, "the disk reported an input/output error"),
        (["copy_file_range,sendfile:error=ENOSYS", "pread64:error=ESTALE"], None, "the file server no longer knows"),
        ([f"{RENAME}:error=EIO"], None, "the disk reported an input/output error"),
        (["openat:error=ESTALE"], "staging.lock", "the file server no longer knows"),
    ],
    "uploads": [
        (["fsync:error=EIO"], None, None),
        ([f"{UNLINK}:error=ESTALE"], None, None),
        (["write:error=EIO"], "journal", None),
    ],
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_disk_that_answers_with_errors_for_a_while_costs_the_saves_of_that_while(tmp_path, own_hub, what):
    """One error after another, each during one epoch: events wait, refused saves are named, all else goes out."""
    faults = FAULTS[what]
    epochs = 2 * len(faults) + 1
    training = Training(tmp_path, tmp_path / "disk", own_hub, range(1, epochs), epochs=epochs)
    view = HubView(own_hub)
    refused = {}
    try:
        for number, (injections, which, reason) in enumerate(faults):
            epoch = 2 * number + 1
            training.held(epoch)
            (relay,) = wait_until(lambda: list(training.run_folder.glob("spool/*-relay.jsonl")), what="the spool")
            staging_lock, journal = (
                training.run_folder / "staging/staging.lock",
                training.run_folder / "delivered.jsonl",
            )
            path = {"relay": relay, "staging.lock": staging_lock, "journal": journal, None: None}[which]
            with failing(training.pid_of(0), injections, path):
                training.go(epoch)
                training.held(epoch + 1)
                time.sleep(0.7)  # the outbox's turn, and the loops'
            if reason:
                refused[epoch] = reason
            training.go(epoch + 1)
            if epoch + 2 < epochs:
                training.held(epoch + 2)
            expected = epoch + 2 - len(refused)
            wait_until(lambda n=expected: len(view.checkpoints()) == n, what=f"delivery after {injections}")
        training.trained()
    finally:
        training.end()
    assert training.refused() == [str(epoch) for epoch in refused]
    told = [line for line in training.text.splitlines() if "is not reported" in line]
    assert len(told) == len(refused)
    for line, reason in zip(told, refused.values(), strict=True):
        assert reason in line
    assert "events are lost" not in training.text
    assert delivered(training, own_hub)["checkpoints"]["refused"] == len(refused)


@contextmanager
def failing(pid, injections, path=None):
    """Lets system calls of a running process fail, all or those on one path, while the block runs."""
    needs.programs("strace")
    command = ["strace", "-f", "-o", "/dev/null", "-p", str(pid), *(["-P", str(path)] if path else [])]
    for injection in injections:
        command += ["-e", f"inject={injection}"]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = tracer.stderr.readline()
        assert "attached" in line, line
        yield
    finally:
        tracer.terminate()
        tracer.communicate()


def test_a_file_system_without_locks_costs_nothing(tmp_path, own_hub):
    """ENOSYS from flock from the start: a lease file takes the lock's place, every event and checkpoint arrives."""
    training = Training(tmp_path, tmp_path / "disk", own_hub, ["before"])
    try:
        training.held("before")
        with failing(training.pid_of(0), ["flock:error=ENOSYS"]):
            training.go("before")
            training.trained()
    finally:
        training.end()
    assert training.refused() == []
    assert "everything is delivered" in training.text
    delivered(training, own_hub)


def test_a_full_disk_under_two_ranks_costs_the_saves_of_that_while(tmp_path, own_hub):
    """Events of both ranks wait, in rank 0 and in the other, until there is room again."""
    with mounts.tmpfs(tmp_path / "disk", "size=8m") as disk:
        training = Training(tmp_path, disk, own_hub, [1, 3], ranks=2)
        try:
            training.held(1)
            wait_until(lambda: len(HubView(own_hub).checkpoints()) == 1, what="the first upload")
            filler = fill(disk)
            training.go(1)
            training.held(3)
            empty(filler)
            training.go(3)
            training.trained()
        finally:
            training.end()
        assert training.refused() == ["1", "2"]
        delivered(training, own_hub)


def test_sync_on_a_broken_disk_says_why_and_the_next_one_goes_on(tmp_path, own_hub):
    """A full disk, EIO, ESTALE, EROFS at one call after another: exit code 1 with the reason; then everything, once."""
    with mounts.tmpfs(tmp_path / "disk", "size=8m") as disk:
        training = Training(tmp_path, disk, own_hub, [], environment={"DDPHUB_MODE": "offline"}).trained()
        (relay,) = training.run_folder.glob("spool/*-relay.jsonl")
        oldest = StagingArea(training.run_folder / "staging").entries()[0]
        filler = fill(disk)
        assert "No space left on device" in failed_sync(training, own_hub)
        empty(filler)
        for injection, path, reason in [
            ("read:error=EIO", training.run_folder / "run.json", "Input/output error"),
            ("openat:error=EROFS", training.run_folder / "session.lock", "Read-only file system"),
            ("openat:error=ESTALE", oldest.file_path("last.pt"), "Stale file handle"),  # the others are delivered
            (f"{UNLINK}:error=EIO", None, "could not remove the staged checkpoint"),
            ("read:error=EIO", relay, "Input/output error"),
        ]:
            assert reason in failed_sync(training, own_hub, injection, path), injection
        delivered(training, own_hub)


def test_a_receipt_that_does_not_get_to_the_disk_is_not_yet_one(tmp_path, own_hub):
    """The hub has the bytes; they stay here too until the journal says so for good."""
    with mounts.tmpfs(tmp_path / "disk", "size=8m") as disk:
        training = Training(tmp_path, disk, own_hub, [], environment={"DDPHUB_MODE": "offline"}).trained()
        entries = StagingArea(training.run_folder / "staging").entries()
        assert "Input/output error" in failed_sync(training, own_hub, "fdatasync:error=EIO")
        assert StagingArea(training.run_folder / "staging").entries() == entries
        delivered(training, own_hub)


def test_bytes_that_could_not_be_deleted_are_deleted_by_the_next_sync(tmp_path, own_hub):
    """Also when nothing is left to send: their receipt is in the journal."""
    training = Training(tmp_path, tmp_path / "disk", own_hub, [], epochs=1, environment={"DDPHUB_MODE": "offline"})
    training.trained()
    assert "could not remove the staged checkpoint" in failed_sync(training, own_hub, f"{UNLINK}:error=EIO")
    delivered(training, own_hub)


def failed_sync(training, hub, injection=None, path=None):
    """What `ddphub sync` says; its exit code is 1, without a traceback."""
    command = [sys.executable, "-c", "from ddphub.cli import main; main()", "sync", str(training.run_folder)]
    if injection:
        needs.programs("strace")
        limit = ["-P", str(path)] if path else []
        command = ["strace", "-f", "-qq", "-o", "/dev/null", *limit, "-e", f"inject={injection}", *command]
    environment = {**os.environ, "DDPHUB_URL": hub.url, "DDPHUB_API_KEY": hub.key}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=100)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "Traceback" not in said
    return said


@pytest.mark.skipif(postgres.is_on(), reason="the disk of a hub on PostgreSQL holds no rows: run without --database")
def test_a_hub_whose_disk_is_full_takes_the_rest_later(tmp_path):
    """Amid an upload and events: it answers 5xx and lives, keeps what it had, and then takes everything."""
    with (
        mounts.tmpfs(tmp_path / "hub", "size=8m") as data,
        HubProcess(data, api_key="k" * 42, arguments=("--part-size", "65536")) as hub,
    ):
        view = HubView(hub)
        training = Training(tmp_path, tmp_path / "local", hub, [1, 3], bytes=400_000)
        try:
            training.held(1)
            first = wait_until(view.saved, what="the first upload")
            filler = fill(data)
            os.truncate(filler, filler.stat().st_size - 200_000)  # some parts fit, all of them do not
            training.go(1)
            training.held(3)
            wait_until(lambda: len(list(data.glob("uploads/*/*"))) in range(1, 7), what="half an upload")
            events, taken = f"{hub.url}/v1/models/{view.model()['id']}/events", 0
            event = {"attempt_id": "f" * 32, "rank": 7, "time": 1.0, "kind": "log", "message": "x" * 9000}
            with hub.client() as client:
                for seq in range(100):
                    fill(data)  # once more: a part that arrived or did not fit has given room back
                    answer = client.post(events, json=[{**event, "seq": seq}])
                    if answer.status_code != 200:
                        break
                    taken += 1
            assert answer.status_code in {503, 507}, "the client tries again"
            assert answer.json()["success"] is False
            assert view.saved() == first, "what it had it keeps and hands out"
            empty(filler)
            training.go(3)
            training.trained()
        finally:
            training.end()
        assert training.refused() == []
        delivered(training, hub)
        assert not list((data / "incoming").iterdir())
        hub.restart()
        assert view.saved() == training.accepted()
        with hub.client() as client:
            there = client.get(events, params={"kind": "log", "rank": 7}).json()["data"]
        assert [one["seq"] for one in there] == list(range(taken)), "what it said it has it has, and nothing else"

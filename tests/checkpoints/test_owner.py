"""Which process holds a claim."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import needs
import pytest

from ddphub.checkpoints.owner import Owner

PROGRAM = """
import json, sys
from ddphub.checkpoints.owner import Owner
print(json.dumps(Owner.current().to_json()), flush=True)
sys.stdin.read()
"""


def test_a_process_knows_itself():
    """The calling process is alive, and is the same each time it is asked."""
    owner = Owner.current()
    assert owner.state() == "alive"
    assert owner == Owner.current()
    assert owner == Owner.from_json(json.loads(json.dumps(owner.to_json())))
    assert owner.pid == os.getpid()


def test_another_process_is_alive_until_it_ends():
    """A process is alive to others while it runs, and dead once it was killed, also before it was waited for."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=-1, stdout=-1, text=True) as process:
        owner = Owner.from_json(json.loads(process.stdout.readline()))
        assert owner.state() == "alive"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert owner.state() == "dead"
    assert owner.state() == "dead"


IN_ANOTHER_NAMESPACE = """
import ctypes, os
from ddphub.checkpoints.owner import Owner
before = Owner.current()
assert ctypes.CDLL(None).unshare(0x20000000) == 0  # CLONE_NEWPID
if child := os.fork():
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(Owner.current().state(), before.state(), Owner.current().host != before.host)
"""


def test_a_child_in_another_pid_namespace_is_on_another_host():
    needs.root()
    done = subprocess.run([sys.executable, "-c", IN_ANOTHER_NAMESPACE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["alive", "unknown", "True"]


def test_a_pid_that_was_used_again_is_another_process():
    """The start time tells a process from the earlier one of the same pid."""
    owner = Owner.current()
    assert replace(owner, started=owner.started - 1).state() == "dead"


def test_other_hosts_are_unknown():
    """Nothing is said about a process of another host, another boot or another pid namespace."""
    owner = Owner.current()
    host, boot, pids = owner.host.split("/")
    for other in (f"x{host}/{boot}/{pids}", f"{host}/another-boot/{pids}", f"{host}/{boot}/pid:[1]"):
        assert replace(owner, host=other).state() == "unknown"


def test_a_command_name_with_spaces_and_parentheses_does_not_confuse():
    """/proc/<pid>/stat is read correctly when the program calls itself `) R 1 (`."""
    rename = "open('/proc/self/comm', 'w').write(') R 1 (x')\n"
    with subprocess.Popen([sys.executable, "-c", rename + PROGRAM], stdin=-1, stdout=-1, text=True) as process:
        owner = Owner.from_json(json.loads(process.stdout.readline()))
        assert owner.started > Owner.current().started - 1
        assert owner.state() == "alive"
        process.stdin.close()


@pytest.mark.parametrize(
    "value", [None, [], {}, {"host": "a", "pid": "1", "started": 1}, {"host": "a", "pid": True, "started": 1}]
)
def test_records_of_something_else_are_refused(value):
    """An owner is read from what `to_json` wrote and nothing else."""
    with pytest.raises(ValueError, match="owner"):
        Owner.from_json(value)

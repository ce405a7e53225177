"""What is forked from a nursery is a program of its own, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from jobs import wait_until
from nursery import Nursery

PROGRAM = """
import json, os, sys
files = os.listdir('/proc/self/fd')
print(json.dumps([os.getpid(), dict(os.environ), os.getcwd(), os.umask(0), sys.argv, files]))
sys.exit(json.__dict__.get('imported', 3))
"""


@pytest.fixture
def nursery():
    started = Nursery("json")
    yield started
    started.close()


def start(nursery, folder, code, *arguments, environment=None):
    """Starts code; its output goes to the file `out`, and its errors to `err`."""
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        return nursery.start(
            ["-c", code, *arguments],
            environment={} if environment is None else environment,
            stdout=out.fileno(),
            stderr=err.fileno(),
        )


def test_a_program_gets_what_its_test_gives_it(nursery, tmp_path, monkeypatch):
    start(nursery, tmp_path, "import json; json.imported = 4").wait(60)
    monkeypatch.chdir(tmp_path)
    before = os.umask(0o027)
    try:
        program = start(nursery, tmp_path, PROGRAM, "one", "2", environment={"A": "é\n=", "B": ""})
        assert program.wait(60) == 3, "programs share nothing"
    finally:
        os.umask(before)
    pid, environment, folder, umask, arguments, files = json.loads((tmp_path / "out").read_text())
    assert (pid, environment, folder) == (program.pid, {"A": "é\n=", "B": ""}, str(tmp_path))
    assert (umask, arguments) == (0o027, ["-c", "one", "2"])
    assert len(files) == 4, "the listing itself, and no file of the nursery's"


def test_a_file_is_run_as_python_runs_it(tmp_path):
    """With `-u`, its folder on the path, and nothing of the nursery in a traceback; no two draw the same numbers."""
    (tmp_path / "beside.py").write_text("def fail():\n    raise ValueError('broken')\n")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, os, random, numpy.random, beside\n"
        "print(random.random(), numpy.random.random(), sys.path[0], __file__, *sys.argv)\n"
        "os.kill(os.getpid(), 9) if len(sys.argv) > 1 else beside.fail()\n"
    )
    nursery = Nursery("numpy.random")
    texts = []
    for arguments, code in ((["-u", program, "x"], -9), (["-u", program, "x"], -9), ([program], 1)):
        with (tmp_path / "out").open("wb") as out:
            environment = dict(os.environ)
            forked = nursery.start(arguments, environment=environment, stdout=out.fileno(), stderr=out.fileno())
        assert forked.wait(60) == code
        texts.append((tmp_path / "out").read_text())
    nursery.close()
    (first, second), third = [text.split() for text in texts[:2]], texts[2]
    assert first[2:] == second[2:] == [str(tmp_path), str(program), str(program), "x"]
    assert not {*first[:2]} & {*second[:2]}
    asked = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert third.partition("Traceback")[2] == asked.stderr.partition("Traceback")[2] != ""


def test_a_program_that_may_starts_more(nursery, tmp_path):
    """They are found by their arguments, and their exit codes are known to who asked for them."""
    code = (
        f"import sys; sys.path.append({str(Path(__file__).parent)!r}); from nursery import Nursery\n"
        "started = Nursery.of_this_process().start(['-c', 'import time; time.sleep(600)', '--out', 'here'],\n"
        "    environment={}, new_session=True)\n"
        "print('started', file=sys.stderr, flush=True); sys.exit(-started.wait())"
    )
    with (tmp_path / "err").open("wb") as err:
        asks = nursery.start(["-c", code], environment={}, stdout=err.fileno(), stderr=err.fileno(), may_ask=True)
    (pid,) = wait_until(lambda: nursery.find("--out", "here"))
    assert nursery.find("here", "--out") == []
    wait_until(lambda: "started" in (tmp_path / "err").read_text(), what="its session")
    os.killpg(pid, signal.SIGTERM)
    assert asks.wait(60) == signal.SIGTERM
    assert nursery.find("--out", "here") == []


def test_how_a_program_ended_is_known(nursery, tmp_path):
    assert start(nursery, tmp_path, "raise ValueError('broken')").wait(60) == 1
    assert "ValueError: broken" in (tmp_path / "err").read_text()
    program = start(nursery, tmp_path, "import time; time.sleep(600)")
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(0.01)
    program.send_signal(signal.SIGSTOP)
    assert program.poll() is None
    program.send_signal(signal.SIGKILL)
    assert program.wait(60) == -signal.SIGKILL == program.poll()


def test_nothing_outlives_a_test_process_that_is_killed(tmp_path):
    code = (
        "import sys, time; from nursery import Nursery\n"
        "forked = Nursery('json').start(['-c', 'import time; time.sleep(600)'], environment={}, stdout=2, stderr=2)\n"
        "print(forked.pid, flush=True); time.sleep(600)"
    )
    path = str(Path(__file__).parent)
    with subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    ) as process:
        forked = psutil.Process(int(process.stdout.readline()))
        nursery = forked.parent()
        process.kill()
    wait_until(lambda: gone(forked) and gone(nursery))


def gone(process):
    """Whether it has ended, also where nobody asks for the exit codes of orphans."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True

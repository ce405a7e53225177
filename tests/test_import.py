"""What an import brings along: the command line answers at once on a login node, and works without torch in reach."""

import json
import subprocess
import sys

import pytest

import ddphub
from ddphub.session.folder import RunFolder, RunInfo

HEAVY = {"torch", "numpy", "requests", "filelock", "typer", "fastapi", "sqlalchemy", "uvicorn"}


def imported(program, *arguments):
    """Runs a program in a process of its own; the top-level packages that it has imported by its end."""
    report = "import json; sys.stderr.write('\\n' + json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    code = f"import sys\ntry:\n    {program}\nexcept SystemExit as end:\n    assert not end.code, end.code\n{report}"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.fixture
def run_folder(tmp_path):
    """A run directory without events."""
    folder = RunFolder(tmp_path / "runs" / "one")
    folder.create()
    RunInfo("one", "project", "name").save(folder.run_json)
    return folder


def test_the_package_alone_imports_nothing_heavy():
    """Neither torch nor requests nor filelock nor typer."""
    assert not imported("import ddphub") & HEAVY


def test_init_imports_no_torch():
    """A script that brings no torch (a world of one) does not get it, and requests is for online runs."""
    assert not imported("from ddphub import init, Run, Topology, SettingsError") & {"torch", "requests", "typer"}


def test_help_needs_neither_torch_nor_requests():
    """`ddphub --help` on a login node."""
    assert not imported("from ddphub.cli import main; main()", "--help") & (HEAVY - {"typer"})


def test_status_needs_neither_torch_nor_requests(run_folder):
    """`ddphub status` reads the run directory alone."""
    found = imported("from ddphub.cli import main; main()", "status", run_folder.path)
    assert not found & {"torch", "numpy", "requests", "fastapi", "sqlalchemy"}


@pytest.mark.parametrize("name", ddphub.__all__)
def test_every_public_name_can_be_had(name):
    """It is imported when it is first used."""
    assert getattr(ddphub, name) is not None


def test_a_name_that_is_not_there_is_an_attribute_error():
    """As of any module, so that `hasattr` works."""
    assert not hasattr(ddphub, "inti")
    with pytest.raises(AttributeError, match="'ddphub' has no attribute 'inti'"):
        _ = ddphub.inti


def test_a_hub_is_opened_without_requests():
    """They are imported when the hub is first asked something."""
    found = imported("import ddphub; ddphub.Hub('http://127.0.0.1:1', 'key')")
    assert not found & {"torch", "numpy", "requests", "filelock", "typer", "rich"}

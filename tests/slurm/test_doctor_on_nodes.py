"""`ddphub doctor` in steps of a real cluster: the table, and directories whose locks do and do not exclude."""

import json
import sys

import needs
import pytest
from cluster import Cluster

PROGRAM = (sys.executable, "-c", "from ddphub.cli import main; main()", "doctor", "--json", "--wait", "20")
STORE = {"MASTER_ADDR": "node1", "MASTER_PORT": "29641"}


@pytest.fixture(scope="module")
def unlocked(tmp_path_factory):
    """A directory that each node sees through a mount of its own."""
    return tmp_path_factory.mktemp("unlocked")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory, unlocked):
    """Two nodes; they also see all other directories of this machine, through one kernel."""
    needs.root()
    needs.programs("bindfs", "fusermount3")
    with Cluster(tmp_path_factory.mktemp("doctor") / "state", "--unlocked", unlocked) as cluster:
        yield cluster


def examined(nodes, directory, *, ranks=1, **variables):
    """What rank 0 printed, the exit code, and the findings by topic."""
    step = ("srun", "--nodes=2", f"--ntasks-per-node={ranks}")
    environment = {"OMP_NUM_THREADS": "1", **variables}
    done = nodes.run(*step, *PROGRAM, directory, environment=environment, check=False, timeout=100)
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(told) == 1, done.stdout + done.stderr
    findings = {(one["topic"], one["state"]): one["text"] for one in told[0]["findings"]}
    assert ("ranks", "ok") in findings, done.stdout + done.stderr
    return told[0], done.returncode, findings


def test_a_step_gets_one_table_and_a_shared_directory_excludes(nodes, tmp_path):
    """Four ranks; the step names no store, so the doctor opens one, and says what the training needs."""
    hub = nodes.hub(tmp_path / "hub")
    told, code, findings = examined(nodes, tmp_path / "runs", ranks=2, DDPHUB_URL=hub.url, DDPHUB_API_KEY=hub.key)
    columns = ("rank", "host", "node", "local_rank", "address", "gpu", "lock")
    assert [tuple(one[name] for name in columns) for one in told["ranks"]] == [
        (0, "node1", 0, 0, "10.77.0.1", "none", "flock"),
        (1, "node1", 0, 1, "10.77.0.1", "none", "flock"),
        (2, "node2", 1, 0, "10.77.0.2", "none", "flock"),
        (3, "node2", 1, 1, "10.77.0.2", "none", "flock"),
    ]
    assert code == 0
    assert findings["exclusion", "ok"] == (
        "a lock of node1 (rank 0) is refused on node2 (rank 2), and the other way round"
    )
    assert "SLURM job" in findings["topology", "ok"]
    assert "accepts the key" in findings["hub", "ok"]
    assert "MASTER_ADDR" in findings["store", "warning"]
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_directory_where_locks_do_not_exclude_between_nodes_is_found(nodes, unlocked, tmp_path):
    """A warning where the hub knows repeats, a problem where it does not."""
    hub = nodes.hub(tmp_path / "hub")
    key = {"DDPHUB_API_KEY": hub.key, **STORE}
    _, code, findings = examined(nodes, unlocked, DDPHUB_URL=hub.url, **key)
    assert (code, "locks do not exclude between these nodes" in findings["exclusion", "warning"]) == (0, True)
    assert findings["lock", "ok"] == "flock works"
    assert "(rank 0 serves it)" in findings["store", "ok"]
    _, code, findings = examined(nodes, unlocked, DDPHUB_URL=f"hub-v1+{hub.url}", **key)
    assert (code, "locks do not exclude between these nodes" in findings["exclusion", "problem"]) == (1, True)
    assert list(unlocked.iterdir()) == []


def test_a_node_without_a_way_out_and_a_directory_of_its_own(nodes, tmp_path):
    hub = nodes.hub(tmp_path / "hub")
    nodes.cut(1)
    _, code, findings = examined(nodes, "/dev/shm/doctor", DDPHUB_URL=hub.url, DDPHUB_API_KEY=hub.key, **STORE)
    nodes.mend(1)
    assert code == 1
    assert "cannot be reached from here" in findings["hub", "problem"]
    assert "the directory is not shared" in findings["exclusion", "warning"]
    assert [topic for topic, state in findings if state == "problem"] == ["hub"]

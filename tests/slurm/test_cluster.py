"""`scripts/slurm-cluster` and the tests' way to use it, on real clusters."""

import contextlib
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import needs
import psutil
import pytest
from cluster import OUTSIDE, SCRIPT, Cluster, slurm_cluster
from jobs import PROGRAMS, HubView, wait_until

BATCH = """#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=1 --output=/dev/null
srun bash -c '{task}'
"""
REACH = f"import socket; socket.create_connection(('{OUTSIDE}', %d), 3)"


def srun(cluster, *command, nodes=2, tasks=1, **options):
    """One line of output for each task, sorted."""
    done = cluster.run("srun", f"--nodes={nodes}", f"--ntasks-per-node={tasks}", *command, **options)
    return sorted(done.stdout.splitlines())


def namespaces(pid):
    """What the kernel calls a process's namespaces; nothing of a process that is gone."""
    with contextlib.suppress(OSError):
        return {str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for kind in ("mnt", "net", "pid", "uts", "ipc")}
    return set()


def left_of(state, inside=frozenset()):
    """Everything on the machine that a cluster would leave: files, mounts, processes."""
    inside = inside - namespaces("self")
    left = [str(state)] if state.exists() else []
    left += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(state) in line]
    for process in psutil.process_iter(["cmdline"]):
        if f" {state} " in " ".join(process.info["cmdline"] or []) or namespaces(process.pid) & inside:
            left.append(process)
    return left


def test_two_nodes_run_one_job(cluster):
    """Each with a host name, an address, a network and processes of its own."""
    variables = "$SLURM_PROCID $SLURM_LOCALID $SLURM_NODEID $SLURM_NTASKS"
    shown = srun(cluster, "bash", "-c", f"echo $(hostname) {variables}", tasks=2)
    assert shown == ["node1 0 0 0 4", "node1 1 1 0 4", "node2 2 0 1 4", "node2 3 1 1 4"]
    addresses = srun(cluster, "bash", "-c", "echo $(hostname) $(ip -o -4 address show dev eth0)")
    assert ["10.77.0.1/24" in addresses[0], "10.77.0.2/24" in addresses[1]] == [True, True]
    for kind in ("net", "pid", "mnt"):
        assert (
            len({*srun(cluster, "readlink", f"/proc/self/ns/{kind}"), str(Path(f"/proc/self/ns/{kind}").readlink())})
            == 3
        )


def test_a_batch_job_reports_its_state_and_its_exit_code(cluster, tmp_path):
    job = cluster.sbatch(
        "#!/bin/bash\necho $GREETING $(hostname)\nexit 3\n",
        f"--output={tmp_path}/out",
        "--comment=two words",
        environment={"GREETING": "hello"},
    )
    ended = cluster.wait_job(job, "FAILED")
    assert (ended["ExitCode"], ended["Comment"], ended["Restarts"]) == ("3:0", "two words", "0")
    assert (tmp_path / "out").read_text() == "hello node1\n"
    array = cluster.sbatch("#!/bin/bash\ntrue\n", "--array=0-2", "--output=/dev/null")
    cluster.wait_job(f"{array}_2", "COMPLETED")
    assert {one["ArrayTaskId"] for one in cluster.jobs(array)} == {"0", "1", "2"}


def test_a_node_that_loses_its_power_goes_down_and_its_job_is_requeued(cluster, tmp_path):
    """Its processes die at once; the job runs again when the node is back."""
    task = f"echo $(hostname) ${{SLURM_RESTART_COUNT:-0}} >>{tmp_path}/ran; exec sleep $((1-SLURM_RESTART_COUNT))00"
    job = cluster.sbatch(BATCH.format(task=task))
    ran = tmp_path / "ran"
    wait_until(lambda: ran.exists() and len(ran.read_text().splitlines()) == 2)
    processes = [process.pid for process in psutil.Process(cluster.holder()).children(recursive=True)]
    sleeping = [pid for pid in processes if psutil.Process(pid).name() == "sleep"]
    cluster.fail(2)
    assert len(sleeping) - sum(psutil.pid_exists(pid) for pid in sleeping) == 1
    assert "node 2 is off" in slurm_cluster("--state", cluster.state, "fail", 2).stderr

    cluster.wait_node(2, "down*", "down")
    requeued = cluster.wait_job(job, "PENDING", Restarts="1")
    assert requeued["JobId"] == job
    cluster.revive(2)
    assert "node 2 is on" in slurm_cluster("--state", cluster.state, "revive", 2).stderr
    cluster.wait_job(job, "COMPLETED", timeout=150)
    assert sorted(ran.read_text().splitlines()) == ["node1 0", "node1 1", "node2 0", "node2 1"]


def test_the_peers_of_a_node_without_power_hear_nothing(cluster):
    """A killed process's connection ends at once; that of a machine that is off stays silent."""
    with cluster.network():
        listener = socket.create_server((OUTSIDE, 0))
    port = listener.getsockname()[1]
    talk = f"import socket, time; peer = socket.create_connection(('{OUTSIDE}', {port})); time.sleep(1000)"
    running = subprocess.Popen(
        cluster.command("srun", "--nodelist=node2", sys.executable, "-c", talk), stderr=subprocess.DEVNULL
    )
    listener.settimeout(150)
    with listener, listener.accept()[0] as peer:
        cluster.fail(2)
        peer.settimeout(2)
        with pytest.raises(TimeoutError):
            peer.recv(1)
    running.kill()
    running.wait()


def test_a_node_without_a_way_out_still_serves_slurm(cluster, tmp_path):
    """No route: connecting fails at once. Silently: it waits in vain."""
    hub = cluster.hub(tmp_path / "hub")
    reach = (sys.executable, "-c", REACH % hub.port)
    assert srun(cluster, *reach) == []
    cluster.cut(1)
    for silently, error in ((False, "Network is unreachable"), (True, "TimeoutError: timed out")):
        cluster.cut(1, silently=silently)
        tried = cluster.run("srun", "--nodelist=node1", *reach, check=False)
        assert tried.returncode == 1
        assert error in tried.stderr
        assert cluster.run("srun", "--nodelist=node2", *reach).stdout == ""
    cluster.mend(1)
    assert srun(cluster, *reach) == []


def test_a_job_of_two_nodes_reports_to_a_hub_beside_the_controller(cluster, tmp_path):
    """What later tests are made of: torchrun on both nodes, one model, every rank's records, every checkpoint once."""
    hub = cluster.hub(tmp_path / "hub")
    launcher = ["--nnodes=2", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=node1:29500"]
    program = [PROGRAMS / "train.py", "--out", tmp_path, "--steps", 40, "--epochs", 2]
    variables = {
        "DDPHUB_URL": hub.url,
        "DDPHUB_API_KEY": hub.key,
        "DDPHUB_DIR": str(tmp_path / "runs"),
        "OMP_NUM_THREADS": "1",
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", *launcher, *program]
    srun(cluster, *torchrun, environment=variables, timeout=150)
    view = HubView(hub)
    assert [(rank, step) for _, rank, step in view.logged()] == [
        (rank, step) for rank in range(4) for step in range(40)
    ]
    assert len(view.saved()) == 2
    hub.kill()
    hub.restart()
    assert len(view.saved()) == 2


def test_exec_is_a_program_of_the_login_node(cluster, tmp_path):
    """It runs where the caller is, its exit code passes, and it ends with its caller."""
    assert cluster.run("pwd", folder=tmp_path).stdout.strip() == str(tmp_path)
    assert cluster.run("hostname").stdout == "ctl\n"
    assert cluster.run("sh", "-c", "exit 7", check=False).returncode == 7
    running = subprocess.Popen(cluster.command("sleep", "1000"))
    (sleep,) = wait_until(lambda: [one for one in psutil.Process(running.pid).children() if one.name() == "sleep"])
    running.kill()
    running.wait()
    wait_until(lambda: not sleep.is_running() or sleep.status() == psutil.STATUS_ZOMBIE)


def test_two_clusters_at_once_have_nothing_in_common(cluster, tmp_path):
    """The same names and addresses, each for itself."""
    options = ("--nodes", 3, "--gpus", 2, "--cpus", 3, "--kill-wait", 7, "--proctrack", "pgid", "--no-outside")
    with Cluster(tmp_path / "state", *options) as other:
        assert list(other.nodes()) == ["node1", "node2", "node3"]
        assert list(cluster.nodes()) == ["node1", "node2"]
        first = other.run("srun", "--gpus-per-node=2", "sh", "-c", "hostname; echo $CUDA_VISIBLE_DEVICES")
        assert first.stdout == "node1\n0,1\n"
        assert other.run("readlink", "/proc/self/ns/net").stdout != cluster.run("readlink", "/proc/self/ns/net").stdout
        assert srun(other, "sh", "-c", "ip route | cut -d' ' -f1") == ["10.77.0.0/24"] * 2
        assert "default" in srun(cluster, "sh", "-c", "ip route | cut -d' ' -f1")
        other.mend(3)
        assert "default" in other.run("srun", "--nodelist=node3", "ip", "route").stdout
        settings = other.run("scontrol", "show", "config").stdout
        assert re.search(r"KillWait += 7 sec\b", settings)
        assert re.search(r"ProctrackType += proctrack/pgid\b", settings)
        assert "CPUTot=3 " in other.run("scontrol", "show", "node", "node2").stdout
        other.fail(1)
        assert cluster.run("srun", "--nodelist=node1", "hostname").stdout == "node1\n"
    assert cluster.run("srun", "hostname").stdout == "node1\n"


def test_stop_leaves_nothing(tmp_path):
    """With a job whose child has run away from it, mounts on the nodes, a node off, and a program on the login node."""
    needs.root()
    needs.programs("bindfs", "fusermount3")
    state, local, unlocked = (tmp_path / name for name in ("state", "local", "unlocked"))
    local.mkdir()
    unlocked.mkdir()
    interfaces = sorted(Path("/sys/class/net").iterdir())
    with Cluster(state, "--local", local, "--unlocked", unlocked, "--nodes", 3) as cluster:
        job = cluster.sbatch(BATCH.format(task="setsid sleep 1000 & exec sleep 1000"))
        cluster.wait_job(job, "RUNNING")
        cluster.fail(3)
        program = subprocess.Popen(cluster.command("sleep", "1000"))
        processes = wait_until(
            lambda: (
                (found := psutil.Process(cluster.holder()).children(recursive=True))
                and sum(one.name() == "sleep" for one in found) >= 4
                and found
            )
        )
        inside = set().union(*(namespaces(one.pid) for one in processes))
        assert len(left_of(state, inside)) > 10
        assert "a cluster runs in" in slurm_cluster("--state", state, "start").stderr
    program.wait(150)
    assert not [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert left_of(state, inside) == []
    assert sorted(Path("/sys/class/net").iterdir()) == interfaces
    assert list(local.iterdir()) == []
    again = slurm_cluster("--state", state, "stop")
    assert (again.returncode, again.stdout) == (0, f"no cluster in {state}\n")
    assert slurm_cluster("--state", state, "status").returncode == 3
    assert "no cluster runs in" in slurm_cluster("--state", state, "exec", "true").stderr


@pytest.mark.parametrize("after", [0.02, 0.1, 0.2, 0.3, 0.5])
def test_stop_cleans_up_after_a_start_that_was_killed(tmp_path, after):
    """However far it had come."""
    needs.root()
    needs.programs("slurmctld", "munged", "ip")
    state = tmp_path / "state"
    starting = subprocess.Popen([SCRIPT, "--state", state, "start"], stdout=subprocess.DEVNULL)
    time.sleep(after)
    starting.send_signal(signal.SIGKILL)
    starting.wait()
    stopped = slurm_cluster("--state", state, "stop")
    assert stopped.returncode == 0, stopped.stderr
    assert left_of(state) == []


def test_a_start_that_fails_says_why_and_leaves_nothing(tmp_path):
    """Here munged ends at once."""
    needs.root()
    needs.programs("slurmctld", "munged", "ip")
    state = tmp_path / "state"
    failed = masked("--bind /bin/false /usr/sbin/munged", "--state", state, "start")
    assert failed.returncode == 1
    assert "the nodes did not come up" in failed.stderr
    assert left_of(state) == []


def test_start_says_what_is_missing(tmp_path):
    """A program's package, or root; both with exit code 2, and nothing is made."""
    needs.root()
    needs.programs("slurmctld", "munged", "ip")
    state = tmp_path / "state"
    without = masked("--types tmpfs tmpfs /usr/sbin", "--state", state, "start")
    assert without.returncode == 2
    assert "munged slurmctld slurmd: apt-get install " in without.stderr
    assert without.stderr.endswith(" munge slurm-wlm\n")
    as_nobody = subprocess.run(
        ["unshare", "--user", SCRIPT, "--state", state, "start"], capture_output=True, text=True, check=False
    )
    assert (as_nobody.returncode, as_nobody.stderr) == (2, "slurm-cluster: needs root\n")
    assert not state.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["start", "--nodes", "10"], 2, "--nodes is a number from 1 to 9, not '10'"),
        (["start", "--local", "/nonexistent"], 2, "--local names a directory that exists"),
        (["start", "--wrong", "1"], 2, "unknown option '--wrong'"),
        (["stop", "now"], 2, "usage: "),
        (["frobnicate"], 2, "Usage: "),
        (["fail", "1"], 1, "no cluster runs in"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, arguments, code, says):
    done = slurm_cluster("--state", tmp_path / "state", *arguments)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr
    assert not (tmp_path / "state").exists()


def test_a_running_cluster_knows_its_nodes(cluster):
    for command in ("fail", "revive", "cut", "mend"):
        done = slurm_cluster("--state", cluster.state, command, 3)
        assert (done.returncode, "there is no node '3': this cluster has 1 to 2" in done.stderr) == (1, True)


def test_stop_touches_no_directory_that_is_not_a_clusters(tmp_path):
    (tmp_path / "precious").touch()
    done = slurm_cluster("--state", tmp_path, "stop")
    assert (done.returncode, "is no cluster's directory" in done.stderr) == (1, True)
    assert (tmp_path / "precious").exists()


def test_a_node_has_a_disk_of_its_own_and_locks_may_not_reach_others(tmp_path):
    """The local directory outlives a power cut; flock excludes between nodes, but not through their own mounts."""
    needs.root()
    needs.programs("bindfs", "fusermount3")
    local, unlocked = tmp_path / "local", tmp_path / "unlocked"
    local.mkdir()
    unlocked.mkdir()
    until_both_tried = 'touch "$0.$SLURM_PROCID"; until [ -e "$0.0" ] && [ -e "$0.1" ]; do sleep 0.1; done'
    locked_by_turns = (
        f'if flock --nonblock "$0" sh -c \'{until_both_tried}\' "$0"; then echo got; '
        'else touch "$0.$SLURM_PROCID"; echo refused; fi'
    )
    with Cluster(tmp_path / "state", "--local", local, "--unlocked", unlocked) as cluster:
        srun(cluster, "sh", "-c", f"hostname >{local}/name; touch {tmp_path}/file {unlocked}/file")
        cluster.fail(1)
        cluster.revive(1)
        assert srun(cluster, "cat", f"{local}/name") == ["node1", "node2"]
        assert (cluster.state / "local" / "node2" / "name").read_text() == "node2\n"
        assert srun(cluster, "sh", "-c", locked_by_turns, tmp_path / "file") == ["got", "refused"]
        assert srun(cluster, "sh", "-c", locked_by_turns, unlocked / "file") == ["got", "got"]


def masked(mount, *arguments):
    """Runs the script where something is mounted on SLURM's programs."""
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'mount {mount} && exec "$0" "$@"', SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

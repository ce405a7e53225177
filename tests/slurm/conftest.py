"""A SLURM cluster of two nodes for the tests of one worker; each test finds it idle and whole."""

import pytest
from cluster import Cluster


@pytest.fixture(scope="session")
def running_cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("slurm") / "state", "--kill-wait", 15) as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster):
    """The worker's cluster; what the test leaves in it is ended."""
    yield running_cluster
    running_cluster.clean()

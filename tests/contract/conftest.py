"""The clusters that the contract suite runs against."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli_runner import Launch
from tests.contract.sites import Site, kubernetes_objects_of, processes_of, slurm_jobs_of
from tests.fakes.kubernetes import FakeCluster
from tests.fakes.slurm.cluster import FakeSlurm

BARE_SLURM = {"container_runtime": "none", "grace": "5s"}


@pytest.fixture
def local_site(launch: Launch) -> Site:
    """This machine."""
    return Site("local", launch, processes_of)


@pytest.fixture
def kubernetes_site(launch: Launch, tmp_path: Path) -> Iterator[Site]:
    """A fake API server over HTTP, whose kubelets run real processes."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, FakeCluster(tmp_path / "cluster") as cluster:
        launch.cwd = Path(folder)  # a pod has a /tmp of its own
        # the jobs use this Python, which a clone below /tmp has where the pods have a /tmp of their own
        cluster.shared_paths += [launch.cwd, Path(sys.prefix)]
        cluster.run_as_user = False  # who could not enter the folders of the user who runs the tests
        cluster.enforce_restricted("default")
        launch.env["KUBECONFIG"] = str(cluster.kubeconfig)
        yield Site("kubernetes", launch, kubernetes_objects_of(cluster), {"grace": "5s"})


@pytest.fixture
def fake_slurm_site(launch: Launch, tmp_path: Path) -> Site:
    """Slurm's commands with state of their own, which run the jobs here."""
    (tmp_path / "slurm").mkdir()
    slurm = FakeSlurm(tmp_path / "slurm")
    launch.env.update(slurm.environ())
    return Site("slurm", launch, slurm_jobs_of(slurm.environ()), BARE_SLURM)


@pytest.fixture
def slurm_site(launch: Launch, slurm_cluster: dict[str, str]) -> Site:
    """A real Slurm, the nodes of which are this machine."""
    launch.env.update(slurm_cluster)
    return Site("slurm", launch, slurm_jobs_of(slurm_cluster), BARE_SLURM)


@pytest.fixture(params=["local", "kubernetes", "fake_slurm", pytest.param("slurm", marks=pytest.mark.needs("slurm"))])
def site(request: pytest.FixtureRequest) -> Site:
    """Each back end in turn."""
    found: Site = request.getfixturevalue(f"{request.param}_site")
    return found

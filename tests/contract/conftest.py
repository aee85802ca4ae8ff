"""The clusters that the contract suite runs against."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli_runner import Launch
from tests.contract.sites import Site, kubernetes_at, local_at, slurm_jobs_of
from tests.fakes.slurm.cluster import FakeSlurm

BARE_SLURM = {"container_runtime": "none", "grace": "5s"}


@pytest.fixture
def local_site(launch: Launch) -> Site:
    """This machine."""
    return local_at(launch)


@pytest.fixture
def kubernetes_site(launch: Launch, tmp_path: Path) -> Iterator[Site]:
    """A fake API server over HTTP that wants the restricted Pod Security level."""
    with kubernetes_at(launch, tmp_path / "cluster") as (site, cluster):
        cluster.enforce_restricted("default")
        yield site


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

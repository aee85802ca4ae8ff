"""The clusters that the contract suite runs against, each started once for all its tests."""

import pytest

from tests.cli_runner import Launch
from tests.contract.sites import Site, processes_of, slurm_jobs_of


@pytest.fixture
def local_site(launch: Launch) -> Site:
    """This machine."""
    return Site("local", launch, processes_of)


@pytest.fixture
def slurm_site(launch: Launch, slurm_cluster: dict[str, str]) -> Site:
    """A real Slurm, the nodes of which are this machine."""
    launch.env.update(slurm_cluster)
    return Site("slurm", launch, slurm_jobs_of(slurm_cluster), {"container_runtime": "none", "grace": "5s"})


@pytest.fixture(params=["local", pytest.param("slurm", marks=pytest.mark.needs("slurm"))])
def site(request: pytest.FixtureRequest) -> Site:
    """Each back end in turn."""
    found: Site = request.getfixturevalue(f"{request.param}_site")
    return found

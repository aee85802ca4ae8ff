"""The clusters that the contract suite runs against, each started once for all its tests."""

from collections.abc import Iterator

import pytest

from tests.cli_runner import Launch
from tests.contract.sites import Site, processes_of


@pytest.fixture
def local_site(launch: Launch) -> Iterator[Site]:
    """This machine."""
    yield Site("local", launch, processes_of)


@pytest.fixture(params=["local"])
def site(request: pytest.FixtureRequest) -> Site:
    """Each back end in turn."""
    return request.getfixturevalue(f"{request.param}_site")

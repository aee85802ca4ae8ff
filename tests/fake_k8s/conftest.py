"""A fake Kubernetes, and the back end that speaks to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.backends.kubernetes.backend import KubernetesBackend
from launcher.runs.store import RunStore
from tests.fakes.kubernetes import FakeCluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeCluster]:
    """A cluster of three nodes."""
    with FakeCluster(tmp_path / "cluster") as found:
        yield found


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    """An empty run folder."""
    return RunStore(tmp_path / "home")


@pytest.fixture
def backend(cluster: FakeCluster, store: RunStore) -> KubernetesBackend:
    """The back end, with the fake's kubeconfig."""
    return KubernetesBackend(store, {"KUBECONFIG": str(cluster.kubeconfig)})

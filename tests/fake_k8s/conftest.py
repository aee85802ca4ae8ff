"""A fake Kubernetes, and the back end that speaks to it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.backends.kubernetes.backend import KubernetesBackend
from launcher.backends.kubernetes.logs import source
from launcher.runs.store import RunStore
from tests.fakes.kubernetes import FakeCluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeCluster]:
    """A cluster of three nodes."""
    with FakeCluster(tmp_path / "cluster") as found:
        yield found


@pytest.fixture
def shared(cluster: FakeCluster) -> Iterator[Path]:
    """A folder that pods and the test see: a pod has a /tmp of its own."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        cluster.shared_paths.append(Path(folder))
        Path(folder).chmod(0o777)
        yield Path(folder)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who follows a run in this process looks again soon: nothing here takes as long as on a real cluster."""
    monkeypatch.setattr(source, "LOOK_S", 0.05)
    monkeypatch.setattr(source, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(source, "LONGEST_PAUSE_S", 0.2)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    """An empty run folder."""
    return RunStore(tmp_path / "home")


@pytest.fixture
def backend(cluster: FakeCluster, store: RunStore) -> KubernetesBackend:
    """The back end, with the fake's kubeconfig."""
    return KubernetesBackend(store, {"KUBECONFIG": str(cluster.kubeconfig)})

"""A namespace of its own in the cluster that KUBECONFIG names, with the restricted Pod Security level; removed at the
end. Nothing else of the cluster is touched, but a PersistentVolume when --e2e-volume-path is given."""

import functools
import os
import re
import secrets
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import kubernetes
import pytest
import yaml

from launcher.job.plan import DEFAULT_IMAGE
from tests.cli_runner import Launch

PATIENCE_S = 600
REMOVAL_S = 180
JOB_SET_VERSION = "jobset.x-k8s.io/v1alpha2"
CLAIM = "shared"


@dataclass
class Cluster:
    """The namespace under test."""

    client: Any
    namespace: str
    image: str

    def kind(self, kind: str, version: str = "v1") -> Any:
        """The API of a kind of objects."""
        return self.client.resources.get(api_version=version, kind=kind)

    def has_job_set(self) -> bool:
        """Whether JobSet is installed."""
        try:
            return bool(self.kind("JobSet", JOB_SET_VERSION))
        except kubernetes.dynamic.exceptions.ResourceNotFoundError:
            return False

    def pods(self, run_id: str) -> dict[int, Any]:
        """The newest pod of each node that is not going away."""
        found = self.kind("Pod").get(namespace=self.namespace, label_selector=f"launch/run-id={run_id}").items
        staying = [pod for pod in found if not pod.metadata.deletionTimestamp]
        staying.sort(key=lambda pod: pod.metadata.creationTimestamp)
        return {int(pod.metadata.labels["batch.kubernetes.io/job-completion-index"]): pod for pod in staying}

    def evict(self, pod: Any) -> None:
        """What `kubectl drain` does to a pod."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction",
                "metadata": {"name": pod.metadata.name, "namespace": self.namespace}}
        self.kind("Pod").eviction.create(name=pod.metadata.name, namespace=self.namespace, body=body)

    def left_of(self, run_id: str) -> list[str]:
        """What is left of a run, its pods too."""
        kinds = [("Job", "batch/v1"), ("Pod", "v1"), ("Service", "v1"), ("ConfigMap", "v1"), ("Secret", "v1")]
        kinds += [("JobSet", JOB_SET_VERSION)] if self.has_job_set() else []
        return [f"{kind}/{item.metadata.name}" for kind, version in kinds
                for item in self.kind(kind, version).get(namespace=self.namespace).items
                if item.metadata.name.startswith(run_id)]

    def make_namespace(self) -> None:
        """With the account that pods need: a new namespace gets it a moment later."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.kind("Namespace").create({"metadata": {"name": self.namespace, "labels": labels}})
        accounts = self.kind("ServiceAccount")
        wait_until(lambda: accounts.get(namespace=self.namespace).items, "the namespace's service account")

    def make_volume(self, path: str) -> None:
        """A folder of the nodes, as a volume that only this namespace's claim gets."""
        size, shared = {"storage": "1Gi"}, {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
        claim_ref = {"kind": "PersistentVolumeClaim", "namespace": self.namespace, "name": CLAIM}
        volume = {**shared, "capacity": size, "claimRef": claim_ref, "persistentVolumeReclaimPolicy": "Retain",
                  "hostPath": {"path": path}}
        claim = {**shared, "volumeName": self.namespace, "resources": {"requests": size}}
        claims = self.kind("PersistentVolumeClaim")
        self.kind("PersistentVolume").create({"metadata": {"name": self.namespace}, "spec": volume})
        claims.create({"metadata": {"name": CLAIM}, "spec": claim}, namespace=self.namespace)

    def remove(self) -> None:
        """Jobs first: a namespace with an unfinished Job that counts failures per index does not go away."""
        jobs, namespaces, volumes = self.kind("Job", "batch/v1"), self.kind("Namespace"), self.kind("PersistentVolume")
        where = {"namespace": self.namespace, "body": {"propagationPolicy": "Foreground"}}
        for job in jobs.get(namespace=self.namespace).items:
            gone(functools.partial(jobs.delete, name=job.metadata.name, **where))
        wait_until(lambda: not jobs.get(namespace=self.namespace).items, "the jobs to go", REMOVAL_S)
        gone(lambda: namespaces.delete(name=self.namespace))
        gone(lambda: volumes.delete(name=self.namespace))
        wait_until(lambda: gone(lambda: namespaces.get(name=self.namespace)), "the namespace to go", REMOVAL_S)


@dataclass
class Site:
    """The real `launch`, with a profile for the namespace."""

    cluster: Cluster
    launch: Launch
    volume: bool

    def job(self, **fields: Any) -> str:
        """Write a job file; returns its name."""
        job = {"name": "e2e", "image": self.cluster.image, "cluster": "e2e", "resources": {"nodes": 2}, **fields}
        (self.launch.cwd / "job.yaml").write_text(yaml.safe_dump(job, allow_unicode=True))
        return "job.yaml"

    def submit(self, job: str = "job.yaml", *options: str) -> str:
        """Submit; returns the run id."""
        return self.launch.ok("submit", job, *options).strip().rsplit("/", 1)[1]

    def status(self, run_id: str) -> dict[str, Any]:
        """What `launch status --json` says."""
        return dict(self.launch.json("status", run_id)[0])

    def wait(self, run_id: str, *states: str) -> dict[str, Any]:
        """Until the run is in one of these states; fails when it ends in another."""
        deadline = time.monotonic() + PATIENCE_S
        while (status := self.status(run_id))["state"] not in states:
            ended = status["state"] in ("succeeded", "failed", "cancelled")
            assert not ended, f"{status}\n{self.launch.ok('logs', '--tail', '40', run_id)}"
            assert time.monotonic() < deadline, f"still {status}"
            time.sleep(0.5)
        return status

    def followed(self, run_id: str, *options: str) -> Iterator[str]:
        """The lines that a follower prints, as they come."""
        follower = self.launch.start("logs", "-f", *options, run_id)
        assert follower.stdout and follower.stderr
        errors: list[str] = []
        drain = threading.Thread(target=lambda: errors.extend(follower.stderr or []), daemon=True)
        drain.start()
        try:
            yield from (line.rstrip("\n") for line in follower.stdout)
            assert follower.wait(PATIENCE_S) == 0, "".join(errors)
        finally:
            follower.kill()
            follower.wait()

    def profile(self, **fields: Any) -> None:
        """Change the profile `e2e`."""
        path = self.launch.cwd / "clusters.yaml"
        path.write_text(yaml.safe_dump({"e2e": {**yaml.safe_load(path.read_text())["e2e"], **fields}}))


def option(request: pytest.FixtureRequest, name: str) -> str:
    """The value of an option; skips without it."""
    value = str(request.config.getoption(name))
    if not value:
        pytest.skip(f"needs {name}")
    return value


def run_option(command: str, *words: str) -> None:
    """Run a command that an option gave."""
    done = subprocess.run([*shlex.split(command), *words], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, f"{command} {' '.join(words)}: {done.stdout}{done.stderr}"


def shell(script: str) -> list[str]:
    """A command that runs a script."""
    return ["bash", "-c", script]


def nodes_of(text: str) -> dict[int, list[str]]:
    """The lines of each node from what `launch logs` printed; a run of one node has no prefixes."""
    found: dict[int, list[str]] = {}
    for line in text.splitlines():
        node, rest = re.fullmatch(r"(?:\[node (\d+)\] )?(.*)", line).groups()
        found.setdefault(int(node or 0), []).append(rest)
    return found


def wait_until(done: Callable[[], Any], what: str, limit_s: float = 60) -> None:
    """Poll; fails with `what` when it does not come true."""
    deadline = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < deadline, f"waited {limit_s:.0f} s for {what}"
        time.sleep(0.5)


def gone(ask: Callable[[], Any]) -> bool:
    """Ask for or delete an object; whether it is not there (any more)."""
    try:
        ask()
    except kubernetes.dynamic.exceptions.NotFoundError:
        return True
    return False


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster that KUBECONFIG names, and a namespace in it."""
    if not request.config.getoption("--e2e-k8s"):
        pytest.skip("needs a Kubernetes cluster: pass --e2e-k8s, with KUBECONFIG naming it")
    import kubernetes.config
    import kubernetes.dynamic

    path = os.environ.get("KUBECONFIG")
    if not path:
        pytest.fail("--e2e-k8s: KUBECONFIG is not set; name the cluster that the tests may use")
    api = kubernetes.config.new_client_from_config(path)
    client = kubernetes.dynamic.DynamicClient(api, cache_file=str(tmp_path_factory.mktemp("discovery") / "cache"))
    image = request.config.getoption("--e2e-image") or DEFAULT_IMAGE
    found = Cluster(client, f"launch-e2e-{secrets.token_hex(3)}", image)
    try:
        found.make_namespace()
        if request.config.getoption("--e2e-volume-path"):
            found.make_volume(request.config.getoption("--e2e-volume-path"))
        yield found
    finally:
        found.remove()


@pytest.fixture
def site(cluster: Cluster, launch: Launch, request: pytest.FixtureRequest) -> Site:
    """The command under test, in an empty folder with a profile called `e2e`."""
    # pods of the fake cluster share this machine's network, where somebody else may have the usual port
    env = {"MASTER_PORT": "29731"}
    profile = {"backend": "kubernetes", "namespace": cluster.namespace, "grace": "15s", "env": env}
    (launch.cwd / "clusters.yaml").write_text(yaml.safe_dump({"e2e": {**profile, "image_pull_policy": "IfNotPresent"}}))
    return Site(cluster, launch, volume=bool(request.config.getoption("--e2e-volume-path")))

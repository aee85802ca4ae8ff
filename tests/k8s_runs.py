"""Runs on the fake Kubernetes through the back end itself: helpers of its unit tests."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from launcher.backends.base import Submission
from launcher.backends.kubernetes.backend import KubernetesBackend
from launcher.backends.kubernetes.client import Kube
from launcher.job.plan import Plan
from launcher.logs.line import LogLine, LogQuery
from launcher.runs.record import Run
from launcher.runs.status import JobStatus, State
from launcher.services.submit import foreseen_run
from tests import jobs
from tests.fakes.kubernetes import FakeCluster
from tests.fakes.kubernetes.faults import DROP_IDLE_S
from tests.fakes.kubernetes.resources import RESOURCES

PATIENCE_S = 60
RUN_ID = "demo-0123abcd"
# The first process of a container does not die of a TERM that it has no handler for.
IDLE = "trap 'exit 0' TERM; while true; do sleep 0.1; done"
KINDS = ("Job", "Pod", "Service", "ConfigMap", "Secret")


def plan_of(script: str = "true", *, profile: dict[str, Any] | None = None, **fields: Any) -> Plan:
    """The plan of a two-node job that runs a script."""
    job = {"name": "demo", "run": ["bash", "-c", script], "resources": {"nodes": 2}, **fields}
    return jobs.plan_of(job, {"backend": "kubernetes", "grace": "5s", **(profile or {})}, run_id=RUN_ID)


def submit(backend: KubernetesBackend, plan: Plan, secrets: dict[str, str] | None = None) -> Run:
    """Send a plan, as `launch submit` does."""
    backend.store.claim(plan.run_id)
    folder = backend.store.folder(plan.run_id)
    what = jobs.rendered(plan)
    foreseen = foreseen_run(plan, None, folder, backend.place(what))
    sent = backend.submit(what, Submission(secrets or {}, folder, folder))
    run = foreseen.sent(sent.handle, sent.place)
    backend.store.save(run)
    return run


def asking(cluster: FakeCluster) -> Kube:
    """A client of the test's own."""
    return Kube({"KUBECONFIG": str(cluster.kubeconfig)}, None)


def objects_in(cluster: FakeCluster) -> list[str]:
    """What the cluster has, by kind and name."""
    kube = asking(cluster)
    return [f"{kind}/{item['metadata']['name']}" for kind in KINDS for item in kube.list(kind, "default")]


def wait_for(ask: Callable[[], Any], good: Callable[[Any], bool], what: str = "") -> Any:
    """Poll `ask` until its answer is good."""
    deadline = time.monotonic() + PATIENCE_S
    while not good(found := ask()):
        assert time.monotonic() < deadline, f"waited for {what}, got {found}"
        time.sleep(0.05)
    return found


def rotate_while_away(cluster: FakeCluster, pod: str) -> None:
    """From now on the server is away, until the pod has written some lines and its node has rotated them away."""
    before = cluster.log_size("default", pod)
    cluster.go_away(PATIENCE_S)

    def rotate() -> None:
        wait_for(lambda: cluster.log_size("default", pod), lambda size: size >= before + 50, "more lines")
        cluster.rotate_logs("default", pod)
        cluster.go_away(0)

    threading.Thread(target=rotate).start()


def delete_while_away(cluster: FakeCluster, pod: str, then: Callable[[], None], **options: int) -> None:
    """From now on the server is away, until the pod has gone and `then` is done."""
    cluster.go_away(PATIENCE_S)

    def delete() -> None:
        time.sleep(2 * DROP_IDLE_S)  # until the streams are cut
        then()
        cluster.api.delete(RESOURCES["pods"], "default", pod, options)
        wait_for(lambda: [found["metadata"]["name"] for found in cluster.store.select("pods", "default")],
                 lambda names: pod not in names, "the pod's end")
        cluster.go_away(0)

    threading.Thread(target=delete).start()


def wait_state(backend: KubernetesBackend, run: Run, *states: State) -> JobStatus:
    """Until the run is in one of these states."""
    return wait_for(lambda: backend.status(run), lambda status: status.state in states, str(states))


def wait_reason(backend: KubernetesBackend, run: Run, part: str) -> JobStatus:
    """Until the run's reason says something."""
    return wait_for(lambda: backend.status(run), lambda status: part in (status.reason or ""), part)


def lines_of(backend: KubernetesBackend, run: Run, **options: Any) -> Iterator[LogLine]:
    """Its log lines, one by one."""
    return itertools.chain.from_iterable(backend.logs(run, LogQuery(**options)))


def texts(backend: KubernetesBackend, run: Run, **options: Any) -> dict[int, list[str]]:
    """The lines of each node."""
    found: dict[int, list[str]] = {}
    for line in lines_of(backend, run, **options):
        assert line.stamp
        found.setdefault(line.node, []).append(line.text)
    return found


def pod_of(cluster: FakeCluster, node: int | str) -> str:
    """The name of the newest pod of a node."""
    names = [pod["metadata"]["name"] for pod in asking(cluster).list("Pod", "default")
             if pod["metadata"]["name"].startswith(f"{RUN_ID}-{node}-")]
    return names[-1]

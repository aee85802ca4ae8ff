"""Faults of drills on Kubernetes: the Eviction API, and the deletion of a pod without grace."""

from collections.abc import Callable, Mapping

from launcher.backends.base import Backend, InjectsFaults
from launcher.backends.kubernetes.client import Kube
from launcher.backends.kubernetes.orphans import place_of
from launcher.backends.kubernetes.pod import RUN_LABEL
from launcher.backends.kubernetes.status import by_node, pod_ended
from launcher.errors import BackendError
from launcher.runs.record import Run


class KubernetesFaults(InjectsFaults, Backend):
    """Through the API."""

    environ: Mapping[str, str]

    def preempt(self, run: Run, node: int) -> None:
        """What a drain does; a PodDisruptionBudget may refuse it."""
        kube, namespace, pod = self._pod_of(run, node)
        kube.evict(namespace, pod)

    def kill_rank(self, run: Run, rank: int) -> None:
        """Its pod, the smallest thing that Kubernetes ends: the other ranks of that node go with it."""
        kube, namespace, pod = self._pod_of(run, rank // run.processes_per_node)
        kube.delete("Pod", namespace, pod, propagation="Background", at_once=True)

    def skip_wait(self, run: Run, ended: Callable[[], bool]) -> None:
        """The Job controller's ten seconds cannot be shortened."""

    def _pod_of(self, run: Run, node: int) -> tuple[Kube, str, str]:
        place = place_of(run)
        kube, namespace = Kube(self.environ, place.context), place.namespace
        pods = by_node(kube.list("Pod", namespace, labels=f"{RUN_LABEL}={run.run_id}")).get(node, [])
        alive = [pod["metadata"]["name"] for pod in pods if not pod_ended(pod)]
        if not alive:
            raise BackendError(f"{run.run_id}: node {node} has no pod now",
                               f"see its state: launch status {run.run_id}")
        return kube, namespace, alive[-1]

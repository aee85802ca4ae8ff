"""Faults of drills on Kubernetes: the Eviction API, and the deletion of a pod without grace."""

from abc import abstractmethod
from collections.abc import Callable

from launcher.backends.base import Backend, InjectsFaults
from launcher.backends.kubernetes.observer import Observer
from launcher.backends.kubernetes.status import by_node, pod_ended
from launcher.errors import BackendError
from launcher.runs.record import Run


class KubernetesFaults(InjectsFaults, Backend):
    """Through the API."""

    @abstractmethod
    def observer(self, run: Run) -> Observer:
        """Who looks at the run's namespace."""

    def preempt(self, run: Run, node: int) -> None:
        """What a drain does; a PodDisruptionBudget may refuse it."""
        self.observer(run).kube.evict(run.place["namespace"], self._pod_of(run, node))

    def kill_rank(self, run: Run, rank: int) -> None:
        """Its pod, the smallest thing that Kubernetes ends: the other ranks of that node go with it."""
        pod = self._pod_of(run, rank // run.processes_per_node)
        self.observer(run).kube.delete("Pod", run.place["namespace"], pod, propagation="Background", at_once=True)

    def skip_wait(self, run: Run, ended: Callable[[], bool]) -> None:
        """The Job controller's ten seconds cannot be shortened."""

    def _pod_of(self, run: Run, node: int) -> str:
        pods = by_node(self.observer(run).look(run).pods).get(node, [])
        alive = [pod["metadata"]["name"] for pod in pods if not pod_ended(pod)]
        if not alive:
            raise BackendError(f"{run.run_id}: node {node} has no pod now",
                               f"see its state: launch status {run.run_id}")
        return str(alive[-1])

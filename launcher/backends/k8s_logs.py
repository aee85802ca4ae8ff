"""The pods of a run as a source of logs."""

from collections.abc import Iterator
from typing import Any

from launcher.backends.k8s_status import by_node, container_status, has_ended, pod_ended
from launcher.edge.kube import ApiError, Kube
from launcher.logs.pods import GoneError, Pod, Unreachable

JOB_LABEL = "batch.kubernetes.io/job-name"


class KubeSource:
    """Implements `launcher.logs.pods.Source` for one Job."""

    def __init__(self, kube: Kube, namespace: str, name: str) -> None:
        self.kube = kube
        self.namespace = namespace
        self.name = name

    def pods(self) -> tuple[list[Pod], bool]:
        """The Job is asked first: pods listed after its end are all there will ever be."""
        try:
            job = self.kube.get("Job", self.namespace, self.name)
            found = by_node(self.kube.list("Pod", self.namespace, labels=f"{JOB_LABEL}={self.name}"))
        except ApiError as error:
            raise _passing(error) from error
        pods = [_pod(node, pod) for node, attempts in found.items() for pod in attempts]
        return pods, job is None or has_ended(job)

    def has_ended(self, pod: Pod) -> bool | None:
        """From the pod's own status; None when it is gone."""
        try:
            found = self.kube.get("Pod", self.namespace, pod.name)
        except ApiError as error:
            raise _passing(error) from error
        return None if found is None else pod_ended(found)

    def stream(self, pod: Pod, since: str | None, *, follow: bool) -> Iterator[bytes]:
        """The API's stream."""
        try:
            yield from self.kube.stream_log(self.namespace, pod.name, since=since, follow=follow)
        except ApiError as error:
            if error.code in (400, 404):  # it never started, or it is deleted
                raise GoneError(error.message) from error
            raise _passing(error) from error


def _passing(error: ApiError) -> Exception:
    return Unreachable(error) if error.passing else error


def _pod(node: int, pod: dict[str, Any]) -> Pod:
    meta = pod["metadata"]
    state = container_status(pod).get("state", {})
    started = "running" in state or "terminated" in state
    return Pod(node, meta["name"], meta["creationTimestamp"], started, pod_ended(pod))

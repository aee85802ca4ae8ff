"""The pods of a run as a source of logs."""

import threading
from collections.abc import Iterator
from typing import Any

from launcher.backends.kubernetes.client import ApiError, Kube
from launcher.backends.kubernetes.logs.source import GoneError, Pod, Unreachable
from launcher.backends.kubernetes.logs.volume import LogArchive
from launcher.backends.kubernetes.pod import CONTAINER, RUN_LABEL
from launcher.backends.kubernetes.status import by_node, container_status, failed_init, has_ended, pod_ended


class KubeSource:
    """Implements `launcher.backends.kubernetes.logs.source.Source` for one run, which is a Job or a JobSet."""

    def __init__(self, kube: Kube, namespace: str, name: str, kind: str, stop: threading.Event) -> None:
        self.kube = kube
        self.namespace = namespace
        self.name = name
        self.kind = kind
        self.archive = LogArchive(kube, namespace, stop)

    def pods(self) -> tuple[list[Pod], bool]:
        """The Job is asked first: pods listed after its end are all there will ever be."""
        try:
            job = self.kube.get(self.kind, self.namespace, self.name)
            found = by_node(self.kube.list("Pod", self.namespace, labels=f"{RUN_LABEL}={self.name}"))
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
            yield from self.kube.stream_log(self.namespace, pod.name, pod.container, since=since, follow=follow)
        except ApiError as error:
            if error.code == 404:
                raise GoneError(error.message) from error
            if error.code in (400, 500):  # the container is only being made, or its machine does not answer
                raise Unreachable(error, pod_only=True) from error
            raise _passing(error) from error

    def copied(self, pod: Pod, after: str | None, before: str | None) -> list[bytes] | None:
        """From the archive on the volume, while there is a Job that has one."""
        try:
            owner = self.kube.get(self.kind, self.namespace, self.name)
            return self.archive.lines(owner, pod, after, before)
        except ApiError as error:
            raise _passing(error) from error

    def close(self) -> None:
        """Leave no pod behind."""
        self.archive.close()


def _passing(error: ApiError) -> Exception:
    return Unreachable(error, wait_s=error.retry_after_s) if error.passing else error


def _pod(node: int, pod: dict[str, Any]) -> Pod:
    """Of a pod whose code could not be unpacked, the log of what failed there: the trainer's container has none."""
    meta = pod["metadata"]
    state, failed = container_status(pod).get("state", {}), failed_init(pod)
    started = "running" in state or "terminated" in state or failed is not None
    return Pod(node, meta["name"], meta["creationTimestamp"], started, pod_ended(pod),
               container=failed["name"] if failed else CONTAINER)

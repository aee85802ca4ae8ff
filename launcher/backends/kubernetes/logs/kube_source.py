"""The pods of a run as a source of logs."""

import threading
import time
from collections.abc import Iterator
from typing import Any

from launcher.backends.kubernetes.client import ApiError
from launcher.backends.kubernetes.logs.source import GoneError, Pod, Unreachable
from launcher.backends.kubernetes.logs.volume import LogArchive
from launcher.backends.kubernetes.observer import Observer, Seen, owner_kind
from launcher.backends.kubernetes.pod import CONTAINER
from launcher.backends.kubernetes.status import by_node, container_status, failed_init, pod_ended
from launcher.runs.record import Run


class KubeSource:
    """Implements `launcher.backends.kubernetes.logs.source.Source` for one run. What it says of pods is at most `age_s`
    old, and never older than itself."""

    def __init__(self, observer: Observer, run: Run, stop: threading.Event, age_s: float) -> None:
        self.observer = observer
        self.run = run
        self.age_s = age_s
        self._began = time.monotonic()
        self.archive = LogArchive(observer.kube, observer.namespace, stop)

    def pods(self) -> tuple[list[Pod], bool]:
        """From the observer."""
        seen = self._look()
        return [_pod(node, pod) for node, attempts in by_node(seen.pods).items() for pod in attempts], seen.is_over

    def has_ended(self, pod: Pod) -> bool | None:
        """From the observer, too: one that ended just now may be said not to have. None when it is gone."""
        found = next((found for found in self._look().pods if found["metadata"]["name"] == pod.name), None)
        return None if found is None else pod_ended(found)

    def stream(self, pod: Pod, since: str | None, *, follow: bool) -> Iterator[bytes]:
        """The API's stream."""
        try:
            yield from self.observer.kube.stream_log(
                self.observer.namespace, pod.name, pod.container, since=since, follow=follow)
        except ApiError as error:
            if error.code == 404:
                raise GoneError(error.message) from error
            if error.code in (400, 500):  # the container is only being made, or its machine does not answer
                raise Unreachable(error, pod_only=True) from error
            raise _passing(error) from error

    def copied(self, pod: Pod, after: str | None, before: str | None) -> list[bytes] | None:
        """From the archive on the volume, while there is a Job that has one."""
        try:
            owner = self.observer.kube.get(owner_kind(self.run), self.observer.namespace, self.run.run_id)
            return self.archive.lines(owner, pod, after, before)
        except ApiError as error:
            raise _passing(error) from error

    def close(self) -> None:
        """Leave no pod behind."""
        self.archive.close()

    def _look(self) -> Seen:
        try:
            return self.observer.look(self.run, min(self.age_s, time.monotonic() - self._began))
        except ApiError as error:
            raise _passing(error) from error


def _passing(error: ApiError) -> Exception:
    return Unreachable(error, wait_s=error.retry_after_s) if error.passing else error


def _pod(node: int, pod: dict[str, Any]) -> Pod:
    """Of a pod whose code could not be unpacked, the log of what failed there: the trainer's container has none."""
    meta = pod["metadata"]
    state, failed = container_status(pod).get("state", {}), failed_init(pod)
    started = "running" in state or "terminated" in state or failed is not None
    return Pod(node, meta["name"], meta["creationTimestamp"], started, pod_ended(pod),
               container=failed["name"] if failed else CONTAINER)

"""The log subresource: which container's log, with which options, or why not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .clock import parse_timestamp
from .errors import ApiError, not_found
from .logs import LogQuery
from .store import Object

if TYPE_CHECKING:
    from .cluster import FakeCluster

# A kubelet answers so, with status 200, while it is removing a pod's log files.
_LEFTOVER = (
    'failed to try resolving symlinks in path "/var/log/pods/{namespace}_{name}/0.log": no such file or directory'
)


def open_log(cluster: FakeCluster, namespace: str, name: str, query: dict[str, str]) -> Iterator[bytes]:
    """The lines of a container's log; every refusal is raised before the first line."""
    with cluster.store.lock:
        pod = cluster.store.get("pods", namespace, name)
        if pod is None:
            if cluster.kubelet.has_just_gone(namespace, name):
                return iter([_LEFTOVER.format(namespace=namespace, name=name).encode()])
            raise not_found("pods", name)
        container = _container(pod, query.get("container"))
        options = _options(query)
        node = pod["spec"].get("nodeName")
        if node and cluster.nodes.is_lost(node):
            where = f"containerLogs/{namespace}/{name}/{container}"
            failure = f"dial tcp {node}:10250: i/o timeout"
            raise ApiError(500, f'Get "https://{node}:10250/{where}": {failure}')
        instances = list(cluster.kubelet.logs.get((pod["metadata"]["uid"], container), []))
    if _is_true(query.get("previous")):
        if len(instances) < 2:
            text = f'previous terminated container "{container}" in pod "{name}" not found'
            raise ApiError(400, text)
        return instances[-2].read(options)
    if not instances:
        reason = _waiting_reason(pod, container)
        text = f'container "{container}" in pod "{name}" is waiting to start: {reason}'
        raise ApiError(400, text)
    return instances[-1].read(options)


def _container(pod: Object, wanted: str | None) -> str:
    spec, name = pod["spec"], pod["metadata"]["name"]
    mains, inits = ([item["name"] for item in spec.get(kind) or []] for kind in ("containers", "initContainers"))
    if wanted:
        if wanted not in [*mains, *inits]:
            raise ApiError(400, f"container {wanted} is not valid for pod {name}")
        return wanted
    if len(mains) > 1:
        text = f"a container name must be specified for pod {name}, choose one of: [{' '.join(mains)}]"
        more = f" or one of the init containers: [{' '.join(inits)}]" if inits else ""
        raise ApiError(400, text + more)
    return mains[0]


def _options(query: dict[str, str]) -> LogQuery:
    if "sinceTime" in query and "sinceSeconds" in query:
        text = 'PodLogOptions "" is invalid: at most one of sinceTime or sinceSeconds may be given'
        raise ApiError(422, text)
    since = None
    try:
        if "sinceTime" in query:
            since = parse_timestamp(query["sinceTime"])
        elif "sinceSeconds" in query:
            since = time.time() - int(query["sinceSeconds"])
        return LogQuery(
            follow=_is_true(query.get("follow")),
            timestamps=_is_true(query.get("timestamps")),
            since=since,
            tail=int(query["tailLines"]) if "tailLines" in query else None,
            limit_bytes=int(query["limitBytes"]) if "limitBytes" in query else None,
        )
    except ValueError as error:
        raise ApiError(400, f"unable to decode the log options: {error}") from error


def _waiting_reason(pod: Object, container: str) -> str:
    kinds = ("containerStatuses", "initContainerStatuses")
    for status in [item for kind in kinds for item in pod["status"].get(kind, [])]:
        if status["name"] == container:
            return status["state"].get("waiting", {}).get("reason", "ContainerCreating")
    return "ContainerCreating"


def _is_true(text: str | None) -> bool:
    return (text or "").lower() in ("1", "true")

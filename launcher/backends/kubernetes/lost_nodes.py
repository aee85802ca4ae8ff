"""Pods on lost machines: which they are, and how one is given up.

A machine that is cut off cannot say that its pod has ended, and a Job with a podFailurePolicy makes a new pod only when
the old one has. Deleting the pod without grace is not enough: the Job's finalizer keeps it, in the phase Running, for
ever. So its phase is written first, as Kubernetes' own pod collector does for a machine that was removed; then the Job
counts the pod (as disrupted, which spends no restart), lets go of it and makes the next one.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from launcher.backends.base import LostNode
from launcher.backends.kubernetes.client import ApiError, Kube
from launcher.backends.kubernetes.status import is_silent, node_of, pod_ended

# A machine that answers ends a pod when its grace is over, and takes its volumes away soon after.
OVERDUE_S = 60


def lost_nodes(pods: Iterable[dict[str, Any]], now_s: float) -> list[LostNode]:
    """The nodes whose pods were told to go and cannot, in order. `now_s` counts from the epoch."""
    lost = [pod for pod in pods if _is_lost(pod, now_s)]
    return sorted((_lost_node(pod) for pod in lost), key=lambda node: node.node)


def give_up(kube: Kube, namespace: str, node: LostNode) -> None:
    """Write that the pod has failed, and delete it. That its place has been taken meanwhile, or that it is gone, is
    no error."""
    name, uid = node.key
    pod = kube.get("Pod", namespace, name)
    if pod is None or pod["metadata"]["uid"] != uid:
        return
    try:
        if not pod_ended(pod):
            kube.set_phase(namespace, name, "Failed")
        kube.delete("Pod", namespace, name, propagation="Background", at_once=True, uid=uid)
    except ApiError as error:
        if error.code != 404:
            raise


def _is_lost(pod: dict[str, Any], now_s: float) -> bool:
    until = pod["metadata"].get("deletionTimestamp")  # the moment of the order, and the pod's grace
    if until is None or pod_ended(pod) or "nodeName" not in pod["spec"]:
        return False
    return is_silent(pod) or now_s > datetime.fromisoformat(until).timestamp() + OVERDUE_S


def _lost_node(pod: dict[str, Any]) -> LostNode:
    meta = pod["metadata"]
    return LostNode(node_of(pod), pod["spec"]["nodeName"], (meta["name"], meta["uid"]))

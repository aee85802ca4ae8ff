"""Nodes and the scheduler: who fits where, and what is said when nobody does."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from . import gc
from .clock import timestamp
from .quantities import parse_quantity, pod_requests
from .selectors import matches_labels
from .store import Object, Store, set_condition

GPU = "nvidia.com/gpu"
_CAPACITY = {"cpu": "64", "memory": "512Gi", "ephemeral-storage": "1Ti", "pods": "110", GPU: "8"}
_UNREACHABLE = "node.kubernetes.io/unreachable"


class Nodes:
    """All nodes; methods expect the caller to hold the store's lock."""

    def __init__(self, store: Store, count: int) -> None:
        self._store = store
        self._lost: set[str] = set()
        self._evict_at: dict[str, float] = {}
        for number in range(1, count + 1):
            self._add(f"node-{number}")

    def _add(self, name: str) -> None:
        node: Object = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "spec": {},
            "status": {"capacity": dict(_CAPACITY), "allocatable": dict(_CAPACITY)},
        }
        set_condition(node, "Ready", "True", "KubeletReady")
        self._store.add("nodes", node)

    def names(self) -> list[str]:
        return [node["metadata"]["name"] for node in self._store.select("nodes")]

    def set_capacity(self, name: str, resource: str, amount: str) -> None:
        node = self._node(name)
        for key in ("capacity", "allocatable"):
            node["status"][key][resource] = amount
        self._store.touch("nodes", node)

    def set_label(self, name: str, key: str, value: str) -> None:
        node = self._node(name)
        node["metadata"]["labels"][key] = value
        self._store.touch("nodes", node)

    def is_lost(self, name: str) -> bool:
        return name in self._lost

    def lose(self, name: str, evict_after_s: float) -> None:
        """Mark the node unreachable; its pods are told to go after the delay."""
        self._lost.add(name)
        self._evict_at[name] = time.monotonic() + evict_after_s
        node = self._node(name)
        text = "Kubelet stopped posting node status."
        set_condition(node, "Ready", "Unknown", "NodeStatusUnknown", text)
        taint = {"key": _UNREACHABLE, "effect": "NoExecute", "timeAdded": timestamp()}
        node["spec"]["taints"] = [taint]
        self._store.touch("nodes", node)
        for pod in self._pods_on(name):
            set_condition(pod, "Ready", "False", "NodeNotReady")
            self._store.touch("pods", pod)
            self._store.record_event("pods", pod, "NodeNotReady", "Node is not ready", "Warning")

    def restore(self, name: str) -> None:
        self._lost.discard(name)
        self._evict_at.pop(name, None)
        node = self._node(name)
        set_condition(node, "Ready", "True", "KubeletReady")
        node["spec"].pop("taints", None)
        self._store.touch("nodes", node)

    def sync(self) -> None:
        """Evict from lost nodes, then assign what waits for a node."""
        for name, due in list(self._evict_at.items()):
            if time.monotonic() >= due:
                del self._evict_at[name]
                self._evict_all(name)
        for pod in self._store.select("pods"):
            waiting = pod["status"]["phase"] == "Pending" and not pod["spec"].get("nodeName")
            if waiting and "deletionTimestamp" not in pod["metadata"]:
                self._schedule(pod)

    def _evict_all(self, name: str) -> None:
        text = "Taint manager: deleting due to NoExecute taint"
        for pod in self._pods_on(name):
            if "deletionTimestamp" in pod["metadata"]:
                continue
            set_condition(pod, "DisruptionTarget", "True", "DeletionByTaintManager", text)
            where = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
            event = f"Marking for deletion Pod {where}"
            self._store.record_event("pods", pod, "TaintManagerEviction", event)
            gc.delete(self._store, "pods", pod, "Background")

    def _schedule(self, pod: Object) -> None:
        problem = self._claim_problem(pod)
        refusals = {} if problem else {name: self._refusals(name, pod) for name in self.names()}
        fitting = [name for name, reasons in refusals.items() if not reasons]
        if fitting:
            self._assign(pod, min(fitting, key=lambda name: len(self._pods_on(name))))
            return
        total = len(self.names())
        message = f"0/{total} nodes are available: {problem or self._explain(refusals, pod)}"
        if set_condition(pod, "PodScheduled", "False", "Unschedulable", message):
            self._store.touch("pods", pod)
            self._store.record_event("pods", pod, "FailedScheduling", message, "Warning")

    def _assign(self, pod: Object, node: str) -> None:
        pod["spec"]["nodeName"] = node
        set_condition(pod, "PodScheduled", "True", "")
        self._store.touch("pods", pod)
        meta = pod["metadata"]
        text = f"Successfully assigned {meta['namespace']}/{meta['name']} to {node}"
        self._store.record_event("pods", pod, "Scheduled", text)

    def _claim_problem(self, pod: Object) -> str | None:
        for volume in pod["spec"].get("volumes") or []:
            name = (volume.get("persistentVolumeClaim") or {}).get("claimName")
            namespace = pod["metadata"]["namespace"]
            if name and not self._store.get("persistentvolumeclaims", namespace, name):
                return f'persistentvolumeclaim "{name}" not found. not found'
        return None

    def _refusals(self, name: str, pod: Object) -> list[str]:
        if self.is_lost(name):
            return [f"node(s) had untolerated taint {{{_UNREACHABLE}: }}"]
        labels = self._node(name)["metadata"]["labels"]
        selector = pod["spec"].get("nodeSelector") or {}
        if any(labels.get(key) != value for key, value in selector.items()):
            return ["node(s) didn't match Pod's node affinity/selector"]
        if self._must_stay_apart(name, pod):
            return ["node(s) didn't match pod anti-affinity rules"]
        free = self._free(name)
        wanted = pod_requests(pod)
        return [f"Insufficient {key}" for key in sorted(wanted) if wanted[key] > free.get(key, 0)]

    def _must_stay_apart(self, name: str, pod: Object) -> bool:
        """Required anti-affinity by host name and matchLabels."""
        rules = (pod["spec"].get("affinity") or {}).get("podAntiAffinity") or {}
        for term in rules.get("requiredDuringSchedulingIgnoredDuringExecution") or []:
            selector = ",".join(f"{key}={value}" for key, value in term["labelSelector"]["matchLabels"].items())
            here = (other for other in self._pods_on(name) if other is not pod)
            same = (other for other in here if other["metadata"]["namespace"] == pod["metadata"]["namespace"])
            if any(matches_labels(other, selector) for other in same):
                return True
        return False

    def _free(self, name: str) -> dict[str, float]:
        allocatable = self._node(name)["status"]["allocatable"]
        free = {key: parse_quantity(amount) for key, amount in allocatable.items()}
        for pod in self._pods_on(name):
            for key, amount in pod_requests(pod).items():
                free[key] = free.get(key, 0) - amount
        return free

    def _explain(self, refusals: dict[str, list[str]], pod: Object) -> str:
        counts = Counter(reason for reasons in refusals.values() for reason in reasons)
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
        total = len(refusals)
        hopeless = sum(not self._could_ever_fit(name, pod) for name in refusals)
        hints = {
            "No preemption victims found for incoming pod": total - hopeless,
            "Preemption is not helpful for scheduling": hopeless,
        }
        preemption = ", ".join(f"{count} {hint}" for hint, count in hints.items() if count)
        return f"{reasons}. no new claims to deallocate, preemption: 0/{total} nodes are available: {preemption}."

    def _could_ever_fit(self, name: str, pod: Object) -> bool:
        """An empty node would take the pod: it waits for others to finish."""
        allocatable = self._node(name)["status"]["allocatable"]
        wanted = pod_requests(pod)
        fits = all(parse_quantity(allocatable.get(key, 0)) >= wanted[key] for key in wanted)
        return fits and all(text.startswith("Insufficient") for text in self._refusals(name, pod))

    def _pods_on(self, name: str) -> list[dict[str, Any]]:
        return [
            pod for pod in self._store.select("pods") if pod["spec"].get("nodeName") == name and not gc.is_terminal(pod)
        ]

    def _node(self, name: str) -> Object:
        node = self._store.get("nodes", "", name)
        if node is None:
            raise KeyError(f"no node {name}; there are {', '.join(self.names())}")
        return node

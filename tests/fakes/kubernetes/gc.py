"""Deletion: propagation policies, garbage collection by owner, finalizers."""

from __future__ import annotations

from typing import Any

from .store import Object, Store, owner_uids

TRACKING = "batch.kubernetes.io/job-tracking"
FOREGROUND = "foregroundDeletion"


def delete(store: Store, plural: str, obj: Object, policy: str, grace_s: int | None = None) -> None:
    """Start deleting; what is left to do happens in `collect`."""
    if policy == "Orphan":
        _orphan_dependents(store, obj)
    elif policy == "Foreground":
        _add_finalizer(obj, FOREGROUND)
    if plural == "pods":
        default = obj["spec"].get("terminationGracePeriodSeconds", 30)
        store.mark_deleted(plural, obj, default if grace_s is None else grace_s)
    else:
        store.mark_deleted(plural, obj)
    _reap(store, plural, obj)


def collect(store: Store) -> None:
    """One pass: drop dependents whose owner is gone, then what may go."""
    alive = {obj["metadata"]["uid"] for _, obj in store.everything()}
    for plural, obj in list(store.everything()):
        owners = owner_uids(obj)
        if owners and not alive.intersection(owners) and not _is_deleted(obj):
            delete(store, plural, obj, "Background")
    for plural, obj in list(store.everything()):
        if _is_deleted(obj):
            _continue_deletion(store, plural, obj)


def _continue_deletion(store: Store, plural: str, obj: Object) -> None:
    uid = obj["metadata"]["uid"]
    finalizers = obj["metadata"].get("finalizers") or []
    if plural == "namespaces":
        _empty_namespace(store, obj["metadata"]["name"])
        if any(ns_objects(store, obj["metadata"]["name"])):
            return
    if FOREGROUND in finalizers:
        dependents = store.owned_by(uid)
        for dependent_plural, dependent in dependents:
            if not _is_deleted(dependent):
                policy = "Foreground" if store.owned_by(dependent["metadata"]["uid"]) else "Background"
                delete(store, dependent_plural, dependent, policy)
        if not store.owned_by(uid):
            drop_finalizer(store, plural, obj, FOREGROUND)
    if TRACKING in finalizers and _may_stop_tracking(store, obj):
        drop_finalizer(store, plural, obj, TRACKING)
    _reap(store, plural, obj)


def _may_stop_tracking(store: Store, pod: Object) -> bool:
    """Without its Job nobody will count the pod any more."""
    return not any(store.by_uid(uid) for uid in owner_uids(pod))


def _reap(store: Store, plural: str, obj: Object) -> None:
    if obj["metadata"].get("finalizers"):
        return
    if plural == "namespaces" and any(ns_objects(store, obj["metadata"]["name"])):
        return
    if plural != "pods" or pod_has_ended(obj):
        store.remove(plural, obj)


def pod_has_ended(pod: Object) -> bool:
    """Its containers are down, never ran, or nobody waits for them (force delete)."""
    forced = pod["metadata"].get("deletionGracePeriodSeconds") == 0
    return forced or is_terminal(pod) or not pod["spec"].get("nodeName")


def is_terminal(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def ns_objects(store: Store, namespace: str) -> list[tuple[str, Object]]:
    return [(plural, obj) for plural, obj in store.everything() if obj["metadata"].get("namespace") == namespace]


def _empty_namespace(store: Store, namespace: str) -> None:
    for plural, obj in ns_objects(store, namespace):
        if not _is_deleted(obj):
            delete(store, plural, obj, "Background")


def _orphan_dependents(store: Store, owner: Object) -> None:
    uid = owner["metadata"]["uid"]
    for plural, dependent in store.owned_by(uid):
        meta = dependent["metadata"]
        rest = [item for item in meta["ownerReferences"] if item["uid"] != uid]
        meta["ownerReferences"] = rest
        if not rest:
            del meta["ownerReferences"]
        store.touch(plural, dependent)
        drop_finalizer(store, plural, dependent, TRACKING)


def _add_finalizer(obj: Object, name: str) -> None:
    finalizers = obj["metadata"].setdefault("finalizers", [])
    if name not in finalizers:
        finalizers.append(name)


def drop_finalizer(store: Store, plural: str, obj: Object, name: str) -> None:
    finalizers: list[Any] = obj["metadata"].get("finalizers") or []
    if name in finalizers:
        finalizers.remove(name)
        if not finalizers:
            del obj["metadata"]["finalizers"]
        store.touch(plural, obj)


def _is_deleted(obj: Object) -> bool:
    return "deletionTimestamp" in obj["metadata"]

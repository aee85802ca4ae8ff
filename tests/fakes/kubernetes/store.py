"""Objects in memory, with what the API machinery adds: uid, resourceVersion, history.

Everything that reads or changes an object holds `store.lock`; `store.changed`
is notified after each change, so loops can wait on it instead of polling.
"""

from __future__ import annotations

import copy
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from .clock import timestamp
from .resources import RESOURCES

Object = dict[str, Any]
_HISTORY = 5000


class Store:
    """All objects of the cluster by resource, namespace and name."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.version = 0
        self.oldest = 0
        self.history: list[tuple[int, str, str, Object]] = []
        self._objects: dict[str, dict[tuple[str, str], Object]] = {name: {} for name in RESOURCES}

    def get(self, plural: str, namespace: str, name: str) -> Object | None:
        """The live object, not a copy."""
        return self._objects[plural].get((namespace, name))

    def select(self, plural: str, namespace: str | None = None) -> list[Object]:
        """The live objects; all namespaces when none is given."""
        objects = self._objects[plural]
        return [obj for (ns, _), obj in list(objects.items()) if namespace in (None, ns)]

    def everything(self) -> Iterator[tuple[str, Object]]:
        for plural in RESOURCES:
            for obj in self.select(plural):
                yield plural, obj

    def by_uid(self, uid: str) -> tuple[str, Object] | None:
        for plural, obj in self.everything():
            if obj["metadata"]["uid"] == uid:
                return plural, obj
        return None

    def owned_by(self, uid: str) -> list[tuple[str, Object]]:
        return [(plural, obj) for plural, obj in self.everything() if uid in owner_uids(obj)]

    def add(self, plural: str, obj: Object) -> Object:
        meta = obj["metadata"]
        stamp_new(obj)
        self._objects[plural][meta.get("namespace", ""), meta["name"]] = obj
        self._record("ADDED", plural, obj)
        return obj

    def touch(self, plural: str, obj: Object) -> None:
        """Publish a change that the caller made to a live object."""
        self._record("MODIFIED", plural, obj)

    def mark_deleted(self, plural: str, obj: Object, grace_s: int = 0) -> None:
        """Set deletionTimestamp; a second, shorter grace period wins."""
        meta = obj["metadata"]
        known = meta.get("deletionGracePeriodSeconds")
        if known is not None and known <= grace_s:
            return
        meta["deletionTimestamp"] = timestamp(time.time() + grace_s)
        meta["deletionGracePeriodSeconds"] = grace_s
        self.touch(plural, obj)

    def remove(self, plural: str, obj: Object) -> None:
        meta = obj["metadata"]
        self._objects[plural].pop((meta.get("namespace", ""), meta["name"]), None)
        self._record("DELETED", plural, obj)

    def forget_history(self) -> None:
        """As etcd compacts it."""
        self.history.clear()
        self.oldest = self.version

    def _record(self, kind: str, plural: str, obj: Object) -> None:
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        self.history.append((self.version, kind, plural, copy.deepcopy(obj)))
        del self.history[:-_HISTORY]
        self.changed.notify_all()

    def record_event(self, plural: str, obj: Object, reason: str, message: str, kind: str = "Normal") -> None:
        """Add an Event about `obj`, or count up the same one."""
        namespace = obj["metadata"].get("namespace") or "default"
        for event in self.select("events", namespace):
            about = event["involvedObject"]["uid"] == obj["metadata"]["uid"]
            if about and (event["reason"], event["message"]) == (reason, message):
                event["count"] += 1
                event["lastTimestamp"] = timestamp()
                return self.touch("events", event)
        self.add("events", _event(plural, obj, namespace, reason, message, kind))
        return None


def stamp_new(obj: Object) -> None:
    """Give a new object its uid and creation time."""
    meta = obj["metadata"]
    meta["uid"] = str(uuid.uuid4())
    meta["creationTimestamp"] = timestamp()
    if "spec" in obj:
        meta["generation"] = 1


def owner_uids(obj: Object) -> list[str]:
    return [owner["uid"] for owner in obj["metadata"].get("ownerReferences") or []]


def controller_uid(obj: Object) -> str | None:
    for owner in obj["metadata"].get("ownerReferences") or []:
        if owner.get("controller"):
            return owner["uid"]
    return None


def set_condition(obj: Object, type_: str, status: str, reason: str, message: str = "") -> bool:
    """Set one of `status.conditions`; False if it already said so."""
    conditions = obj.setdefault("status", {}).setdefault("conditions", [])
    wanted = {"type": type_, "status": status, "reason": reason, "message": message}
    for condition in conditions:
        if condition["type"] == type_:
            if all(condition.get(key) == value for key, value in wanted.items()):
                return False
            condition.update(wanted, lastTransitionTime=timestamp())
            return True
    conditions.append({**wanted, "lastTransitionTime": timestamp()})
    return True


def has_condition(obj: Object, type_: str, status: str = "True") -> bool:
    conditions = obj.get("status", {}).get("conditions", [])
    return any(item["type"] == type_ and item["status"] == status for item in conditions)


def _event(plural: str, obj: Object, namespace: str, reason: str, message: str, kind: str) -> Object:
    resource, meta = RESOURCES[plural], obj["metadata"]
    now = timestamp()
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{meta['name']}.{uuid.uuid4().hex[:16]}",
            "namespace": namespace,
        },
        "involvedObject": {
            "kind": resource.kind,
            "apiVersion": resource.api_version,
            "namespace": meta.get("namespace", ""),
            "name": meta["name"],
            "uid": meta["uid"],
        },
        "reason": reason,
        "message": message,
        "type": kind,
        "count": 1,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "source": {"component": "fake"},
    }

"""The served resource types and the discovery documents that list them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]


JOB_SET_GROUP = "jobset.x-k8s.io"


@dataclass(frozen=True)
class Resource:
    plural: str
    kind: str
    group: str = ""
    namespaced: bool = True
    short: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()
    version: str = "v1"

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def qualified_kind(self) -> str:
        return f"{self.kind}.{self.group}" if self.group else self.kind


RESOURCES = {
    resource.plural: resource
    for resource in (
        Resource("namespaces", "Namespace", namespaced=False, short=("ns",)),
        Resource("nodes", "Node", namespaced=False, short=("no",)),
        Resource("pods", "Pod", short=("po",), subresources=("log", "status", "eviction")),
        Resource("services", "Service", short=("svc",)),
        Resource("configmaps", "ConfigMap", short=("cm",)),
        Resource("secrets", "Secret"),
        Resource("events", "Event", short=("ev",)),
        Resource("serviceaccounts", "ServiceAccount", short=("sa",)),
        Resource("resourcequotas", "ResourceQuota", short=("quota",)),
        Resource("persistentvolumeclaims", "PersistentVolumeClaim", short=("pvc",)),
        Resource("persistentvolumes", "PersistentVolume", namespaced=False, short=("pv",)),
        Resource("jobs", "Job", "batch", subresources=("status",)),
        Resource("jobsets", "JobSet", JOB_SET_GROUP, subresources=("status",), version="v1alpha2"),
        Resource("priorityclasses", "PriorityClass", "scheduling.k8s.io", namespaced=False),
        Resource(
            "selfsubjectaccessreviews",
            "SelfSubjectAccessReview",
            "authorization.k8s.io",
            namespaced=False,
        ),
    )
}
GROUPS = sorted({resource.group for resource in RESOURCES.values() if resource.group})
VERSION = {
    "major": "1",
    "minor": "36",
    "gitVersion": "v1.36.2",
    "gitCommit": "fake",
    "gitTreeState": "clean",
    "buildDate": "2026-01-01T00:00:00Z",
    "goVersion": "go1.26",
    "compiler": "gc",
    "platform": "linux/amd64",
}


def find_resource(group: str, plural: str) -> Resource | None:
    resource = RESOURCES.get(plural)
    return resource if resource and resource.group == group else None


def discovery(path: str, absent: frozenset[str] = frozenset()) -> dict[str, Any] | None:
    """The document for a discovery path, or None for any other path; `absent` groups are not installed."""
    groups = [_group(name) for name in GROUPS if name not in absent]
    documents: dict[str, dict[str, Any]] = {
        "/version": VERSION,
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/api/v1": _resource_list(""),
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups},
    }
    for group in groups:
        documents[f"/apis/{group['name']}"] = {"kind": "APIGroup", "apiVersion": "v1", **group}
        documents[f"/apis/{group['preferredVersion']['groupVersion']}"] = _resource_list(group["name"])
    return documents.get(path)


def _group(name: str) -> dict[str, Any]:
    number = next(resource.version for resource in RESOURCES.values() if resource.group == name)
    version = {"groupVersion": f"{name}/{number}", "version": number}
    return {"name": name, "versions": [version], "preferredVersion": version}


def _resource_list(group: str) -> dict[str, Any]:
    entries = [entry for resource in RESOURCES.values() if resource.group == group for entry in _entries(resource)]
    group_version = next(resource.api_version for resource in RESOURCES.values() if resource.group == group)
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": entries,
    }


def _entries(resource: Resource) -> list[dict[str, Any]]:
    reviews = resource.plural.endswith("reviews")
    main = {
        "name": resource.plural,
        "singularName": resource.kind.lower(),
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": ["create"] if reviews else VERBS,
        "shortNames": list(resource.short),
    }
    subresources = [
        {
            "name": f"{resource.plural}/{sub}",
            "singularName": "",
            "namespaced": resource.namespaced,
            "kind": "Eviction" if sub == "eviction" else resource.kind,
            "verbs": ["create"] if sub == "eviction" else ["get", "patch", "update"],
        }
        for sub in resource.subresources
    ]
    return [main, *subresources]

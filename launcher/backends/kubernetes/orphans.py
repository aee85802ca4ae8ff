"""What runs have left behind in a cluster: labelled objects that belong to no Job or JobSet (any more).

Only objects with launch's label are looked at, and only one whose owner is surely gone is a orphan. An object that is
just being deleted is left to the cluster.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from launcher.backends.base import Orphan
from launcher.backends.kubernetes.client import ApiError, Kube
from launcher.backends.kubernetes.objects import API_VERSIONS, MANAGED_LABEL, MANAGER
from launcher.backends.kubernetes.pod import RUN_LABEL
from launcher.backends.kubernetes.profile import KubernetesProfile
from launcher.job.profile import Profile
from launcher.runs.record import Run

KINDS = ("Pod", "Service", "ConfigMap", "Secret")
Object = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """A namespace of a cluster; no context is the current one."""

    context: str | None
    namespace: str

    def __str__(self) -> str:
        return f"{self.context or 'current context'}/{self.namespace}"


def place_of(run: Run) -> Place:
    """Where a run was sent."""
    return Place(run.place["context"], run.place["namespace"])


def places_of(runs: Iterable[Run], profile: Profile | None) -> list[Place]:
    """Where to look: every namespace that a run of this machine was in, and the profile's."""
    found = {place_of(run) for run in runs if run.backend == "kubernetes"}
    if isinstance(profile, KubernetesProfile):
        found.add(Place(profile.context, profile.namespace))
    return sorted(found, key=str)


def find_orphans(kube: Kube, namespace: str, warn: Callable[[str], None]) -> list[Orphan]:
    """The orphans of a namespace. A kind that may not be listed is warned about (only an administrator may list
    Secrets, see k8s/README.md)."""
    found: list[Orphan] = []
    owners = _Owners(kube, namespace)
    for kind in KINDS:
        try:
            objects = kube.list(kind, namespace, labels=f"{MANAGED_LABEL}={MANAGER}")
        except ApiError as error:
            if error.code != 403:
                raise
            warn(f"{kube.context}/{namespace}: {kind}s could not be listed: {error.message}")
            continue
        found += (_orphan(kube.context, kind, body, why) for body in objects if (why := owners.why_orphan(body)))
    return found


class _Owners:
    """Which owners live; each is asked for once."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self._kube = kube
        self._namespace = namespace
        self._uids: dict[tuple[str, str], str | None] = {}

    def why_orphan(self, body: Object) -> str | None:
        """Why nobody will ever remove the object; None when somebody will, or may."""
        meta = body["metadata"]
        if "deletionTimestamp" in meta:
            return None
        owners = meta.get("ownerReferences") or []
        if any(owner["kind"] not in API_VERSIONS for owner in owners):
            return None
        if any(self._uid(owner["kind"], owner["name"]) == owner["uid"] for owner in owners):
            return None
        if owners:
            return f"its {owners[0]['kind']} {owners[0]['name']} is gone"
        run_id = meta["labels"].get(RUN_LABEL)
        if run_id is None or any(self._uid(kind, run_id) for kind in API_VERSIONS):
            return None
        return f"it has no owner, and there is no Job or JobSet {run_id}"

    def _uid(self, kind: str, name: str) -> str | None:
        if (kind, name) not in self._uids:
            found = self._kube.get(kind, self._namespace, name)
            self._uids[kind, name] = found["metadata"]["uid"] if found else None
        return self._uids[kind, name]


def _orphan(context: str, kind: str, body: Object, why: str) -> Orphan:
    meta = body["metadata"]
    return Orphan(kind, meta["name"], f"{context}/{meta['namespace']}", why, (context, meta["namespace"], meta["uid"]))

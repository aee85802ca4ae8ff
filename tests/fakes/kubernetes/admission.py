"""Admission of pods: Pod Security "restricted", quota, service account, priority class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .errors import ApiError
from .quantities import format_number, parse_quantity
from .store import Object, Store

ENFORCE = "pod-security.kubernetes.io/enforce"
_ALLOWED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def admit_pod(store: Store, pod: Object) -> None:
    """Raise the 403 a real cluster would answer, if any."""
    namespace = pod["metadata"]["namespace"]
    reason = (
        _missing_references(store, pod)
        or _pod_security(store, namespace, pod["spec"])
        or _quota(store, namespace, pod["spec"])
    )
    if reason:
        name = pod["metadata"]["name"]
        message = f'pods "{name}" is forbidden: {reason}'
        raise ApiError(403, message, details={"name": name, "kind": "pods"})


def security_warning(store: Store, namespace: str, pod_spec: dict[str, Any]) -> str | None:
    """The Warning a workload with such a template gets when it is created."""
    reason = _pod_security(store, namespace, pod_spec)
    return reason.replace("violates", "would violate", 1) if reason else None


def _missing_references(store: Store, pod: Object) -> str | None:
    namespace, spec = pod["metadata"]["namespace"], pod["spec"]
    account = spec.get("serviceAccountName", "default")
    if account != "default" and not store.get("serviceaccounts", namespace, account):
        return f'error looking up service account {namespace}/{account}: serviceaccount "{account}" not found'
    priority = spec.get("priorityClassName", "")
    is_builtin = not priority or priority.startswith("system-")
    if is_builtin or store.get("priorityclasses", "", priority):
        return None
    return f"no PriorityClass with name {priority} was found"


def _pod_security(store: Store, namespace: str, spec: dict[str, Any]) -> str | None:
    labels = (store.get("namespaces", "", namespace) or {"metadata": {}})["metadata"]
    if (labels.get("labels") or {}).get(ENFORCE) != "restricted":
        return None
    violations = list(_violations(spec))
    if not violations:
        return None
    return f'violates PodSecurity "restricted:latest": {", ".join(violations)}'


def _violations(spec: dict[str, Any]) -> Iterator[str]:
    pod_context = spec.get("securityContext") or {}
    containers = [*(spec.get("initContainers") or []), *spec["containers"]]
    contexts = [(item["name"], item.get("securityContext") or {}) for item in containers]
    yield from _host_violations(spec)
    bad = [name for name, own in contexts if own.get("allowPrivilegeEscalation") is not False]
    if bad:
        advice = "must set securityContext.allowPrivilegeEscalation=false"
        yield f"allowPrivilegeEscalation != false ({_named(bad)} {advice})"
    bad = [name for name, own in contexts if not _drops_all(own)]
    if bad:
        advice = 'must set securityContext.capabilities.drop=["ALL"]'
        yield f"unrestricted capabilities ({_named(bad)} {advice})"
    yield from _volume_violations(spec)
    bad = [name for name, own in contexts if not _inherited(own, pod_context, "runAsNonRoot")]
    if bad:
        advice = "must set securityContext.runAsNonRoot=true"
        yield f"runAsNonRoot != true (pod or {_named(bad)} {advice})"
    if pod_context.get("runAsUser") == 0 or any(own.get("runAsUser") == 0 for _, own in contexts):
        yield "runAsUser=0 (pod must not set runAsUser=0)"
    bad = [name for name, own in contexts if not _has_seccomp(own, pod_context)]
    if bad:
        advice = 'must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost"'
        yield f"seccompProfile (pod or {_named(bad)} {advice})"


def _host_violations(spec: dict[str, Any]) -> Iterator[str]:
    shared = [f"{key}=true" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key) is True]
    if shared:
        yield f"host namespaces ({', '.join(shared)})"
    paths = [f'"{v["name"]}"' for v in spec.get("volumes") or [] if "hostPath" in v]
    if paths:
        yield f"hostPath volumes ({'volume' if len(paths) == 1 else 'volumes'} {', '.join(paths)})"
    for container in spec["containers"]:
        if (container.get("securityContext") or {}).get("privileged"):
            advice = "must not set securityContext.privileged=true"
            yield f'privileged (container "{container["name"]}" {advice})'


def _volume_violations(spec: dict[str, Any]) -> Iterator[str]:
    for volume in spec.get("volumes") or []:
        for kind in sorted(set(volume) - {"name"} - _ALLOWED_VOLUMES):
            yield (f'restricted volume types (volume "{volume["name"]}" uses restricted volume type "{kind}")')


def _named(names: list[str]) -> str:
    quoted = ", ".join(f'"{name}"' for name in names)
    return f"container {quoted}" if len(names) == 1 else f"containers {quoted}"


def _drops_all(context: dict[str, Any]) -> bool:
    return "ALL" in ((context.get("capabilities") or {}).get("drop") or [])


def _inherited(own: dict[str, Any], pod: dict[str, Any], key: str) -> Any:
    return own[key] if own.get(key) is not None else pod.get(key)


def _has_seccomp(own: dict[str, Any], pod: dict[str, Any]) -> bool:
    profile = _inherited(own, pod, "seccompProfile") or {}
    return profile.get("type") in ("RuntimeDefault", "Localhost")


def _quota(store: Store, namespace: str, spec: dict[str, Any]) -> str | None:
    for quota in store.select("resourcequotas", namespace):
        name, hard = quota["metadata"]["name"], quota["spec"]["hard"]
        missing = _unset_resources(hard, spec)
        if missing:
            return f"failed quota: {name}: must specify {missing}"
        wanted = _charge(hard, spec)
        used = _used(store, namespace, hard)
        over = [key for key in hard if used[key] + wanted[key] > parse_quantity(hard[key])]
        if over:
            return (
                f"exceeded quota: {name}, requested: {_amounts(over, wanted)}, "
                f"used: {_amounts(over, used)}, limited: {_amounts(over, hard)}"
            )
    return None


def _unset_resources(hard: dict[str, Any], spec: dict[str, Any]) -> str | None:
    """A quota on cpu or memory refuses pods that leave it open."""
    missing: dict[str, list[str]] = {}
    for key in sorted(hard):
        kind, _, resource = key.partition(".")
        if resource not in ("cpu", "memory"):
            continue
        for container in [*spec["containers"], *(spec.get("initContainers") or [])]:
            if resource not in _amounts_of(container, kind):
                missing.setdefault(key, []).append(container["name"])
    parts = [f"{key} for: {','.join(names)}" for key, names in missing.items()]
    return "; ".join(parts) or None


def _amounts_of(container: dict[str, Any], kind: str) -> dict[str, Any]:
    resources = container.get("resources") or {}
    limits = resources.get("limits") or {}
    return limits if kind == "limits" else {**limits, **(resources.get("requests") or {})}


def _charge(hard: dict[str, Any], spec: dict[str, Any]) -> dict[str, float]:
    """Init containers run before the others, so the most that is held at once counts."""
    total = dict.fromkeys(hard, 0.0)
    for key in hard:
        kind, _, resource = key.partition(".")
        if key in ("pods", "count/pods"):
            total[key] = 1
            continue
        together, before = (
            [parse_quantity(_amounts_of(item, kind).get(resource, 0)) for item in spec.get(part) or []]
            for part in ("containers", "initContainers")
        )
        total[key] = max(sum(together), *before, 0.0)
    return total


def _used(store: Store, namespace: str, hard: dict[str, Any]) -> dict[str, float]:
    used = dict.fromkeys(hard, 0.0)
    for pod in store.select("pods", namespace):
        if pod["status"]["phase"] not in ("Succeeded", "Failed"):
            for key, amount in _charge(hard, pod["spec"]).items():
                used[key] += amount
    return used


def _amounts(keys: list[str], values: dict[str, Any]) -> str:
    def show(value: Any) -> str:
        return format_number(value) if isinstance(value, float) else str(value)

    return ",".join(f"{key}={show(values[key])}" for key in keys)

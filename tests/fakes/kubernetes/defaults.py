"""What the API server fills in before it checks and stores an object."""

from __future__ import annotations

import base64
from typing import Any

from .store import Object

_UNLIMITED = 2**31 - 1
COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"


def apply_defaults(plural: str, obj: Object) -> None:
    """Fill in defaults; applying them twice changes nothing."""
    filler = _FILLERS.get(plural)
    if filler:
        filler(obj)


def _fill(target: dict[str, Any], **defaults: Any) -> None:
    for key, value in defaults.items():
        if target.get(key) is None:
            target[key] = value


def _fill_pod(pod: Object) -> None:
    _fill_pod_spec(pod.setdefault("spec", {}))
    _fill(pod["spec"], serviceAccountName="default")
    pod.setdefault("status", {}).setdefault("phase", "Pending")


def _fill_pod_spec(spec: dict[str, Any]) -> None:
    _fill(
        spec,
        restartPolicy="Always",
        terminationGracePeriodSeconds=30,
        dnsPolicy="ClusterFirst",
        securityContext={},
        schedulerName="default-scheduler",
    )
    for container in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]:
        _fill(
            container,
            imagePullPolicy="IfNotPresent",
            terminationMessagePath="/dev/termination-log",
            terminationMessagePolicy="File",
            resources={},
        )
        for amounts in container["resources"].values():
            if isinstance(amounts, dict):
                amounts.update({name: str(amount) for name, amount in amounts.items()})


def _fill_job(job: Object) -> None:
    job.setdefault("status", {})
    spec = job.setdefault("spec", {})
    per_index = spec.get("backoffLimitPerIndex") is not None
    _fill(
        spec,
        parallelism=1,
        completionMode="NonIndexed",
        backoffLimit=_UNLIMITED if per_index else 6,
        suspend=False,
        podReplacementPolicy="Failed" if spec.get("podFailurePolicy") else "TerminatingOrFailed",
    )
    _fill(spec, completions=1 if spec["parallelism"] == 1 else None)
    template = spec.setdefault("template", {})
    _fill_pod_spec(template.setdefault("spec", {}))
    _label_template(job, template)


def _label_template(job: Object, template: dict[str, Any]) -> None:
    """Labels and selector carry the uid, so they wait until the object has one."""
    meta = job["metadata"]
    if "uid" not in meta:
        return
    labels = template.setdefault("metadata", {}).setdefault("labels", {})
    labels.update(
        {
            "batch.kubernetes.io/controller-uid": meta["uid"],
            "batch.kubernetes.io/job-name": meta["name"],
            "controller-uid": meta["uid"],
            "job-name": meta["name"],
        }
    )
    selector = {"batch.kubernetes.io/controller-uid": meta["uid"]}
    job["spec"]["selector"] = {"matchLabels": selector}


def _fill_service(service: Object) -> None:
    _fill(service.setdefault("spec", {}), type="ClusterIP", clusterIP="10.96.0.10")


def _fill_secret(secret: Object) -> None:
    data = secret.setdefault("data", {})
    for key, text in (secret.pop("stringData", None) or {}).items():
        data[key] = base64.b64encode(text.encode()).decode()
    _fill(secret, type="Opaque")


def _fill_claim(claim: Object) -> None:
    claim["status"] = {"phase": "Bound"}


def _fill_namespace(namespace: Object) -> None:
    name = namespace["metadata"].get("name")
    labels = namespace["metadata"].setdefault("labels", {})
    labels.setdefault("kubernetes.io/metadata.name", name)
    namespace.setdefault("status", {"phase": "Active"})


_FILLERS = {
    "pods": _fill_pod,
    "jobs": _fill_job,
    "services": _fill_service,
    "secrets": _fill_secret,
    "persistentvolumeclaims": _fill_claim,
    "namespaces": _fill_namespace,
}

"""The 422 checks: names, required fields, combinations, immutable fields."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from .store import Object

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(rf"{_LABEL.pattern}(\.{_LABEL.pattern})*")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_LABEL_RULE = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', "
    "and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc')"
)
_SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, "
    "'-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com')"
)
_MAX_DATA = 2**20


def check_new(plural: str, obj: Object) -> list[str]:
    """What is wrong with an object about to be created, as `field: problem` lines."""
    return [*_check_name(plural, obj), *check_always(plural, obj)]


def check_always(plural: str, obj: Object) -> list[str]:
    problems = _check_labels("metadata.labels", obj["metadata"])
    if plural == "jobs":
        problems += _check_job(obj)
    elif plural == "pods":
        problems += _check_pod_spec(obj["spec"], "spec")
    elif plural in ("configmaps", "secrets"):
        problems += _check_data(plural, obj)
    return problems


def check_update(plural: str, old: Object, new: Object) -> list[str]:
    """Fields that must stay as they are."""
    problems = []
    if plural == "jobs":
        for field in ("template", "selector", "completionMode", "podFailurePolicy"):
            problems += _immutable(f"spec.{field}", old["spec"].get(field), new["spec"].get(field))
    if plural == "pods" and old["spec"] != new["spec"]:
        problems.append(
            "spec: Forbidden: pod updates may not change fields other than "
            "`spec.containers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations`"
        )
    return problems


def _immutable(field: str, old: Any, new: Any) -> list[str]:
    return [] if old == new else [f"{field}: Invalid value: {new!r}: field is immutable"]


def _check_name(plural: str, obj: Object) -> list[str]:
    name = obj["metadata"]["name"]
    as_label = plural in ("services", "namespaces")
    pattern, longest = (_LABEL, 63) if as_label else (_SUBDOMAIN, 253)
    field = f'metadata.name: Invalid value: "{name}"'
    if len(name) > longest:
        return [f"{field}: must be no more than {longest} characters"]
    if not pattern.fullmatch(name):
        return [f"{field}: {_LABEL_RULE if as_label else _SUBDOMAIN_RULE}"]
    return []


def _check_labels(field: str, meta: dict[str, Any]) -> list[str]:
    return [
        f'{field}: Invalid value: "{value}": a valid label must be an empty string or consist of '
        "alphanumeric characters, '-', '_' or '.', and be no more than 63 characters"
        for value in (meta.get("labels") or {}).values()
        if len(value) > 63 or not _LABEL_VALUE.fullmatch(value)
    ]


def _check_job(job: Object) -> list[str]:
    spec = job["spec"]
    pod_spec = spec["template"]["spec"]
    problems = _check_pod_spec(pod_spec, "spec.template.spec")
    problems += _check_labels("spec.template.labels", spec["template"].get("metadata") or {})
    never = pod_spec["restartPolicy"] == "Never"
    if pod_spec["restartPolicy"] == "Always":
        problems.append('spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never"')
    if spec["completionMode"] == "Indexed":
        problems += _check_indexed(job)
    elif spec.get("backoffLimitPerIndex") is not None:
        problems.append("spec.backoffLimitPerIndex: Invalid value: requires indexed completion mode")
    if spec.get("backoffLimitPerIndex") is None and spec.get("maxFailedIndexes") is not None:
        problems.append("spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified")
    if not never and (spec.get("podFailurePolicy") or spec.get("backoffLimitPerIndex") is not None):
        problems.append(
            f'spec.template.spec.restartPolicy: Invalid value: "{pod_spec["restartPolicy"]}": '
            'only "Never" is supported when podFailurePolicy or backoffLimitPerIndex is specified'
        )
    if spec.get("podFailurePolicy") and spec["podReplacementPolicy"] != "Failed":
        problems.append(
            f'spec.podReplacementPolicy: Unsupported value: "{spec["podReplacementPolicy"]}": '
            'supported values: "Failed"'
        )
    return problems


def _check_indexed(job: Object) -> list[str]:
    completions = job["spec"].get("completions")
    if completions is None:
        return ["spec.completions: Required value: when completion mode is Indexed"]
    last_pod = f"{job['metadata']['name']}-{max(completions - 1, 0)}"
    if len(last_pod) > 63 or not _LABEL.fullmatch(last_pod):
        return [
            f'metadata.name: Invalid value: "{last_pod}": will not able to create pod with '
            f"invalid DNS label: [{_LABEL_RULE}, must be no more than 63 characters]"
        ]
    return []


def _check_pod_spec(spec: dict[str, Any], field: str) -> list[str]:
    if not spec.get("containers"):
        return [f"{field}.containers: Required value"]
    problems = []
    volumes = {volume["name"] for volume in spec.get("volumes") or []}
    containers = [(f"{field}.{kind}[{index}]", container)
                  for kind in ("initContainers", "containers") for index, container in enumerate(spec.get(kind) or [])]
    for where, container in containers:
        for key in ("name", "image"):
            if not container.get(key):
                problems.append(f"{where}.{key}: Required value")
        for number, mount in enumerate(container.get("volumeMounts") or []):
            if mount["name"] not in volumes:
                name = f'{where}.volumeMounts[{number}].name: Not found: "{mount["name"]}"'
                problems.append(name)
        problems += _check_env(container, where)
    return problems


def _check_env(container: dict[str, Any], where: str) -> list[str]:
    return [
        f'{where}.env[{index}].value: Invalid type: "{type(entry["value"]).__name__}"'
        for index, entry in enumerate(container.get("env") or [])
        if not isinstance(entry.get("value", ""), str)
    ]


def _check_data(plural: str, obj: Object) -> list[str]:
    text = obj.get("data") or {}
    binary = text if plural == "secrets" else obj.get("binaryData") or {}
    try:
        size = sum(len(base64.b64decode(value, validate=True)) for value in binary.values())
    except (binascii.Error, ValueError):
        return ["data: Invalid value: illegal base64 data"]
    if plural == "configmaps":
        size += sum(len(value.encode()) for value in text.values())
    if size > _MAX_DATA:
        return [f"data: Too long: may not be more than {_MAX_DATA} bytes"]
    return []

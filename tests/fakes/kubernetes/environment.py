"""A container's environment and command, with references resolved."""

from __future__ import annotations

import base64
import re
from typing import Any

from .store import Object, Store

_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
_KEYED = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


class MissingReferenceError(Exception):
    """A Secret, ConfigMap or key that does not exist (yet)."""


def build_env(store: Store, pod: Object, container: dict[str, Any]) -> dict[str, str]:
    """The declared variables; MissingReferenceError if a source is not there."""
    env: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        env.update(_all_keys(store, pod, source))
    for entry in container.get("env") or []:
        if "valueFrom" in entry:
            value = _value_from(store, pod, entry["valueFrom"])
        else:
            value = expand(entry.get("value") or "", env)
        if value is not None:
            env[entry["name"]] = value
    return env


def expand(text: str, env: dict[str, str]) -> str:
    """Replace $(NAME) where NAME is known; $$ stands for one dollar."""

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return env.get(match[1], match[0])

    return _REFERENCE.sub(replace, text)


def load_data(store: Store, namespace: str, kind: str, name: str) -> dict[str, bytes] | None:
    """The files of a `secret` or `configmap`; None if there is no such object."""
    obj = store.get(f"{kind}s", namespace, name)
    if obj is None:
        return None
    binary = obj.get("data" if kind == "secret" else "binaryData") or {}
    data = {key: base64.b64decode(value) for key, value in binary.items()}
    if kind == "configmap":
        data.update({key: value.encode() for key, value in (obj.get("data") or {}).items()})
    return data


def _all_keys(store: Store, pod: Object, source: dict[str, Any]) -> dict[str, str]:
    kind = "secret" if "secretRef" in source else "configmap"
    reference = source.get("secretRef") or source["configMapRef"]
    data = load_data(store, pod["metadata"]["namespace"], kind, reference["name"])
    if data is None:
        if reference.get("optional"):
            return {}
        raise MissingReferenceError(f'{kind} "{reference["name"]}" not found')
    prefix = source.get("prefix", "")
    return {prefix + key: value.decode() for key, value in data.items()}


def _value_from(store: Store, pod: Object, source: dict[str, Any]) -> str | None:
    if "fieldRef" in source:
        return _field(pod, source["fieldRef"]["fieldPath"])
    kind = "secret" if "secretKeyRef" in source else "configmap"
    reference = source.get("secretKeyRef") or source.get("configMapKeyRef")
    if reference is None:
        raise MissingReferenceError(f"the fake cannot resolve {sorted(source)}")
    namespace, name, key = pod["metadata"]["namespace"], reference["name"], reference["key"]
    data = load_data(store, namespace, kind, name)
    if data is not None and key in data:
        return data[key].decode()
    if reference.get("optional"):
        return None
    if data is None:
        raise MissingReferenceError(f'{kind} "{name}" not found')
    title = "Secret" if kind == "secret" else "ConfigMap"
    raise MissingReferenceError(f"couldn't find key {key} in {title} {namespace}/{name}")


def _field(pod: Object, path: str) -> str:
    if match := _KEYED.fullmatch(path):
        return str((pod["metadata"].get(match[1]) or {}).get(match[2], ""))
    value: Any = pod
    for key in path.split("."):
        value = value.get(key, "") if isinstance(value, dict) else ""
    return str(value)

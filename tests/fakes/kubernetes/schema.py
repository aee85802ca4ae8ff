"""Field checks against the schemas that ship with kubernetes-validate.

The walk is our own because an API server lists every unknown field at once,
and drops them silently when not asked to be strict.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from importlib import resources
from typing import Any

_SCHEMAS = "kubernetes-json-schema/v1.37.0-local-strict"
_CHECKED = {
    ("batch/v1", "Job"): "job-batch-v1.json",
    ("v1", "Pod"): "pod-v1.json",
    ("v1", "Service"): "service-v1.json",
    ("v1", "ConfigMap"): "configmap-v1.json",
    ("v1", "Secret"): "secret-v1.json",
}
_TYPES = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
}
Finding = tuple[str, str, str]  # where, "unknown" or what was expected, what was got


def problems(body: dict[str, Any], *, prune: bool = False) -> tuple[list[str], list[Finding]]:
    """Paths of unknown fields (removed when pruning) and values of a wrong type."""
    file = _CHECKED.get((body.get("apiVersion", ""), body.get("kind", "")))
    if file is None:
        return [], []
    found = list(_walk(_load(file), body, "", prune=prune))
    unknown = [where for where, what, _ in found if what == "unknown"]
    return unknown, [finding for finding in found if finding[1] != "unknown"]


@functools.cache
def _load(file: str) -> dict[str, Any]:
    text = resources.files("kubernetes_validate").joinpath(f"{_SCHEMAS}/{file}").read_text()
    return json.loads(text)


def _resolve(schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    if not reference:
        return schema
    return _resolve(_load("_definitions.json")["$defs"][reference.rpartition("/")[2]])


def _walk(schema: dict[str, Any], value: Any, path: str, *, prune: bool) -> Iterator[Finding]:
    schema = _resolve(schema)
    if value is None:
        return
    if mismatch := _type_mismatch(schema, value):
        yield (path, *mismatch)
    elif isinstance(value, dict):
        yield from _walk_fields(schema, value, path, prune=prune)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _walk(schema.get("items", {}), item, f"{path}[{index}]", prune=prune)


def _walk_fields(schema: dict[str, Any], value: dict[str, Any], path: str, *, prune: bool) -> Iterator[Finding]:
    known = schema.get("properties", {})
    extra = schema.get("additionalProperties", True)
    for key in list(value):
        where = f"{path}.{key}" if path else key
        if key in known:
            yield from _walk(known[key], value[key], where, prune=prune)
        elif isinstance(extra, dict):
            yield from _walk(extra, value[key], where, prune=prune)
        elif extra is False:
            yield where, "unknown", ""
            if prune:
                del value[key]


def _type_mismatch(schema: dict[str, Any], value: Any) -> tuple[str, str] | None:
    declared = schema.get("type", [])
    names = [declared] if isinstance(declared, str) else declared
    wanted = [name for name in names if name != "null"]
    if not wanted:
        return None
    is_bool = isinstance(value, bool)
    for name in wanted:
        if isinstance(value, _TYPES[name]) and (name == "boolean") == is_bool:
            return None
    return wanted[0], type(value).__name__

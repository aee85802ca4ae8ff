"""Schemas of custom resources, from the third-party data beside the repository."""

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

CRDS = Path(__file__).resolve().parents[2] / "shared/data/crds"


def validate(body: dict[str, Any]) -> None:
    """Check an object against its CRD; a field that it does not know is an error too. Skips without the data."""
    group, _, version = body["apiVersion"].partition("/")
    jsonschema.validate(body, _schema(group, version, body["kind"]))


def _schema(group: str, version: str, kind: str) -> dict[str, Any]:
    if not CRDS.is_dir():
        pytest.skip(f"needs the CRDs in {CRDS}")
    for path in sorted(CRDS.glob("*.yaml")):
        spec = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)["spec"]
        if (spec["group"], spec["names"]["kind"]) == (group, kind):
            found = next(item for item in spec["versions"] if item["name"] == version)
            return _closed(copy.deepcopy(found["schema"]["openAPIV3Schema"]), top=True)
    raise LookupError(f"{group}/{version} {kind} is not among {CRDS}")


def _closed(schema: dict[str, Any], *, top: bool = False) -> dict[str, Any]:
    """The schema with every object closed, as the API server prunes; metadata is left to Kubernetes' own schema."""
    properties = schema.get("properties")
    if properties and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema["additionalProperties"] = False
    for name, inner in (properties or {}).items():
        if not (top and name == "metadata"):
            _closed(inner)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            _closed(schema[key])
    if schema.pop("x-kubernetes-int-or-string", False):
        schema.pop("anyOf", None)
        schema.pop("pattern", None)
        schema["type"] = ["integer", "string"]
    return schema


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

"""Label and field selectors."""

from __future__ import annotations

import re
from typing import Any

from .store import Object

_IN = re.compile(r"([^\s,!=()]+)\s+(in|notin)\s+\(([^)]*)\)")
_PART = re.compile(r"(?:[^,(]|\([^)]*\))+")


def matches_labels(obj: Object, selector: str) -> bool:
    labels = obj["metadata"].get("labels") or {}
    return all(_matches_part(labels, part.strip()) for part in _PART.findall(selector))


def _matches_part(labels: dict[str, str], part: str) -> bool:
    if match := _IN.fullmatch(part):
        values = {value.strip() for value in match[3].split(",")}
        return (labels.get(match[1]) in values) == (match[2] == "in")
    if "!=" in part:
        key, _, value = part.partition("!=")
        return labels.get(key.strip()) != value.strip()
    if "=" in part:
        key, _, value = part.partition("=")
        return labels.get(key.strip()) == value.lstrip("=").strip()
    return part[1:] not in labels if part.startswith("!") else part in labels


def matches_fields(obj: Object, selector: str) -> bool:
    return all(_matches_field(obj, part) for part in selector.split(",") if part)


def _matches_field(obj: Object, part: str) -> bool:
    negated = "!=" in part
    path, _, wanted = part.partition("!=" if negated else "=")
    value: Any = obj
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return (str(value or "") == wanted.lstrip("=")) != negated

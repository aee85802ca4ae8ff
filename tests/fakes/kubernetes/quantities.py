"""Resource quantities such as `500m`, `8Gi` and `8`."""

from __future__ import annotations

import re
from typing import Any

_FACTORS = {
    "m": 1e-3,
    "": 1,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")


def parse_quantity(text: Any) -> float:
    """The number a quantity stands for; ValueError if it is none."""
    match = _QUANTITY.fullmatch(str(text))
    if not match:
        raise ValueError(f"not a quantity: {text!r}")
    return float(match[1]) * _FACTORS[match[2] or ""]


def format_number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def pod_requests(pod: dict[str, Any]) -> dict[str, float]:
    """What the scheduler adds up: requests, or limits where no request is given."""
    total: dict[str, float] = {}
    for container in pod["spec"].get("containers", []):
        resources = container.get("resources") or {}
        wanted = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
        for name, quantity in wanted.items():
            total[name] = total.get(name, 0) + parse_quantity(quantity)
    return total

"""Merge patches and server-side apply."""

from __future__ import annotations

from typing import Any

from .errors import ApiError

Path = tuple[str, ...]


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386: null deletes, lists are replaced as a whole."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def apply(
    current: dict[str, Any],
    body: dict[str, Any],
    *,
    manager: str,
    applied: dict[str, dict[str, Any]],
    force: bool,
) -> dict[str, Any]:
    """Merge `body`, drop what its manager no longer sets, refuse others' fields.

    `applied` holds the last body of each manager.
    """
    if not force:
        _refuse_conflicts(body, manager, applied)
    result = merge(current, body)
    for path in _leaves(applied.get(manager, {})).keys() - _leaves(body).keys():
        _remove(result, path)
    return result


def _refuse_conflicts(
    body: dict[str, Any],
    manager: str,
    applied: dict[str, dict[str, Any]],
) -> None:
    mine = _leaves(body)
    for other, other_body in applied.items():
        if other == manager:
            continue
        for path, value in _leaves(other_body).items():
            if path in mine and mine[path] != value:
                field = "." + ".".join(path)
                message = f'Apply failed with 1 conflict: conflict with "{other}": {field}'
                cause = {"reason": "FieldManagerConflict", "field": field}
                raise ApiError(409, message, details={"causes": [cause]})


def _leaves(body: Any, path: Path = ()) -> dict[Path, Any]:
    if not isinstance(body, dict) or not body:
        return {path: body} if path else {}
    found: dict[Path, Any] = {}
    for key, value in body.items():
        found.update(_leaves(value, (*path, key)))
    return found


def _remove(target: dict[str, Any], path: Path) -> None:
    *parents, last = path
    for key in parents:
        target = target.get(key, {})
        if not isinstance(target, dict):
            return
    target.pop(last, None)

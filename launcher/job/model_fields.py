"""What pydantic's models say of their fields: which there are, at any depth, and what they are for."""

from collections import deque
from typing import Any

from pydantic import BaseModel

from launcher.job.load import Loc, dotted


def fields_at(spec: Any, loc: Loc) -> dict[str, Any]:
    """Names and field infos of the section at `loc`."""
    for step in loc:
        info = _sections(spec).get(str(step)) if not isinstance(step, int) else spec
        spec = info if info is not None else spec
    return dict(spec.model_fields) if isinstance(spec, type) and issubclass(spec, BaseModel) else {}


def described(spec: type[BaseModel], loc: Loc) -> str:
    """The first sentence of a field's description."""
    field = fields_at(spec, loc[:-1]).get(str(loc[-1]))
    text = (field.description or "").split(". ")[0].rstrip(".") if field else ""
    return text[:1].lower() + text[1:] if text else "a value"


def elsewhere(spec: type[BaseModel], key: str, section: Loc) -> str | None:
    """The full path of the field of that name which is nearest to the section, and then to the top; None without."""
    found: list[Loc] = []
    waiting: deque[tuple[Loc, type[BaseModel]]] = deque([((), spec)])
    while waiting:
        loc, model = waiting.popleft()
        if key in model.model_fields:
            found.append((*loc, key))
        waiting += [((*loc, name), inner) for name, inner in _sections(model).items() if len(loc) < 5]
    nearest = max(found, key=lambda loc: (_shared(loc, section), -len(loc)), default=None)
    return dotted(nearest) if nearest else None


def _shared(one: Loc, other: Loc) -> int:
    """How many steps both begin with."""
    return next((index for index, (left, right) in enumerate(zip(one, other, strict=False)) if left != right),
                min(len(one), len(other)))


def _sections(spec: Any) -> dict[str, Any]:
    """Field name -> the section class inside its annotation, where there is one."""
    found = {}
    for name, info in spec.model_fields.items():
        stack = [info.annotation]
        while stack:
            part = stack.pop()
            if isinstance(part, type) and issubclass(part, BaseModel):
                found[name] = part
            stack += getattr(part, "__args__", ())
    return found

"""Whether keys and types of a part of a pod are those of the API, by the models of the official client. Nobody is
asked."""

import difflib
import re
from collections.abc import Iterator
from typing import Any

_LIST = re.compile(r"[Ll]ist\[(.+)\]")
_DICT = re.compile(r"[Dd]ict[\[(]str, (.+)[\])]")
_PLAIN: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "bool": (bool,), "float": (int, float)}


def pod_problems(values: dict[str, Any], place: str) -> Iterator[str]:
    """What in some fields of a PodSpec the API would not take, with its place."""
    yield from _problems(values, "V1PodSpec", place)


def _problems(value: Any, kind: str, place: str) -> Iterator[str]:
    """`kind` as the client writes its types: str, V1Affinity, List[V1Container], Dict[str, str]."""
    if value is None:  # removes the field
        return
    if match := _LIST.fullmatch(kind):
        yield from _items(value, match[1], place)
    elif match := _DICT.fullmatch(kind):
        yield from _entries(value, match[1], place)
    elif kind in _PLAIN:
        if not isinstance(value, _PLAIN[kind]) or (kind == "int" and isinstance(value, bool)):
            yield f"{place}: must be {_WORDS[kind]}, not {value!r}"
    elif kind.startswith("V1"):
        yield from _fields(value, kind, place)


_WORDS = {"str": "text (in quotes)", "int": "a whole number", "bool": "true or false", "float": "a number"}


def _items(value: Any, kind: str, place: str) -> Iterator[str]:
    if not isinstance(value, list):
        yield f"{place}: must be a list, not {value!r}"
        return
    for index, item in enumerate(value):
        yield from _problems(item, kind, f"{place}[{index}]")


def _entries(value: Any, kind: str, place: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{place}: must be keys with values, not {value!r}"
        return
    for key, item in value.items():
        if not (kind == "str" and isinstance(item, int) and not isinstance(item, bool)):  # quantities may be numbers
            yield from _problems(item, kind, f"{place}.{key}")


def _fields(value: Any, kind: str, place: str) -> Iterator[str]:
    import kubernetes.client.models

    model = getattr(kubernetes.client.models, kind, None)
    if model is None:
        return
    if not isinstance(value, dict):
        yield f"{place}: must be keys with values, not {value!r}"
        return
    types = {model.attribute_map[name]: kind for name, kind in model.openapi_types.items()}
    for key, item in value.items():
        if key in types:
            yield from _problems(item, types[key], f"{place}.{key}")
        else:
            near = difflib.get_close_matches(str(key), types, 1)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(types))}"
            yield f"{place}.{key}: unknown key; {hint}"

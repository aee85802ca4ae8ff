"""The fields of a pod and their types, as the models of the official client have them. Talks to nobody."""

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from kubernetes.client import models

from launcher.job.load import Loc, shown
from launcher.job.profile import Problem

# Types are written `List[V1Container]` and `Dict[str, str]` by client 37, `list[...]` and `dict(str, str)` by 36.
_LIST = re.compile(r"[Ll]ist\[(.+)\]")
_MAP = re.compile(r"[Dd]ict[\[(]str, (.+)[\])]")
_PLAIN = {"str": (str,), "int": (int,), "bool": (bool,), "float": (int, float), "datetime": (str,),
          "object": (str, int, float, bool, dict, list)}
_WORDS = {"int": "a whole number", "bool": "true or false", "float": "a number"}
MANY = 12  # keys that are listed
# A quantity may be a number.
_QUANTITIES = (("limits",), ("requests",))
# What must be there whichever client it is: 36 does not say what is required, and leaves it to the API server.
_NAMED = {"V1Container": {"name"}, "V1EnvVar": {"name"}, "V1Volume": {"name"}, "V1VolumeMount": {"mountPath"}}
# An item that is merged into one of launch's own need not repeat what that has.
_MERGED = {"V1PodSpec": {"containers"}, "V1VolumeMount": {"name"}}


def pod_mistakes(values: dict[str, Any], also: Iterable[str]) -> Iterator[Problem]:
    """Keys that a PodSpec has not, values of a wrong type, and required keys that are missing: (path, message). `also`:
    keys that are not a PodSpec's, and are checked elsewhere."""
    spec = {key: value for key, value in values.items() if key not in also}
    yield from _section(spec, "V1PodSpec", (), list(also))


def _mistakes(value: Any, kind: str, loc: Loc) -> Iterator[Problem]:
    if value is None and not isinstance(loc[-1], int):
        return  # it removes what was there
    if inner := _LIST.fullmatch(kind):
        yield from _children(value, list, "a list", inner[1], loc)
    elif inner := _MAP.fullmatch(kind):
        yield from _children(value, dict, "a mapping", inner[1], loc)
    elif kind not in _PLAIN:
        yield from _section(value, kind, loc)
    elif type(value) not in _PLAIN[kind] and not (loc[-2:-1] in _QUANTITIES and type(value) in (int, float)):
        wanted = _WORDS.get(kind) or (f'text, so in quotes: "{shown(value)}"' if type(value) not in (dict, list)
                                      else "text")
        yield loc, f"must be {wanted}, not {shown(value)}"


def _children(value: Any, kind: type[Any], words: str, inner: str, loc: Loc) -> Iterator[Problem]:
    if not isinstance(value, kind):
        yield loc, f"must be {words}, not {shown(value)}"
        return
    steps = value if kind is dict else range(len(value))
    for step in steps:
        yield from _mistakes(value[step], inner, (*loc, step))


def _section(value: Any, kind: str, loc: Loc, also: Iterable[str] = ()) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield loc, f"must be a mapping, not {shown(value)}"
        return
    model = getattr(models, kind)
    kinds = {key: model.openapi_types[name] for name, key in model.attribute_map.items()}
    for key, item in value.items():
        if key in kinds:
            yield from _mistakes(item, kinds[key], (*loc, key))
        else:
            yield (*loc, key), _unknown(key, kind, loc, [*kinds, *also])
    for key in sorted(_required(model) - _MERGED.get(kind, set()) | _NAMED.get(kind, set())):
        if value.get(key) is None:
            yield (*loc, key), "is required"


def _unknown(key: str, kind: str, loc: Loc, known: list[str]) -> str:
    if not loc and key in ("spec", "metadata", "template"):
        return "the keys of a PodSpec stand here directly, with annotations and labels beside them"
    near = difflib.get_close_matches(key, known, 1)
    meant = f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(known))}"
    if not near and len(known) > MANY:
        meant = f"see kubectl explain {'.'.join(['pod.spec', *(step for step in loc if isinstance(step, str))])}"
    return f"unknown key of {kind.removeprefix('V1')} ({meant})"


def _required(model: Any) -> set[str]:
    fields = getattr(model, "model_fields", {})
    return {model.attribute_map[name] for name, field in fields.items() if field.is_required()}

"""Job files and cluster profiles: YAML text to typed specs, with every mistake reported at once.

The only reader of YAML that people write. ruamel.yaml, because it knows line numbers, sees duplicate keys and
reads YAML 1.2 (`no` and `12:30:00` stay text, `2e-4` is a number).
"""

import difflib
import io
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from launcher.errors import SpecError
from launcher.job.secrets import redact

Loc = tuple[str | int, ...]
SpecT = TypeVar("SpecT", bound=BaseModel)


@dataclass(frozen=True)
class Document:
    """A YAML file as plain values, and where each of them stands."""

    source: str
    values: dict[str, Any]
    places: dict[Loc, str]
    problems: tuple[str, ...]

    def place(self, loc: Loc) -> str:
        """`file:line` (or `--set ...`) of the value at `loc`, or of the nearest one around it."""
        while loc and loc not in self.places:
            loc = loc[:-1]
        return self.places.get(loc, f"{self.source}:1")


def load_profiles(path: Path) -> dict[str, Document]:
    """Read a clusters file: one unchecked Document per profile, so that a mistake in one cluster spares the others."""
    document = read_document(path)
    found = {}
    for name, values in document.values.items():
        places = {loc[1:]: place for loc, place in document.places.items() if loc and loc[0] == name}
        problems = [line for line in document.problems if re.search(rf":\d+: {re.escape(name)}[.:]", line)]
        if not isinstance(values, dict):
            problems.append(f"{places[()]}: {name}: must be keys with values, not {shown(values)}")
        found[name] = Document(document.source, values if isinstance(values, dict) else {}, places, tuple(problems))
    return found


def read_document(path: Path, overrides: Sequence[str] = ()) -> Document:
    """Read a YAML mapping. Raises SpecError when it is missing, unreadable, no YAML or no mapping."""
    node, values = _parse(path, _read_text(path))
    if not isinstance(node, MappingNode) or not isinstance(values, dict):
        raise SpecError(f"{path}:1: must be keys with values, such as `name: my-job`, not {shown(values)}")
    _name_keys(values, set())
    places: dict[Loc, str] = {}
    problems = [*_walk(node, (), str(path), places, set())]
    for override in overrides:
        problems += _override(values, places, override)
    return Document(str(path), values, places, tuple(problems))


def _parse(path: Path, text: str) -> tuple[Node | None, Any]:
    """The nodes of a YAML text, which know their lines, and its values."""
    yaml = _yaml()
    try:
        with warnings.catch_warnings(action="ignore", category=ReusedAnchorWarning):  # which YAML allows
            node = yaml.compose(io.StringIO(text))
        return node, None if node is None else yaml.constructor.construct_document(node)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = redact(str(error.problem or error.context))
        line = mark.line + 1 if mark else 1
        raise SpecError(f"{path}:{line}: not YAML: {_PLAIN_WORDS.get(problem, problem)}") from error
    except (YAMLError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else redact(str(error).splitlines()[0])
        raise SpecError(f"{path}:1: not YAML: {reason}") from error


# What a parser says of the commonest slips, in words for people.
_PLAIN_WORDS = {
    "found character '\\t' that cannot start any token": "a tab cannot indent; use spaces",
    "mapping values are not allowed here": "': ' inside a value, or a wrong indent; write one key a line, and "
                                           "quotes around such a value",
    "but found another document": "there is a second document; a file holds one",
}


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.allow_duplicate_keys = True  # all of them are reported by _walk, not only the first
    return yaml


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file", "name an existing one, such as examples/quickstart/job.yaml") from None
    except IsADirectoryError:
        raise SpecError(f"{path}: is a folder", f"name the file in it: {path}/job.yaml") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise SpecError(f"{path}:{line}: must be UTF-8 text; byte 0x{error.object[error.start]:02x} is not") from error
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error


def _name_keys(values: Any, seen: set[int]) -> None:
    """Make every key text, as the line table has it: `1: x` is then an unknown key like any other."""
    if not isinstance(values, dict | list) or id(values) in seen:
        return
    seen.add(id(values))
    if isinstance(values, dict):
        for key in [key for key in values if not isinstance(key, str)]:
            values[shown(key)] = values.pop(key)
    for value in values.values() if isinstance(values, dict) else values:
        _name_keys(value, seen)


def _walk(node: Node, loc: Loc, source: str, places: dict[Loc, str], seen: set[int]) -> Iterator[str]:
    """Record the line of every value below `node`; yield the duplicate keys. An alias counts where it was defined."""
    places.setdefault(loc, f"{source}:{node.start_mark.line + 1}")
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value) if isinstance(key, ScalarNode) else "?", key.start_mark.line + 1
            if name in first:
                where = f"{source}:{line}: {dotted((*loc, name))}"
                yield f"{where}: the key is given twice, first on line {first[name]}"
            first.setdefault(name, line)
            places.setdefault((*loc, name), f"{source}:{line}")
            yield from _walk(value, (*loc, name), source, places, seen)
    elif isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            yield from _walk(item, (*loc, index), source, places, seen)


def _override(values: dict[str, Any], places: dict[Loc, str], text: str) -> list[str]:
    """Apply one `a.b=c`; a list item is addressed by its number. Returns what is wrong with it."""
    path, equals, raw = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        return [f"--set {text}: must be path.to.field=value"]
    try:
        value = _yaml().load(raw) if raw.strip() else ""
    except (YAMLError, ValueError, RecursionError):
        return [f"--set {text}: {raw!r} is not a YAML value (quote text that holds ': ' or '#')"]
    try:
        loc = _assign(values, keys, value)
    except LookupError as error:
        return [f"--set {text}: {path}: {error.args[0]}"]
    for old in [place for place in places if place[: len(loc)] == loc]:
        del places[old]
    places[loc] = f"--set {text}"
    return []


def _assign(values: Any, keys: list[str], value: Any) -> Loc:
    """Set the value at `keys`, making the sections on the way; returns where it stands. Raises LookupError."""
    loc: list[str | int] = []
    for number, key in enumerate(keys, 1):
        if not isinstance(values, dict | list):
            through = f"{keys[number - 2]!r}, which is {shown(values)}"
            raise LookupError(f"a path leads through sections, not through {through}")
        step: Any = _item(values, key) if isinstance(values, list) else key
        loc.append(step)
        if number == len(keys):
            values[step] = value
        elif isinstance(values, dict) and values.get(step) is None:
            values[step] = {}
        values = values[step]
    return tuple(loc)


def _item(values: list[Any], key: str) -> int:
    if not (key.isascii() and key.isdigit() and int(key) < len(values)):
        known = f"0 to {len(values) - 1}" if values else "none, the list is empty"
        raise LookupError(f"there is no item {key!r} (items: {known})")
    return int(key)


def validate(spec: type[SpecT], document: Document, more_problems: Sequence[str] = (),
             owner_of: Callable[[str], str | None] = lambda key: None) -> SpecT:
    """Check a document. `owner_of`: which other model has a key that `spec` has not. Raises SpecError listing every
    mistake, `more_problems` among them.

    Validates twice when keys are unknown: pydantic checks combinations only in sections without other errors.
    """
    problems = [*document.problems, *more_problems]
    values = document.values
    for _ in range(2):
        try:
            checked = spec.model_validate(values)
            break
        except ValidationError as error:
            details = error.errors(include_url=False)
            problems += [line for detail in details for line in _explain(spec, document, detail, owner_of)]
            unknown = [detail["loc"] for detail in details if detail["type"] == "extra_forbidden"]
            values = _without(values, [_real_loc(loc, values) for loc in unknown])
    if problems:
        ordered = sorted(dict.fromkeys(problems), key=lambda line: _line_number(line, document.source))
        raise SpecError("\n".join(ordered))
    return checked


def _line_number(problem: str, source: str) -> int:
    """For sorting: mistakes in the file by line, and behind them those of --set and of other files."""
    number = problem.removeprefix(f"{source}:").split(":")[0]
    return int(number) if problem.startswith(f"{source}:") and number.isdigit() else sys.maxsize


def _without(values: Any, locs: list[Loc]) -> Any:
    """A copy of `values` without the keys at `locs`."""
    if not locs:
        return values
    if isinstance(values, dict):
        kept = {key: value for key, value in values.items() if (key,) not in locs}
        return {key: _without(value, [loc[1:] for loc in locs if loc[:1] == (key,)]) for key, value in kept.items()}
    if isinstance(values, list):
        return [_without(value, [loc[1:] for loc in locs if loc[:1] == (index,)]) for index, value in enumerate(values)]
    return values


def _explain(spec: type[BaseModel], document: Document, detail: Any,
             owner_of: Callable[[str], str | None]) -> list[str]:
    """The lines for one pydantic error: `place: path: must be Y, not X`."""
    loc = _real_loc(tuple(detail["loc"]), document.values)
    where = f"{document.place(loc)}: {dotted(loc)}: " if loc else f"{document.place(loc)}: "
    kind, context, got = detail["type"], detail.get("ctx", {}), shown(detail["input"])
    if kind == "extra_forbidden" and len(loc) == 1 and (owner := owner_of(str(loc[0]))):
        return [f"{where}this is a setting of {owner} profiles, and this one is for {document.values['backend']}"]
    if kind == "extra_forbidden":
        known = sorted(_fields(spec, loc[:-1]))
        near = difflib.get_close_matches(str(loc[-1]), known, 1)
        known_here = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return [f"{where}unknown key; {known_here}"]
    if kind == "missing":
        return [f"{where}is required ({_description(spec, loc)})"]
    if kind == "value_error":
        path = f"{dotted(loc)}: " if loc else ""
        lines = str(context["error"]).splitlines()
        return [f"{document.place(_named(line, loc, document))}: {path}{line}" for line in lines]
    if kind in ("too_long", "too_short") and detail["input"]:
        got = _count(len(detail["input"]), "item")
    return [f"{where}{_sentence(kind, context, detail)}, not {got}"]


def _named(message: str, section: Loc, document: Document) -> Loc:
    """Where the first field stands that a section's message names and the file gives; else the section itself."""
    for word in re.findall(r"[\w.]+", message):
        loc = (*section, *word.split("."))
        if loc in document.places:
            return loc
    return section


_TYPES = {
    "string_type": "text", "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
    "bool_type": "true or false", "list_type": "a list", "dict_type": "keys with values",
    "model_type": "keys with values", "model_attributes_type": "keys with values", "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than_equal": ("{} or more", "ge"), "greater_than": ("more than {}", "gt"),
    "less_than_equal": ("{} or less", "le"), "less_than": ("less than {}", "lt"),
}
_LENGTHS = {
    "too_short": ("at least {}", "min_length", "item"), "string_too_short": ("at least {}", "min_length", "character"),
    "too_long": ("at most {}", "max_length", "item"), "string_too_long": ("at most {}", "max_length", "character"),
}


def _sentence(kind: str, context: dict[str, Any], detail: Any) -> str:
    """What the value must be."""
    given, message = detail["input"], str(detail["msg"])
    if kind == "string_type" and not isinstance(given, dict | list | None):
        return f'must be text, so in quotes: "{shown(given)}"'
    if kind == "list_type" and isinstance(given, str):
        return f"must be a list, such as [{', '.join(given.split())}]"
    if kind in _TYPES:
        return f"must be {_TYPES[kind]}"
    if kind in _BOUNDS:
        form, key = _BOUNDS[kind]
        return f"must be {form.format(f'{context[key]:g}')}"
    if kind in _LENGTHS:
        form, key, noun = _LENGTHS[kind]
        return f"must have {form.format(_count(context[key], noun))}"
    choices = str(context.get("expected")).replace("'", "")
    return f"must be {choices}" if kind == "literal_error" else message[0].lower() + message[1:]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _real_loc(loc: Loc, values: Any) -> Loc:
    """`loc` without the names that pydantic adds for the branches of a union and for mapping keys."""
    real: list[str | int] = []
    for index, step in enumerate(loc):
        if isinstance(values, dict) and (step in values or index == len(loc) - 1) and step != "[key]":
            values = values.get(step)
        elif isinstance(values, list) and isinstance(step, int) and step < len(values):
            values = values[step]
        else:
            continue
        real.append(step)
    return tuple(real)


def _fields(spec: Any, loc: Loc) -> dict[str, Any]:
    """Names and field infos of the section at `loc`."""
    for step in loc:
        info = _sections(spec).get(str(step)) if not isinstance(step, int) else spec
        spec = info if info is not None else spec
    return dict(spec.model_fields) if isinstance(spec, type) and issubclass(spec, BaseModel) else {}


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


def _description(spec: type[BaseModel], loc: Loc) -> str:
    field = _fields(spec, loc[:-1]).get(str(loc[-1]))
    text = (field.description or "").split(". ")[0].rstrip(".") if field else ""
    return text[:1].lower() + text[1:] if text else "a value"


def dotted(loc: Loc) -> str:
    """`train.data.sources[0].path`: a place as people write it."""
    text = ""
    for step in loc:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def shown(value: Any) -> str:
    """A short form of what was given."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "keys with values"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, bool):
        return str(value).lower()
    text = redact(repr(value) if isinstance(value, str) else str(value))
    return text if len(text) <= 60 else text[:57] + "..."

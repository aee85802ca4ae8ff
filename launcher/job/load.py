"""Job files and cluster profiles: YAML text to plain values, each with its place.

The only reader of YAML that people write. ruamel.yaml, because it knows line numbers, sees duplicate keys and
reads YAML 1.2 (`no` and `12:30:00` stay text, `2e-4` is a number).
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from launcher.errors import SpecError
from launcher.job.secrets import redact

Loc = tuple[str | int, ...]
_HALF = re.compile("[\\ud800-\\udfff]")  # of a character beyond 16 bits, as JSON escapes it: it cannot be sent
_HALVES = "must be text with each character itself in place of two escapes"
SpecT = TypeVar("SpecT", bound=BaseModel)


@dataclass(frozen=True)
class Document:
    """A YAML file as plain values, and where each of them stands."""

    source: str
    values: dict[str, Any]
    places: dict[Loc, str]
    problems: tuple[str, ...]
    name: Loc = ()  # what of the file it is: the profile's name

    def at(self, loc: Loc) -> str:
        """`file:line: path: `, for the beginning of a line that says what is wrong there."""
        path = dotted((*self.name, *loc))
        return f"{self.place(loc)}: {path}: " if path else f"{self.place(loc)}: "

    def place(self, loc: Loc) -> str:
        """`file:line` (or `--set ...`) of the value at `loc`, or of the nearest one around it."""
        while loc and loc not in self.places:
            loc = loc[:-1]
        return self.places.get(loc, f"{self.source}:1")


def load_profiles(path: Path) -> dict[str, Document]:
    """Read a clusters file: one unchecked Document per profile, so that a mistake in one cluster spares the others."""
    document = read_document(path, example="hpc: {backend: slurm}")
    below = document.values.get("clusters")
    if list(document.values) == ["clusters"] and isinstance(below, dict) and below:
        raise SpecError(f"{document.at(('clusters',))}a profile stands at the top level of the file, not below "
                        f"clusters: `{next(iter(below))}:` in the first column")
    found = {}
    for name, values in document.values.items():
        places = {loc[1:]: place for loc, place in document.places.items() if loc and loc[0] == name}
        problems = [line for line in document.problems if re.search(rf":\d+: {re.escape(name)}[.:]", line)]
        if not isinstance(values, dict):
            problems.append(f"{places[()]}: {name}: must be a profile, such as {{backend: slurm}}, not {shown(values)}")
        found[name] = Document(document.source, values if isinstance(values, dict) else {}, places, tuple(problems),
                               (name,))
    return found


def read_document(path: Path, overrides: Sequence[str] = (), example: str = "name: my-job") -> Document:
    """Read a YAML mapping. Raises SpecError when it is missing, unreadable, not YAML or no mapping."""
    node, values = _parse(path, _read_text(path))
    if not isinstance(node, MappingNode) or not isinstance(values, dict):
        raise SpecError(f"{path}:1: must be a mapping, such as `{example}`, not {shown(values)}")
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
        problem = redact(str(error.problem or error.context))
        mark = error.problem_mark or error.context_mark
        if problem in _SEEN_LATE:
            mark = error.context_mark or mark
        line = mark.line + 1 if mark else 1
        raise SpecError(f"{path}:{line}: not YAML: {_plain_words(problem)}") from error
    except (YAMLError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else redact(str(error).splitlines()[0])
        raise SpecError(f"{path}:1: not YAML: {reason}") from error


# What a parser says of the commonest slips, in words for people.
_PLAIN_WORDS = (
    (r"found character '\\t' that cannot start any token", "a tab cannot indent; use spaces"),
    (r"found character '(.)' that cannot start any token", r"a value cannot begin with \1; put it in quotes"),
    ("mapping values are not allowed here", "': ' inside a value, or a wrong indent; write one key a line, and quotes "
                                            "around such a value"),
    ("but found another document", "there is a second document; a file holds one"),
    ("expected <block end>, but found .*", "is indented otherwise than the lines of its section above, or continues a "
                                           "value that has ended"),
    ("found unexpected end of stream", "a quote is not closed"),
    ("expected ',' or '([]}])', but got .*", r"a `\1` or a comma is missing before this"),
    ("could not find expected ':'", "a key without `: ` behind it"),
    (r"found \('<(.*)>',\)", "this cannot stand here; check the indent and the quotes"),
)


# What shows only behind the slip: the line where it began is the one to look at.
_SEEN_LATE = ("could not find expected ':'", "found unexpected end of stream")


def _plain_words(problem: str) -> str:
    return next((re.sub(form, words, problem) for form, words in _PLAIN_WORDS if re.fullmatch(form, problem)), problem)


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.allow_duplicate_keys = True  # all of them are reported by _walk, not only the first
    return yaml


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file", _files_here(path)) from None
    except IsADirectoryError:
        raise SpecError(f"{path}: is a folder", f"name the file in it: {path}/job.yaml") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise SpecError(f"{path}:{line}: must be UTF-8 text; byte 0x{error.object[error.start]:02x} is not") from error
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error


def _files_here(path: Path) -> str:
    """The YAML files of its folder, or what to do without any."""
    found = sorted(file.name for file in path.parent.glob("*.y*ml"))[:5] if path.parent.is_dir() else []
    return f"YAML files in {path.parent.absolute()}: {', '.join(found)}" if found else "write one: see the README"


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
    elif _HALF.search(node.value):
        yield f"{places[loc]}: {dotted(loc)}: {_HALVES}, not {shown(node.value)}"


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
        return "a mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, bool):
        return str(value).lower()
    text = redact(repr(value) if isinstance(value, str) else str(value))
    return text if len(text) <= 60 else text[:57] + "..."

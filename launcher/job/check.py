"""A document against its model: a typed value, or every mistake at once, each as `place: path: must be Y, not X`."""

import difflib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from launcher.errors import SpecError
from launcher.job.load import Document, Loc, shown
from launcher.job.model_fields import described, elsewhere, fields_at

SpecT = TypeVar("SpecT", bound=BaseModel)
Owner = Callable[[Loc], str | None]

# What people write who come from other tools.
_SYNONYMS = {
    "gpus": "gpus_per_node", "num_nodes": "nodes", "memory": "memory_per_node", "cpus": "cpus_per_node",
    "rank": "r", "lora_r": "r", "lora_rank": "r", "lora_alpha": "alpha", "lora_dropout": "dropout",
    "learning_rate": "lr", "model_name_or_path": "path", "name_or_path": "path", "walltime": "time_limit",
    "time": "time_limit", "command": "run", "environment": "env", "volumes": "mounts",
}


def validate(spec: type[SpecT], document: Document, more_problems: Sequence[str] = (), *,
             whole: Callable[[], type[BaseModel]] | None = None, owner: Owner = lambda loc: None) -> SpecT:
    """Check a document. Raises SpecError listing every mistake, `more_problems` among them. For a key that `spec` has
    not, `whole` gives a larger model that may have it somewhere, and `owner` says where else it belongs.

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
            unknown = [detail["loc"] for detail in details if detail["type"] == "extra_forbidden"]
            problems += [document.at(loc) + _unknown(loc, spec, whole() if whole else spec, owner)
                         for loc in (_real_loc(loc, document.values) for loc in unknown)]
            problems += _sentences(spec, document, [one for one in details if one["type"] != "extra_forbidden"])
            values = _without(values, [_real_loc(loc, values) for loc in unknown])
    if problems:
        ordered = sorted(dict.fromkeys(problems), key=lambda line: _line_number(line, document.source))
        raise SpecError("\n".join(ordered))
    return checked


def _unknown(loc: Loc, spec: type[BaseModel], whole: type[BaseModel], owner: Owner) -> str:
    """What may be meant by an unknown key: the same name elsewhere, another file's, or one that is like it."""
    key, known = str(loc[-1]), sorted(fields_at(spec, loc[:-1]))
    meant = _SYNONYMS.get(key, key)
    found = meant if meant in known else elsewhere(whole, key, loc[:-1])
    if not found and (belongs := owner(loc)):
        return belongs
    near = found or elsewhere(whole, meant, loc[:-1]) or next(iter(difflib.get_close_matches(key, known, 1)), None)
    return f"unknown key; did you mean {near}?" if near else f"unknown key; known here: {', '.join(known)}"


def _sentences(spec: type[BaseModel], document: Document, details: Sequence[Any]) -> Iterator[str]:
    """The lines for pydantic's errors; those of one value's several types as one."""
    for loc, some in groupby(details, key=lambda detail: _real_loc(tuple(detail["loc"]), document.values)):
        typed = []
        for one in some:
            if one["type"] == "value_error":
                yield from _of_a_section(str(one["ctx"]["error"]), loc, document)
            elif one["type"] == "missing":
                yield f"{document.at(loc)}is required ({described(spec, loc)})"
            else:
                typed.append(one)
        if typed:
            wants = ", or ".join(dict.fromkeys(_wanted(one, loc) for one in typed)).replace(", or must be ", ", or ")
            yield f"{document.at(loc)}{wants}{_not(typed[0])}"


def _of_a_section(message: str, loc: Loc, document: Document) -> Iterator[str]:
    """What a validator of ours says, a line for each mistake, at the field that it names."""
    for line in message.splitlines():
        place, path = document.place(_named(line, loc, document)), document.at(loc).partition(": ")[2]
        yield f"{place}: {path}{line}"


def _named(message: str, section: Loc, document: Document) -> Loc:
    """Where the first field stands that a section's message names and the file gives; else the section itself."""
    for word in re.findall(r"[\w.]+", message):
        loc = (*section, *word.split("."))
        if loc in document.places:
            return loc
    return section


_TYPES = {
    "string_type": "text", "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
    "bool_type": "true or false", "list_type": "a list", "dict_type": "a mapping", "model_type": "a mapping",
    "model_attributes_type": "a mapping", "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than_equal": ("{} or more", "ge"), "greater_than": ("more than {}", "gt"),
    "less_than_equal": ("{} or less", "le"), "less_than": ("less than {}", "lt"),
}
_LENGTHS = {
    "too_short": ("at least {}", "min_length", "item"), "string_too_short": ("at least {}", "min_length", "character"),
    "too_long": ("at most {}", "max_length", "item"), "string_too_long": ("at most {}", "max_length", "character"),
}


def _wanted(detail: Any, loc: Loc) -> str:
    """What the value must be."""
    kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind in _TYPES:
        return f"must be {_TYPES[kind]}" + _in_right_form(kind, given, loc)
    if kind in _BOUNDS:
        form, key = _BOUNDS[kind]
        return f"must be {form.format(f'{context[key]:g}')}"
    if kind in _LENGTHS:
        form, key, noun = _LENGTHS[kind]
        return f"must have {form.format(_count(context[key], noun))}"
    choices, message = str(context.get("expected")).replace("'", ""), str(detail["msg"])
    return f"must be {choices}" if kind == "literal_error" else message[0].lower() + message[1:]


def _in_right_form(kind: str, given: Any, loc: Loc) -> str:
    """The same value as it had to be written, where that is plain. A list at the top level is one of words: a command,
    or its arguments."""
    if kind == "string_type" and not isinstance(given, dict | list | None):
        return f', so in quotes: "{shown(given)}"'
    if kind == "string_type" and isinstance(given, list) and all(isinstance(item, str) for item in given):
        return f", such as {shown(','.join(given))}"
    if kind == "list_type" and isinstance(given, str):
        return f", such as [{', '.join(given.split())}]" if len(loc) == 1 else f", such as [{shown(given)}]"
    if kind in ("int_type", "float_type") and isinstance(given, str) and re.fullmatch(r"[-+]?\d+(\.\d+)?", given):
        return f", so without quotes: {given}"
    return ""


def _not(detail: Any) -> str:
    if detail["type"] in ("too_long", "too_short") and detail["input"]:
        return f", not {_count(len(detail['input']), 'item')}"
    return f", not {shown(detail['input'])}"


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

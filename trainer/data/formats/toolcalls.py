"""Functions that a model may call, its calls, and their results, as OpenAI's chat completions API writes them. Pure."""

from collections.abc import Sequence, Set
from typing import Any

from trainer.data.formats.turns import check_part
from trainer.data.formats.values import Row, filled, optional_items, parsed, shown, unread
from trainer.data.message import Message, RowError, ToolCall

TOOL_KEYS = {"name": str, "description": str, "parameters": dict}
WRAPPER_KEYS = frozenset({"id", "type", "function"})  # of a call, and of a tool
ARGUMENTS = ("arguments", "parameters")  # of OpenAI, and of InternLM2 and Llama 3.1
CALL_KEYS = frozenset({"id", "type", "name", *ARGUMENTS})
INTERPRETER = "interpreter"


def read_tools(row: Row, leftovers: list[str] | None = None) -> tuple[dict[str, Any], ...]:
    """The column `tools` (or `functions`, its older name), a list or its JSON text: each {type: function, function:
    {...}} or the inner object alone. Name, description and parameters come first; what a tool does not say is not made
    up. Keys beside `function` are added to `leftovers`: nothing reads them."""
    column = "functions" if filled(row.get("functions")) else "tools"
    if column == "functions" and filled(row.get("tools")):
        raise RowError("functions", "a column beside tools", "one of the two")
    raws = optional_items(row, column)
    tools = tuple(_tool(f"{column}[{index}]", raw) for index, raw in enumerate(raws))
    if leftovers is not None:
        for raw in raws:
            leftovers += unread(f"{column}[].", raw, WRAPPER_KEYS) if "function" in raw else ()
    return tools


def read_calls(field: str, raw: Any) -> tuple[ToolCall, ...]:
    """A list of {id?, type?, function: {name, arguments}}, or of the inner objects alone."""
    if raw is None:
        return ()
    if not isinstance(raw, list):
        raise RowError(field, shown(raw), "a list")
    return tuple(_wrapped(f"{field}[{index}]", call) for index, call in enumerate(raw))


def read_call(field: str, raw: Any) -> ToolCall:
    """{name, arguments} or {name, parameters}; arguments are an object or its JSON text. The interpreter's are code, or
    {code: ...}. Raises RowError when another key holds them."""
    if not isinstance(raw, dict):
        raise RowError(field, shown(raw), "an object {name, arguments}")
    check_part(raw, field)
    name, column = raw.get("name"), _arguments_key(field, raw)
    if not isinstance(name, str) or not name:
        raise RowError(f"{field}.name", shown(name), "the name of a function")
    place, arguments = f"{field}.{column}", raw.get(column)
    if name == INTERPRETER:
        return ToolCall(name, _code(place, arguments))
    if arguments in (None, ""):
        return ToolCall(name, {})
    found = parsed(place, arguments) if isinstance(arguments, str) else arguments
    if not isinstance(found, dict):
        raise RowError(place, shown(found), "an object or its JSON text")
    return ToolCall(name, found)


def unread_in_calls(place: str, calls: Sequence[Row]) -> list[str]:
    """The keys of calls (read before) that say something and are not used; `place` is where the calls are."""
    found: list[str] = []
    for call in calls:
        inner = call.get("function", call)
        if inner is not call:
            found += unread(f"{place}tool_calls[].", call, WRAPPER_KEYS)
        found += unread(f"{place}tool_calls[].", inner, CALL_KEYS)
    return found


def by_calls(turns: list[Message], raws: Sequence[Row]) -> list[Message]:
    """The turns with the results of several calls in the order of the calls, as their `tool_call_id` says: templates
    write no ids. Raises RowError for the id of no call, or of one that has its result."""
    ids: list[Any] = []
    ranks: list[tuple[int, int]] = []  # sorts results within their run, and moves nothing else
    for index, (turn, raw) in enumerate(zip(turns, raws, strict=True)):
        if turn.role != "tool":
            ids = [call.get("id") for call in raw.get("tool_calls") or ()] if turn.calls else []
            ranks.append((index, 0))
            continue
        named = raw.get("tool_call_id")
        known = [number for number, name in enumerate(ids) if name == named]
        if named is not None and any(name is not None for name in ids) and not known:
            raise RowError(f"messages[{index}].tool_call_id", shown(named), ", ".join(map(str, ids)))
        first = ranks[-1][0] if turns[index - 1].role == "tool" and index else index
        rank = (first, known[0] if known else len(ids))
        if named is not None and known and ranks.count(rank) == len(known):
            raise RowError(f"messages[{index}].tool_call_id", f"{shown(named)} once more", "one result for each call")
        ranks.append(rank)
    order = sorted(range(len(turns)), key=ranks.__getitem__)
    return [turns[index] for index in order]


def _wrapped(field: str, call: Any) -> ToolCall:
    """A call, perhaps inside {id, type, function}."""
    inner = call.get("function", call) if isinstance(call, dict) else call
    if inner is not call:
        check_part(call, field)
        if isinstance(inner, dict) and not _given(inner):
            _check_nothing_held(field, call, WRAPPER_KEYS)
    return read_call(field, inner)


def _given(raw: Row) -> list[str]:
    """The keys with a call's arguments."""
    return [key for key in ARGUMENTS if raw.get(key) not in (None, "")]


def _arguments_key(field: str, raw: Row) -> str:
    given = _given(raw)
    if len(given) > 1:
        raise RowError(f"{field}.{given[1]}", f"a key beside {given[0]}", "one of the two")
    if not given:
        _check_nothing_held(field, raw, CALL_KEYS)
    return given[0] if given else ARGUMENTS[0]


def _check_nothing_held(field: str, raw: Row, known: Set[str]) -> None:
    """Raise RowError when another key of a call without arguments holds what may be these."""
    for key, value in raw.items():
        if key not in known and filled(value) and str(value).lstrip()[0] in "{[":
            raise RowError(field, f"a call without arguments, but with the key {key[:40]!r}", "the key arguments")


def _tool(field: str, raw: Any) -> dict[str, Any]:
    inner = raw.get("function", raw) if isinstance(raw, dict) else raw
    if not isinstance(inner, dict):
        raise RowError(field, shown(inner), "an object {name, description, parameters}")
    if not inner.get("name"):
        raise RowError(f"{field}.name", shown(inner.get("name")), "the name of a function")
    for key, kind in TOOL_KEYS.items():
        if inner.get(key) is not None and not isinstance(inner[key], kind):
            raise RowError(f"{field}.{key}", shown(inner[key]), "text" if kind is str else "an object")
    named = {key: inner[key] for key in TOOL_KEYS if inner.get(key) is not None}
    return named | {key: value for key, value in inner.items() if key not in TOOL_KEYS}


def _code(field: str, arguments: Any) -> str:
    if isinstance(arguments, str) and arguments.lstrip().startswith('{"code"'):
        arguments = parsed(field, arguments)
    code = arguments.get("code") if isinstance(arguments, dict) and len(arguments) == 1 else arguments
    if not isinstance(code, str):
        raise RowError(field, shown(code), "code as text, or {code: text}")
    return code

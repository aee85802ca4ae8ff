"""Functions that a model may call, its calls, and their results, as OpenAI's chat completions API writes them. Pure."""

from collections.abc import Sequence
from typing import Any

from trainer.data.formats.values import Row, optional_items, parsed, shown
from trainer.data.message import Message, RowError, ToolCall

TOOL_KEYS = {"name": str, "description": str, "parameters": dict}
INTERPRETER = "interpreter"


def read_tools(row: Row) -> tuple[dict[str, Any], ...]:
    """The column `tools`, a list or its JSON text: each {type: function, function: {...}} or the inner object alone.
    Name, description and parameters come first; what a tool does not say is not made up."""
    return tuple(_tool(f"tools[{index}]", raw) for index, raw in enumerate(optional_items(row, "tools")))


def read_calls(field: str, raw: Any) -> tuple[ToolCall, ...]:
    """A list of {id?, type?, function: {name, arguments}}, or of the inner objects alone."""
    if raw is None:
        return ()
    if not isinstance(raw, list):
        raise RowError(field, shown(raw), "a list")
    return tuple(
        read_call(f"{field}[{index}]", call.get("function", call) if isinstance(call, dict) else call)
        for index, call in enumerate(raw)
    )


def read_call(field: str, raw: Any) -> ToolCall:
    """{name, arguments}; arguments are an object or its JSON text. The interpreter's are code, or {code: ...}."""
    if not isinstance(raw, dict):
        raise RowError(field, shown(raw), "an object {name, arguments}")
    name, arguments = raw.get("name"), raw.get("arguments")
    if not isinstance(name, str) or not name:
        raise RowError(f"{field}.name", shown(name), "the name of a function")
    if name == INTERPRETER:
        return ToolCall(name, _code(f"{field}.arguments", arguments))
    if isinstance(arguments, str) and arguments:
        arguments = parsed(f"{field}.arguments", arguments)
    if arguments in (None, ""):
        arguments = {}
    if not isinstance(arguments, dict):
        raise RowError(f"{field}.arguments", shown(arguments), "an object or its JSON text")
    return ToolCall(name, arguments)


def by_calls(turns: list[Message], raws: Sequence[Row]) -> list[Message]:
    """The turns with the results of several calls in the order of the calls, as their `tool_call_id` says: templates
    write no ids. Raises RowError for the id of no call."""
    ids: list[Any] = []
    ranks: list[tuple[int, int]] = []  # sorts results within their run, and moves nothing else
    for index, (turn, raw) in enumerate(zip(turns, raws, strict=True)):
        if turn.role != "tool":
            ids = [call.get("id") for call in raw["tool_calls"]] if turn.calls else []
            ranks.append((index, 0))
            continue
        named = raw.get("tool_call_id")
        known = [number for number, name in enumerate(ids) if name == named]
        if named is not None and any(name is not None for name in ids) and not known:
            raise RowError(f"messages[{index}].tool_call_id", shown(named), ", ".join(map(str, ids)))
        first = ranks[-1][0] if turns[index - 1].role == "tool" and index else index
        ranks.append((first, known[0] if known else len(ids)))
    order = sorted(range(len(turns)), key=ranks.__getitem__)
    return [turns[index] for index in order]


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
    code = arguments.get("code") if isinstance(arguments, dict) else arguments
    if isinstance(arguments, str) and arguments.lstrip().startswith('{"code"'):
        code = parsed(field, arguments).get("code")
    if not isinstance(code, str):
        raise RowError(field, shown(code), "code as text, or {code: text}")
    return code

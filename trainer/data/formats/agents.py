"""Formats that write calls of tools into the text of a turn: MOSS SFT and MSAgent-Bench. Pure; nothing is evaluated.

Sources of the formats: OpenMOSS's data and meta instructions; the README and prompt templates of ModelScope-Agent.
"""

import ast
import json
import re
from typing import Any, NamedTuple

from trainer.data.doubled import first_doubled, object_of
from trainer.data.formats.toolcalls import ARGUMENTS, read_call
from trainer.data.formats.turns import ordered, turn_fields
from trainer.data.formats.values import Row, filled, misfit, optional_text, parsed, shown, unread
from trainer.data.message import Conversation, Message, RowError, ToolCall

MOSS_API = re.compile(r"- ([^:\n]+): enabled\. API: (\w+)\((\w+)\)")
MOSS_COMMAND = re.compile(r'\s*(\w+)\("(.*?)"\)\s*(?:,|$)', re.DOTALL)
MOSS_MARKS = re.compile(r"^\s*<\|[A-Za-z ]+\|>:|<eo[a-z]>\s*$")
MOSS_KEYS = ("Human", "Inner Thoughts", "Commands", "Tool Responses", "MOSS")
MSAGENT_ROLES = ("system", "user", "assistant")
MSAGENT_MARK = re.compile(r"<\|startof(think|exec)\|>(.*?)<\|endof\1\|>", re.DOTALL)
MSAGENT_KEYS = frozenset({"from", "value"})
MSAGENT_FENCE = re.compile(r"^\s*```(?:JSON|json)?|```\s*$")
MSAGENT_TOOLS = "当前对话可以使用的插件信息如下"  # what ModelScope-Agent writes before the list of plugins


class Plugins(NamedTuple):
    """What the system text of an msagent row lists: the functions, and keys of theirs that no reader uses."""

    tools: list[dict[str, Any]]
    unread: list[str]


def read_moss(row: Row) -> Conversation:
    """meta_instruction, chat {turn_1: {Human, Inner Thoughts, Commands, Tool Responses, MOSS, loss?}, ...}.

    Only what the assistant says is trained. A command becomes a call of the API that the meta instruction declares, the
    thoughts before it the text of that turn. Thoughts that lead to no command are beside the answer (Message.extra): it
    follows them at once, and no template writes two turns of the assistant in a row.
    """
    system = optional_text(row, "meta_instruction")
    apis = {name: (label, argument) for label, name, argument in MOSS_API.findall(system)}
    chat = row.get("chat")
    if not isinstance(chat, dict) or not chat:
        raise misfit(row, "chat", "an object {turn_1: {...}, ...}")
    turns = [Message("system", system)] if system else []
    for number in range(1, len(chat) + 1):
        turns += _moss_turn(f"chat.turn_{number}", chat.get(f"turn_{number}"), apis)
    tools = [
        {"name": name, "description": label, "parameters": _parameters({argument: {}}, [argument])}
        for name, (label, argument) in apis.items()
    ]
    return Conversation(turns, tuple(tools))


def read_msagent(row: Row) -> Conversation:
    """`conversations`: {from, value}, a list or its text as JSON or as Python writes it.

    What the assistant thinks (`startofthink`: api_name, parameters) is a call, what was executed (`startofexec`) its
    result; the address of the API is beside the call (Message.extra), it was the server's. The plugins that the system
    text lists become tools; the sentences that tell how to call them are not read, as the template says that in its own
    way.
    """
    turns: list[Message] = []
    places: list[int] = []
    plugins = Plugins([], [])
    for index, raw in enumerate(_msagent_list(row)):
        added = _msagent_turns(f"conversations[{index}]", raw, plugins)
        turns += added
        places += [index] * len(added)
    unused = tuple(dict.fromkeys(plugins.unread))
    return ordered(turns, "conversations", places)._replace(tools=tuple(plugins.tools), unread=unused)


def _moss_turn(field: str, raw: Any, apis: dict[str, tuple[str, str]]) -> list[Message]:
    if not isinstance(raw, dict):
        raise RowError(field, shown(raw), "an object {Human, MOSS, ...}")
    parts = {}
    for name in MOSS_KEYS:
        value = raw.get(name, "None" if name not in ("Human", "MOSS") else None)
        if not isinstance(value, str):
            raise RowError(f"{field}.{name}", shown(value), "text")
        parts[name] = MOSS_MARKS.sub("", value).strip()
    question, thoughts, commands, results, answer = ("" if part == "None" else part for part in parts.values())
    if not answer:
        raise RowError(f"{field}.MOSS", "an empty answer", "text")
    loss, extra = turn_fields(raw, field, "assistant", frozenset(MOSS_KEYS))
    if not commands:
        unused = {"Inner Thoughts": thoughts, "Tool Responses": results}
        extra = {**extra, **{name: text for name, text in unused.items() if text}}
        return [Message("user", question), Message("assistant", answer, loss, extra=extra)]
    if not results:
        raise RowError(f"{field}.Tool Responses", "no results of the commands", "text")
    calls = _commands(f"{field}.Commands", commands, apis)
    return [
        Message("user", question),
        Message("assistant", thoughts, loss, calls),
        Message("tool", results),
        Message("assistant", answer, loss, extra=extra),
    ]


def _commands(field: str, written: str, apis: dict[str, tuple[str, str]]) -> tuple[ToolCall, ...]:
    calls = []
    position = 0
    while position < len(written):
        found = MOSS_COMMAND.match(written, position)
        if not found or found[1] not in apis:
            allowed = ", ".join(f'{name}("...")' for name in apis) or "None (the meta instruction enables no API)"
            raise RowError(field, shown(written[position:].strip()), allowed)
        calls.append(ToolCall(found[1], {apis[found[1]][1]: found[2]}))
        position = found.end()
    return tuple(calls)


def _msagent_list(row: Row) -> list[Any]:
    found = row.get("conversations")
    if isinstance(found, str):
        try:
            found = parsed("conversations", found)
        except RowError:
            found = _literal(found)
    if isinstance(found, list):
        return found
    raise misfit(row, "conversations", "a list")


def _literal(written: str) -> Any:
    """Numbers, texts, lists and dicts as Python writes them; nothing else, and nothing is run."""
    try:
        tree = ast.parse(written.strip(), mode="eval")
        found = ast.literal_eval(tree)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise RowError("conversations", shown(written), "a list, or its JSON text") from error
    for node in ast.walk(tree):
        keys = [key.value for key in node.keys if isinstance(key, ast.Constant)] if isinstance(node, ast.Dict) else []
        if len(set(keys)) < len(keys):
            raise RowError("conversations", "a key more than once in a dict", "each key once")
    return found


def _msagent_turns(field: str, raw: Any, plugins: Plugins) -> list[Message]:
    """What one entry holds; the plugins of a system text are added to `plugins`."""
    role, value = (raw.get("from"), raw.get("value")) if isinstance(raw, dict) else (raw, None)
    if role not in MSAGENT_ROLES:
        raise RowError(f"{field}.from", shown(role), ", ".join(MSAGENT_ROLES))
    if not isinstance(value, str):
        raise RowError(f"{field}.value", shown(value), "text")
    loss, extra = turn_fields(raw, field, role, MSAGENT_KEYS)
    if role == "assistant":
        first, *others = _msagent_answer(f"{field}.value", value)
        first = first._replace(extra={**extra, **first.extra})
        return [turn._replace(loss=loss or turn.role == "tool") for turn in (first, *others)]
    if role == "user":
        return [Message("user", value, extra=extra)]
    said, _, listed = value.partition(MSAGENT_TOOLS)
    _add_plugins(f"{field}.value", listed, plugins)
    if said.strip():
        return [Message("system", said.strip(), extra=extra)]
    plugins.unread.extend(extra)
    return []


def _msagent_answer(field: str, value: str) -> list[Message]:
    """Text, then a call or a result, and so on; text at the end."""
    parts = MSAGENT_MARK.split(value)
    if any("<|startof" in part for part in parts[::3]):
        raise RowError(field, "a mark that is not closed", "<|startofthink|>...<|endofthink|>")
    turns: list[Message] = []
    said = ""
    for before, kind, body in zip(parts[::3], parts[1::3], parts[2::3], strict=False):
        said = before.strip()
        inside = MSAGENT_FENCE.sub("", body.strip()).strip()
        if kind == "exec":
            if said:
                raise RowError(field, f"{shown(said)} between a call and its result", "nothing there")
            turns.append(Message("tool", inside))
            continue
        call = parsed(field, inside.replace("\n", " "))  # raw line ends inside its texts are no JSON
        turns.append(_msagent_call(field, said, call))
    return [*turns, Message("assistant", parts[-1].strip())] if parts[-1].strip() or not turns else turns


def _msagent_call(field: str, said: str, call: Any) -> Message:
    if not isinstance(call, dict):
        return Message("assistant", said, calls=(read_call(field, call),))
    extra = {key: value for key, value in call.items() if key not in ("api_name", *ARGUMENTS) and filled(value)}
    given = {**call, "name": call.get("api_name")}
    return Message("assistant", said, calls=(read_call(field, given),), extra=extra)


def _add_plugins(field: str, listed: str, plugins: Plugins) -> None:
    """`1. {"plugin_name": ..., "plugin_schema_for_model": {name, description, paths: [{parameters}]}}` and so on."""
    decoder = json.JSONDecoder(object_pairs_hook=object_of)
    if listed.strip():
        plugins.unread.append("the sentences about plugins")
    position = listed.find("{")
    while position >= 0:
        try:
            plugin, end = decoder.raw_decode(listed, position)
        except (ValueError, RecursionError) as error:
            raise RowError(field, f"a plugin that is no JSON ({error})", "a list of plugins as JSON") from error
        if (key := first_doubled(plugin)) is not None:
            raise RowError(field, f"the key {key[:40]!r} more than once in an object", "each key once")
        schema = plugin.get("plugin_schema_for_model", plugin)
        plugins.tools.append(_plugin(field, schema))
        if schema is not plugin:
            plugins.unread.extend(unread("plugins[].", plugin, {"plugin_schema_for_model"}))
        plugins.unread.extend(_unread_in_schema(schema))
        position = listed.find("{", end)


def _unread_in_schema(schema: dict[str, Any]) -> list[str]:
    found = unread("plugins[].", schema, {"name", "description", "paths"})
    first, *others = schema.get("paths") or [{"parameters": []}]
    found += [f"plugins[].paths[{number}]" for number, _ in enumerate(others, 1)]
    found += unread("plugins[].paths[].", first, {"name", "parameters"})
    for argument in first["parameters"]:
        found += unread("plugins[].paths[].parameters[].", argument, {"name", "description", "required"})
    return found


def _plugin(field: str, schema: Any) -> dict[str, Any]:
    try:
        arguments = schema["paths"][0]["parameters"] if schema.get("paths") else []
        properties = {argument["name"]: {"description": argument.get("description", "")} for argument in arguments}
        required = [argument["name"] for argument in arguments if str(argument.get("required")).lower() == "true"]
        name, description = schema["name"], schema["description"]
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise RowError(field, "another plugin", "{name, description, paths: [{parameters: [{name}]}]}") from error
    return {"name": str(name), "description": str(description), "parameters": _parameters(properties, required)}


def _parameters(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}

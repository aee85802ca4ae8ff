"""Formats that write calls of tools into the text of a turn: MOSS SFT and MSAgent-Bench. Pure; nothing is evaluated.

Sources of the formats: OpenMOSS's data and meta instructions; the README and prompt templates of ModelScope-Agent.
"""

import ast
import json
import re
from typing import Any

from trainer.data.formats.toolcalls import read_call
from trainer.data.formats.turns import ordered
from trainer.data.formats.values import Row, misfit, optional_text, parsed, shown
from trainer.data.message import Conversation, Message, RowError, ToolCall

MOSS_API = re.compile(r"- ([^:\n]+): enabled\. API: (\w+)\((\w+)\)")
MOSS_COMMAND = re.compile(r'\s*(\w+)\("(.*?)"\)\s*(?:,|$)', re.DOTALL)
MOSS_MARKS = re.compile(r"^\s*<\|[A-Za-z ]+\|>:|<eo[a-z]>\s*$")
MSAGENT_ROLES = ("system", "user", "assistant")
MSAGENT_MARK = re.compile(r"<\|startof(think|exec)\|>(.*?)<\|endof\1\|>", re.DOTALL)
MSAGENT_FENCE = re.compile(r"^\s*```(?:JSON|json)?|```\s*$")
MSAGENT_TOOLS = "当前对话可以使用的插件信息如下"  # what ModelScope-Agent writes before the list of plugins


def read_moss(row: Row) -> Conversation:
    """meta_instruction, chat {turn_1: {Human, Inner Thoughts, Commands, Tool Responses, MOSS}, ...}.

    Only what the assistant says is trained. A command becomes a call of the API that the meta instruction declares, the
    thoughts before it the text of that turn. Thoughts that lead to no command are left out: an answer follows them at
    once, and no template writes two turns of the assistant in a row.
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
    result; the address of the API is left out, it was the server's. The plugins that the system text lists become
    tools; the sentences that tell how to call them are left out, as the template says that in its own way.
    """
    turns: list[Message] = []
    places: list[int] = []
    tools: list[dict[str, Any]] = []
    for index, raw in enumerate(_msagent_list(row)):
        added = _msagent_turns(f"conversations[{index}]", raw, tools)
        turns += added
        places += [index] * len(added)
    return Conversation(ordered(turns, "conversations", places), tuple(tools))


def _moss_turn(field: str, raw: Any, apis: dict[str, tuple[str, str]]) -> list[Message]:
    if not isinstance(raw, dict):
        raise RowError(field, shown(raw), "an object {Human, MOSS, ...}")
    parts = {}
    for name in ("Human", "Inner Thoughts", "Commands", "Tool Responses", "MOSS"):
        value = raw.get(name, "None" if name not in ("Human", "MOSS") else None)
        if not isinstance(value, str):
            raise RowError(f"{field}.{name}", shown(value), "text")
        parts[name] = MOSS_MARKS.sub("", value).strip()
    question, thoughts, commands, results, answer = ("" if part == "None" else part for part in parts.values())
    if not answer:
        raise RowError(f"{field}.MOSS", "an empty answer", "text")
    turns = [Message("user", question)]
    if commands:
        if not results:
            raise RowError(f"{field}.Tool Responses", "no results of the commands", "text")
        turns.append(Message("assistant", thoughts, calls=_commands(f"{field}.Commands", commands, apis)))
        turns.append(Message("tool", results))
    return [*turns, Message("assistant", answer)]


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
        return ast.literal_eval(written)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise RowError("conversations", shown(written), "a list, or its JSON text") from error


def _msagent_turns(field: str, raw: Any, tools: list[dict[str, Any]]) -> list[Message]:
    """What one entry holds; the plugins of a system text are added to `tools`."""
    role, value = (raw.get("from"), raw.get("value")) if isinstance(raw, dict) else (raw, None)
    if role not in MSAGENT_ROLES:
        raise RowError(f"{field}.from", shown(role), ", ".join(MSAGENT_ROLES))
    if not isinstance(value, str):
        raise RowError(f"{field}.value", shown(value), "text")
    if role == "assistant":
        return _msagent_answer(f"{field}.value", value)
    if role == "user":
        return [Message("user", value)]
    said, _, listed = value.partition(MSAGENT_TOOLS)
    tools += _plugins(f"{field}.value", listed)
    return [Message("system", said.strip())] if said.strip() else []


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
            turns.append(Message("tool", inside))
            continue
        call = parsed(field, inside.replace("\n", " "))  # raw line ends inside its texts are no JSON
        given = {"name": call.get("api_name"), "arguments": call.get("parameters")} if isinstance(call, dict) else call
        turns.append(Message("assistant", said, calls=(read_call(field, given),)))
    return [*turns, Message("assistant", parts[-1].strip())] if parts[-1].strip() or not turns else turns


def _plugins(field: str, listed: str) -> list[dict[str, Any]]:
    """`1. {"plugin_name": ..., "plugin_schema_for_model": {name, description, paths: [{parameters}]}}` and so on."""
    decoder = json.JSONDecoder()
    tools = []
    position = listed.find("{")
    while position >= 0:
        try:
            plugin, end = decoder.raw_decode(listed, position)
        except (ValueError, RecursionError) as error:
            raise RowError(field, f"a plugin that is no JSON ({error})", "a list of plugins as JSON") from error
        tools.append(_plugin(field, plugin.get("plugin_schema_for_model", plugin)))
        position = listed.find("{", end)
    return tools


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

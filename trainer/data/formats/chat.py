"""Formats that hold a list of turns. Pure.

Sources: `messages` of OpenAI's chat completions and fine-tuning APIs; ShareGPT's `conversations`, with the turns of
LLaMA-Factory's tool data sets; the one text of openassistant-guanaco.
"""

import re
from collections.abc import Sequence
from typing import Any

from trainer.data.formats.images import MARK, read_images
from trainer.data.formats.toolcalls import by_calls, read_call, read_calls, read_tools
from trainer.data.formats.turns import ordered
from trainer.data.formats.values import Row, items, optional_text, parsed, shown, text
from trainer.data.message import Conversation, Message, RowError, ToolCall

OPENAI_ROLES = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
    "environment": "tool",
}  # fmt: skip
CHANNELS = ("plugin", "interpreter", "file")
SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
    "function_call": "call", "observation": "tool", "tool": "tool",
}  # fmt: skip
GUANACO_ROLES = {"Human": "user", "Assistant": "assistant"}
GUANACO_MARK = re.compile(r"\s*### (Human|Assistant):\s*")
FLAGS = {"true": True, "True": True, "false": False, "False": False, True: True, False: False}  # 1 and 0 too


def read_messages(row: Row) -> Conversation:
    """OpenAI's `messages`: {role, content, tool_calls?, tool_call_id?, loss?}, and the columns tools and images.

    Content is text, or parts of text and image_url; null in a message that only calls. `loss` (or `weight`, as in
    OpenAI's fine-tuning API) false leaves an answer untrained. InternLM2's role environment is tool, and its names
    plugin, interpreter and file are channels.
    """
    raws = items(row, "messages")
    parts: list[str] = []
    turns = [_openai(raw, index, parts) for index, raw in enumerate(raws)]
    if any(turn.role == "tool" for turn in turns):
        turns = by_calls(turns, raws)
    return conversation(row, turns, "messages", parts=parts)


def read_sharegpt(row: Row) -> Conversation:
    """`conversations`: {from, value}, and the columns system, tools, images or image.

    A function_call's value is the JSON text of {name, arguments} or of a list of them; right after an answer or another
    call it is part of that turn.
    """
    turns: list[Message] = []
    places: list[int] = []
    if system := optional_text(row, "system"):
        turns, places = [Message("system", system)], [0]
    for index, raw in enumerate(items(row, "conversations")):
        turn = _sharegpt(raw, index)
        if turn.calls and turns and turns[-1].role == "assistant":
            turns[-1] = turns[-1]._replace(calls=turns[-1].calls + turn.calls)
        else:
            turns.append(turn)
            places.append(index)
    return conversation(row, turns, "conversations", places)


def read_guanaco(row: Row) -> Conversation:
    """`### Human: ...### Assistant: ...`; other `###`, such as Markdown headings in answers, stay as they are."""
    parts = GUANACO_MARK.split(text(row, "text"))
    if len(parts) == 1:
        raise RowError("text", shown(parts[0]), "'### Human: ...### Assistant: ...'")
    turns = [Message(GUANACO_ROLES[name], said.strip()) for name, said in zip(parts[1::2], parts[2::2], strict=True)]
    before = parts[0].strip()
    return Conversation(ordered([Message("system", before), *turns] if before else turns, "text"))


def conversation(
    row: Row, turns: Sequence[Message], column: str, places: Sequence[int] | None = None, parts: Sequence[str] = ()
) -> Conversation:
    """The turns in legal order, with the row's tools and images."""
    kept = ordered(turns, column, places)
    tools = read_tools(row) if "tools" in row else ()
    return Conversation(kept, tools, read_images(row, turns, kept, parts))


def _openai(raw: Any, index: int, images: list[str]) -> Message:
    if not isinstance(raw, dict):
        raise RowError(f"messages[{index}]", shown(raw), "an object {role, content}")
    role, content = raw.get("role"), raw.get("content")
    if not isinstance(role, str) or role not in OPENAI_ROLES:
        raise RowError(f"messages[{index}].role", shown(role), ", ".join(OPENAI_ROLES))
    role = OPENAI_ROLES[role]
    calls: tuple[ToolCall, ...] = ()
    if role == "assistant":
        calls = read_calls(f"messages[{index}].tool_calls", raw["tool_calls"]) if "tool_calls" in raw else ()
    if not isinstance(content, str):
        content = "" if content is None and calls else _joined(f"messages[{index}].content", content, images)
    if role != "assistant":
        return Message(role, content, channel=raw["name"]) if raw.get("name") in CHANNELS else Message(role, content)
    return Message(role, content, _trained(raw, index), calls)


def _trained(raw: Row, index: int) -> bool:
    for key in ("loss", "weight"):
        flag = raw.get(key)
        if flag is not None:
            if isinstance(flag, list | dict) or flag not in FLAGS:
                raise RowError(f"messages[{index}].{key}", shown(flag), "true or false")
            return FLAGS[flag]
    return True


def _joined(field: str, content: Any, images: list[str]) -> str:
    """Parts of a message as one text; the addresses of its images are added to `images`."""
    if not isinstance(content, list):
        raise RowError(field, shown(content), "text, or a list of text and image_url parts")
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            texts.append(_inside(f"{field}[{index}].text", part.get("text")))
        elif kind == "image_url":
            address = part.get("image_url")
            inner = address.get("url") if isinstance(address, dict) else address
            images.append(_inside(f"{field}[{index}].image_url.url", inner))
            texts.append(MARK)
        else:
            raise RowError(f"{field}[{index}].type", shown(kind), "text, image_url")
    return "".join(texts)


def _inside(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RowError(field, shown(value), "text")
    return value


def _sharegpt(raw: Any, index: int) -> Message:
    if not isinstance(raw, dict):
        raise RowError(f"conversations[{index}]", shown(raw), "an object {from, value}")
    role, value = raw.get("from"), raw.get("value")
    if not isinstance(role, str) or role not in SHAREGPT_ROLES:
        raise RowError(f"conversations[{index}].from", shown(role), ", ".join(SHAREGPT_ROLES))
    if not isinstance(value, str):
        raise RowError(f"conversations[{index}].value", shown(value), "text")
    role = SHAREGPT_ROLES[role]
    if role != "call":
        return Message(role, value)
    field = f"conversations[{index}].value"
    found = parsed(field, value)
    if not found:
        raise RowError(field, shown(found), "{name, arguments} or a list of them")
    calls = read_calls(field, found) if isinstance(found, list) else (read_call(field, found),)
    return Message("assistant", "", calls=calls)

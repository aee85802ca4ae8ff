"""Formats that hold a list of turns. Sources: OpenAI's chat completions API (`messages`) and openassistant-guanaco's
one text. Pure."""

import re
from typing import Any

from trainer.data.formats.turns import ordered
from trainer.data.formats.values import Row, items, shown, text
from trainer.data.message import Conversation, Message, RowError

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
MARKS = re.compile(r"\s*### (Human|Assistant):\s*")


def read_messages(row: Row) -> Conversation:
    """OpenAI's `messages`: {role, content, loss?}."""
    turns = [_message(f"messages[{index}]", raw) for index, raw in enumerate(items(row, "messages"))]
    return Conversation(ordered(turns, "messages"))


def read_guanaco(row: Row) -> Conversation:
    """`### Human: ...### Assistant: ...`; other `###`, such as Markdown headings in answers, stay as they are."""
    parts = MARKS.split(text(row, "text"))
    if len(parts) == 1:
        raise RowError("text", shown(parts[0]), "'### Human: ...### Assistant: ...'")
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [Message(roles[name], said.strip()) for name, said in zip(parts[1::2], parts[2::2], strict=True)]
    before = parts[0].strip()
    return Conversation(ordered([Message("system", before), *turns] if before else turns, "text"))


def _message(field: str, raw: Any) -> Message:
    if not isinstance(raw, dict):
        raise RowError(field, shown(raw), "an object")
    role = raw.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise RowError(f"{field}.role", shown(role), ", ".join(ROLES))
    if not isinstance(raw.get("content"), str):
        raise RowError(f"{field}.content", shown(raw.get("content")), "text")
    return Message(ROLES[role], raw["content"], raw.get("loss") in (None, True, "true", "True"))

"""Raw row -> conversation, one function per row format. Pure; nothing is evaluated.

Sources of the formats: openassistant-guanaco's `text` column, OpenAI's `messages`, Stanford Alpaca's three columns.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainer.config import FormatName


@dataclass(frozen=True)
class Message:
    """One turn. `loss`: whether an assistant turn is trained."""

    role: str
    content: str
    loss: bool = True


class RowError(ValueError):
    """A row that does not have the shape of its format."""


def map_row(format_name: FormatName, row: dict[str, Any]) -> list[Message]:
    """The conversation in a row: merged, starting with system or user, ending with an assistant turn; may be empty
    when the row has no answer. Raises RowError."""
    return _tidy(MAPS[format_name](row))


def map_guanaco(row: dict[str, Any]) -> list[Message]:
    """`### Human: ...### Assistant: ...`; other `###`, such as Markdown headings in answers, stay as they are."""
    text = _text(row, "text")
    parts = re.split(r"\s*### (Human|Assistant):\s*", text)
    if len(parts) < 3:
        raise RowError("got text without '### Human:', allowed: '### Human: ...### Assistant: ...'")
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [Message(roles[name], content.strip()) for name, content in zip(parts[1::2], parts[2::2], strict=True)]
    return [Message("system", parts[0].strip()), *turns] if parts[0].strip() else turns


def map_messages(row: dict[str, Any]) -> list[Message]:
    """A list of {role, content, loss?}."""
    messages = row.get("messages")
    if not isinstance(messages, list):
        raise RowError(f"got columns {', '.join(row)}, allowed: a column messages with a list")
    return [_message(message) for message in messages]


def map_alpaca(row: dict[str, Any]) -> list[Message]:
    """instruction, input (may be empty), output."""
    question, extra, answer = _text(row, "instruction"), row.get("input") or "", _text(row, "output")
    if answer.strip() in ("", "<nooutput>"):
        return []
    return [Message("user", f"{question}\n{extra}" if extra else question), Message("assistant", answer)]


MAPS: dict[FormatName, Callable[[dict[str, Any]], list[Message]]] = {
    "guanaco": map_guanaco,
    "messages": map_messages,
    "alpaca": map_alpaca,
}
ROLES = ("system", "user", "assistant", "environment")


def _message(raw: Any) -> Message:
    if not isinstance(raw, dict) or not isinstance(raw.get("content"), str):
        raise RowError("got a message without text, allowed: {role, content} with text as content")
    role = "environment" if raw.get("role") == "tool" else raw.get("role")
    if role not in ROLES:
        raise RowError(f"got role {raw.get('role')!r}, allowed: {', '.join(ROLES)}, tool")
    loss = raw.get("loss")
    return Message(role, raw["content"], True if loss is None else loss in (True, "true", "True"))


def _tidy(messages: list[Message]) -> list[Message]:
    """Join neighbours of one role with a newline; drop what follows the last answer and answers to nothing."""
    joined: list[Message] = []
    for message in messages:
        if joined and joined[-1].role == message.role and message.role != "system":
            before = joined.pop()
            joined.append(Message(message.role, f"{before.content}\n{message.content}", before.loss and message.loss))
        else:
            joined.append(message)
    while joined and joined[-1].role != "assistant":
        joined.pop()
    asked = next((index for index, message in enumerate(joined) if message.role == "user"), len(joined))
    return (
        [message for index, message in enumerate(joined) if index >= asked or message.role == "system"]
        if asked < len(joined)
        else []
    )


def _text(row: dict[str, Any], column: str) -> str:
    if not isinstance(row.get(column), str):
        raise RowError(f"got columns {', '.join(row)}, allowed: a column {column} with text")
    return row[column]  # type: ignore[no-any-return]

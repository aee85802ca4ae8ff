"""A conversation that can be taken back, and how it is written into a file. Pure but for the file."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trainer.data.formats.chat import read_messages
from trainer.data.formats.values import parsed
from trainer.data.message import Conversation, Message, RowError
from trainer.data.own_template import openai_messages
from trainer.data.tools import Tools
from trainer.errors import ConfigError


class Exchange(NamedTuple):
    """What was said to the model (a user's message, or the results of its calls), and its answer."""

    asked: tuple[Message, ...]
    answer: Message


class History:
    """Whole exchanges; a question without an answer is never a part of it. `tools`: functions that the model may call;
    `images` belong to the first question."""

    def __init__(self, system: str = "", tools: Tools = (), images: Sequence[Path] = ()) -> None:
        self.system, self.tools, self.images = system, tools, images
        self.exchanges: list[Exchange] = []
        self._undone: list[Exchange] = []

    def messages(self, asked: Sequence[Message] = ()) -> list[Message]:
        """All of it, and what is asked now."""
        said = [Message("system", self.system)] if self.system else []
        for exchange in self.exchanges:
            said += [*exchange.asked, exchange.answer]
        return [*said, *asked]

    def add(self, asked: Sequence[Message], answer: Message) -> None:
        """An exchange; what was undone before is gone."""
        self.exchanges.append(Exchange(tuple(asked), answer))
        self._undone.clear()

    def undo(self) -> Exchange | None:
        """Take the last exchange back; None when there is none."""
        if not self.exchanges:
            return None
        self._undone.append(self.exchanges.pop())
        return self._undone[-1]

    def redo(self) -> Exchange | None:
        """Bring back what was undone last; None when there is nothing."""
        if not self._undone:
            return None
        self.exchanges.append(self._undone.pop())
        return self.exchanges[-1]

    def clear(self) -> None:
        """Forget all exchanges; the system message stays."""
        self.exchanges, self._undone = [], []

    @property
    def calls(self) -> list[str]:
        """Names of the functions that the last answer calls, whose results come next."""
        return [call.name for call in self.exchanges[-1].answer.calls] if self.exchanges else []

    def replace(self, messages: Sequence[Message], tools: Tools) -> None:
        """Become this conversation; what follows its last answer is left out."""
        self.clear()
        self.tools = tools or self.tools
        begins = bool(messages) and messages[0].role == "system" and not messages[0].channel
        self.system = messages[0].content if begins else ""
        asked: list[Message] = []
        for message in messages[1:] if begins else messages:
            if message.role == "assistant":
                self.exchanges.append(Exchange(tuple(asked), message))
                asked = []
            else:
                asked.append(message)


def save_chat(path: Path, messages: Sequence[Message], tools: Tools) -> None:
    """Write a conversation as a row of the data format `messages`; the file is replaced whole. Raises ConfigError."""
    row: dict[str, Any] = {"messages": openai_messages(messages)}
    if tools:
        row["tools"] = [{"type": "function", "function": tool} for tool in tools]
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(path)
    except (OSError, ValueError) as error:
        part.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written: {error}", "name a file in a folder that exists") from error


def load_chat(path: Path) -> Conversation:
    """Read such a file. Raises ConfigError."""
    try:
        return read_chat(parsed("row", path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, RowError) as error:
        raise ConfigError(f"{path}: {error}", "allowed: a file that /save has written") from error


def read_chat(row: Any) -> Conversation:
    """A row of the format `messages`, which may end with a question. Raises RowError."""
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
        raise RowError("row", type(row).__name__, "an object with a list of messages")
    last = row["messages"][-1] if row["messages"] else None
    if isinstance(last, dict) and last.get("role") == "assistant":
        return read_messages(row)
    asked = read_messages({**row, "messages": [*row["messages"], {"role": "assistant", "content": "-"}]})
    return asked._replace(messages=asked.messages[:-1])

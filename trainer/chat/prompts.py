"""A file of prompts: one a line, or JSON lines. [I/O]"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from trainer.chat.history import read_chat
from trainer.data.formats.toolcalls import read_tools
from trainer.data.formats.values import optional_text, parsed, text
from trainer.data.message import Message, RowError
from trainer.errors import ConfigError


class Prompt(NamedTuple):
    """`row`: as it was written, to which the answer is added. `expect`: the answer as taught."""

    line: int
    row: dict[str, Any]
    messages: list[Message]
    tools: tuple[dict[str, Any], ...]
    expect: str | None


def read_prompts(path: Path, system: str) -> list[Prompt]:
    """JSON lines when the first line is an object: {prompt} or {messages}, with system, tools and expect if need be;
    else every line that is not empty is what a user says. `system`: for those that have none. Raises ConfigError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompts: {path}: cannot be read: {error}") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ConfigError(f"--prompts: {path}: got no prompt, allowed: one a line, or JSON lines")
    as_json = _is_object(numbered[0][1])
    prompts = []
    for number, line in numbered:
        try:
            prompts.append(_prompt(number, parsed("row", line) if as_json else {"prompt": line}, system))
        except RowError as error:
            raise ConfigError(f"{path}:{number}: {error}") from error
    return prompts


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _prompt(number: int, row: Any, system: str) -> Prompt:
    if not isinstance(row, dict):
        raise RowError("row", type(row).__name__, "an object with prompt or messages")
    if ("prompt" in row) == ("messages" in row):
        raise RowError("row", f"the fields {', '.join(row)}", "either prompt or messages, and system, tools, expect")
    messages = list(read_chat(row).messages) if "messages" in row else [Message("user", text(row, "prompt"))]
    if messages[-1].role not in ("user", "tool"):
        raise RowError("messages", f"{messages[-1].role} at the end", "a question, or the result of a call")
    said = optional_text(row, "system") or system
    if said and messages[0].role != "system":
        messages.insert(0, Message("system", said))
    tools = read_tools(row) if "tools" in row else ()
    return Prompt(number, row, messages, tools, optional_text(row, "expect") or None)

"""Whether a text that a tokenizer's own template rendered holds what the messages say. Pure.

Templates trim blanks, write JSON their own way and drop thoughts before `</think>`, so blanks do not count, JSON
escapes are as good as the text, and of an answer only what follows the thoughts must be there.
"""

import json
from typing import Any

from trainer.data.message import RowError
from trainer.data.tools import TOOL_TEMPLATES

THOUGHT_END = "</think>"


def holds(rendered: str, said: str) -> bool:
    """Whether a text is in the rendered one."""
    said = said.strip()
    return said in rendered or _squeezed(said) in _squeezed(rendered) or _escaped(said) in rendered


def check_answer(rendered: str, message: dict[str, Any], index: int) -> None:
    """`rendered`: what a template wrote for an answer as apply_chat_template takes it. Raises RowError unless the
    answer and its calls are there: an empty answer must not be trained."""
    said = message["content"].rpartition(THOUGHT_END)[2]
    if not holds(rendered, said):
        got = "an answer whose text the tokenizer's template does not write"
        raise RowError(f"messages[{index}].content", got, "another model.chat_template")
    beside = rendered.replace(said.strip(), "", 1)
    for call in message.get("tool_calls", ()):
        function = call["function"]
        if not all(holds(beside, name) for name in (function["name"], *_names(function["arguments"]))):
            got = "a call that the tokenizer's template does not write"
            raise RowError(f"messages[{index}].tool_calls", got, f"a model.chat_template with calls: {TOOL_TEMPLATES}")


def thoughts(content: str) -> str:
    """The thoughts in front of an answer."""
    return content.rpartition(THOUGHT_END)[0].rpartition("<think>")[2]


def _names(arguments: Any) -> list[str]:
    """Of the arguments of a call; code is one text. Values are left to the template's way of writing them."""
    return list(arguments) if isinstance(arguments, dict) else [arguments]


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]

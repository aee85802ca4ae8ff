"""A generated answer -> the message that training would have written so: the inverse of trainer.data.tools. Pure.

What is not of the family's form, word for word, is no call but text.
"""

import ast
import json
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from trainer.data.message import Message, ToolCall
from trainer.data.segment import Segment
from trainer.data.tools import ToolForm
from trainer.data.turns import Template, TurnTemplate

Found = tuple[str, tuple[ToolCall, ...]]  # the text beside the calls, and the calls
Reader = Callable[[Sequence[Segment]], Found]


class FormError(ValueError):
    """The answer is not a call of this form."""


def read_answer(
    template: Template, segments: Sequence[Segment], hidden: Collection[str], *, has_tools: bool = True
) -> Message:
    """`segments`: what the model wrote, without its end token; `hidden`: special tokens, which are no text.
    `has_tools`: it was told of functions; without, only special tokens make a call."""
    form = template.tools if isinstance(template, TurnTemplate) else None
    if form and (has_tools or _announced(form, segments)):
        try:
            content, calls = READERS[template.name](segments)
            return Message("assistant", content, calls=calls)
        except (ValueError, SyntaxError, RecursionError):
            pass  # no whole call: what was written is text
    return Message("assistant", trimmed(template, visible(segments, hidden)))


def visible(segments: Sequence[Segment], hidden: Collection[str]) -> str:
    """What a reader sees of an answer."""
    return "".join(part.text for part in segments if not (part.control and part.text in hidden))


def trimmed(template: Template, text: str) -> str:
    """An answer without what the format writes around every one."""
    if not isinstance(template, TurnTemplate):
        return text
    return text.removeprefix(template.answer.lead).removesuffix(template.answer.trail)


def begins_call(template: Template, segment: Segment) -> bool:
    """Whether this token begins a call: nothing behind it is text for readers."""
    form = template.tools if isinstance(template, TurnTemplate) else None
    return bool(form and segment.control and segment.text in form.tokens)


def writes_calls_as_text(template: Template) -> bool:
    """Whether only the end of an answer shows that it is a call."""
    return isinstance(template, TurnTemplate) and template.tools is not None and not template.tools.tokens


def _announced(form: ToolForm, segments: Sequence[Segment]) -> bool:
    return any(part.control and part.text in form.tokens for part in segments)


def _internlm2(segments: Sequence[Segment]) -> Found:
    content, place = "", 0
    while place < len(segments) and not segments[place].control:
        content += segments[place].text
        place += 1
    calls: list[ToolCall] = []
    while place < len(segments):
        place, call = _internlm2_call(segments, place)
        calls.append(call)
    if not calls:
        raise FormError
    return content, tuple(calls)


def _internlm2_call(segments: Sequence[Segment], place: int) -> tuple[int, ToolCall]:
    """The call that begins at a segment, and the place behind it."""
    opening = [part.text for part in segments[place : place + 2] if part.control]
    end = place + 2
    while end < len(segments) and not segments[end].control:
        end += 1
    closed = end < len(segments) and segments[end].text == "<|action_end|>"
    if len(opening) < 2 or opening[0] != "<|action_start|>" or not closed:
        raise FormError
    text = "".join(part.text for part in segments[place + 2 : end])
    if opening[1] == "<|interpreter|>":
        return end + 1, ToolCall("interpreter", _between("\n```python\n", text, "\n```"))
    if opening[1] != "<|plugin|>":
        raise FormError
    return end + 1, _json_call(_between("\n", text, ""), "parameters")


def _hermes(segments: Sequence[Segment]) -> Found:
    text = "".join(part.text for part in segments)
    match = re.fullmatch(r"(.*?)((?:(?:^|\n)<tool_call>\n[^\n]*\n</tool_call>)+)", text, re.DOTALL)
    if match is None:
        raise FormError
    written = re.findall(r"<tool_call>\n([^\n]*)\n</tool_call>", match[2])
    return match[1], tuple(_json_call(one, "arguments") for one in written)


def _llama3(segments: Sequence[Segment]) -> Found:
    return "", (_json_call(_alone(segments), "parameters"),)


def _mistral(segments: Sequence[Segment]) -> Found:
    if not segments or not segments[0].control or segments[0].text != "[TOOL_CALLS]":
        raise FormError
    calls = json.loads(_alone(segments[1:]))
    if not isinstance(calls, list) or not calls:
        raise FormError
    return "", tuple(_call(one, "arguments", {"id"}) for one in calls)


def _chatglm3(segments: Sequence[Segment]) -> Found:
    text = "".join(part.text for part in segments)
    match = re.fullmatch(r"(?:\n (.*)<\|assistant\|>)?([^\n]+)\n ```python\n(.*)\n```", text, re.DOTALL)
    if match is None:
        raise FormError
    content, name, code = match[1] or "", match[2], match[3]
    return content, (ToolCall(name, code if name == "interpreter" else _keywords(code)),)


def _keywords(code: str) -> dict[str, Any]:
    """The arguments of `tool_call(name=literal, ...)`."""
    call = ast.parse(code, mode="eval").body
    if not isinstance(call, ast.Call) or call.args or ast.unparse(call.func) != "tool_call":
        raise FormError
    if any(keyword.arg is None for keyword in call.keywords):
        raise FormError
    return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}


def _alone(segments: Sequence[Segment]) -> str:
    if any(part.control for part in segments):
        raise FormError
    return "".join(part.text for part in segments)


def _between(before: str, text: str, after: str) -> str:
    if len(text) < len(before) + len(after) or not (text.startswith(before) and text.endswith(after)):
        raise FormError
    return text[len(before) : len(text) - len(after)]


def _json_call(text: str, key: str) -> ToolCall:
    return _call(json.loads(text), key, set())


def _call(value: Any, key: str, beside: set[str]) -> ToolCall:
    """A call of the object {name, KEY}; `beside`: what else may stand in it."""
    if not isinstance(value, dict) or set(value) - beside != {"name", key}:
        raise FormError
    if not isinstance(value["name"], str) or not value["name"] or not isinstance(value[key], dict):
        raise FormError
    return ToolCall(value["name"], value[key])


# by the template's name
READERS: dict[str, Reader] = {
    "internlm2": _internlm2,
    "internlm3": _internlm2,
    "chatml": _hermes,
    "qwen": _hermes,
    "llama3": _llama3,
    "mistral": _mistral,
    "chatglm3": _chatglm3,
}

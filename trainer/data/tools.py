"""How each chat format writes the functions a model may call, its calls, and what they returned. Pure.

A call is the model's own text, so it is trained; a result never is. JSON is written as transformers' `tojson` writes
it (no ASCII escapes, one blank after commas and colons), so that the Jinja of a template gives the same text.

Sources: InternLM2's chat_format.md and LMDeploy's InternLM2Chat7B; the chat_template of Qwen2.5-7B-Instruct (Hermes
form), Llama-3.1-8B-Instruct and Mistral-7B-Instruct-v0.3; ChatGLM3's PROMPT.md and tokenization_chatglm.py.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainer.data.message import Message, RowError, ToolCall
from trainer.data.segment import Segment

Tools = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class ToolForm:
    """The form of one family. `tokens`: special tokens it writes. `place`: where the functions are named: inside the
    first system turn (one is made when there is none), in a turn of their own after it, or in front of the first
    user's message. `declare` gets the functions and whether a system message stands before them; `call` an assistant's
    message with calls, whether it is trained, and the number of calls before it; `result` the messages and the index
    of a tool's. `named`: a system or user turn whose header names its channel. The `jinja_*` are the same in Jinja."""

    tokens: tuple[str, ...]
    place: Literal["system", "turn", "front"]
    declare: Callable[[Tools, bool], list[Segment]]
    call: Callable[[Message, bool, int], list[Segment]]
    result: Callable[[Sequence[Message], int], list[Segment]]
    jinja_declare: str
    jinja_call: str
    jinja_result: str
    named: Callable[[str, str, str], list[Segment]] | None = None
    jinja_named: str = ""
    end: str = ""  # ends an answer with calls, where another token ends plain answers


def split_text(text: str, tokens: Sequence[str], trained: bool = False) -> list[Segment]:
    """A template's own text as segments, one for each special token in it."""
    longest_first = sorted(tokens, key=len, reverse=True)
    parts = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text) if tokens else [text]
    return [Segment(part, trained, control=part in tokens) for part in parts if part]


def check_result(messages: Sequence[Message], index: int) -> None:
    """Raise RowError when a tool's message answers no call."""
    before = messages[index - 1] if index else None
    if before is None or not (before.calls or before.role == "tool"):
        raise RowError(f"messages[{index}].role", "tool without a call before it", "tool after an assistant's calls")


def calls_before(messages: Sequence[Message], index: int) -> int:
    """The number of calls in the messages before `index`."""
    return sum(len(message.calls) for message in messages[:index])


def _dumps(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _wrapped(tools: Tools) -> list[dict[str, Any]]:
    """As OpenAI's API and apply_chat_template hand functions over."""
    return [{"type": "function", "function": tool} for tool in tools]


def _json_call(call: ToolCall, key: str) -> str:
    arguments = call.arguments if isinstance(call.arguments, str) else _dumps(call.arguments)
    return f'{{"name": {_dumps(call.name)}, "{key}": {arguments}}}'


def _content(text: str, trained: bool = False) -> Segment:
    return Segment(text, trained, content=True)


def _jinja_json_call(key: str) -> str:
    return (
        '{{ \'{"name": \' + call.function.name|tojson + \', "' + key + "\": ' + (call.function.arguments if "
        "call.function.arguments is string else call.function.arguments|tojson) + '}' }}"
    )


# --- InternLM2 and 2.5: names in the turns' headers, special tokens around calls ---

_IM_START, _IM_END = Segment("<|im_start|>", control=True), Segment("<|im_end|>", control=True)
_NEWLINE = Segment("\n")
_CHANNELS = {
    "plugin": Segment("<|plugin|>", control=True),
    "interpreter": Segment("<|interpreter|>", control=True),
    "file": Segment("file"),
}


def _internlm2_turn(role: str, channel: str, content: str) -> list[Segment]:
    header = [_IM_START, Segment(f"{role} name="), _CHANNELS.get(channel, _CHANNELS["plugin"]), _NEWLINE]
    return [*header, _content(content), _IM_END, _NEWLINE]


def _internlm2_declare(tools: Tools, after_system: bool) -> list[Segment]:
    return _internlm2_turn("system", "plugin", _dumps(list(tools)))


def _is_code(call: ToolCall) -> bool:
    return call.name == "interpreter" and isinstance(call.arguments, str)


def _internlm2_call(message: Message, trained: bool, number: int) -> list[Segment]:
    def control(text: str) -> Segment:
        return Segment(text, trained, control=True)

    segments = [_content(message.content, trained)] if message.content else []
    for call in message.calls:
        if _is_code(call):
            code = _content(call.arguments, trained)
            body = [control("<|interpreter|>"), Segment("\n```python\n", trained), code, Segment("\n```", trained)]
        else:
            written = _content(_json_call(call, "parameters"), trained)
            body = [control("<|plugin|>"), Segment("\n", trained), written]
        segments += [control("<|action_start|>"), *body, control("<|action_end|>")]
    return segments


def _internlm2_result(messages: Sequence[Message], index: int) -> list[Segment]:
    called = next(message for message in reversed(messages[:index]) if message.calls)
    channel = messages[index].channel or ("interpreter" if _is_code(called.calls[-1]) else "plugin")
    return _internlm2_turn("environment", channel, messages[index].content)


INTERNLM2 = ToolForm(
    tokens=("<|action_start|>", "<|action_end|>", "<|plugin|>", "<|interpreter|>"),
    place="turn",
    declare=_internlm2_declare,
    call=_internlm2_call,
    result=_internlm2_result,
    named=_internlm2_turn,
    jinja_declare=(
        "{{ '<|im_start|>system name=<|plugin|>\\n' + tools|map(attribute='function')|list|tojson + '<|im_end|>\\n' }}"
    ),
    jinja_call=(
        "{{ content }}{% for call in message['tool_calls'] %}"
        "{% if call.function.name == 'interpreter' and call.function.arguments is string %}"
        "{% set ns.channel = '<|interpreter|>' %}"
        "{{ '<|action_start|><|interpreter|>\\n```python\\n' + call.function.arguments + '\\n```<|action_end|>' }}"
        "{% else %}{% set ns.channel = '<|plugin|>' %}"
        "{{ '<|action_start|><|plugin|>\\n' }}" + _jinja_json_call("parameters") + "{{ '<|action_end|>' }}"
        "{% endif %}{% endfor %}"
    ),
    jinja_result=(
        "{{ '<|im_start|>environment name=' + channels.get(message['name'], ns.channel) + '\\n' + content"
        " + '<|im_end|>\\n' }}"
    ),
    jinja_named=(
        "{{ '<|im_start|>' + message['role'] + ' name=' + channels[message['name']] + '\\n' + content"
        " + '<|im_end|>\\n' }}"
    ),
)


# --- ChatML of Qwen2.5 and Hermes: XML-like tags in the system, assistant and user turns ---

_HERMES_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
_HERMES_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


def _hermes_declare(tools: Tools, after_system: bool) -> list[Segment]:
    lines = "\n".join(_dumps(tool) for tool in _wrapped(tools))
    before = "\n\n" + _HERMES_BEFORE if after_system else _HERMES_BEFORE
    return [Segment(before), _content(lines), Segment(_HERMES_AFTER)]


def _hermes_call(message: Message, trained: bool, number: int) -> list[Segment]:
    segments = [_content(message.content, trained)] if message.content else []
    for call in message.calls:
        opening = "\n<tool_call>\n" if segments else "<tool_call>\n"
        written = _content(_json_call(call, "arguments"), trained)
        segments += [Segment(opening, trained), written, Segment("\n</tool_call>", trained)]
    return segments


def _hermes_result(messages: Sequence[Message], index: int) -> list[Segment]:
    """Results that follow each other stand in one user turn."""
    first = messages[index - 1].role != "tool"
    last = index + 1 == len(messages) or messages[index + 1].role != "tool"
    segments = [_IM_START, Segment("user")] if first else []
    segments += [Segment("\n<tool_response>\n"), _content(messages[index].content), Segment("\n</tool_response>")]
    return [*segments, _IM_END, _NEWLINE] if last else segments


HERMES = ToolForm(
    tokens=(),
    place="system",
    declare=_hermes_declare,
    call=_hermes_call,
    result=_hermes_result,
    jinja_declare=(
        "{% if after_system %}{{ '\\n\\n' }}{% endif %}{{ "
        + _dumps(_HERMES_BEFORE)
        + " }}{% for tool in tools %}{{ tool|tojson }}{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}{{ "
        + _dumps(_HERMES_AFTER)
        + " }}"
    ),
    jinja_call=(
        "{{ content }}{% for call in message['tool_calls'] %}"
        "{% if content or not loop.first %}{{ '\\n' }}{% endif %}{{ '<tool_call>\\n' }}"
        + _jinja_json_call("arguments")
        + "{{ '\\n</tool_call>' }}{% endfor %}"
    ),
    jinja_result=(
        "{% if messages[loop.index0 - 1]['role'] != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
        "{{ '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}"
        "{% if loop.last or messages[loop.index]['role'] != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}"
    ),
)

"""How each chat format writes the functions a model may call, its calls, and what they returned. Pure.

A call is the model's own text, so it is trained; a result never is. JSON is written as transformers' `tojson` writes
it (no ASCII escapes, one blank after commas and colons), so that the Jinja of a template gives the same text.

Sources: InternLM2's chat_format.md and LMDeploy's InternLM2Chat7B; the chat_template of Qwen2.5-7B-Instruct (Hermes
form) and Llama-3.1-8B-Instruct; mistral-common's InstructTokenizerV3; ChatGLM3's PROMPT.md and tokenization_chatglm.py.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from trainer.data.message import Message, RowError, ToolCall
from trainer.data.segment import Segment

Tools = Sequence[dict[str, Any]]
TOOL_TEMPLATES = "internlm2, internlm3, chatml, qwen, llama3, mistral, chatglm3"


@dataclass(frozen=True)
class ToolForm:
    """The form of one family. `tokens`: special tokens it writes besides its template's (its segments are text in which
    the template finds them). `place`: where the functions are named: inside the
    first system turn (one is made when there is none), in a turn of their own after it, or in front of the first
    user's message. `declare` gets the functions and whether a system message stands before them; `call` and `result`
    the messages and the index of one with calls, or of a tool's; a call is what stands between the answer's header and
    its end. `end` ends an answer with calls, where another token ends plain ones. `named`: a system or user turn whose
    header names its channel. The `jinja_*` are the same in Jinja."""

    tokens: tuple[str, ...]
    place: Literal["system", "turn", "front"]
    declare: Callable[[Tools, bool], list[Segment]]
    call: Callable[[Sequence[Message], int], list[Segment]]
    result: Callable[[Sequence[Message], int], list[Segment]]
    jinja_declare: str
    jinja_call: str
    jinja_result: str
    named: Callable[[str, str, str], list[Segment]] | None = None
    jinja_named: str = ""
    jinja_start: str = ""
    end: str = ""


def check_result(messages: Sequence[Message], index: int) -> None:
    """Raise RowError when a tool's message answers no call."""
    before = messages[index - 1] if index else None
    if before is None or not (before.calls or before.role == "tool"):
        raise RowError(f"messages[{index}].role", "tool without a call before it", "tool after an assistant's calls")


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


def _alone(messages: Sequence[Message], index: int, family: str, one: bool) -> None:
    """Raise RowError for text beside a call, or several calls at once, which the makers' templates refuse or lose."""
    message = messages[index]
    if message.content.strip():
        raise RowError(f"messages[{index}].content", "text beside a call", f"a call alone ({family} writes no text)")
    if one and len(message.calls) > 1:
        raise RowError(f"messages[{index}].tool_calls", f"{len(message.calls)} calls", f"one call a turn ({family})")


# name and arguments of `call` as a JSON object; KEY is what the family calls the arguments
_JINJA_JSON_CALL = """\
{{ '{"name": ' + call.function.name|tojson + ', "KEY": ' }}\
{{ call.function.arguments if call.function.arguments is string else call.function.arguments|tojson }}{{ '}' }}"""


# --- InternLM2 and 2.5: names in the turns' headers, special tokens around calls ---

_CHANNELS = {"plugin": "<|plugin|>", "interpreter": "<|interpreter|>", "file": "file"}


def _internlm2_turn(role: str, channel: str, content: str) -> list[Segment]:
    name = _CHANNELS.get(channel, "<|plugin|>")
    return [Segment(f"<|im_start|>{role} name={name}\n"), _content(content), Segment("<|im_end|>\n")]


def _internlm2_declare(tools: Tools, after_system: bool) -> list[Segment]:
    return _internlm2_turn("system", "plugin", _dumps(list(tools)))


def _is_code(call: ToolCall) -> bool:
    return call.name == "interpreter" and isinstance(call.arguments, str)


def _internlm2_call(messages: Sequence[Message], index: int) -> list[Segment]:
    message, trained = messages[index], messages[index].loss
    segments = [_content(message.content, trained)] if message.content else []
    for call in message.calls:
        if _is_code(call):
            before, written, after = "<|interpreter|>\n```python\n", call.arguments, "\n```<|action_end|>"
        else:
            before, written, after = "<|plugin|>\n", _json_call(call, "parameters"), "<|action_end|>"
        opening = Segment("<|action_start|>" + before, trained)
        segments += [opening, _content(written, trained), Segment(after, trained)]
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
    jinja_start="{% set channels = " + _dumps(_CHANNELS) + " %}",
    jinja_declare=(
        "{{ '<|im_start|>system name=<|plugin|>\\n' + tools|map(attribute='function')|list|tojson + '<|im_end|>\\n' }}"
    ),
    jinja_call=(
        "{{ content }}{% for call in message['tool_calls'] %}"
        "{% if call.function.name == 'interpreter' and call.function.arguments is string %}"
        "{% set ns.channel = '<|interpreter|>' %}"
        "{{ '<|action_start|><|interpreter|>\\n```python\\n' + call.function.arguments + '\\n```<|action_end|>' }}"
        "{% else %}{% set ns.channel = '<|plugin|>' %}"
        "{{ '<|action_start|><|plugin|>\\n' }}"
        + _JINJA_JSON_CALL.replace("KEY", "parameters")
        + "{{ '<|action_end|>' }}"
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


def _hermes_call(messages: Sequence[Message], index: int) -> list[Segment]:
    message, trained = messages[index], messages[index].loss
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
    before = "<|im_start|>user\n<tool_response>\n" if first else "\n<tool_response>\n"
    after = "\n</tool_response><|im_end|>\n" if last else "\n</tool_response>"
    return [Segment(before), _content(messages[index].content), Segment(after)]


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
        + _JINJA_JSON_CALL.replace("KEY", "arguments")
        + "{{ '\\n</tool_call>' }}{% endfor %}"
    ),
    jinja_result=(
        "{% if messages[loop.index0 - 1]['role'] != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
        "{{ '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}"
        "{% if loop.last or messages[loop.index]['role'] != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}"
    ),
)
# the tags are tokens of Qwen's own tokenizers (2.5 and later)
QWEN = replace(HERMES, tokens=("<tool_call>", "</tool_call>"))


# --- Llama 3.1: functions in the first user turn, one bare JSON object as a call, the role ipython ---

_LLAMA3_ASK = (
    "Given the following functions, please respond with a JSON for a function call "
    "with its proper arguments that best answers the given prompt.\n\n"
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
    "Do not use variables.\n\n"
)


def _llama3_declare(tools: Tools, after_system: bool) -> list[Segment]:
    written = "".join(_dumps(tool, indent=4) + "\n\n" for tool in _wrapped(tools))
    return [Segment(_LLAMA3_ASK), _content(written)]


def _llama3_call(messages: Sequence[Message], index: int) -> list[Segment]:
    _alone(messages, index, "llama3", one=True)
    return [_content(_json_call(messages[index].calls[0], "parameters"), messages[index].loss)]


def _llama3_result(messages: Sequence[Message], index: int) -> list[Segment]:
    """The result as a JSON string, quotes and all: so does Meta's own template."""
    header = Segment("<|start_header_id|>ipython<|end_header_id|>\n\n")
    return [header, _content(_dumps(messages[index].content)), Segment("<|eot_id|>")]


_JINJA_ALONE = "{% if content|trim %}{{ raise_exception('A call stands alone, without text.') }}{% endif %}"
_JINJA_ONE = (
    "{% if message['tool_calls']|length > 1 %}{{ raise_exception('One call a turn.') }}{% endif %}"
    "{% set call = message['tool_calls'][0] %}"
)
LLAMA3 = ToolForm(
    tokens=(),
    place="front",
    declare=_llama3_declare,
    call=_llama3_call,
    result=_llama3_result,
    jinja_declare=(
        "{{ " + _dumps(_LLAMA3_ASK) + " }}{% for tool in tools %}{{ tool|tojson(indent=4) + '\\n\\n' }}{% endfor %}"
    ),
    jinja_call=_JINJA_ALONE + _JINJA_ONE + _JINJA_JSON_CALL.replace("KEY", "parameters"),
    jinja_result="{{ '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + content|tojson + '<|eot_id|>' }}",
)


# --- Mistral v3 tokenizers: a token around each part; calls are numbered where the makers' clients draw an id ---


def _mistral_declare(tools: Tools, after_system: bool) -> list[Segment]:
    return [Segment("[AVAILABLE_TOOLS] "), _content(_dumps(_wrapped(tools))), Segment("[/AVAILABLE_TOOLS]")]


def _mistral_call(messages: Sequence[Message], index: int) -> list[Segment]:
    _alone(messages, index, "mistral", one=False)
    message, number = messages[index], sum(len(before.calls) for before in messages[:index])
    written = [
        f'{_json_call(call, "arguments")[:-1]}, "id": "{number + place:09}"}}'
        for place, call in enumerate(message.calls)
    ]
    return [Segment("[TOOL_CALLS] ", message.loss), _content(f"[{', '.join(written)}]", message.loss)]


def _mistral_result(messages: Sequence[Message], index: int) -> list[Segment]:
    """JSON objects and lists as they are, other text as a JSON string. (mistral-common parses every JSON value, which
    Jinja cannot: a result that is a bare number is quoted here.)"""
    number = sum(before.role == "tool" for before in messages[:index])
    content = messages[index].content
    written = content if content.startswith(("{", "[")) else _dumps(content)
    after = f', "call_id": "{number:09}"}}[/TOOL_RESULTS]'
    return [Segment('[TOOL_RESULTS] {"content": '), _content(written), Segment(after)]


MISTRAL = ToolForm(
    tokens=("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    place="turn",
    declare=_mistral_declare,
    call=_mistral_call,
    result=_mistral_result,
    jinja_declare="{{ '[AVAILABLE_TOOLS] ' + tools|tojson + '[/AVAILABLE_TOOLS]' }}",
    jinja_call=(
        _JINJA_ALONE
        + "{{ '[TOOL_CALLS] [' }}{% for call in message['tool_calls'] %}"
        + _JINJA_JSON_CALL.replace("KEY", "arguments").replace("{{ '}' }}", "")
        + '{{ \', "id": "%09d"}\'|format(ns.calls) }}{% set ns.calls = ns.calls + 1 %}'
        "{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}{{ ']' }}"
    ),
    jinja_result=(
        "{{ '[TOOL_RESULTS] {\"content\": ' }}{{ content if content[:1] in ['{', '['] else content|tojson }}"
        '{{ \', "call_id": "%09d"}[/TOOL_RESULTS]\'|format(ns.results) }}{% set ns.results = ns.results + 1 %}'
    ),
)


# --- ChatGLM3: functions in the system turn, a call as Python code under the function's name ---

_CHATGLM3_ASK = "Answer the following questions as best as you can. You have access to the following tools:"


def _chatglm3_declare(tools: Tools, after_system: bool) -> list[Segment]:
    return [Segment("\n" if after_system else _CHATGLM3_ASK + "\n"), _content(_dumps(list(tools), indent=4))]


def _chatglm3_code(call: ToolCall, index: int) -> str:
    if _is_code(call):
        return str(call.arguments)
    if not isinstance(call.arguments, dict):
        raise RowError(f"messages[{index}].tool_calls", "arguments that are no object", "an object (chatglm3)")
    written = [
        f"{key}={_dumps(value) if isinstance(value, str) else repr(value)}" for key, value in call.arguments.items()
    ]
    return f"tool_call({', '.join(written)})"


def _chatglm3_call(messages: Sequence[Message], index: int) -> list[Segment]:
    message, trained = messages[index], messages[index].loss
    if len(message.calls) > 1:
        raise RowError(f"messages[{index}].tool_calls", f"{len(message.calls)} calls", "one call a turn (chatglm3)")
    segments = []
    if message.content:
        said = [Segment("\n ", trained), _content(message.content, trained)]
        segments += [*said, Segment("<|assistant|>", trained)]
    code = _content(_chatglm3_code(message.calls[0], index), trained)
    opening = Segment("\n ```python\n", trained)
    return [*segments, _content(message.calls[0].name, trained), opening, code, Segment("\n```", trained)]


def _chatglm3_result(messages: Sequence[Message], index: int) -> list[Segment]:
    return [Segment("<|observation|>\n "), _content(messages[index].content)]


CHATGLM3 = ToolForm(
    tokens=(),
    place="system",
    declare=_chatglm3_declare,
    call=_chatglm3_call,
    result=_chatglm3_result,
    end="<|observation|>",
    jinja_declare=(
        "{% if not after_system %}{{ " + _dumps(_CHATGLM3_ASK) + " }}{% endif %}"
        "{{ '\\n' + tools|map(attribute='function')|list|tojson(indent=4) }}"
    ),
    jinja_call=(
        _JINJA_ONE + "{% if content %}{{ '\\n ' + content + '<|assistant|>' }}{% endif %}"
        "{{ call.function.name + '\\n ```python\\n' }}{% if call.function.arguments is string %}"
        "{{ call.function.arguments }}{% else %}{{ 'tool_call(' }}"
        "{% for key, value in call.function.arguments.items() %}{{ key + '=' }}"
        "{{ value|tojson if value is string else '%r'|format(value) }}{% if not loop.last %}{{ ', ' }}{% endif %}"
        "{% endfor %}{{ ')' }}{% endif %}{{ '\\n```' }}"
    ),
    jinja_result="{{ '<|observation|>\\n ' + content }}",
)

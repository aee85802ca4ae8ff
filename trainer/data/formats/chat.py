"""Formats that hold a list of turns. Pure.

Sources: `messages` of OpenAI's chat completions and fine-tuning APIs; ShareGPT's `conversations`, with the turns of
LLaMA-Factory's tool data sets; TRL's `prompt` and `completion`; the one text of openassistant-guanaco.
"""

import re
from typing import Any, NamedTuple

from trainer.data.formats.images import MARK, read_images
from trainer.data.formats.toolcalls import by_calls, read_call, read_calls, read_tools, unread_in_calls
from trainer.data.formats.turns import check_part, ordered, read_flags, turn_fields
from trainer.data.formats.values import Row, filled_text, items, misfit, optional_text, parsed, shown, text, unread
from trainer.data.message import Conversation, Message, RowError, ToolCall

OPENAI_ROLES = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
    "environment": "tool", "function": "tool",
}  # fmt: skip
OPENAI_KEYS = {
    "system": frozenset({"role", "content"}),
    "user": frozenset({"role", "content"}),
    "assistant": frozenset({"role", "content", "tool_calls", "function_call"}),
    "tool": frozenset({"role", "content", "tool_call_id"}),
}
CHANNELS = ("plugin", "interpreter", "file")
SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
    "function_call": "call", "observation": "tool", "tool": "tool",
}  # fmt: skip
SHAREGPT_KEYS = frozenset({"from", "value"})
GUANACO_ROLES = {"Human": "user", "Assistant": "assistant"}
GUANACO_MARK = re.compile(r"\s*### (Human|Assistant):\s*")


class Aside(NamedTuple):
    """What is gathered while turns are read: the images that are parts of them, and keys that no reader uses."""

    images: list[str]
    unread: list[str]


def read_messages(row: Row) -> Conversation:
    """OpenAI's `messages`: {role, content, tool_calls?, tool_call_id?, loss?}, and the columns system, tools (or
    functions) and images.

    Content is text, or parts of text and image_url; null in a message that only calls. `loss` false, or another flag of
    trainer.data.formats.turns, leaves an answer untrained. `function_call` and the role function, which the API had
    before tools, are a call and its result. InternLM2's role environment is tool, and its names plugin, interpreter and
    file are channels.
    """
    raws = items(row, "messages")
    aside = Aside([], [])
    turns = [_openai(raw, index, aside) for index, raw in enumerate(raws)]
    if any(turn.role == "tool" for turn in turns):
        turns = by_calls(turns, raws)
    return _conversation(row, turns, "messages", list(range(len(turns))), aside)


def read_completion(row: Row) -> Conversation:
    """TRL's `prompt` and `completion`, two texts or two lists of messages, and the columns of `messages`. Of the
    messages only the completion is trained, as in TRL."""
    if not isinstance(row.get("prompt"), list) and not isinstance(row.get("completion"), list):
        question, answer = filled_text(row, "prompt", "question"), filled_text(row, "completion", "answer")
        raws = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return read_messages({**row, "messages": raws})
    for column, other in (("prompt", "completion"), ("completion", "prompt")):
        if not isinstance(row.get(column), list):
            raise misfit(row, column, f"a list of messages as {other} has, or text in both")
    asked = [_asked(raw, index) for index, raw in enumerate(row["prompt"])]
    try:
        return read_messages({**row, "messages": [*asked, *row["completion"]]})
    except RowError as error:
        raise RowError(_column(error.field, len(asked)), error.got, error.expected) from error


def _asked(raw: Any, index: int) -> Any:
    """A message of the prompt, which is not trained whatever is unset. Raises RowError where it is to be."""
    if not isinstance(raw, dict):
        return raw
    flags = read_flags(raw, field := f"prompt[{index}]")
    if key := next((key for key, trained in flags.items() if trained), ""):
        got, expected = f"{shown(raw[key])} in the prompt", "no flag there: only the completion is trained"
        raise RowError(f"{field}.{key}", got, expected)
    return {**{key: value for key, value in raw.items() if key not in flags}, "loss": False}


def read_sharegpt(row: Row) -> Conversation:
    """`conversations`: {from, value, loss?}, and the columns system, tools (or functions), images or image.

    A function_call's value is the JSON text of {name, arguments} or of a list of them; right after an answer or another
    call it is part of that turn.
    """
    turns: list[Message] = []
    places: list[int] = []
    aside = Aside([], [])
    for index, raw in enumerate(items(row, "conversations")):
        turn = _sharegpt(raw, index, aside)
        if turn.calls and turns and turns[-1].role == "assistant":
            turns[-1] = _with_calls(turns[-1], turn, index)
        else:
            turns.append(turn)
            places.append(index)
    return _conversation(row, turns, "conversations", places, aside)


def read_guanaco(row: Row) -> Conversation:
    """`### Human: ...### Assistant: ...`; other `###`, such as Markdown headings in answers, stay as they are."""
    parts = GUANACO_MARK.split(text(row, "text"))
    if len(parts) == 1:
        raise RowError("text", shown(parts[0]), "'### Human: ...### Assistant: ...'")
    turns = [Message(GUANACO_ROLES[name], said.strip()) for name, said in zip(parts[1::2], parts[2::2], strict=True)]
    before = parts[0].strip()
    return ordered([Message("system", before), *turns] if before else turns, "text")


def _conversation(row: Row, turns: list[Message], column: str, places: list[int], aside: Aside) -> Conversation:
    """The turns in legal order, with the row's system text, tools and images."""
    if row.get("system") is not None:
        _put_system(row, turns, column, places)
    kept = ordered(turns, column, places)
    tools = read_tools(row, aside.unread) if "tools" in row or "functions" in row else ()
    images = read_images(row, turns, kept.messages, aside.images)
    return Conversation(kept.messages, tools, images, kept.notes, tuple(dict.fromkeys(aside.unread)))


def _put_system(row: Row, turns: list[Message], column: str, places: list[int]) -> None:
    """Put the text of the column system in front of turns without one. Raises RowError when they have another."""
    said = optional_text(row, "system")
    own = next((turn.content for turn in turns if turn.role == "system" and not turn.channel), None)
    if own is None and said.strip():
        turns.insert(0, Message("system", said))
        places.insert(0, 0)
    elif own is not None and said.strip() not in ("", own.strip()):
        raise RowError("system", shown(said), f"the system text that {column} has ({shown(own)}), or one of the two")


def _openai(raw: Any, index: int, aside: Aside) -> Message:
    if not isinstance(raw, dict):
        raise RowError(f"messages[{index}]", shown(raw), "an object {role, content}")
    field, said = f"messages[{index}]", raw.get("role")
    if not isinstance(said, str) or said not in OPENAI_ROLES:
        _check_keys(raw, field, "from", "role, or in the job format: sharegpt and columns: {conversations: messages}")
        raise RowError(f"{field}.role", shown(said), ", ".join(OPENAI_ROLES))
    role = OPENAI_ROLES[said]
    loss, extra = turn_fields(raw, field, role, OPENAI_KEYS[role])
    calls = _calls(raw, field, aside) if role == "assistant" else ()
    content = raw.get("content")
    if not isinstance(content, str):
        content = "" if content is None and calls else _joined(f"{field}.content", content, aside)
    if role != "assistant" and extra.get("name") in CHANNELS:
        rest = {key: value for key, value in extra.items() if key != "name"}
        return Message(role, content, channel=extra["name"], extra=rest)
    return Message(role, content, loss if role == "assistant" else True, calls, extra=extra)


def _calls(raw: Row, field: str, aside: Aside) -> tuple[ToolCall, ...]:
    called, older = raw.get("tool_calls"), raw.get("function_call")
    if not called and not older:
        return () if called is None else read_calls(f"{field}.tool_calls", called)
    if called and older:
        raise RowError(f"{field}.function_call", "a call beside tool_calls", "one of the two")
    calls = (read_call(f"{field}.function_call", older),) if older else read_calls(f"{field}.tool_calls", called)
    aside.unread.extend(unread_in_calls("messages[].", [older] if older else called or []))
    return calls


def _joined(field: str, content: Any, aside: Aside) -> str:
    """Parts of a message as one text; the addresses of its images are put aside."""
    if not isinstance(content, list):
        raise RowError(field, shown(content), "text, or a list of text and image_url parts")
    return "".join(_part(f"{field}[{index}]", part, aside) for index, part in enumerate(content))


def _part(field: str, part: Any, aside: Aside) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("text", "image_url"):
        raise RowError(f"{field}.type", shown(kind), "text, image_url")
    check_part(part, field)
    aside.unread.extend(unread("messages[].content[].", part, {"type", kind}))
    if kind == "text":
        return _inside(f"{field}.text", part.get("text"))
    address = part.get("image_url")
    if isinstance(address, dict):
        aside.unread.extend(unread("messages[].content[].image_url.", address, {"url"}))
        address = address.get("url")
    aside.images.append(_inside(f"{field}.image_url.url", address))
    return MARK


def _inside(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RowError(field, shown(value), "text")
    return value


def _sharegpt(raw: Any, index: int, aside: Aside) -> Message:
    if not isinstance(raw, dict):
        raise RowError(f"conversations[{index}]", shown(raw), "an object {from, value}")
    field, said, value = f"conversations[{index}]", raw.get("from"), raw.get("value")
    if not isinstance(said, str) or said not in SHAREGPT_ROLES:
        _check_keys(raw, field, "role", "from, or in the job format: messages and columns: {messages: conversations}")
        raise RowError(f"{field}.from", shown(said), ", ".join(SHAREGPT_ROLES))
    if not isinstance(value, str):
        raise RowError(f"{field}.value", shown(value), "text")
    role = SHAREGPT_ROLES[said]
    loss, extra = turn_fields(raw, field, "assistant" if role == "call" else role, SHAREGPT_KEYS)
    if role != "call":
        return Message(role, value, loss if role == "assistant" else True, extra=extra)
    return Message("assistant", "", loss, _written_calls(f"{field}.value", value, aside), extra=extra)


def _written_calls(field: str, value: str, aside: Aside) -> tuple[ToolCall, ...]:
    """The calls in a function_call's JSON text."""
    found = parsed(field, value)
    if not found:
        raise RowError(field, shown(found), "{name, arguments} or a list of them")
    calls = read_calls(field, found) if isinstance(found, list) else (read_call(field, found),)
    aside.unread.extend(unread_in_calls("conversations[].value.", found if isinstance(found, list) else [found]))
    return calls


def _with_calls(turn: Message, called: Message, index: int) -> Message:
    if turn.loss != called.loss:
        raise RowError(f"conversations[{index}]", "another loss flag than the turn that it is part of", "the same flag")
    return turn._replace(calls=turn.calls + called.calls, extra={**turn.extra, **called.extra})


def _check_keys(raw: Row, field: str, key: str, expected: str) -> None:
    """Raise RowError for a turn with a key of the other format."""
    if key in raw:
        raise RowError(field, f"a turn with the key {key}", expected)


def _column(field: str, asked: int) -> str:
    """Where a message of prompt and completion is; the first `asked` are the prompt's."""
    found = re.fullmatch(r"messages(?:\[(\d+)\](.*))?", field, re.DOTALL)
    if not found or found[1] is None:
        return "completion" if found else field
    index = int(found[1])
    return f"prompt[{index}]{found[2]}" if index < asked else f"completion[{index - asked}]{found[2]}"
